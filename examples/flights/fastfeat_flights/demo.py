"""What `fastfeat demo` asks: each flight's features as it was about to leave, and whether any row is from later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa

from fastfeat import Status, Store
from fastfeat.definitions import Definition
from fastfeat.result import Result

from . import definitions

SERVICE = definitions.departure_delay
VIEWS = tuple(dict.fromkeys(feature.view for feature in SERVICE.features))  # names, in order of first use
FEATURE_VIEWS = [
    definitions.weather,
    definitions.aircraft,
    definitions.last_aircraft_delay,
    definitions.last_airport_delay,
]
DEFINITIONS: list[Definition] = [*FEATURE_VIEWS, SERVICE]

LEAD = timedelta(hours=1)  # no flight of the year left more than 43 minutes early


@dataclass(frozen=True)
class Questions:
    """One question per flight: which entity, at which moment."""

    origins: list[str]
    tailnums: list[str]
    moments_us: np.ndarray  # ascending
    departed_us: np.ndarray  # when the flight left in fact; -1 where it never did

    def __len__(self) -> int:
        return len(self.origins)

    def entity(self, i: int) -> dict[str, str]:
        return {"origin": self.origins[i], "tailnum": self.tailnums[i]}

    def entities(self, start: int, stop: int) -> dict[str, list[str]]:
        return {"origin": self.origins[start:stop], "tailnum": self.tailnums[start:stop]}

    def moments(self) -> Iterator[tuple[int, int, int]]:
        """(start, stop, moment_us) of each run of questions about one moment."""
        edges = [0, *(np.flatnonzero(np.diff(self.moments_us)) + 1).tolist(), len(self)]
        for start, stop in pairwise(edges):
            yield start, stop, int(self.moments_us[start])

    def earlier(self, lead: timedelta) -> Questions:
        """The same questions, each asked sooner."""
        return replace(self, moments_us=self.moments_us - lead // timedelta(microseconds=1))


def questions(flights: pa.Table) -> Questions:
    """A question for every flight, cancelled ones too: what is known as it is scheduled to leave.

    An unknown tail number becomes "", which no aircraft has: a key may not be null, and NOT_FOUND is the true answer.
    """
    ordered = flights.sort_by("scheduled")
    return Questions(
        origins=ordered["origin"].to_pylist(),
        tailnums=[tailnum or "" for tailnum in ordered["tailnum"].to_pylist()],
        moments_us=ordered["scheduled"].cast(pa.int64()).to_numpy(),
        departed_us=ordered["departed"].cast(pa.int64()).fill_null(-1).to_numpy(),
    )


def event_times_then(
    store: Store, asked: Questions, advance: Callable[[int], object] = lambda _: None
) -> dict[str, np.ndarray]:
    """View -> the event time of the row that answers each question as of its moment; 0 where none lives.

    advance: called with the number of questions just answered.
    """
    times = {view: np.zeros(len(asked), dtype=np.int64) for view in VIEWS}
    for start, stop, moment_us in asked.moments():
        result = store.get_online_features(SERVICE, asked.entities(start, stop), as_of=moment_us)
        for view in VIEWS:
            times[view][start:stop] = living(result, view)
        advance(stop - start)
    return times


def event_times_now(store: Store, asked: Questions) -> dict[str, np.ndarray]:
    """View -> the event time of the row that a reader of "now" gets for each question; 0 where none lives."""
    result = store.get_online_features(SERVICE, asked.entities(0, len(asked)))
    return {view: living(result, view) for view in VIEWS}


def living(result: Result, view: str) -> np.ndarray:
    """The event times of a view's rows, 0 where the status is not PRESENT (a row that expired answers nothing)."""
    return np.where(result.statuses[view] == Status.PRESENT, result.event_times[view], 0)


def leaks(times: dict[str, np.ndarray], asked: Questions) -> dict[str, int]:
    """View -> how many questions were answered with a row from after their moment."""
    return {view: int((times[view] > asked.moments_us).sum()) for view in VIEWS}


def own_departures(times: dict[str, np.ndarray], asked: Questions) -> int:
    """How many flights' own departure is the last one of their aircraft in the answer.

    No row from later, and still the label itself: a flight that left early has left by its scheduled departure.
    """
    return int((times[definitions.last_aircraft_delay.name] == asked.departed_us).sum())
