"""Snapshots on a disk that crashes after every call, loses and reorders what was not synced, and fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fastfeat.errors import DiskFull, SnapshotCorrupt, StorageError
from fastfeat.places import Place, open_place
from fastfeat.snapshot import list_snapshots, read_info, read_parts, remove_snapshots, write_snapshot

from .faulty_files import ROOT, Crashed, FaultyFiles
from .test_snapshot import assert_parts, info_of, parts_of

ROWS_OF = {1: 1, 2: 2, 3: 3}  # by generation, so that one is never taken for another
IMAGES = [pytest.param(3, id="quick"), pytest.param(60, id="long", marks=pytest.mark.long)]


@pytest.fixture(autouse=True)
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastfeat.snapshot.GROUP_SIZE", 1)


def place_on(files: FaultyFiles) -> Place:
    return open_place(files, f"{ROOT}/snapshots")


def lives(files: FaultyFiles, acknowledged: list[int], doomed: list[int]) -> None:
    """Three snapshots, two kept; what is acknowledged and what is being removed is noted as it happens."""
    place = place_on(files)
    for generation, rows in ROWS_OF.items():
        taken = write_snapshot(place, parts_of(rows, shards=1), lambda g=generation: info_of(g))  # type: ignore[misc]
        assert taken.generation == generation
        acknowledged.append(generation)
    doomed.append(1)
    remove_snapshots(place, 2)


def check_what_is_left(files: FaultyFiles, acknowledged: list[int], doomed: list[int]) -> None:
    place = place_on(files)
    found = list_snapshots(place)
    assert set(acknowledged) - set(doomed) <= set(found), "an acknowledged snapshot is lost"
    for generation in found:
        assert read_info(place, generation).sequence == generation
        assert_parts(list(read_parts(place, generation)), parts_of(ROWS_OF[generation], shards=1))
    assert_the_next_one_works(files, found)


def assert_the_next_one_works(files: FaultyFiles, found: list[int]) -> None:
    place = place_on(files)
    taken = write_snapshot(place, parts_of(4, shards=1), lambda: info_of(4))
    assert list_snapshots(place) == [taken.generation, *found]
    assert_parts(list(read_parts(place, taken.generation)), parts_of(4, shards=1))
    generations = {path.split("/")[3] for path in files.contents()}
    assert generations == {f"{generation:020d}" for generation in (*found, taken.generation)}, "leftovers stay"
    assert not any(path.endswith(".tmp") for path in files.contents())


def disks_after_crashes(images: int) -> Iterator[tuple[FaultyFiles, list[int], list[int]]]:
    """The process died before the n-th change, for every n; then the machine went on, or lost power."""
    at = 0
    while True:
        at += 1
        files = FaultyFiles(crash_at=at)
        acknowledged: list[int] = []
        doomed: list[int] = []
        with suppress(Crashed):
            lives(files, acknowledged, doomed)
        for seed in range(images):
            yield files.image(at * 1000 + seed), acknowledged, doomed
        if not files.is_crashed:
            return
        files.restart()
        yield files, acknowledged, doomed


@pytest.mark.parametrize("images", IMAGES)
def test_a_crash_at_any_call_leaves_whole_snapshots_only(images: int) -> None:
    disks = 0
    for files, acknowledged, doomed in disks_after_crashes(images):
        check_what_is_left(files, acknowledged, doomed)
        disks += 1
    assert disks > 100 * images


class Forgetful(FaultyFiles):
    """A seeded bug: one of the calls that make things durable does nothing."""

    forgets = ""

    def sync(self, fd: int) -> None:
        if self.forgets != "sync":
            super().sync(fd)

    def sync_directory(self, path: str) -> None:
        if self.forgets != "sync_directory":
            super().sync_directory(path)


@pytest.mark.parametrize("call", ["sync", "sync_directory"])
def test_a_sync_that_is_left_out_is_caught(call: str) -> None:
    """A positive control of the test above."""

    def lose() -> None:
        for seed in range(200):
            files = Forgetful()
            files.forgets = call
            acknowledged: list[int] = []
            doomed: list[int] = []
            lives(files, acknowledged, doomed)
            check_what_is_left(files.image(seed), acknowledged, doomed)

    with pytest.raises((AssertionError, SnapshotCorrupt)):
        lose()


CODES = [errno.EIO, errno.ENOSPC, errno.EINTR, errno.EROFS]
CAMPAIGNS = [pytest.param(len(CODES), id="quick"), pytest.param(1, id="long", marks=pytest.mark.long)]


@pytest.mark.parametrize("every", CAMPAIGNS)
@pytest.mark.parametrize("code", CODES)
def test_a_call_that_fails_is_a_typed_error_and_loses_nothing(code: int, every: int) -> None:
    at = CODES.index(code)  # the quick ones share the calls among them
    while True:
        at += every
        files = FaultyFiles(fail_at=(at, code))
        acknowledged: list[int] = []
        doomed: list[int] = []
        with suppress(StorageError):
            lives(files, acknowledged, doomed)
        if files.calls < at:
            return
        after_power_loss = files.image(at)
        files.restart()
        check_what_is_left(files, acknowledged, doomed)
        check_what_is_left(after_power_loss, acknowledged, doomed)


def test_a_full_disk_is_told_apart_and_gets_its_space_back() -> None:
    files = FaultyFiles(fail_at=(4, errno.ENOSPC), only="write")
    place = place_on(files)
    with pytest.raises(DiskFull, match="free some space"):
        write_snapshot(place, parts_of(2), lambda: info_of(1))
    assert files.contents() == {}
    assert write_snapshot(place, parts_of(2), lambda: info_of(1)).generation == 1


def test_short_and_interrupted_writes_change_nothing() -> None:
    files = FaultyFiles(short_every=2, fail_every=(3, errno.EINTR), only="write")
    acknowledged: list[int] = []
    lives(files, acknowledged, [])
    assert acknowledged == [1, 2, 3]
    check_what_is_left(files, [2, 3], [1])
