"""What `fastfeat demo` asks: each flight's features before it left, and whether any row is from later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fastfeat import FeatureView, Status, Store
from fastfeat.definitions import Definition

from . import definitions

SERVICE = definitions.late_arrival
FEATURE_VIEWS: list[FeatureView] = [
    definitions.weather,
    definitions.aircraft,
    definitions.airport_departures,
    definitions.aircraft_departures,
    definitions.airline_departures,
]
WINDOW_VIEWS = [definitions.airport_delays, definitions.aircraft_delays, definitions.airline_traffic]
DEFINITIONS: list[Definition] = [*FEATURE_VIEWS, *WINDOW_VIEWS, definitions.departure_clock, SERVICE]
VIEWS = ("weather", "aircraft", *(view.name for view in WINDOW_VIEWS))  # those of the service that rows answer
FROM_ROWS = [str(feature) for feature in SERVICE.features if feature.view in VIEWS]

LATE_MINUTES = 15
LEAD = timedelta(hours=1)  # no flight of the year left more than 43 minutes early


@dataclass(frozen=True)
class Questions:
    """One question per flight: which entity, at which moment."""

    origins: list[str]
    tailnums: list[str]
    carriers: list[str]
    scheduled_us: np.ndarray
    moments_us: np.ndarray  # ascending
    departed_us: np.ndarray  # when the flight left in fact; -1 where it never did
    is_late: np.ndarray  # whether it arrived more than LATE_MINUTES late, or not at all

    def __len__(self) -> int:
        return len(self.origins)

    def entity(self, i: int) -> dict[str, str | int]:
        return {
            "origin": self.origins[i],
            "tailnum": self.tailnums[i],
            "carrier": self.carriers[i],
            "scheduled": int(self.scheduled_us[i]),
        }

    def entities(self) -> dict[str, Any]:
        return {
            "origin": self.origins,
            "tailnum": self.tailnums,
            "carrier": self.carriers,
            "scheduled": self.scheduled_us,
        }

    def earlier(self, lead: timedelta) -> Questions:
        """The same questions, each asked sooner."""
        return replace(self, moments_us=self.moments_us - lead // timedelta(microseconds=1))


def questions(flights: pa.Table) -> Questions:
    """A question for every flight, cancelled ones too: what is known as it is scheduled to leave.

    An unknown tail number becomes "", which no aircraft has: a key may not be null, and NOT_FOUND is the true answer.
    """
    ordered = flights.sort_by("scheduled")
    scheduled_us = ordered["scheduled"].cast(pa.int64()).to_numpy()
    return Questions(
        origins=ordered["origin"].to_pylist(),
        tailnums=[tailnum or "" for tailnum in ordered["tailnum"].to_pylist()],
        carriers=ordered["carrier"].to_pylist(),
        scheduled_us=scheduled_us,
        moments_us=scheduled_us,
        departed_us=ordered["departed"].cast(pa.int64()).fill_null(-1).to_numpy(),
        is_late=pc.greater(ordered["arrival_delay_minutes"], LATE_MINUTES).fill_null(True).to_numpy(),
    )


def event_times_then(store: Store, asked: Questions) -> dict[str, np.ndarray]:
    """View -> the event time of the last row that counts for each question as of its moment; 0 where none lives.

    A plan answers questions about many moments at once, as training sets are made.
    """
    plan = store.plan(SERVICE)
    statuses, event_times, _ = plan.columns_at(asked.entities(), asked.moments_us, asked.moments_us)
    found = {view: np.where(statuses[i] == Status.PRESENT, event_times[i], 0) for i, view in enumerate(plan.views)}
    return {view: found[view] for view in VIEWS}


def event_times_now(store: Store, asked: Questions) -> dict[str, np.ndarray]:
    """View -> the event time of the row that a reader of "now" gets for each question; 0 where none lives."""
    result = store.get_online_features(SERVICE, asked.entities())
    return {view: np.where(result.statuses[view] == Status.PRESENT, result.event_times[view], 0) for view in VIEWS}


def leaks(times: dict[str, np.ndarray], asked: Questions) -> dict[str, int]:
    """View -> how many questions were answered with a row from after their moment."""
    return {view: int((times[view] > asked.moments_us).sum()) for view in VIEWS}


def own_departures(times: dict[str, np.ndarray], asked: Questions) -> int:
    """How many flights' own departure is the last one of their aircraft in the answer.

    No row from later, and still the label itself: a flight that left early has left by its scheduled departure. (One
    that left to the minute is in no window yet: a window ends just before its moment.)
    """
    is_own = times[definitions.aircraft_delays.name] == asked.departed_us
    return int((is_own & (asked.departed_us < asked.moments_us)).sum())
