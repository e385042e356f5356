"""The model of a disk really forgets, tears, reorders and fails; so what survives it says something."""

from __future__ import annotations

import errno

import pytest

from fastfeat.errors import DirectoryLocked
from fastfeat.files import write_file
from tests.faulty_files import ROOT, SECTOR, Crashed, FaultyFiles

PATH = ROOT + "/file"


def synced(content: bytes) -> tuple[FaultyFiles, int]:
    disk = FaultyFiles()
    fd = disk.open(PATH, create=True)
    disk.write(fd, content, 0)
    disk.sync(fd)
    disk.sync_directory(ROOT)
    return disk, fd


def outcomes(disk: FaultyFiles, path: str = PATH, images: int = 300) -> set[bytes | None]:
    return {disk.image(seed).contents().get(path) for seed in range(images)}


def test_a_synced_write_under_a_synced_name_is_always_there() -> None:
    disk, _ = synced(b"kept")
    assert outcomes(disk) == {b"kept"}


def test_a_write_without_sync_is_lost_in_some_images_and_kept_in_others() -> None:
    disk, fd = synced(b"old")
    disk.write(fd, b"new", 0)
    assert bytes(disk.read(PATH)) == b"new"
    assert outcomes(disk) == {b"old", b"new"}


def test_a_write_is_torn_at_sectors_and_only_there() -> None:
    disk, fd = synced(bytes(3 * SECTOR))
    disk.write(fd, b"x" * 3 * SECTOR, 0)
    found = {
        tuple(bytes(image[at : at + SECTOR]) for at in range(0, 3 * SECTOR, SECTOR))
        for image in outcomes(disk)
        if image
    }
    assert len(found) == 8
    assert {sector for image in found for sector in image} == {bytes(SECTOR), b"x" * SECTOR}


def test_writes_to_two_sectors_are_reordered_and_those_to_one_are_not() -> None:
    disk, fd = synced(bytes(2 * SECTOR))
    disk.write(fd, b"1", 0)
    disk.write(fd, b"2", SECTOR)
    disk.write(fd, b"3", 1)
    seen = {(image[:2], image[SECTOR : SECTOR + 1]) for image in outcomes(disk) if image}
    assert (b"\0\0", b"2") in seen
    assert {first for first, _ in seen} == {b"\0\0", b"1\0", b"13"}


def test_a_grown_file_may_have_any_of_its_sizes() -> None:
    disk, fd = synced(b"x")
    disk.allocate(fd, 10)
    disk.truncate(fd, 5)
    assert outcomes(disk) == {b"x", b"x" + bytes(9), b"x" + bytes(4)}
    disk.sync(fd)
    assert outcomes(disk) == {b"x" + bytes(4)}


def test_what_was_cut_off_does_not_come_back_as_content() -> None:
    disk, fd = synced(b"secret")
    disk.truncate(fd, 0)
    disk.allocate(fd, 6)
    disk.sync(fd)
    assert outcomes(disk) == {bytes(6)}


def test_a_name_without_a_directory_sync_is_lost_in_some_images() -> None:
    disk = FaultyFiles()
    fd = disk.open(PATH, create=True)
    disk.write(fd, b"x", 0)
    disk.sync(fd)
    assert outcomes(disk) == {None, b"x"}


def test_a_rename_is_atomic_and_a_removal_may_be_undone() -> None:
    disk, _ = synced(b"x")
    disk.rename(PATH, PATH + "2")
    assert {tuple(disk.image(seed).contents()) for seed in range(50)} == {(PATH,), (PATH + "2",)}
    disk.sync_directory(ROOT)
    disk.remove(PATH + "2")
    assert outcomes(disk, PATH + "2") == {None, b"x"}


def test_files_of_a_directory_whose_own_name_was_lost_are_lost() -> None:
    disk = FaultyFiles()
    disk.make_directory(ROOT + "/a")
    write_file(disk, ROOT + "/a/b", b"x")
    assert outcomes(disk, ROOT + "/a/b") == {None, b"x"}
    disk.sync_directory(ROOT)
    assert outcomes(disk, ROOT + "/a/b") == {b"x"}


def test_a_written_file_is_there_whole_or_not_at_all() -> None:
    content = bytes(range(256)) * 10
    whole = FaultyFiles()
    write_file(whole, PATH, content)
    for at in range(1, whole.operations + 1):
        disk = FaultyFiles(crash_at=at)
        with pytest.raises(Crashed):
            write_file(disk, PATH, content)
        assert outcomes(disk, images=50) <= {None, content}
    assert outcomes(whole) == {content}


def test_nothing_takes_effect_at_and_after_a_crash() -> None:
    disk, fd = synced(b"old")
    disk.crash_at = disk.operations + 1
    for _ in range(2):
        with pytest.raises(Crashed):
            disk.write(fd, b"new", 0)
        with pytest.raises(Crashed):
            disk.read(PATH)
        with pytest.raises(Crashed):
            disk.close(fd)
    disk.restart()
    assert bytes(disk.read(PATH)) == b"old"


def test_what_a_failed_sync_was_for_is_not_made_durable_by_the_next() -> None:
    disk, fd = synced(b"old")
    disk.write(fd, b"new", 0)
    disk.fail_at, disk.only, disk.calls = (1, errno.EIO), "sync", 0
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync(fd)
    disk.sync(fd)
    assert bytes(disk.read(PATH)) == b"new"
    assert b"old" in outcomes(disk)
    disk.write(fd, b"new", 0)
    disk.sync(fd)
    assert outcomes(disk) == {b"new"}


def test_every_nth_call_fails_and_every_nth_write_is_short() -> None:
    disk, fd = synced(b"")
    disk.fail_every, disk.only, disk.calls = (3, errno.ENOSPC), "write", 0
    disk.write(fd, b"1", 0)
    disk.write(fd, b"2", 0)
    with pytest.raises(OSError, match="No space"):
        disk.write(fd, b"3456", 0)
    assert bytes(disk.read(PATH)) == b"34"
    disk.fail_every, disk.short_every = None, 1
    assert disk.write(fd, b"1234", 0) == 2


def test_a_lock_is_held_until_its_process_ends() -> None:
    disk = FaultyFiles()
    disk.lock(ROOT + "/LOCK")
    with pytest.raises(DirectoryLocked):
        disk.lock(ROOT + "/LOCK")
    disk.restart()
    disk.close(disk.lock(ROOT + "/LOCK"))
    disk.lock(ROOT + "/LOCK")


def test_paths_that_are_not_there_are_refused_as_the_kernel_does() -> None:
    disk = FaultyFiles()
    for attempt in (disk.read, disk.size, disk.remove, disk.list, disk.open, disk.remove_directory):
        with pytest.raises(FileNotFoundError):
            attempt(ROOT + "/none")
    with pytest.raises(FileNotFoundError):
        disk.make_directory(ROOT + "/none/below")
    with pytest.raises(IsADirectoryError):
        disk.read(ROOT)
    disk.make_directory(ROOT + "/full")
    disk.open(ROOT + "/full/x", create=True)
    with pytest.raises(OSError, match="not empty"):
        disk.remove_directory(ROOT + "/full")
