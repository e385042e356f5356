"""A store's directory is checked, copied while it is in use, and made again from the copy."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastfeat import Entity, FeatureView, Field, Store
from fastfeat.errors import DirectoryLocked, HistoryCorrupt, LayoutMismatch, LogCorrupt, SnapshotCorrupt, StorageError
from fastfeat.files import Files
from fastfeat.history import History
from fastfeat.inspection import BACKUP, Parts, backup, check_directory, parts_of, read_backup, restore
from fastfeat.log import Log
from fastfeat.places import open_place
from fastfeat.snapshot import (
    encode_checked,
    list_snapshots,
    read_info,
    read_parts,
    remove_snapshots,
    write_snapshot,
)

from .histories import Model, row_of, same
from .object_store import object_store
from .test_snapshot import HOUR_US, assert_parts, info_of
from .test_snapshot import parts_of as snapshot_parts

FIRST, SECOND = "00000000000000000001", "00000000000000000002"


class Miniature:
    """The parts of a store, moved as a store moves them, with records that say their number."""

    def __init__(self, path: str, files: Files | None = None) -> None:
        self.parts: Parts = parts_of(files or Files(), path, None, None)
        self.parts.files.make_directory(self.parts.path)
        self.log = Log.open(self.parts.files, self.parts.log, segment_size=2048)
        self.history = History.open(self.parts.history)
        self.model = Model()
        self.written = 0

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            self.log.append(1, [self.written.to_bytes(8, "little"), bytes(200)])
            self.written += 1
        self.log.sync()

    def snapshot(self) -> None:
        info = replace(info_of(), log_start=self.log.end, log_end=self.log.end)
        write_snapshot(self.parts.snapshots, snapshot_parts(2), lambda: info)
        remove_snapshots(self.parts.snapshots, 2)

    def flush(self) -> None:
        rows = [row_of("user", (n,), self.written, self.written + 1) for n in range(3)]
        tables, hashes, deletes, covered = self.model.add({"user": rows}, {})
        self.model.covered = covered._replace(position=self.log.end)
        self.history.add(tables, hashes, deletes, self.model.covered)

    def drop(self) -> None:
        """Segments that the older of two snapshots and the history cover."""
        older = read_info(self.parts.snapshots, list_snapshots(self.parts.snapshots)[-1])
        self.log.drop_before(min(older.log_start, self.history.covered.position))

    def live(self) -> None:
        self.write(7)
        self.flush()
        self.snapshot()
        self.write(5)
        self.drop()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    store = Miniature(str(tmp_path_factory.mktemp("template")))
    for _ in range(3):
        store.live()
    return store


@pytest.fixture
def store(template: Miniature, tmp_path: Path) -> Miniature:
    """Two snapshots, a history, a log of several segments that no longer begins at 0."""
    shutil.copytree(template.parts.path, tmp_path / "store")
    store = Miniature(str(tmp_path / "store"))
    store.model, store.written = template.model.copy(), template.written
    return store


def everything(path: str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


def damage(path: str | Path, at: int = -1) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 16
    Path(path).write_bytes(data)


def numbers(log: Log, start: int) -> list[int]:
    return [int.from_bytes(record.payload[:8], "little") for record in log.records(start)]


# --- check


def test_a_whole_directory_has_no_problems_and_is_counted(store: Miniature) -> None:
    report = check_directory(store.parts.path)
    assert report.problems == []
    assert store.log.start > 0
    assert report.log["end"] == store.log.end
    assert report.log["records"] == len(numbers(store.log, store.log.start))
    assert report.log["segments"] == len(store.log.segments) > 2
    assert sorted(report.snapshots) == [2, 3]
    assert report.snapshots[3]["rows"] == 6
    assert report.history["rows"] == 9
    assert report.history["position"] == store.history.covered.position


def test_a_check_changes_nothing(store: Miniature) -> None:
    before = everything(store.parts.path)
    check_directory(store.parts.path)
    assert everything(store.parts.path) == before


def test_a_check_says_how_far_it_is(store: Miniature) -> None:
    steps: dict[str, tuple[int, int]] = {}
    check_directory(store.parts.path, progress=lambda step, done, total: steps.update({step: (done, total)}))
    size = store.log.end - store.log.start
    assert steps == {"snapshot 3": (6, 6), "snapshot 2": (6, 6), "history": (9, 9), "log": (size, size)}


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_directory_without_a_store_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match=f"{name} holds no store; name the directory"):
        check_directory(tmp_path / name)
    with pytest.raises(StorageError, match="holds no store"):
        backup(tmp_path / name, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def cut_log(store: Miniature) -> None:
    """The last segments are gone, and with them what the newest snapshot saw."""
    for segment in store.log.segments[-3:]:
        os.remove(segment.path)


def lose_segment(store: Miniature) -> None:
    os.remove(store.log.segments[1].path)


def lose_first_segments(store: Miniature) -> None:
    for segment in store.log.segments[:-1]:
        os.remove(segment.path)


def lose_snapshots(store: Miniature) -> None:
    remove_snapshots(store.parts.snapshots, 0)


def write_odd_snapshot(store: Miniature, *, start: int = 0, end: int = 0, sequence: int = 1000) -> None:
    info = replace(info_of(sequence), log_start=store.log.end + start, log_end=store.log.end + end)
    write_snapshot(store.parts.snapshots, snapshot_parts(2), lambda: info)


def damage_history(store: Miniature) -> None:
    damage(next(Path(store.parts.path, "history").rglob("*.parquet")), 40)


def damage_log(store: Miniature) -> None:
    """The first record behind the newest snapshot, which a later record promises."""
    store.write()
    position = read_info(store.parts.snapshots, list_snapshots(store.parts.snapshots)[0]).log_start
    segment = next(each for each in reversed(store.log.segments) if each.first <= position)
    damage(segment.path, segment.offset(position) + 60)


DAMAGES: list[tuple[Callable[[Miniature], object], str]] = [
    (lambda s: damage(s.log.segments[0].path, 100), r"\.seg"),
    (lambda s: damage(f"{s.parts.snapshots.where}/{SECOND}/profile/rows/00.arrow", 100), "00.arrow: its checksum"),
    (lambda s: damage(f"{s.parts.snapshots.where}/{SECOND}/manifest.json", 100), "manifest is damaged"),
    (damage_history, "parquet"),
    (cut_log, "its end is lost"),
    (lose_segment, "segment"),
    (lose_first_segments, "what was between is lost"),
    (lose_snapshots, "no snapshot holds what was before"),
    (lambda s: write_odd_snapshot(s, start=-8), "frame|record"),
    (lambda s: write_odd_snapshot(s, end=8), "saw the log up to"),
    (lambda s: write_odd_snapshot(s, sequence=64), "sequence is not below the snapshot's, 64"),
]


@pytest.mark.parametrize(("harm", "says"), DAMAGES)
def test_damage_and_gaps_are_found(store: Miniature, harm: Callable[[Miniature], object], says: str) -> None:
    harm(store)
    problems = check_directory(store.parts.path).problems
    assert problems
    assert any(re.search(says, each) for each in problems), problems


def test_a_store_that_moves_on_meanwhile_has_no_problems(store: Miniature) -> None:
    """The snapshot that is being read is removed, the log's segments and the history's files go."""

    class MovingOn(Files):
        moved = 0

        def read(self, path: str) -> memoryview:
            if "/rows/" in path and self.moved < 3:
                self.moved += 1
                store.live()
                store.history.compact(all_files=True)
            return super().read(path)

    files = MovingOn()
    report = check_directory(store.parts.path, files=files)
    assert files.moved == 3
    assert report.problems == []
    assert max(report.snapshots) == 6


# --- backup and restore


def assert_restored(path: str, store: Miniature) -> None:
    """All that the store holds is there: its newest snapshot, its history, its log from there on."""
    assert check_directory(path).problems == []
    again = Miniature(path)
    again.model, again.written = store.model, store.written
    newest = list_snapshots(store.parts.snapshots)[0]
    assert list_snapshots(again.parts.snapshots) == [newest]
    assert_parts(list(read_parts(again.parts.snapshots, newest)), snapshot_parts(2))
    same(again.history, store.model)
    assert again.log.end == store.log.end
    needed = again.log.start
    assert numbers(again.log, needed) == numbers(store.log, needed)
    again.live()
    assert check_directory(path).problems == []
    again.log.close()


def test_a_restored_backup_is_the_store(store: Miniature, tmp_path: Path) -> None:
    before = everything(store.parts.path)
    taken = backup(store.parts.path, str(tmp_path / "backup"))
    assert everything(store.parts.path) == before
    assert taken == read_backup(open_place(Files(), str(tmp_path / "backup")))
    assert taken.size == sum(
        len(data) for name, data in everything(str(tmp_path / "backup")).items()
    ) - os.path.getsize(tmp_path / "backup" / BACKUP)
    assert taken.log_start > store.log.start, "segments that nothing needs are not copied"
    restored = restore(str(tmp_path / "backup"), str(tmp_path / "new" / "store"))
    assert restored == taken
    assert_restored(str(tmp_path / "new" / "store"), store)


def test_an_empty_directory_and_one_without_snapshots_are_backed_up_too(tmp_path: Path) -> None:
    store = Miniature(str(tmp_path / "store"))
    for name, count in (("empty", 0), ("log only", 20)):
        store.write(count)
        backup(store.parts.path, str(tmp_path / f"{name} backup"))
        restore(str(tmp_path / f"{name} backup"), str(tmp_path / name))
        again = Miniature(str(tmp_path / name))
        assert numbers(again.log, 0) == list(range(count))


def test_a_backup_in_a_bucket_is_restored(store: Miniature, tmp_path: Path) -> None:
    with object_store() as bucket:
        url = bucket.make_bucket("backups/monday")
        backup(store.parts.path, url)
        restore(url, str(tmp_path / "again"))
    assert_restored(str(tmp_path / "again"), store)


def test_parts_that_lie_elsewhere_are_copied_and_restored(store: Miniature, tmp_path: Path) -> None:
    for name in ("snapshots", "history"):
        os.rename(f"{store.parts.path}/{name}", tmp_path / f"far {name}")
    far_snapshots, far_history = str(tmp_path / "far snapshots"), str(tmp_path / "far history")
    backup(store.parts.path, str(tmp_path / "backup"), snapshots=far_snapshots, history=far_history)
    new, snapshots, history = (str(tmp_path / f"new {name}") for name in ("store", "snapshots", "history"))
    restore(str(tmp_path / "backup"), new, snapshots=snapshots, history=history)
    report = check_directory(new, snapshots=snapshots, history=history)
    assert report.problems == []
    assert (list(report.snapshots), report.history["rows"]) == ([3], 9)
    assert sorted(os.listdir(new)) == ["LOCK", "log"]


def test_a_store_in_use_is_backed_up_whole(store: Miniature, tmp_path: Path) -> None:
    """While the log grows, snapshots come and go, and history is compacted."""
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            store.live()
            store.history.compact(all_files=True)

    user = threading.Thread(target=use)
    user.start()
    try:
        for turn in range(4):
            acknowledged = store.written
            taken = backup(store.parts.path, str(tmp_path / f"backup {turn}"))
            restore(str(tmp_path / f"backup {turn}"), str(tmp_path / f"again {turn}"))
            assert check_directory(str(tmp_path / f"again {turn}")).problems == []
            log = Log.open(Files(), str(tmp_path / f"again {turn}" / "log"), read_only=True)
            found = numbers(log, taken.log_start)
            assert found[-1] >= acknowledged - 1
            assert found == list(range(found[0], found[-1] + 1))
            assert check_directory(store.parts.path).problems == []
    finally:
        stop.set()
        user.join()


def test_what_is_being_written_is_not_copied(store: Miniature, tmp_path: Path) -> None:
    """Behind the last whole frame, a copy holds zeros."""
    segment = store.log.segments[-1]
    with open(segment.path, "r+b") as file:
        file.seek(segment.offset(store.log.end))
        file.write(b"half a frame")
    backup(store.parts.path, str(tmp_path / "backup"))
    assert b"half a frame" not in Path(tmp_path, "backup", "log", os.path.basename(segment.path)).read_bytes()


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (
            lambda s: damage(f"{s.parts.snapshots.where}/00000000000000000003/profile/rows/00.arrow", 100),
            SnapshotCorrupt,
        ),
        (damage_history, HistoryCorrupt),
        (damage_log, LogCorrupt),
        (cut_log, LogCorrupt),
    ],
)
def test_a_damaged_store_is_not_backed_up(
    store: Miniature, tmp_path: Path, harm: Callable[[Miniature], None], error: type[StorageError]
) -> None:
    harm(store)
    with pytest.raises(error):
        backup(store.parts.path, str(tmp_path / "backup"))
    assert everything(str(tmp_path / "backup")) == {}


def test_a_disk_that_changes_what_is_written_is_found(store: Miniature, tmp_path: Path) -> None:
    class Changing(Files):
        def read(self, path: str) -> memoryview:
            data = super().read(path)
            return memoryview(bytes(data).replace(b"ARROW1", b"ARROW2")) if "/backup/" in path else data

    with pytest.raises(StorageError, match="read back differently"):
        backup(store.parts.path, str(tmp_path / "backup"), files=Changing())
    with pytest.raises(StorageError, match="is no whole backup"):
        read_backup(open_place(Files(), str(tmp_path / "backup")))


def test_full_places_are_refused(store: Miniature, tmp_path: Path) -> None:
    backup(store.parts.path, str(tmp_path / "backup"))
    with pytest.raises(StorageError, match="holds files; back up to an empty place"):
        backup(store.parts.path, str(tmp_path / "backup"))
    before = everything(store.parts.path)
    with pytest.raises(StorageError, match="is not empty; restore into a new place"):
        restore(str(tmp_path / "backup"), store.parts.path)
    assert everything(store.parts.path) == before
    with pytest.raises(StorageError, match="is not empty"):
        restore(str(tmp_path / "backup"), str(tmp_path / "new"), history=store.parts.history.where)
    assert not (tmp_path / "new").exists()


def test_nobody_opens_a_directory_while_it_is_restored(store: Miniature, tmp_path: Path) -> None:
    backup(store.parts.path, str(tmp_path / "backup"))
    (tmp_path / "new").mkdir()
    refused = 0

    def progress(step: str, done: int, total: int) -> None:
        nonlocal refused
        with pytest.raises(DirectoryLocked):
            Files().lock(str(tmp_path / "new" / "LOCK"))
        refused += 1

    restore(str(tmp_path / "backup"), str(tmp_path / "new"), progress=progress)
    assert refused > 5
    os.close(Files().lock(str(tmp_path / "new" / "LOCK")))


def test_a_damaged_backup_is_not_restored(store: Miniature, tmp_path: Path) -> None:
    taken = backup(store.parts.path, str(tmp_path / "backup"))
    for number, file in enumerate(taken.files[::4]):
        name = tmp_path / "backup" / file.name
        good = name.read_bytes()
        damage(name, len(good) // 2)
        with pytest.raises(StorageError, match="its checksum is not the backup's"):
            restore(str(tmp_path / "backup"), str(tmp_path / f"new {number}"))
        name.write_bytes(good)
    os.remove(tmp_path / "backup" / taken.files[-1].name)
    with pytest.raises(StorageError, match="the file is missing"):
        restore(str(tmp_path / "backup"), str(tmp_path / "new"))


def test_a_damaged_or_later_backup_list_is_refused(store: Miniature, tmp_path: Path) -> None:
    backup(store.parts.path, str(tmp_path / "backup"))
    damage(tmp_path / "backup" / BACKUP, 200)
    with pytest.raises(StorageError, match="is damaged"):
        restore(str(tmp_path / "backup"), str(tmp_path / "new"))
    (tmp_path / "backup" / BACKUP).write_bytes(encode_checked({"format": 2}))
    with pytest.raises(LayoutMismatch, match="a backup of format 2, this fastfeat reads 1"):
        restore(str(tmp_path / "backup"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_store_that_never_stands_still_is_no_endless_loop(store: Miniature, tmp_path: Path) -> None:
    class Vanishing(Files):
        reads = 0

        def read(self, path: str) -> memoryview:
            if "/store/snapshots/" in path:
                self.reads += 1
                raise FileNotFoundError(f"gone {self.reads}")
            return super().read(path)

    with pytest.raises(StorageError, match="changed each of 5 times"):
        backup(store.parts.path, str(tmp_path / "backup"), files=Vanishing())


# --- with a real store


def test_a_store_restored_while_it_took_pushes_gives_every_answer(tmp_path: Path) -> None:
    """Now and as of the past, which only the history holds: the view keeps the latest row alone."""
    user = Entity("user", join_keys={"user_id": "int64"})
    view = FeatureView("profile", entity=user, schema=[Field("score", "float64")], keep="latest")
    acknowledged = 0
    stop = threading.Event()

    def push(store: Store) -> None:
        nonlocal acknowledged
        while not stop.is_set():
            n = acknowledged
            store.push("profile", {"user_id": n % 10, "score": float(n), "event_timestamp": n * HOUR_US})
            acknowledged += 1

    def scores(store: Store, at: int) -> list[float | None]:
        rows = {"user_id": np.arange(10, dtype=np.int64)}
        found: list[float | None] = store.get_online_features(["profile:score"], rows, as_of=at * HOUR_US).to_dict()[
            "profile:score"
        ]
        return found

    with Store.open(tmp_path / "store", capacity_bytes=64 << 20, segment_size=16 << 10) as store:
        store.apply([view])
        pusher = threading.Thread(target=push, args=(store,))
        pusher.start()
        try:
            for turn in range(3):
                while acknowledged < 100 * (turn + 1):
                    time.sleep(0.001)
                store.flush_history()
                store.snapshot()
            until = acknowledged
            backup(str(tmp_path / "store"), str(tmp_path / "backup"))
        finally:
            stop.set()
            pusher.join()
        moments = [5, 150, until - 1]
        expected = [scores(store, at) for at in moments]
        assert check_directory(str(tmp_path / "store")).problems == []
    assert check_directory(str(tmp_path / "store")).problems == []
    restore(str(tmp_path / "backup"), str(tmp_path / "again"))
    with Store.open(tmp_path / "again", capacity_bytes=64 << 20) as store:
        assert [scores(store, at) for at in moments] == expected
        assert expected[1] == [float(n) for n in (150, *range(141, 150))]
