"""A window's read that lost its pin is made again, and nothing that it met before shows.

    reader (thread)   user 2, user 2, ... user 1: torn --expelled--> user 2, user 2, ... user 1 --> the same bits
    the test              damage user 1, expel                         mend

Only what the first attempt leaves in the request's memory could make the difference: a sum half made, values put
aside for a sketch, an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfeat import Aggregation, Entity, FeatureView, Field, StorageError, Store, WindowView
from fastfeat.attached import AttachedStore

from .scribbles import Places

CAPACITY = (8 << 20) + 4096  # Places knows the layout of an arena of this size
START_US = 1_700_000_000_000_000
ROWS = 4_000
ENTITIES = 50_000  # in one read: it takes long enough to be met inside
USER = Entity("user", {"user_id": "int64"})
EVENTS = FeatureView("events", USER, [Field("amount", "float64")], kind="event")
SUMS = WindowView(
    "sums",
    EVENTS,
    [Aggregation("amount", "sum", timedelta(days=1)), Aggregation("amount", "sum", timedelta(microseconds=2_500))],
)
NEXT_SLOT = 8  # words from one reader's slot to the next, and before the first
EXPELLED = 1 << 63


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    path = Path("/dev/shm") / f"fastfeat-test-{os.getpid()}-{tmp_path.name}"
    yield str(path)
    for file in path.glob("*"):
        file.unlink()
    if path.exists():
        path.rmdir()


def words_of(name: str, kind: str) -> Any:
    (file,) = Path(name).glob(f"{kind}.*")
    return np.memmap(file, np.uint64, "r+")


def test_a_sum_that_was_cut_off_is_not_in_the_next_attempt(name: str) -> None:
    # Too far apart for one integer; the great ones come to nothing, so that what is left over shows.
    amounts = [1e300 * (-1) ** (row // 1000) if row % 1000 == 999 else 0.1 * row for row in range(ROWS)]
    with Store(CAPACITY, shared=name) as store:
        store.apply([EVENTS, SUMS])
        store.push(
            "events",
            [{"user_id": 1, "event_timestamp": START_US + row, "amount": amounts[row]} for row in range(ROWS)],
        )
        arena, readers = words_of(name, "arena"), words_of(name, "readers")
        block_at = Places(arena).entries[-1] + 1  # the last of the older blocks: others are summed before it
        store.push("events", {"user_id": 2, "event_timestamp": START_US, "amount": 1.0})
        keys = {"user_id": np.where(np.arange(ENTITIES) == ENTITIES - 1, 1, 2)}
        with AttachedStore(name) as other:

            def read() -> Any:
                return other.get_feature_vectors(["sums:amount_sum_1d"], keys, as_of=START_US + ROWS)

            expected = read()
            slot = NEXT_SLOT * (1 + other._arena.own_slots[0])
            cut_off = 0
            deadline = time.monotonic() + 20
            while cut_off < 5 and time.monotonic() < deadline:
                with ThreadPoolExecutor(1) as pool:
                    answer = pool.submit(read)
                    while readers[slot] == 0 and not answer.done():
                        time.sleep(0)
                    whole, arena[block_at] = int(arena[block_at]), CAPACITY
                    if is_met := readers[slot] != 0:
                        readers[slot] = EXPELLED
                        while readers[slot] == EXPELLED and not answer.done():
                            time.sleep(0)
                    arena[block_at] = whole
                if answer.exception() is None:
                    assert answer.result().tobytes() == expected.tobytes()
                    cut_off += is_met
                else:  # it was not expelled before it ended, or not mended before it was read again
                    assert isinstance(answer.exception(), StorageError)
            assert cut_off


def test_a_block_that_was_refused_is_not_looked_at_by_the_next_window(name: str) -> None:
    """Its count is beyond its capacity; the shorter window begins in the block that was opened before it."""
    with Store(CAPACITY, shared=name) as store:
        store.apply([EVENTS, SUMS])
        store.push("events", [{"user_id": 1, "event_timestamp": START_US + row, "amount": 1.0} for row in range(ROWS)])
        arena = words_of(name, "arena")
        block = int(arena[Places(arena).entries[-1] + 1]) // 8
        with AttachedStore(name) as other:
            keys, features = {"user_id": [1]}, ["sums:amount_sum_1d", "sums:amount_sum_2500us"]
            expected = [[ROWS, 2_500]]
            assert other.get_feature_vectors(features, keys, as_of=START_US + ROWS).tolist() == expected
            whole, arena[block + 1] = int(arena[block + 1]), int(arena[block + 1]) | 0xFFFF0000
            with pytest.raises(StorageError, match="the arena is damaged"):
                other.get_feature_vectors(features, keys, as_of=START_US + ROWS)
            arena[block + 1] = whole
            assert other.get_feature_vectors(features, keys, as_of=START_US + ROWS).tolist() == expected
