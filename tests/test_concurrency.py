"""Readers and writers at once: no torn row, no version that goes backward, no memory that stays behind.

    writers: append | late rows | new keys (index growth) | delete | keep=      readers: batch | single | as-of, texts

Every value of a row is told by its key and version, so a row made of two rows shows itself.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastfeat import BeforeHistory, FeatureView, Status, Store
from fastfeat._core.plan import Plan

from .versioned_rows import (
    CHECKS,
    LATEST,
    LONG_PAST,
    NUMBERS,
    SHORT_PAST,
    START_US,
    TEXTS,
    VECTOR_SIZE,
    numbers_of,
    table_of,
    texts_of,
)

KEYS = 1_000  # so many that reads of all of them let go of the GIL
SECONDS_MAX = 60.0  # more, that a slow machine gets to make its steps
PAUSE_SECONDS = 1e-3  # after each step: a thread that never waits keeps the interpreter from the others
KEYS_MAX = 40_000


class Torture:
    """A store under threads that run until told to stop; what goes wrong in any of them is kept."""

    def __init__(self) -> None:
        self.store = Store(512 << 20, clock=lambda: START_US + 10**12)
        self.store.apply([LONG_PAST, SHORT_PAST, LATEST])
        self.is_over = threading.Event()
        self.faults: list[BaseException] = []
        self.reads = 0
        self.appended = 0  # the newest version of every view
        self.late = 0
        self.keys = KEYS

    def run(self, workers: list[Callable[[], Iterator[None]]], seconds: float, steps_min: int = 0) -> None:
        """Each worker is a generator: one step, one yield. Run for `seconds`, longer where writers took fewer steps."""
        threads = [threading.Thread(target=self._loop, args=(worker,)) for worker in workers]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(5e-4)  # threads take turns inside each other's steps, not after them
        try:
            for thread in threads:
                thread.start()
            self.is_over.wait(seconds)
            deadline = time.monotonic() + SECONDS_MAX
            while not self.is_over.wait(0.01):
                if min(self.appended, self.late, self.keys - KEYS) >= steps_min or time.monotonic() > deadline:
                    break
            self.is_over.set()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        if self.faults:
            raise self.faults[0]

    def _loop(self, worker: Callable[[], Iterator[None]]) -> None:
        try:
            for _ in worker():
                if self.is_over.wait(PAUSE_SECONDS):
                    return
        except BaseException as error:
            self.faults.append(error)
            self.is_over.set()

    # --- writers

    def append(self) -> Iterator[None]:
        """Versions in order into every view, for all keys and for some in turn."""
        random = np.random.default_rng(1)
        while True:
            version = self.appended + 1
            keys = np.arange(KEYS) if version % 2 else np.unique(random.integers(0, KEYS, 20))
            rows = table_of(keys, np.full(len(keys), version))
            for view in (LONG_PAST, SHORT_PAST, LATEST):
                self.store.push(view.name, rows)
            self.appended = version
            yield

    def insert_late(self) -> Iterator[None]:
        """Rows before the newest, which force blocks to be built anew. Their versions lie between others."""
        random = np.random.default_rng(2)
        while True:
            high = self.appended
            if high:
                keys = random.integers(0, KEYS, 10)
                rows = table_of(keys, random.integers(max(0, high - 300), high, 10))
                self.store.push("all", rows)
                self.store.push("short", rows)
                self.late += 10
            yield

    def grow_and_delete(self) -> Iterator[None]:
        """New keys until there are many: every shard's table is replaced by larger ones. And deletes among the old.

        Only of the view without late rows: one that follows a delete would look like a step backward.
        """
        random = np.random.default_rng(3)
        while True:
            if self.keys < KEYS_MAX:
                keys = np.arange(self.keys, self.keys + 200)
                self.store.push("latest", table_of(keys, np.ones(200)))
                self.keys += 200
            self.store.delete("latest", {"user_id": random.integers(0, KEYS, 3)})
            yield

    # --- readers

    def read_batches(self, *views: FeatureView) -> Iterator[None]:
        """All keys into one matrix; per key no version is older than the last one seen."""
        keys = np.arange(KEYS)
        seen = {view.name: np.zeros(KEYS) for view in views}
        for view in views:
            plan = self.store.plan([f"{view.name}:{name}" for name in NUMBERS])
            assert isinstance(plan, Plan)
            assert plan.release_min <= KEYS
        while True:
            for view in views:
                features = [f"{view.name}:{name}" for name in NUMBERS]
                matrix = self.store.get_feature_vectors(features, {"user_id": keys})
                seen[view.name] = check_matrix(keys, matrix, seen[view.name])
                self.reads += KEYS
            yield

    def read_singles(self, view: FeatureView) -> Iterator[None]:
        features = [f"{view.name}:{name}" for name in NUMBERS]
        seen = np.zeros(KEYS)
        matrix = np.empty((KEYS, 1 + CHECKS + VECTOR_SIZE))
        while True:
            for key in range(KEYS):
                self.store.get_feature_vector(features, {"user_id": key}, out=matrix[key])
            seen = check_matrix(np.arange(KEYS), matrix, seen)
            self.reads += KEYS
            yield

    def read_texts(self, *views: FeatureView) -> Iterator[None]:
        """The values outside the row itself, now and at moments of the past."""
        random = np.random.default_rng(4)
        while True:
            for view in views:
                features = [f"{view.name}:{name}" for name in TEXTS]
                version = int(random.integers(max(0, self.appended - 300), self.appended + 1))
                as_of = START_US + version * 10 if random.integers(2) else None
                asked = {"user_id": random.integers(0, KEYS, 20)}
                try:
                    result = self.store.get_online_features(features, asked, as_of=as_of)
                except BeforeHistory:
                    assert view.keep != "all"
                else:
                    check_texts(asked["user_id"].tolist(), view.name, result, as_of)
                self.reads += 20
            yield


def check_matrix(keys: Any, matrix: Any, seen: Any) -> Any:
    """Every row whole and no version older than `seen`; the versions now seen."""
    is_there = ~np.isnan(matrix[:, 0])
    versions = matrix[is_there, 0]
    np.testing.assert_array_equal(matrix[is_there], numbers_of(keys[is_there], versions))
    assert np.isnan(matrix[~is_there]).all()
    assert (versions >= seen[is_there]).all()
    now_seen = seen.copy()
    now_seen[is_there] = versions
    return now_seen


def check_texts(keys: list[int], view: str, result: Any, as_of: int | None) -> None:
    columns = result.to_dict()
    times, statuses = result.event_times[view].tolist(), result.statuses[view].tolist()
    for i, key in enumerate(keys):
        version, text, items = (columns[f"{view}:{name}"][i] for name in TEXTS)
        if statuses[i] != Status.PRESENT:
            assert (version, text, items, times[i]) == (None, None, None, 0)
            continue
        event_us = START_US + version * 10
        assert (text, items, times[i]) == (*texts_of(key, version), event_us)
        assert as_of is None or event_us <= as_of


def everything_at_once(seconds: float) -> Torture:
    torture = Torture()
    workers: list[Callable[[], Iterator[None]]] = [
        torture.append,
        torture.insert_late,
        torture.grow_and_delete,
        lambda: torture.read_batches(LONG_PAST, SHORT_PAST, LATEST),
        lambda: torture.read_singles(LATEST),
        lambda: torture.read_texts(LONG_PAST, SHORT_PAST, LATEST),
    ]
    torture.run(workers, seconds, steps_min=25)
    return torture


def test_readers_see_whole_rows_in_order_while_everything_changes() -> None:
    torture = everything_at_once(seconds=3.0)
    assert torture.reads > 1_000
    assert min(torture.appended, torture.late, torture.keys - KEYS) >= 25


@pytest.mark.long
def test_readers_see_whole_rows_in_order_for_two_minutes() -> None:
    torture = everything_at_once(seconds=120.0)
    assert torture.reads > 100_000
    assert torture.keys == KEYS_MAX


@pytest.mark.parametrize("view", [SHORT_PAST, LATEST], ids=["keep 3", "latest"])
def test_memory_returns_to_its_level_after_churn(view: FeatureView) -> None:
    """Rows come and go under readers' eyes; what is used depends on what is kept, not on how much went by."""
    torture = Torture()

    def churn() -> Iterator[None]:
        levels = []
        for version in range(1, 161):
            torture.store.push(view.name, table_of(np.arange(KEYS), np.full(KEYS, version)))
            if version % 20 == 0:
                torture.store.delete(view.name, {"user_id": np.arange(KEYS)})
            levels.append(torture.store.info()["arena"]["used"])
            yield
        torture.is_over.set()
        assert max(levels[80:]) <= 1.25 * max(levels[20:60])

    torture.run([churn, lambda: torture.read_batches(view), lambda: torture.read_texts(view)], seconds=60.0)
    assert torture.is_over.is_set()
    assert torture.reads > 0


@pytest.mark.parametrize("at", [0, 1, CHECKS, CHECKS + 4])
def test_a_torn_row_would_be_seen(at: int) -> None:
    """The checker's control: one cell of another version, or an older row than was seen."""
    key, version = np.array([5]), np.array([8.0])
    matrix = numbers_of(key, version)
    assert check_matrix(key, matrix, version).tolist() == [8]
    with pytest.raises(AssertionError):
        check_matrix(key, matrix, version + 1)
    matrix[0, at] += 17.0
    with pytest.raises(AssertionError):
        check_matrix(key, matrix, version)
