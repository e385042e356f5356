"""One hard limit: a write beyond it changes nothing, and the store goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat import ArenaFull, BeforeHistory, Entity, FeatureView, Field, Status, Store

from .strategies import START_US, row_dicts, row_table

USER = Entity("user", {"user_id": "int64"})
VIEW = FeatureView("v", USER, [Field("x", "int64"), Field("name", "string"), Field("wide", "vector<float64, 20>")])
SHORT = FeatureView("short", USER, VIEW.schema, keep=2)
KEYS_MAX = 4_000
ASKED = {"user_id": np.arange(-1, KEYS_MAX)}


def rows_of(keys: Any, number: int) -> list[tuple[tuple[int], int, dict[str, Any]]]:
    """One row per key; `number` tells the rows of one key apart and orders them."""
    return [
        ((int(key),), START_US + number, {"x": int(key) * 1000 + number, "name": f"{key}" * 9, "wide": [0.5] * 20})
        for key in keys
    ]


def everything(store: Store) -> list[Any]:
    """Every answer, now and at moments of the past; a refusal is an answer too."""
    answers: list[Any] = []
    for view in ("v", "short"):
        for as_of in (None, START_US, START_US + 3, START_US + 1_000):
            try:
                result = store.get_online_features([f"{view}:x", f"{view}:name", f"{view}:wide"], ASKED, as_of=as_of)
            except BeforeHistory as error:
                answers.append(str(error))
                continue
            answers += [result.to_arrow(), result.statuses[view].tolist(), result.event_times[view].tolist()]
    return answers


@pytest.fixture
def store() -> Store:
    store = Store(3 << 20, clock=lambda: START_US + 10_000)
    store.apply([VIEW, SHORT])
    return store


def write(store: Store, form: str, view: FeatureView, rows: list[Any]) -> None:
    if form == "dicts":
        store.push(view.name, row_dicts(view, rows))
    elif form == "arrow":
        store.push(view.name, row_table(view, rows))
    else:
        store.load(view.name, row_table(view, rows))


def fill(store: Store, form: str, view: FeatureView, size: int, seed: int) -> int:
    """Write batches over random keys until one does not fit, which must change nothing; the batches taken."""
    random = np.random.default_rng(seed)
    for number in range(10_000):
        rows = rows_of(random.integers(0, KEYS_MAX, size), number)
        before = store.info(), everything(store)
        try:
            write(store, form, view, rows)
        except ArenaFull:
            assert everything(store) == before[1]
            assert store.info()["views"] == before[0]["views"]
            with pytest.raises(ArenaFull, match=rf"view '{view.name}'.* of {3 << 20} B .*capacity_bytes"):
                write(store, form, view, rows)
            return number
        assert store.info()["arena"]["used"] <= store.info()["arena"]["capacity"] == 3 << 20
    raise AssertionError("the arena never filled")


@pytest.mark.parametrize("view", [VIEW, SHORT], ids=["all", "keep"])
@pytest.mark.parametrize("form", ["dicts", "arrow", "load"])
def test_a_write_beyond_the_limit_changes_nothing_and_the_store_goes_on(
    store: Store, form: str, view: FeatureView
) -> None:
    assert fill(store, form, view, 500, seed=1) > 2
    # What is smaller may still fit; when nothing does, forgetting makes room.
    fill(store, form, view, 7, seed=2)
    fill(store, form, view, 1, seed=3)
    deleted_us = store.delete(view, {"user_id": np.arange(KEYS_MAX)})
    assert store.info()["views"][view.name]["rows"] == 0
    newer = deleted_us - START_US
    write(store, form, view, rows_of(range(500), newer))
    vectors = store.get_feature_vectors([f"{view.name}:x"], {"user_id": np.arange(500)}, as_of=deleted_us)
    assert vectors[:, 0].tolist() == [key * 1000 + newer for key in range(500)]


def test_filling_and_forgetting_over_and_over_loses_no_memory(store: Store) -> None:
    """As many rows fit in the last round as in the second; the first has no deletes to remember."""
    taken = []
    for number in range(12):
        count = 0
        while True:
            try:
                store.push("v", row_table(VIEW, rows_of(range(count, count + 100), number)))
            except ArenaFull:
                break
            count += 100
        taken.append(count)
        store.delete("v", {"user_id": np.arange(count)})
    assert min(taken[2:]) >= 0.95 * taken[1] > 0.5 * taken[0]


def test_one_row_too_large_for_the_arena_is_refused(store: Store) -> None:
    rows = [((1,), START_US, {"x": 1, "name": "n" * (4 << 20), "wide": [0.5] * 20})]
    with pytest.raises(ArenaFull):
        store.push("v", row_dicts(VIEW, rows))
    assert store.info()["views"]["v"]["rows"] == 0
    assert isinstance(store.push("v", row_dicts(VIEW, rows_of([1], 1))), int)
    assert isinstance(store.get_online_features(["v:x"], [{"user_id": 1}]).to_arrow(), pa.Table)


def test_a_delete_that_runs_out_of_room_says_how_many_it_deleted(store: Store) -> None:
    """Entities nobody knew need a tombstone each: so many do not fit, and those before the limit stay deleted."""
    store.push("v", row_table(VIEW, rows_of(range(KEYS_MAX, KEYS_MAX + 10), 0)))
    keys = np.arange(40_000) * 2 + KEYS_MAX
    with pytest.raises(ArenaFull, match=r"view 'v': .* entities are deleted, the rest are as they were") as refusal:
        store.delete("v", {"user_id": keys})
    told = re.search(r" (\d+) of 40000 entities are deleted", str(refusal.value))
    assert told
    assert 0 < int(told[1]) < len(keys)
    statuses = store.get_online_features(["v:x"], {"user_id": keys}).statuses["v"]
    assert (statuses[: int(told[1])] == Status.DELETED).all()
    assert (statuses[int(told[1]) :] == Status.NOT_FOUND).all()
    with pytest.raises(ArenaFull, match=r": 0 of 640 entities are deleted"):
        store.delete("v", {"user_id": keys[-640:]})
    others = store.get_online_features(["v:x"], {"user_id": np.arange(KEYS_MAX + 1, KEYS_MAX + 10, 2)}).statuses["v"]
    assert (others == Status.PRESENT).all()


LIMITED = """
import resource
from fastfeat._core.arena import Arena
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (33 << 20),) * 2)
for _ in range(100):
    Arena(32 << 20)
print(Arena(32 << 20).capacity)
"""


def test_all_the_address_space_that_a_process_may_have_can_be_an_arena() -> None:
    """Room for the place to be one where huge pages may lie is a wish."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.stdout == f"{32 << 20}\n", done.stderr
