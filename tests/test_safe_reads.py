"""Readers survive whatever the arena's bytes turn into: a reader that was stopped for long wakes up in reused memory.

The reads run in a process of their own (scribbles.py), as what is tested would end this one: a fault, or no end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfeat import StorageError

from .scribbles import BACKED, BUMP, CAPACITY, ENTITIES, Places, arena_bytes, filled_store

ROOT = Path(__file__).parents[1]
SECONDS_MAX = 120  # a run takes a few; a search without end takes more than this


def scribbled(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.scribbles", *arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=SECONDS_MAX, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.torture)])
def test_a_damaged_arena_gives_answers_or_errors_of_ours(seed: int) -> None:
    counts = scribbled("damage", str(seed), "330")
    assert counts["is_same"], "a read changed the arena, or something that outlives it"
    assert counts["answered"] > 1000
    assert counts["refused"] > 1000


def test_bytes_that_change_in_the_middle_of_a_read_do_no_harm() -> None:
    counts = scribbled("race", "1", "4")
    assert counts["is_same"]
    assert counts["answered"] > 10
    assert counts["refused"] > 10


def test_the_error_of_a_damaged_arena_names_view_and_entity() -> None:
    store = filled_store()
    words = arena_bytes()
    slots = Places(words).slots
    whole = words.copy()
    words[np.array(slots) + 1] = np.where(words[slots], 2**48, 0)
    users = [{"user_id": user} for user in (10_000, 7)]
    with pytest.raises(StorageError, match=r"view 'alone': the arena is damaged: what it holds of entity 1 \(.*7\)"):
        store.get_feature_vectors(["alone:score"], users)
    words[:] = whole
    assert store.get_feature_vectors(["alone:score"], users).tolist()[1] == [1.0]


def test_nothing_is_loaded_from_where_a_file_has_no_pages_yet() -> None:
    store = filled_store()
    words = arena_bytes()
    slots = Places(words).slots
    whole = words.copy()
    words[np.array(slots) + 1] = np.where(words[slots], CAPACITY - 4096, 0)
    asked = (["alone:score"], [{"user_id": 7}])
    assert np.isnan(store.get_feature_vectors(*asked)).all(), "what lies there is empty"
    words[BACKED] = words[BUMP]
    with pytest.raises(StorageError, match="the arena is damaged"):
        store.get_feature_vectors(*asked)
    words[:] = whole
    assert store.get_feature_vectors(*asked).tolist() == [[1.0]]


def test_slots_behind_the_pages_that_there_are_make_no_entity_absent() -> None:
    """They may be new ones, of a shard that grew since the reader asked how far the pages go."""
    store = filled_store()
    words = arena_bytes()
    shards = Places(words).shard_words
    whole = words.copy()
    words[shards] = (CAPACITY - 4096) & ~63 | 8
    words[BACKED] = words[BUMP]
    users = [{"user_id": user} for user in range(ENTITIES)]
    for asked in (users, users[:1]):
        with pytest.raises(StorageError, match="the arena is damaged"):
            store.get_feature_vectors(["alone:score"], asked)
    words[:] = whole
    assert store.get_feature_vectors(["alone:score"], users).tolist() == [[1.0]] * ENTITIES


def test_the_damage_meets_every_kind_of_structure() -> None:
    store = filled_store()
    places = Places(arena_bytes())
    assert len(places.shard_words) == 5 * 4
    assert len(places.blocks) == 5 * ENTITIES
    assert min(len(places.heads), len(places.entries), len(places.heaps)) > 10
    assert store.info()["views"].keys() == {"numbers", "texts", "alone", "pairs", "events"}
