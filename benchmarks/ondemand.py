"""On-demand features of one entity, in process: beside a plain read, and beside the function called on its own."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from fastfeat import FeatureService, Field, Store, on_demand_feature_view

from . import data, events
from .measure import Findings, Size, Subject, interleave


@on_demand_feature_view(
    inputs=[events.BALANCE["b0"]],
    request=[Field("price", "float64")],
    schema=[Field("left", "float64"), Field("share", "float64"), Field("is_covered", "bool")],
)
def purchase(inputs: Any) -> Any:
    left = inputs["b0"] - inputs["price"]
    return {"left": left, "share": inputs["price"] / inputs["b0"], "is_covered": left >= 0}


COMPUTED: Final = FeatureService("computed", [events.BALANCE["b0"], purchase])
STORED: Final = FeatureService("stored", [events.BALANCE[f"b{i}"] for i in range(4)])


def measure(size: Size) -> Findings:
    entities = min(size.entities, events.ENTITIES)
    store = Store(clock=lambda: events.NOW_US)
    store.apply([events.BALANCE, purchase, COMPUTED, STORED])
    store.load(events.BALANCE, events.balances(entities))
    keys = data.random_keys(entities, (size.calls[1],), 51)
    prices = np.round(np.random.default_rng(52).lognormal(3, 1, len(keys)), 2)
    rows = [{"card_id": key, "price": price} for key, price in zip(keys.tolist(), prices.tolist(), strict=True)]
    found = interleave(
        [
            Subject("fastfeat", lambda row: store.get_feature_vector("computed", row), rows),
            Subject("stored", lambda row: store.get_feature_vector("stored", row), rows),
            Subject("function", purchase.function, [{"b0": np.array([7.0]), "price": np.array([5.0])}]),
        ],
        size.calls[1],
        size.rounds,
    )
    findings = Findings(latencies={f"ondemand.1x4.{name}": latency for name, latency in found.items()})
    findings.bars["ondemand.1x4.p50_us"] = found["fastfeat"].at(50)
    answers = np.stack([store.get_feature_vector("computed", row) for row in rows])
    findings.checksums["ondemand.1x4"] = data.check_equal("fastfeat", expected(keys, prices), answers)
    return findings


def expected(keys: data.Integers, prices: data.Floats) -> data.Floats:
    """The answers, computed at once from what was loaded."""
    balance = keys * 0.5
    with np.errstate(divide="ignore"):
        return np.column_stack([balance, balance - prices, prices / balance, balance >= prices])
