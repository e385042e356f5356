"""Arrival order never changes an answer: any order, any split into pushes and loads, late or early, deletes between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat import BeforeHistory, Entity, FeatureView, Field, Store

from .model import Key, Model, check_equal
from .strategies import SPANS, START_US, WIDE, row_dicts, row_table

USER = Entity("user", {"user_id": "int64"})
KEYS: list[Key] = [(1,), (2,)]
CAPACITY = 32 << 20


def values_of(number: int, view: FeatureView) -> dict[str, Any]:
    """A row's values, all told by its number."""
    every = {"x": number, "name": "n" * (number % 5), "wide": [float(number)] * 600}
    return {f.name: every[f.name] for f in view.schema}


@dataclass(frozen=True)
class Arrival:
    """One write: rows to load with declared created times, rows to push, or keys to delete, at the clock's `now_us`."""

    kind: str
    now_us: int
    rows: Sequence[tuple[Key, int, int, int]] = ()  # key, event_us, created_us, number
    key: Key = (0,)


@dataclass(frozen=True)
class History:
    view: FeatureView
    arrivals: Sequence[Arrival]

    @property
    def rows(self) -> list[tuple[Key, int, int, int]]:
        return [row for arrival in self.arrivals for row in arrival.rows]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Rows with created times all different; some pushed or deleted in that order, the others loaded at any moment."""
    fields = [Field("x", "int64"), Field("name", "string"), *([WIDE] if draw(st.booleans()) else [])]
    ttl = draw(st.none() | st.sampled_from([timedelta(0), timedelta(microseconds=2)]))
    keep: Any = draw(st.sampled_from(["all", "all", "latest", 2, *SPANS]))
    view = FeatureView("v", USER, fields, ttl=ttl, keep=keep)
    kinds = draw(st.lists(st.sampled_from(["load", "load", "load", "push", "push", "delete"]), min_size=1, max_size=24))
    scheduled: list[Arrival] = []
    to_load: list[tuple[Key, int, int, int]] = []
    for number, kind in enumerate(kinds):
        now_us = START_US + 3 * number
        key = draw(st.sampled_from(KEYS))
        row = (key, START_US + draw(st.integers(0, 20)), now_us, number)
        if kind == "load":
            to_load.append(row)
        elif kind == "push":
            scheduled.append(Arrival("push", now_us, rows=[row]))
        else:
            scheduled.append(Arrival("delete", now_us, key=key))
    return History(view, list(interleaved(draw, scheduled, draw(st.permutations(to_load)))))


def interleaved(
    draw: st.DrawFn, scheduled: Sequence[Arrival], to_load: Sequence[tuple[Key, int, int, int]]
) -> Iterator[Arrival]:
    """The scheduled writes in their order, the rows to load between them in chunks of any size."""
    waiting = list(to_load)
    now_us = START_US
    for arrival in [*scheduled, None]:
        while waiting and (arrival is None or draw(st.booleans())):
            size = draw(st.integers(1, len(waiting)))
            yield Arrival("load", now_us, rows=waiting[:size])
            del waiting[:size]
        if arrival is not None:
            now_us = arrival.now_us
            yield arrival


class Clocked:
    """A store on a clock that arrivals drive."""

    def __init__(self, view: FeatureView) -> None:
        self.now_us = START_US
        self.view = view
        self.store = Store(CAPACITY, clock=lambda: self.now_us)
        self.store.apply(view)

    def take(self, arrival: Arrival) -> None:
        self.now_us = arrival.now_us
        rows = [(key, event_us, values_of(number, self.view)) for key, event_us, _, number in arrival.rows]
        if arrival.kind == "load":
            created = [created_us for _, _, created_us, _ in arrival.rows]
            self.store.load("v", row_table(self.view, rows, created), created_time="created")
        elif arrival.kind == "push":
            assert self.store.push("v", row_dicts(self.view, rows)) == arrival.now_us
        else:
            self.store.delete("v", [{"user_id": arrival.key[0]}])

    def read(self, key: Key, as_of_us: int, known_at_us: int | None) -> tuple[int, int, int | None] | None:
        """Status, event time and x; None where history is refused."""
        try:
            result = self.store.get_online_features(
                ["v:x"], {"user_id": list(key)}, as_of=as_of_us, known_at=known_at_us
            )
        except BeforeHistory:
            return None
        x = result.to_dict()["v:x"][0]
        return int(result.statuses["v"][0]), int(result.event_times["v"][0]), x


def model_of(history: History) -> Model:
    """The oracle after the same rows, each with its created time, in created order."""
    model = Model()
    model.apply(history.view)
    for key, event_us, created_us, number in sorted(history.rows, key=lambda row: row[2]):
        model.load("v", [(key, event_us, created_us, values_of(number, history.view))], START_US)
    for arrival in history.arrivals:
        if arrival.kind == "delete":
            model.delete("v", [arrival.key], arrival.now_us)
    return model


@given(histories())
def test_any_arrival_gives_the_oracles_answers(history: History) -> None:
    clocked, model = Clocked(history.view), model_of(history)
    for arrival in history.arrivals:
        clocked.take(arrival)
    moments = sorted({event_us + span for _, event_us, _, _ in history.rows for span in (-1, 0, 1, 2, 3)} | {START_US})
    known = [None, *sorted({created_us - span for _, _, created_us, _ in history.rows for span in (0, 1)})[::3]]
    for as_of_us in moments:
        for known_at_us in known:
            for key in KEYS:
                got = clocked.read(key, as_of_us, known_at_us)
                answer = model.read("v", key, as_of_us, known_at_us, clocked.now_us)
                expected = (answer.status, answer.event_us, None if answer.values is None else answer.values["x"])
                if got is None:
                    assert history.view.keep != "all"
                else:
                    check_equal(got, expected, f"{key} at T={as_of_us}, K={known_at_us}")


ORDERS = ["sorted", "reversed", "random", "halves"]
ROWS = 600


def order_of(name: str) -> list[int]:
    numbers = list(range(ROWS))
    if name == "halves":
        return [*numbers[::2], *numbers[1::2]]
    if name == "random":
        return list(map(int, np.random.default_rng(7).permutation(ROWS)))
    return numbers if name == "sorted" else numbers[::-1]


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("order", ORDERS)
def test_one_entity_of_many_blocks_is_the_same_in_any_order(order: str, size: int) -> None:
    """Pairs of rows share an event time, and the later created one of a pair answers once it is known."""
    view = FeatureView("v", USER, [Field("x", "int64"), Field("name", "string"), WIDE])
    clocked = Clocked(view)
    rows = [(KEYS[0], START_US + number // 2, START_US + number, number) for number in range(ROWS)]
    arriving = [rows[number] for number in order_of(order)]
    for at in range(0, ROWS, size):
        clocked.take(Arrival("load", START_US, rows=arriving[at : at + size]))
    for number in range(ROWS):
        event_us = START_US + number // 2
        assert clocked.read(KEYS[0], event_us, None) == (0, event_us, number | 1)
        assert clocked.read(KEYS[0], event_us, START_US + number) == (0, event_us, number)
        earlier = clocked.read(KEYS[0], START_US + ROWS, START_US + number)
        assert earlier == (0, event_us, number)
