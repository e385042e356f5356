"""The oracle: what every read must answer, in dicts and sorted lists: obviously right, never fast.

    view --key--> every row ever accepted --(T, K)--> last in (event_time, created_time, sequence) order --> answer
                                                  '-> all in a window before T, in that order (window_model.py)

It forgets nothing, so its answer is the unlimited store's. What retention lets a store forget is kept beside it: an
answer carries `may_refuse`, true where the rule let go of a row that the read could need. A store must then either give
this answer or raise BeforeHistory, and where `may_refuse` is false it must answer.
Source: docs/SEMANTICS.md.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from fastfeat.dtypes import DType
from fastfeat.durations import duration_us
from fastfeat.schema import FeatureView, Keep, WindowView
from fastfeat.status import Status
from fastfeat.times import to_us

from .window_model import counting_rows, window_us, window_values

Key = tuple[int | str, ...]
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One accepted row. Times are microseconds; `sequence` is the order of arrival."""

    event_us: int
    created_us: int
    sequence: int
    values: Values

    @property
    def place(self) -> tuple[int, int, int]:
        return (self.event_us, self.created_us, self.sequence)


@dataclass(frozen=True)
class Answer:
    """The one right answer for an entity and a view, and whether BeforeHistory is as good."""

    status: Status
    event_us: int
    values: Values | None
    may_refuse: bool


@dataclass
class Entity:
    """All that is known of one key in one view."""

    event_id: str | None = None
    rows: list[Row] = field(default_factory=list)  # all that was ever accepted
    deleted_before_us: int | None = None
    droppable: set[int] = field(default_factory=set)  # sequences of the rows that retention let go of

    def visible(self) -> list[Row]:
        """What no delete took, and of it what is no repetition of an event."""
        w = self.deleted_before_us
        return counting_rows((row for row in self.rows if w is None or row.created_us >= w), self.event_id)

    def forget(self, keep: Keep, now_us: int) -> None:
        rows = counting_rows(self.rows, self.event_id)
        kept = {row.sequence for row in kept_rows(rows, keep, now_us)}
        self.droppable |= {row.sequence for row in rows} - kept


def kept_rows(rows: Iterable[Row], keep: Keep, now_us: int) -> list[Row]:
    """The rows that a keep rule holds at `now_us`: all of the future, and the youngest of the past."""
    ordered = sorted(rows, key=lambda row: row.place)
    past = [row for row in ordered if row.event_us <= now_us]
    future = [row for row in ordered if row.event_us > now_us]
    if keep == "all":
        return ordered
    if keep == "latest":
        return past[-1:] + future
    if isinstance(keep, timedelta):
        since_us = now_us - duration_us(keep)
        return (
            [row for row in past if row.event_us < since_us][-1:] + [r for r in past if r.event_us >= since_us] + future
        )
    assert isinstance(keep, int)
    return past[-keep:] + future


class Model:
    """The store as dicts. Every moment is an argument; nothing here reads a clock."""

    def __init__(self) -> None:
        self.views: dict[str, FeatureView] = {}
        self.windows: dict[str, WindowView] = {}
        self.entities: dict[str, dict[Key, Entity]] = {}
        self.created_last_us: int | None = None
        self.sequence = 0

    def apply(self, view: FeatureView | WindowView) -> None:
        if isinstance(view, WindowView):
            self.windows[view.name] = view
            return
        self.views[view.name] = view
        self.entities.setdefault(view.name, {})

    def entity(self, view: str, key: Key) -> Entity:
        """The entity of this key, from now on known."""
        return self.entities[view].setdefault(key, Entity(self.views[view].event_id))

    def assign_created(self, now_us: int) -> int:
        """The created time of the next push or delete: the clock's, but always later than the last."""
        last = self.created_last_us
        self.created_last_us = now_us if last is None else max(now_us, last + 1)
        return self.created_last_us

    def push(self, view: str, rows: Sequence[tuple[Key, int, Values]], now_us: int) -> int:
        """Rows as (key, event_us, values). Returns the created time of them all."""
        created_us = self.assign_created(now_us)
        self.load(view, [(key, event_us, created_us, values) for key, event_us, values in rows], now_us)
        return created_us

    def load(self, view: str, rows: Sequence[tuple[Key, int, int | None, Values]], now_us: int) -> None:
        """Rows as (key, event_us, declared created_us or None, values)."""
        definition = self.views[view]
        touched = set()
        for key, event_us, created_us, values in rows:
            created_us = event_us + definition.delay_us if created_us is None else created_us
            self.sequence += 1
            entity = self.entity(view, key)
            entity.rows.append(Row(event_us, created_us, self.sequence, dict(values)))
            touched.add(key)
        for key in touched:
            self.entities[view][key].forget(definition.keep, now_us)

    def delete(self, view: str, keys: Iterable[Key], now_us: int) -> int:
        created_us = self.assign_created(now_us)
        for key in keys:
            entity = self.entity(view, key)
            entity.deleted_before_us = max(created_us, entity.deleted_before_us or created_us)
            entity.forget(self.views[view].keep, now_us)
        return created_us

    def read(self, view: str, key: Key, as_of_us: int | None, known_at_us: int | None, now_us: int) -> Answer:
        """The answer at T = as_of (or now) from what was created by K = known_at (or everything)."""
        t = now_us if as_of_us is None else as_of_us
        if view in self.windows:
            return self.read_window(self.windows[view], key, t, known_at_us)
        return self.read_point(view, key, t, known_at_us, self.views[view].ttl_us)

    def read_point(self, view: str, key: Key, t: int, known_at_us: int | None, ttl_us: int | None) -> Answer:
        entity = self.entities[view].get(key, Entity())
        visible = entity.visible()
        found = max(
            (row for row in known_rows(visible, known_at_us) if row.event_us <= t),
            key=lambda row: row.place,
            default=None,
        )
        if found is None:
            status = Status.NOT_FOUND if entity.deleted_before_us is None else Status.DELETED
            return Answer(status, 0, None, any(row.sequence in entity.droppable for row in visible))
        may_refuse = found.sequence in entity.droppable
        if ttl_us is not None and t - found.event_us > ttl_us:
            return Answer(Status.EXPIRED, found.event_us, None, may_refuse)
        return Answer(Status.PRESENT, found.event_us, found.values, may_refuse)

    def read_window(self, window: WindowView, key: Key, t: int, known_at_us: int | None) -> Answer:
        """The windows at T; status and time are those of a point read of the events, without ttl."""
        point = self.read_point(window.source.name, key, t, known_at_us, None)
        entity = self.entities[window.source.name].get(key, Entity())
        visible = entity.visible()
        since_us = min(window_us(each, t)[0] for each in window.features)
        may_refuse = any(row.sequence in entity.droppable and row.event_us >= since_us for row in visible)
        values = window_values(window, known_rows(visible, known_at_us), t)
        return Answer(point.status, point.event_us, values, point.may_refuse or may_refuse)


def known_rows(rows: Iterable[Row], known_at_us: int | None) -> list[Row]:
    return [row for row in rows if known_at_us is None or row.created_us <= known_at_us]


def value_bits(dtype: DType, value: Any) -> Hashable:
    """The value so that == means equal bit for bit: NaN payloads and -0.0 differ, 1 and True too."""
    if value is None:
        return None
    if dtype.name == "vector":
        return np.array(value, dtype.element).tobytes()
    if dtype.element is not None:
        return tuple(value_bits(DType(dtype.element), item) for item in value)
    if dtype.name == "float64":
        return struct.pack("<d", value)
    if dtype.name == "float32":
        return np.float32(value).tobytes()
    if dtype.name == "timestamp":
        return ("us", to_us(value) if isinstance(value, datetime) else int(value))
    return (type(value).__name__, value)


def matrix_cells(dtype: DType, value: Any) -> list[float]:
    """The value as it fills the columns of a float64 matrix; NaN where there is none."""
    if value is None:
        return [float("nan")] * dtype.matrix_columns
    if dtype.name == "vector":
        assert dtype.element is not None
        return [cell for item in value for cell in matrix_cells(DType(dtype.element), item)]
    return [float(np.float64(np.float32(value))) if dtype.name == "float32" else float(value)]


def check_equal(got: object, expected: object, what: str) -> None:
    """Like assert ==, without pytest's line-by-line difference, which takes minutes on long values while shrinking."""
    if got != expected:
        raise AssertionError(f"{what}: got {got!r}, expected {expected!r}")
