"""A durable store that is closed, flushed, refused or read at an awkward moment, each moment made to come."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastfeat import DataError, DirectoryLocked, DiskFull, Entity, FeatureView, Field, LogFailed, StorageError, Store
from fastfeat.files import Files

USER = Entity("user", {"user_id": "int64"})
LATEST = FeatureView("latest", USER, [Field("x", "int64")], keep="latest")
WAIT_SECONDS = 20


class Disk(Files):
    """Calls back where a file of a snapshot is made; fails writes or syncs while told to."""

    def __init__(self) -> None:
        self.at_snapshot: Callable[[], object] | None = None
        self.fails_to = ""
        self.times = 0

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> int:
        call, self.at_snapshot = (None, self.at_snapshot) if "/snapshots/" not in path else (self.at_snapshot, None)
        if call is not None:
            call()
        return super().open(path, create=create, read_only=read_only)

    def write(self, fd: int, data: Any, at: int) -> int:
        self._fail("write", errno.ENOSPC)
        return super().write(fd, data, at)

    def sync(self, fd: int) -> None:
        self._fail("sync", errno.EIO)
        super().sync(fd)

    def _fail(self, call: str, number: int) -> None:
        if self.fails_to == call and self.times:
            self.times -= 1
            raise OSError(number, os.strerror(number))


def open_store(directory: Path, files: Files | None = None) -> Store:
    return Store.open(directory, capacity_bytes=64 << 20, segment_size=1 << 16, files=files)


def row(user: int, event_time: int, x: int) -> dict[str, int]:
    return {"user_id": user, "event_timestamp": event_time, "x": x}


def test_a_write_while_the_store_closes_is_kept_or_refused(tmp_path: Path) -> None:
    disk = Disk()
    store = open_store(tmp_path / "store", disk)
    store.apply(LATEST)
    store.push("latest", row(1, 1, 1))
    taken: list[int] = []
    disk.at_snapshot = lambda: taken.append(store.push("latest", row(2, 1, 2)))
    store.close()
    assert len(taken) == 1
    with open_store(tmp_path / "store") as again:
        assert again.get_online_features(["latest:x"], {"user_id": [1, 2]}).to_dict() == {"latest:x": [1, 2]}
    with pytest.raises(StorageError, match="closed"):
        store.push("latest", row(3, 1, 3))


def test_the_directory_is_let_go_only_when_what_writes_to_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store")
    store.apply(LATEST)
    store.push("latest", row(1, 1, 1))
    store.snapshot()  # nothing is left to do for close but to wait
    storage = store._storage
    assert storage is not None
    is_adding, may_go_on, add = threading.Event(), threading.Event(), storage.history.add

    def slow_add(*arguments: Any) -> None:
        is_adding.set()
        assert may_go_on.wait(WAIT_SECONDS)
        add(*arguments)

    monkeypatch.setattr(storage.history, "add", slow_add)
    flushing, closing = threading.Thread(target=store.flush_history), threading.Thread(target=store.close)
    flushing.start()
    assert is_adding.wait(WAIT_SECONDS)
    try:
        closing.start()
        closing.join(0.2)
        with pytest.raises(DirectoryLocked):
            open_store(tmp_path / "store")
    finally:
        may_go_on.set()
        flushing.join(WAIT_SECONDS)
        closing.join(WAIT_SECONDS)
    with open_store(tmp_path / "store") as again:
        assert again.info()["storage"]["history"]["sequence"] == 1
    for work in (store.snapshot, store.flush_history, store.compact):
        with pytest.raises(StorageError, match="closed"):
            work()
    with pytest.raises(StorageError, match="closed"):
        storage.snapshot()


@pytest.mark.parametrize(("fails_to", "error"), [("write", DiskFull), ("sync", LogFailed)])
def test_a_refused_push_takes_no_place_of_later_rows(tmp_path: Path, fails_to: str, error: type[Exception]) -> None:
    """Else the receipt of an answer would lie beyond rows that the next process takes."""
    disk = Disk()
    store = open_store(tmp_path / "store", disk)
    store.apply(LATEST)
    store.push("latest", row(1, 1, 1))
    disk.fails_to, disk.times = fails_to, 1
    with pytest.raises(error):
        store.push("latest", [row(1, 2, 666)] * 5)
    receipt = store.get_online_features(["latest:x"], {"user_id": [1]}).receipt
    assert receipt is not None
    assert receipt.position == 1
    store.close()
    with open_store(tmp_path / "store") as again:
        again.push("latest", [row(1, 3, 777)] * 5)
        assert again.replay(receipt).to_dict() == {"latest:x": [1]}


def test_a_read_of_the_past_does_not_begin_again_for_each_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "store") as store:
        store.apply(LATEST)
        for time in (1, 2):
            store.push("latest", row(1, time, time))
        storage = store._storage
        assert storage is not None
        rows, reads = storage.history.rows, []

        def rows_met_by_a_write(*arguments: Any) -> Any:
            reads.append(store.push("latest", row(1, 1, 99)))
            return rows(*arguments)

        monkeypatch.setattr(storage.history, "rows", rows_met_by_a_write)
        result = store.get_online_features(["latest:x"], {"user_id": [1]}, as_of=1)
        monkeypatch.undo()
        assert len(reads) == 1
        assert result.to_dict() == {"latest:x": [1]}
        assert result.receipt is not None
        assert result.receipt.position == 2
        assert store.replay(result.receipt).to_dict() == {"latest:x": [1]}


def test_flushes_that_fail_leave_no_more_tails_than_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a history that is away for an hour leaves a read of the past with thousands of them."""

    def fail(*_: Any) -> None:
        raise StorageError("away")

    with open_store(tmp_path / "store") as store:
        store.apply(LATEST)
        storage = store._storage
        assert storage is not None
        monkeypatch.setattr(storage.history, "add", fail)
        store.push("latest", [row(1, time, time) for time in (1, 2)])
        for _ in range(5):
            with pytest.raises(StorageError, match="away"):
                store.flush_history()
        assert len(storage.tails) == 2
        monkeypatch.undo()
        store.push("latest", row(1, 3, 3))
        store.flush_history()
        assert len(storage.tails) == 1
        read = [store.get_feature_vector(["latest:x"], {"user_id": 1}, as_of=time) for time in (1, 2)]
        assert read == [1, 2]


def test_a_url_is_no_directory_for_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="local directory"):
        Store.open("s3://bucket/store")
    assert not list(tmp_path.iterdir())
