"""A process that reads what tests/shared_writer.py writes, and holds every row against its key and version.

    AttachedStore --matrix | single | typed columns | as-of--> Reader --reads, faults, longest gap, as JSON--> torturer

A fault is one of
    torn       values that are not of one key and version
    backward   a version older than one that this process has seen of the key
    lost       a version older than one whose push had returned before the read began, or none
    error      anything raised
SIGUSR1: fork; the child reads on for a while and reports, too. SIGTERM: end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from fastfeat import BeforeHistory, FeatureView, Status
from fastfeat.attached import AttachedStore

from .shared_writer import CORRECTED, KEYS, KEYS_MAX, VIEWS, Ledger, is_mortal, moment_of
from .versioned_rows import CHECKS, LATEST, LONG_PAST, SHORT_PAST, START_US, TEXTS, VECTOR_SIZE, numbers_of, texts_of

BATCH = 128
SINGLES = 16
REPORT_SECONDS = 0.2
CHILD_SECONDS = 0.5
FAULTS_TOLD = 3  # of one report, in words


class Reader:
    """Reads without end; what it sees never goes backward."""

    def __init__(self, store: AttachedStore, ledger: Ledger, seed: int) -> None:
        self.store, self.ledger = store, ledger
        self.random = np.random.default_rng(seed)
        self.seen = np.zeros((len(VIEWS), KEYS))
        self.past: list[int] = []  # versions of LONG_PAST that were the newest once
        self.singles = np.empty((SINGLES, 1 + CHECKS + VECTOR_SIZE))
        self.reads = 0
        self.counts = {"torn": 0, "backward": 0, "lost": 0}
        self.faults: list[str] = []
        self.answered = time.monotonic()
        self.gap = (0.0, self.answered)
        self.is_over = self.is_to_fork = self.is_child = False

    # --- reading

    def read_all_kinds(self) -> None:
        """Some of every kind, most of them batches: they are the most rows in a second."""
        for _ in range(10):
            for v in range(len(VIEWS)):
                self.read_batch(v)
        self.read_grown()
        for v in range(len(VIEWS)):
            self.read_singles(v)
            self.read_texts(VIEWS[v])
        self.read_past()

    def read_batch(self, v: int) -> None:
        start = int(self.random.integers(0, KEYS - BATCH + 1))
        keys = np.arange(start, start + BATCH)
        floor = np.maximum(self.seen[v, keys], said := self.ledger.versions[v, keys])
        matrix = self.store.get_feature_vectors(f"{VIEWS[v].name}_numbers", {"user_id": keys})
        self.answer(BATCH)
        self.check(v, keys, matrix, floor, said)

    def read_singles(self, v: int) -> None:
        start = int(self.random.integers(0, KEYS - SINGLES + 1))
        keys = np.arange(start, start + SINGLES)
        said = np.empty(SINGLES)
        for i in range(SINGLES):
            said[i] = self.ledger.versions[v, start + i]
            self.store.get_feature_vector(f"{VIEWS[v].name}_numbers", {"user_id": start + i}, out=self.singles[i])
            self.answer(1)
        self.check(v, keys, self.singles, np.maximum(self.seen[v, keys], said), said)

    def read_grown(self) -> None:
        """Keys that come and go by the thousand."""
        keys = self.random.integers(KEYS, KEYS_MAX, BATCH)
        matrix = self.store.get_feature_vectors("latest_numbers", {"user_id": keys})
        self.answer(BATCH)
        self.check_whole(LATEST, keys, matrix)

    def read_past(self) -> None:
        """What was the newest at a moment stays what was the newest at that moment."""
        v = VIEWS.index(LONG_PAST)
        if newest := int(self.ledger.versions[v].min()):
            self.past = [*self.past[-100:], newest]
            version, keys = int(self.random.choice(self.past)), np.arange(BATCH)
            matrix = self.store.get_feature_vectors(
                "all_numbers", {"user_id": keys}, as_of=START_US + moment_of(LONG_PAST, version) * 10
            )
            self.answer(BATCH)
            is_whole = self.check_whole(LONG_PAST, keys, matrix)
            self.tell("lost", LONG_PAST, keys, matrix, is_whole & (matrix[:, 0] != version))

    def read_texts(self, view: FeatureView) -> None:
        """The values outside the row itself, now and at moments of the past."""
        newest = int(self.ledger.versions[VIEWS.index(view)].min())
        as_of = None
        if self.random.integers(2):
            as_of = START_US + moment_of(view, int(self.random.integers(max(0, newest - 300), newest + 1))) * 10
        keys = self.random.integers(0, KEYS, 20)
        try:
            result = self.store.get_online_features(f"{view.name}_texts", {"user_id": keys}, as_of=as_of)
        except BeforeHistory:
            if view not in (SHORT_PAST, LATEST, CORRECTED):
                raise
        else:
            self.check_texts(view, keys, result, as_of)
        self.answer(len(keys))

    def answer(self, rows: int) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, (now - self.answered, now))
        self.answered = now
        self.reads += rows

    # --- checking

    def check(self, v: int, keys: Any, matrix: Any, floor: Any, said: Any) -> None:
        """floor: the versions seen or said before the read began."""
        versions = matrix[:, 0]
        if not (versions >= floor).all() or not (matrix == numbers_of(keys, versions)).all():
            is_whole = self.check_whole(VIEWS[v], keys, matrix)
            is_there = ~np.isnan(versions)
            is_missing = is_whole & ~is_there & (floor > 0) & ~is_mortal(VIEWS[v], keys)
            is_lost = is_whole & (versions < said) | is_missing
            self.tell("lost", VIEWS[v], keys, matrix, is_lost)
            self.tell("backward", VIEWS[v], keys, matrix, is_whole & (versions < floor) & ~is_lost)
            versions = np.where(is_whole & is_there, versions, 0)
        self.seen[v, keys] = np.maximum(floor, versions)

    def check_whole(self, view: FeatureView, keys: Any, matrix: Any) -> Any:
        """True for each row of one version, or of none."""
        expected = numbers_of(keys, matrix[:, 0])
        is_whole = ((matrix == expected) | (np.isnan(matrix) & np.isnan(expected))).all(axis=1)
        self.tell("torn", view, keys, matrix, ~is_whole)
        return is_whole

    def check_texts(self, view: FeatureView, keys: Any, result: Any, as_of: int | None) -> None:
        columns = result.to_dict()
        times, statuses = result.event_times[view.name].tolist(), result.statuses[view.name].tolist()
        is_torn = np.zeros(len(keys), bool)
        for i, key in enumerate(keys.tolist()):
            version, text, items = (columns[f"{view.name}:{name}"][i] for name in TEXTS)
            if statuses[i] != Status.PRESENT:
                is_torn[i] = (version, text, items, times[i]) != (None, None, None, 0)
            else:
                event_us = START_US + moment_of(view, version) * 10
                is_torn[i] = (text, items, times[i]) != (*texts_of(key, version), event_us)
                is_torn[i] |= as_of is not None and event_us > as_of
        self.tell("torn", view, keys, np.array(columns[f"{view.name}:version"])[:, np.newaxis], is_torn)

    def tell(self, kind: str, view: FeatureView, keys: Any, matrix: Any, are_at_fault: Any) -> None:
        if are_at_fault.any():
            self.counts[kind] += int(are_at_fault.sum())
            at = int(np.flatnonzero(are_at_fault)[0])
            self.faults.append(f"{kind}: {view.name} key {keys[at]}: {matrix[at].tolist()}")

    # --- the process

    def report(self) -> None:
        arena = self.store._open_arena()
        words = {
            "pid": os.getpid(),
            "generation": arena.generation,
            "slots": arena.own_slots,
            "reads": self.reads,
            "gap": self.gap,
            "faults": self.faults[:FAULTS_TOLD],
            **self.counts,
            "is_child": self.is_child,
            "is_over": self.is_over,
        }
        os.write(1, (json.dumps(words) + "\n").encode())  # in one piece: the pipe is the child's, too
        self.gap, self.faults = (0.0, self.answered), []

    def fork(self) -> None:
        self.report()
        self.is_to_fork = False
        if os.fork() == 0:
            self.is_child, self.reads = True, 0
            self.counts = dict.fromkeys(self.counts, 0)
            self.random = np.random.default_rng(os.getpid())
            self.read_until(time.monotonic() + CHILD_SECONDS)
            self.is_over = True
            self.report()
            os._exit(0)

    def read_until(self, deadline: float) -> None:
        reported = time.monotonic()
        while not self.is_over and reported < deadline:
            try:
                self.read_all_kinds()
            except Exception as error:
                self.faults.append(f"error: {error!r}")
                self.is_over = True
            if self.is_to_fork:
                self.fork()
            if time.monotonic() > reported + REPORT_SECONDS:
                reported = time.monotonic()
                self.report()

    def end(self, *_: object) -> None:
        self.is_over = True

    def ask_to_fork(self, *_: object) -> None:
        self.is_to_fork = True


def main(shared: str, ledger: str, seed: str) -> None:
    with AttachedStore(shared) as store:
        reader = Reader(store, Ledger(ledger), int(seed))
        signal.signal(signal.SIGTERM, reader.end)
        signal.signal(signal.SIGUSR1, reader.ask_to_fork)
        reader.report()
        reader.read_until(float("inf"))
        reader.report()


if __name__ == "__main__":
    main(*sys.argv[1:])
