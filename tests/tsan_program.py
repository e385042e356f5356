"""The core under ThreadSanitizer: one writer and some readers over rows that check themselves, batches without the GIL.

    writer: append | load, 2 threads | late rows | growth | deletes | retention | ttl
    readers: numbers of whole batches | texts, as-of | sizes | snapshots                       and who sweeps the pins

For `make tsan-test`, which builds the extensions with the sanitizer and runs this under its runtime: whatever two
threads do to one word without an order between them is reported, and the exit code is then 66. A torn or backward row
is an AssertionError. Batches are large because what runs with the GIL is in order and shows no race.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fastfeat import Aggregation, BeforeHistory, Entity, FeatureView, Field, Store, WindowView

KEYS = 1_000
CHECKS = 6
START_US = 1_700_000_000_000_000
FIELDS = [Field("version", "int64"), *(Field(f"check{i}", "float64") for i in range(CHECKS)), Field("text", "string")]
USER = Entity("user", {"user_id": "int64"})
VIEWS = [
    FeatureView("all", USER, FIELDS),
    FeatureView("short", USER, FIELDS, keep=3),
    FeatureView("latest", USER, FIELDS, keep="latest"),
]
EVENTS = FeatureView("events", USER, [Field("amount", "float64"), Field("shop", "string")], kind="event")
WINDOWS = WindowView(
    "windows",
    EVENTS,
    [
        Aggregation("amount", "sum", timedelta(days=100), name="sum"),
        Aggregation("amount", "count", timedelta(days=100), name="count"),
        Aggregation("amount", "max", timedelta(days=100), name="max"),
        Aggregation("shop", "count_distinct", timedelta(days=100), name="shops"),
    ],
)
NUMBERS = ["version", *(f"check{i}" for i in range(CHECKS))]


def rows_of(keys: NDArray[np.int64], version: int) -> pa.Table:
    """One row of each key; its values tell key and version."""
    columns = {
        "user_id": pa.array(keys),
        "event_timestamp": pa.array(np.full(len(keys), START_US + version * 10), pa.timestamp("us", "UTC")),
        "version": pa.array(np.full(len(keys), version)),
        "text": pa.array([f"{key}:{version}" for key in keys.tolist()]),
    }
    return pa.table(columns | {f"check{i}": pa.array(keys * 1_003.0 + version * 17 + i) for i in range(CHECKS)})


class Program:
    """The store, what was written, and what went wrong in any thread."""

    def __init__(self, directory: str) -> None:
        self.store = Store.open(
            f"{directory}/store",
            capacity_bytes=256 << 20,
            clock=lambda: START_US + 10**12,
            fsync="off",
            shared=f"{directory}/shared",
        )
        self.store.apply([*VIEWS, WINDOWS])
        self.is_over = threading.Event()
        self.faults: list[BaseException] = []
        self.newest = 0
        self.reads = 0

    def write(self) -> Iterator[None]:
        random = np.random.default_rng(1)
        everyone, grown = np.arange(KEYS), KEYS
        while True:
            rows = rows_of(everyone, self.newest + 1)
            self.store.push("all", rows)
            self.store.push("short", rows)
            self.store.load("latest", rows, threads=2)
            self.newest += 1
            late = rows_of(random.choice(everyone, KEYS // 4, replace=False), int(random.integers(self.newest + 1)))
            for name in ("all", "short"):
                self.store.push(name, late)
            self.store.push("latest", rows_of(np.arange(grown, grown + KEYS // 2), 1))
            grown += KEYS // 2
            self.store.delete("latest", {"user_id": random.integers(0, KEYS, KEYS // 20)})
            self.store.apply([replace(VIEWS[0], ttl=None if self.newest % 2 else timedelta(days=100))])
            yield

    def write_events(self) -> Iterator[None]:
        """An amount and its opposite for everybody, in one write: in order, or the second of them late."""
        random, written = np.random.default_rng(3), 0
        while True:
            second = int(random.integers(written + 1)) if written % 3 == 0 else written + 1
            for_each = [
                {"user_id": user, "event_timestamp": START_US + when * 10, "amount": amount, "shop": f"{written % 7}"}
                for user in range(300)
                for when, amount in ((written, 0.1 * written), (second, -0.1 * written))
            ]
            self.store.push("events", for_each)
            written += 2
            yield

    def read_windows(self) -> Iterator[None]:
        features = [f"windows:{name}" for name in ("sum", "count", "max", "shops")]
        seen = np.zeros(300)
        while True:
            matrix = self.store.get_feature_vectors(features, {"user_id": np.arange(300)})
            assert (matrix[:, 1] % 2 == 0).all(), "half a write"
            assert (np.nan_to_num(matrix[:, 0]) == 0).all(), "a sum of rows that were never there together"
            assert (matrix[:, 1] >= seen).all(), "a window went backward"
            seen = matrix[:, 1]
            self.reads += 300
            yield

    def read_numbers(self, view: FeatureView) -> Iterator[None]:
        keys = np.arange(KEYS)
        features = [f"{view.name}:{name}" for name in NUMBERS]
        seen = np.zeros(KEYS)
        while True:
            matrix = self.store.get_feature_vectors(features, {"user_id": keys})
            is_there = ~np.isnan(matrix[:, 0])
            versions = matrix[is_there, :1]
            expected = keys[is_there, np.newaxis] * 1_003.0 + versions * 17 + np.arange(CHECKS)
            assert (matrix[is_there, 1:] == expected).all(), "a torn row"
            assert (versions[:, 0] >= seen[is_there]).all(), "a row went backward"
            seen[is_there] = versions[:, 0]
            self.reads += KEYS
            yield

    def read_texts(self) -> Iterator[None]:
        random = np.random.default_rng(2)
        while True:
            for view in VIEWS:
                keys = random.integers(0, KEYS, 2_000)  # so many that it lets go of the GIL
                as_of = START_US + int(random.integers(self.newest + 1)) * 10 if random.integers(2) else None
                features = [f"{view.name}:version", f"{view.name}:text"]
                try:
                    result = self.store.get_online_features(features, {"user_id": keys}, as_of=as_of)
                except BeforeHistory:
                    assert view.keep != "all"
                    continue
                found = result.to_dict()
                for key, version, text in zip(keys.tolist(), *(found[name] for name in features), strict=True):
                    assert text == (None if version is None else f"{key}:{version}"), "a torn text"
                self.reads += len(keys)
            yield

    def inspect(self) -> Iterator[None]:
        while True:
            self.store.snapshot()
            for _ in range(20):
                assert self.store.info()["views"]["all"]["rows"] >= 0
                time.sleep(0.05)
                yield

    def run(self, seconds: float) -> None:
        """All at once for so long; raises what was raised in any of them."""
        workers = [self.write(), self.inspect(), self.read_texts(), *(self.read_numbers(view) for view in VIEWS)]
        workers += [self.write_events(), self.read_windows()]
        threads = [threading.Thread(target=self._loop, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        self.is_over.wait(seconds)
        self.is_over.set()
        for thread in threads:
            thread.join()
        if self.faults:
            raise self.faults[0]

    def _loop(self, worker: Iterator[None]) -> None:
        try:
            for _ in worker:
                if self.is_over.is_set():
                    return
        except BaseException as error:
            self.faults.append(error)
            self.is_over.set()


def main(seconds: float) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        program = Program(directory)
        program.run(seconds)
        program.store.close()
    print(f"{program.reads} rows read, {program.newest} versions written in {time.monotonic() - start:.0f} s")
    assert program.reads > 10 * KEYS, "too few reads to say anything"
    assert program.newest > 3, "too few writes to say anything"


if __name__ == "__main__":
    main(float(sys.argv[1]))
