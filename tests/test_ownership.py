"""Places outside of a store's directory: each is one store's, for one thing; and a store in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastfeat import Entity, FeatureView, Field, StorageError, Store

from .object_store import object_store

USER = Entity("user", {"user_id": "int64"})
LATEST = FeatureView("latest", USER, [Field("x", "int64")], keep="latest")


def open_store(directory: Path, **options: Any) -> Store:
    return Store.open(directory, capacity_bytes=64 << 20, segment_size=1 << 16, **options)


def fill(store: Store, first: int) -> None:
    store.apply(LATEST)
    for time in range(4):
        store.push("latest", {"user_id": 1, "event_timestamp": time, "x": first + time})


def value_at(store: Store, time: int) -> list[int]:
    result = store.get_online_features(["latest:x"], {"user_id": [1]}, as_of=time)
    [values] = result.to_dict().values()
    return values


def test_a_place_of_another_store_is_refused(tmp_path: Path) -> None:
    """Else it answers with the other's rows, and writes over its files."""
    elsewhere = str(tmp_path / "elsewhere")
    with open_store(tmp_path / "one", history=elsewhere) as one:
        fill(one, 100)
        one.flush_history()
        with pytest.raises(StorageError, match=r"owner\.json"):
            open_store(tmp_path / "two", history=elsewhere)
    with open_store(tmp_path / "two") as two:
        fill(two, 200)
    for read_only in (True, False):
        with pytest.raises(StorageError, match=r"owner\.json"):
            open_store(tmp_path / "two", history=elsewhere, read_only=read_only)
    with open_store(tmp_path / "two") as two:
        assert value_at(two, 1) == [201]
    with open_store(tmp_path / "one", history=elsewhere) as one:
        assert value_at(one, 1) == [101]


def test_a_place_is_for_one_thing(tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="holds"):
        open_store(tmp_path / "one", history=elsewhere, snapshots=elsewhere)


def test_a_place_whose_owner_cannot_be_read_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"owner\.json"):
        open_store(tmp_path / "one", history=str(elsewhere))


def test_a_reader_claims_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "one") as one:
        fill(one, 100)
    with open_store(tmp_path / "one", history=str(tmp_path / "elsewhere"), read_only=True):
        pass
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "one" / "ID").exists()


def test_a_store_may_have_its_snapshots_and_history_in_a_bucket(tmp_path: Path) -> None:
    with object_store() as bucket:
        url = bucket.make_bucket("one")
        places = {"history": url, "snapshots": url.replace("/one?", "/one-snapshots?")}
        with open_store(tmp_path / "one", **places) as store:
            fill(store, 100)
            receipt = store.get_online_features(["latest:x"], {"user_id": [1]}, as_of=2).receipt
            store.flush_history()
            store.delete("latest", [{"user_id": 2}])
            store.compact()
        assert {each.name for each in (tmp_path / "one").iterdir()} == {"ID", "LOCK", "log"}
        with open_store(tmp_path / "one", **places) as store:
            assert value_at(store, 1) == [101]
            assert receipt is not None
            assert store.replay(receipt).to_dict() == {"latest:x": [102]}
        with pytest.raises(StorageError, match=r"owner\.json"):
            open_store(tmp_path / "two", **places)
