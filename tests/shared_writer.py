"""The process that the shared torture kills: it writes versioned rows into an arena that others read.

    torturer --"steady", "stop", lines--> Writer --push, delete, apply--> Store.open(directory, shared=...)
             <--"ready", "levels", JSON--   |
                                            +--> Ledger: the versions whose push has returned

Promise: a version that is in the ledger was pushed before, so every reader must see it, or a newer one, at once; also
         after a death of this process, which keeps what it logged, and it logs before it shows.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

import numpy as np

from fastfeat import FeatureService, FeatureView, Store

from .versioned_rows import FIELDS, LATEST, LONG_PAST, NUMBERS, SHORT_PAST, TEXTS, USER, table_of

CORRECTED = FeatureView("corrected", USER, FIELDS, keep=3)
CORRECTIONS = 4  # versions of it that share an event time: each corrects the one before
VIEWS = [LONG_PAST, SHORT_PAST, LATEST, CORRECTED]
SERVICES = [
    FeatureService(f"{view.name}_{what}", [view[name] for name in names])
    for view in VIEWS
    for what, names in (("numbers", NUMBERS), ("texts", TEXTS))
]
KEYS = 200
MORTAL = 8  # every eighth key of LATEST may be deleted
KEYS_MAX = 20_000  # those above KEYS come and go, in LATEST
BURST = 500  # of them at once
LONG_EVERY = 8  # versions, of which LONG_PAST gets one: it keeps them all
PAUSE_SECONDS = 2e-3  # after each step: it is the readers who are to have the processors
QUIET_SECONDS = 5.0
WARM_STEPS = 100  # after which every row was replaced more often than one is kept
LEVEL_STEPS = 200


class Ledger:
    """versions[view, key], in a file that outlives the process that writes it. A cell changes as a whole."""

    def __init__(self, path: str, *, is_new: bool = False) -> None:
        self.versions = np.memmap(path, np.int64, "w+" if is_new else "r+", shape=(len(VIEWS), KEYS))


def is_mortal(view: FeatureView, keys: Any) -> Any:
    return (np.asarray(keys) % MORTAL == MORTAL - 1) & (view is LATEST)


def moment_of(view: FeatureView, version: Any) -> Any:
    """An event time of this view in tens of microseconds."""
    return version // CORRECTIONS if view is CORRECTED else version


class Writer:
    """Writes without end, one small step after the other."""

    def __init__(self, store: Store, ledger: Ledger, seed: int) -> None:
        self.store, self.ledger = store, ledger
        self.random = np.random.default_rng(seed)
        self.store.apply([USER, *VIEWS, *SERVICES])
        self.is_steady = False
        self.is_growing = True
        self.grown = KEYS
        self.descriptions = 0
        found = [
            store.get_feature_vectors(f"{view.name}_numbers", {"user_id": np.arange(KEYS)})[:, 0] for view in VIEWS
        ]
        self.there = np.nan_to_num(np.array(found)).astype(np.int64)
        self.version = int(max(self.there.max(), ledger.versions.max()))

    def lost(self) -> int:
        """Rows that were said to be there and are not; to be asked before the first step."""
        is_lost = self.there < self.ledger.versions
        for v, view in enumerate(VIEWS):
            is_lost[v] &= ~(is_mortal(view, np.arange(KEYS)) & (self.there[v] == 0))
        return int(is_lost.sum())

    def step(self) -> None:
        steps = [self.append, self.insert_late, self.correct, self.grow, self.delete, self.describe]
        self.random.choice(np.array(steps), p=[0.4, 0.14, 0.2, 0.15, 0.1, 0.01])()

    def append(self) -> None:
        """The next version, of all keys or of some."""
        self.version += 1
        keys = np.arange(KEYS) if self.version % 2 else np.unique(self.random.integers(0, KEYS, 20))
        for view in (SHORT_PAST, LATEST):
            self.push(view, keys, self.version)
        if self.version % LONG_EVERY == 0 and not self.is_steady:
            self.push(LONG_PAST, np.arange(KEYS), self.version)

    def push(self, view: FeatureView, keys: Any, version: int) -> None:
        versions = np.full(len(keys), version)
        self.store.push(view.name, table_of(keys, versions, moment_of(view, versions)))
        self.ledger.versions[VIEWS.index(view), keys] = version

    def insert_late(self) -> None:
        """Rows before the newest, which force blocks to be built anew. Their versions lie between others."""
        keys = self.random.integers(0, KEYS, 10)
        views = [SHORT_PAST] if self.is_steady else [SHORT_PAST, LONG_PAST]
        for view in views:
            newest = int(self.ledger.versions[VIEWS.index(view)].min())
            if newest:
                versions = self.random.integers(max(1, newest - 300), newest + 1, 10)
                self.store.push(view.name, table_of(keys, versions))

    def correct(self) -> None:
        """Most of these rows have the event time of the row before."""
        self.version += 1
        self.push(CORRECTED, np.arange(KEYS), self.version)

    def grow(self) -> None:
        """A burst of new keys, until there are many and every shard has grown; then they are deleted, and so on."""
        if self.is_steady:
            return
        keys = np.arange(self.grown, min(self.grown + BURST, KEYS_MAX))
        if self.is_growing:
            self.store.push(LATEST.name, table_of(keys, np.full(len(keys), self.version)))
        else:
            self.store.delete(LATEST.name, {"user_id": keys})
        self.grown += BURST
        if self.grown >= KEYS_MAX:
            self.grown, self.is_growing = KEYS, not self.is_growing

    def delete(self) -> None:
        keys = np.unique(self.random.integers(0, KEYS // MORTAL, 3)) * MORTAL + MORTAL - 1
        self.store.delete(LATEST.name, {"user_id": keys})

    def describe(self) -> None:
        """A new catalogue: every reader makes its plans anew."""
        self.descriptions += 1
        self.store.apply(FeatureService("described", [LATEST["version"]], description=f"{self.descriptions}"))

    def run(self) -> None:
        sharing = self.store.info()["shared"]
        say(ready=sharing["generation"], lost=self.lost())
        while True:
            for word in heard():
                if word == "steady":
                    self.is_steady = True
                else:
                    self.end()
                    return
            self.step()
            time.sleep(PAUSE_SECONDS)

    def end(self) -> None:
        """Nobody reads any more: what waits for readers comes to nothing, and more of the same needs no more memory."""
        deadline = time.monotonic() + QUIET_SECONDS
        while not (is_quiet := all(table.is_quiet for _, table in self.store._tables().values())):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        levels = []
        for steps in (WARM_STEPS, LEVEL_STEPS):
            for _ in range(steps):
                self.append()
                self.correct()
            levels.append(self.store.info()["arena"]["used"])
        say(is_quiet=is_quiet, levels=levels)


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def heard() -> list[str]:
    """What was asked since the last call; "stop" where nobody is there to ask any more."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return []
    return [sys.stdin.readline().strip() or "stop"]


def main(directory: str, shared: str, ledger: str, seed: str) -> None:
    options: dict[str, Any] = {"capacity_bytes": 1 << 30, "fsync": "off", "snapshot_seconds": 5.0}
    with Store.open(directory, shared=shared, **options) as store:
        Writer(store, Ledger(ledger), int(seed)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
