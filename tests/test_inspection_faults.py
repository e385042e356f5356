"""Backups and restores on a disk that crashes at every call: whole, or told apart from what is whole."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest

from fastfeat import Entity, FeatureView, Field, Store
from fastfeat.errors import StorageError
from fastfeat.inspection import backup, check_directory, read_backup, restore
from fastfeat.places import open_place

from .faulty_files import ROOT, Crashed, FaultyFiles
from .test_inspection import Miniature

STORE, BACKUP, NEW = f"{ROOT}/store", f"{ROOT}/backup", f"{ROOT}/new"


def disk() -> FaultyFiles:
    files = FaultyFiles()
    store = Miniature(STORE, files)
    for _ in range(2):
        store.live()
    store.log.close()
    return files


def test_a_backup_that_crashes_is_no_backup() -> None:
    contents = disk().contents()
    at = 0
    while True:
        at += 1
        files = FaultyFiles.holding(contents)
        files.crash_at = at
        with suppress(Crashed):
            backup(STORE, BACKUP, files=files)
        if not files.is_crashed:
            break
        image = files.image(at)
        files.restart()
        for left in (files, image):
            assert {path: data for path, data in left.contents().items() if not path.startswith(BACKUP)} == contents
            check_backup(left)
    assert at > 30


def check_backup(files: FaultyFiles) -> None:
    """It says that it is not whole, or it can be restored."""
    try:
        read_backup(open_place(files, BACKUP))
    except StorageError:
        with pytest.raises(StorageError):
            restore(BACKUP, NEW, files=files)
    else:
        restore(BACKUP, NEW, files=files)
        assert check_directory(NEW, files=files).problems == []


def open_store(files: FaultyFiles, path: str) -> Store:
    return Store.open(path, capacity_bytes=16 << 20, segment_size=2048, files=files)


def real_store() -> FaultyFiles:
    """Rows in a snapshot, in history alone and in the log alone."""
    files = FaultyFiles()
    user = Entity("user", join_keys={"user_id": "int64"})
    view = FeatureView("profile", entity=user, schema=[Field("score", "float64")], keep="latest")
    with open_store(files, STORE) as store:
        store.apply([view])
        for turn in range(3):
            for n in range(20):
                store.push("profile", {"user_id": n, "score": float(turn), "event_timestamp": turn})
            if turn < 2:
                store.flush_history()
                store.snapshot()
        backup(STORE, BACKUP, files=files)
    return files


def scores(store: Store) -> list[float | None]:
    rows = {"user_id": np.arange(20, dtype=np.int64)}
    answers = [store.get_online_features(["profile:score"], rows, as_of=at).to_dict() for at in range(3)]
    return [score for answer in answers for score in answer["profile:score"]]


def test_a_restore_that_crashes_leaves_nothing_or_what_is_refused() -> None:
    contents = real_store().contents()
    refused = at = 0
    while True:
        at += 1
        files = FaultyFiles.holding(contents)
        files.crash_at = at
        with suppress(Crashed):
            restore(BACKUP, NEW, files=files)
        is_crashed, image = files.is_crashed, files.image(at)
        files.restart()
        refused += check_restored(files) + check_restored(image)
        if not is_crashed:
            break
    assert refused > 10


def check_restored(files: FaultyFiles) -> bool:
    """Everything is there, or nothing, or it can't be opened (True)."""
    try:
        store = open_store(files, NEW)
    except StorageError:
        return True
    with store:
        if store.info()["views"]:
            assert scores(store) == [float(turn) for turn in range(3) for _ in range(20)]
    return False
