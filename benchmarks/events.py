"""Events for windows: 350 per entity, at random moments of 30 days, each an amount in whole cents.

entity k  ->  about 350 events          six features: count and mean of the amount over 1, 7 and 30 days
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import numpy as np
import pyarrow as pa

from fastfeat import Aggregation, Entity, FeatureService, FeatureView, Field, Store, WindowView

from . import data

DAY_US: Final = 86_400_000_000
START_US: Final = data.EVENT_TIME_US
NOW_US: Final = START_US + 30 * DAY_US
ENTITIES: Final = 5_000
EVENTS_EACH: Final = 350
DAYS: Final = (1, 7, 30)
CARD: Final = Entity("card", {"card_id": "int64"})
PAYMENTS: Final = FeatureView(
    "payments", entity=CARD, kind="event", schema=[Field("amount", "float64", nullable=False)]
)
SPENDING: Final = WindowView(
    "spending",
    source=PAYMENTS,
    features=[Aggregation("amount", what, timedelta(days=days)) for days in DAYS for what in ("count", "mean")],
)
BALANCE: Final = FeatureView("balance", entity=CARD, schema=[Field(f"b{i}", "float64") for i in range(6)])
WINDOWS: Final = FeatureService("windows", [SPENDING])
POINT: Final = FeatureService("point", [BALANCE])


def events(entities: int, seed: int = data.SEED) -> pa.Table:
    """Unsorted, as a file of a stream may be."""
    rng = np.random.default_rng(seed)
    count = entities * EVENTS_EACH
    return event_table(
        rng.integers(0, entities, count),
        START_US + rng.integers(0, 30 * DAY_US, count),
        np.round(rng.lognormal(3, 1, count), 2),
    )


def event_table(keys: data.Integers, times_us: data.Integers, amounts: data.Floats) -> pa.Table:
    times = pa.array(times_us).cast(pa.timestamp("us", "UTC"))
    return pa.table({"card_id": keys, "event_timestamp": times, "amount": amounts})


def balances(entities: int) -> pa.Table:
    keys = np.arange(entities)
    times = pa.array(np.full(entities, START_US)).cast(pa.timestamp("us", "UTC"))
    columns = {f"b{i}": keys * 0.5 + i for i in range(6)}
    return pa.table({"card_id": keys, "event_timestamp": times, **columns})


def store_of(entities: int) -> Store:
    """A store in memory with the events and a plain view of six values beside them; its clock stands at NOW_US."""
    store = Store(clock=lambda: NOW_US)
    store.apply([PAYMENTS, SPENDING, BALANCE, WINDOWS, POINT])
    store.load(PAYMENTS, events(entities))
    store.load(BALANCE, balances(entities))
    return store
