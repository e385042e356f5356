"""Windows while rows arrive: a read sees the rows of one moment, never half a write and never a later one alone.

    writer: A in order, B late, A, B, ...       reader: sum of both kinds, number of each

Each write is an amount and its opposite, so that every moment's sum is zero; and at every moment as many B have been
written as A, or one less.
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from fastfeat import Aggregation, Entity, FeatureView, Field, Store, WindowView
from fastfeat._core.layout import IS_DEBUG

USERS = 3
READ_AT_ONCE = 90  # so many that the read lets go of the interpreter, and the writer comes between
START_US = 1_700_000_000_000_000
USER = Entity("user", {"user_id": "int64"})
FIELDS = [Field("amount", "float64"), Field("is_late", "bool", nullable=False)]
EVENTS = FeatureView("events", USER, FIELDS, kind="event")
SPAN = timedelta(days=30)
WINDOWS = WindowView(
    "windows",
    EVENTS,
    [
        Aggregation("amount", "sum", SPAN, name="sum"),
        Aggregation("is_late", "sum", SPAN, name="late"),
        Aggregation(None, "count", SPAN, name="count"),
        Aggregation("amount", "max", SPAN, name="max"),
        Aggregation("amount", "min", SPAN, name="min"),
    ],
)


class Run:
    def __init__(self) -> None:
        self.store = Store(256 << 20, clock=lambda: START_US + 10**12)
        self.store.apply(WINDOWS)
        self.is_over = threading.Event()
        self.faults: list[BaseException] = []
        self.written = 0
        self.reads = 0

    def write(self) -> None:
        random = np.random.default_rng(1)
        while not self.is_over.is_set():
            n = self.written
            for is_late in (False, True):
                if is_late:
                    whens = random.integers(0, 2 * n + 1, 2).tolist()
                else:
                    whens = [2 * n, 2 * n + 1]
                for user in range(USERS):
                    self.store.push(
                        "events",
                        [
                            {"user_id": user, "event_timestamp": START_US + when, "amount": amount, "is_late": is_late}
                            for when, amount in zip(whens, (n / 7, -n / 7), strict=True)
                        ],
                    )
            self.written = n + 1

    def read(self) -> None:
        users = np.arange(READ_AT_ONCE) % USERS
        seen = np.zeros(READ_AT_ONCE)
        while not self.is_over.is_set():
            answers = self.store.get_feature_vectors([WINDOWS], {"user_id": users})
            total, late, count, most, least = np.nan_to_num(answers).T
            assert (total == 0).all(), f"rows that were never there together: {total}"
            in_order = count - late
            assert ((in_order == late) | (in_order == late + 2)).all(), f"{in_order} in order and {late} late"
            assert (most == -least).all()
            assert (count >= seen).all()
            seen = count
            self.reads += 1

    def threaded(self, seconds: float) -> None:
        def guarded(loop: str) -> None:
            try:
                getattr(self, loop)()
            except BaseException as error:
                self.faults.append(error)
                self.is_over.set()

        threads = [threading.Thread(target=guarded, args=(loop,)) for loop in ("write", "read", "read")]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        try:
            for thread in threads:
                thread.start()
            self.is_over.wait(seconds)
            self.is_over.set()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)


@pytest.mark.parametrize("runs", [1, pytest.param(40, marks=pytest.mark.long)])
def test_a_window_is_of_one_moment(runs: int) -> None:
    for _ in range(runs):  # anew: of many rows a read takes so long that few fit into the time
        run = Run()
        run.threaded(3.0)
        if run.faults:
            raise run.faults[0]
        assert run.reads > 20
        assert run.written > 50


@pytest.mark.skipif(not IS_DEBUG, reason="seeded bugs are in debug builds; make debug-test runs this")
def test_a_head_that_is_loaded_apart_from_its_tail_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFEAT_SEEDED_BUG", "count_after_head")
    for _ in range(10):
        run = Run()
        run.threaded(3.0)
        if run.faults:
            break
    assert isinstance(run.faults[0], AssertionError)


@pytest.mark.parametrize("form", ["columns", "matrix"])
def test_others_run_while_the_long_windows_of_a_few_entities_are_read(form: str) -> None:
    """A thread that looks at the clock does so in the middle of such a read: no window may hold the interpreter."""
    rows, ask = 400_000, {"user_id": np.zeros(8, np.int64)}
    store = Store(256 << 20, clock=lambda: START_US + rows)
    distinct = Aggregation("amount", "count_distinct", SPAN, name="distinct")
    store.apply(WindowView("distinct", EVENTS, [distinct]))
    numbers = np.arange(rows)
    store.load(
        "events",
        pa.table(
            {
                "user_id": np.zeros(rows, np.int64),
                "amount": numbers / 7,
                "is_late": numbers < 0,
                "event_timestamp": START_US + numbers,
            }
        ),
    )
    looks: list[float] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.001):
            looks.append(time.perf_counter())

    def is_looked_at() -> bool:
        began = time.perf_counter()
        if form == "columns":
            store.get_online_features(["distinct:distinct"], ask, receipt=False)
        else:
            store.get_feature_vectors(["distinct:distinct"], ask)
        took = time.perf_counter() - began
        return any(began + took / 4 < at < began + took * 3 / 4 for at in looks)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        assert any(is_looked_at() for _ in range(5))
    finally:
        is_over.set()
        thread.join()
