"""The system calls, as the real disk does them and as the model of it does: one contract."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fastfeat.errors import DirectoryLocked
from fastfeat.files import INTERRUPTIONS_MAX, Files, write_all, write_file
from tests.faulty_files import ROOT, FaultyFiles

Disk = tuple[Files, str]


@pytest.fixture(params=["real", "model"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return (Files(), str(tmp_path)) if request.param == "real" else (FaultyFiles(), ROOT)


def test_what_is_written_is_read(disk: Disk) -> None:
    files, root = disk
    fd = files.open(root + "/a", create=True)
    assert files.write(fd, b"hello", 3) == 5
    assert files.write(fd, [memoryview(b"ab"), memoryview(b"c")], 0) == 3
    files.sync(fd)
    files.close(fd)
    assert bytes(files.read(root + "/a")) == b"abchello"
    assert files.size(root + "/a") == 8
    assert files.read(root + "/a").readonly


def test_reserved_space_reads_as_zeros_and_is_cut_again(disk: Disk) -> None:
    files, root = disk
    fd = files.open(root + "/a", create=True)
    assert bytes(files.read(root + "/a")) == b""
    files.allocate(fd, 4096)
    files.write(fd, b"x", 0)
    assert bytes(files.read(root + "/a")) == b"x" + bytes(4095)
    files.truncate(fd, 2)
    assert bytes(files.read(root + "/a")) == b"x\0"
    files.close(fd)


def test_opening_with_create_empties_a_file_that_is_there(disk: Disk) -> None:
    files, root = disk
    write_file(files, root + "/a", b"old")
    fd = files.open(root + "/a")
    files.write(fd, b"O", 0)
    files.close(fd)
    assert bytes(files.read(root + "/a")) == b"Old"
    files.close(files.open(root + "/a", create=True))
    assert files.size(root + "/a") == 0


def test_names_are_made_listed_renamed_and_removed(disk: Disk) -> None:
    files, root = disk
    files.make_directory(root + "/d")
    files.make_directory(root + "/d")
    for name in ("b", "a"):
        write_file(files, f"{root}/d/{name}", name.encode())
    assert files.list(root + "/d") == ["a", "b"]
    assert files.list(root) == ["d"]
    files.rename(root + "/d/a", root + "/d/b")
    assert files.list(root + "/d") == ["b"]
    assert bytes(files.read(root + "/d/b")) == b"a"
    assert files.exists(root + "/d/b")
    assert not files.exists(root + "/d/a")
    assert files.is_directory(root + "/d")
    assert not files.is_directory(root + "/d/b")
    files.remove(root + "/d/b")
    files.sync_directory(root + "/d")
    files.remove_directory(root + "/d")
    assert files.list(root) == []


def test_a_view_outlives_the_name_of_its_file(disk: Disk) -> None:
    files, root = disk
    write_file(files, root + "/a", b"content")
    view = files.read(root + "/a")
    files.remove(root + "/a")
    assert bytes(view) == b"content"


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_nothing_else() -> None:
    for method in ("write", "sync", "rename"):
        files = FaultyFiles()
        write_file(files, ROOT + "/a", b"old")
        files.fail_every, files.only = (1, errno.ENOSPC), method
        with pytest.raises(OSError, match="No space"):
            write_file(files, ROOT + "/a", b"new")
        assert files.contents() == {ROOT + "/a": b"old"}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_short_and_interrupted_writes_go_on(every: int) -> None:
    files = FaultyFiles(short_every=every, fail_every=(2, errno.EINTR), only="write")
    fd = files.open(ROOT + "/a", create=True)
    parts = [memoryview(bytes([number]) * 10) for number in range(20)]
    write_all(files, fd, parts, 5)
    assert bytes(files.read(ROOT + "/a")) == bytes(5) + b"".join(parts)


def test_a_write_that_never_gets_anywhere_ends() -> None:
    files = FaultyFiles(fail_every=(1, errno.EINTR), only="write")
    fd = files.open(ROOT + "/a", create=True)
    with pytest.raises(InterruptedError):
        write_all(files, fd, b"x", 0)
    assert files.calls == INTERRUPTIONS_MAX + 1

    class TakesNothing(FaultyFiles):
        def write(self, fd: int, data: object, at: int) -> int:
            return 0

    files = TakesNothing()
    with pytest.raises(OSError, match="took no bytes"):
        write_all(files, files.open(ROOT + "/a", create=True), b"x", 0)


def test_parts_of_any_item_size_are_written_as_bytes(disk: Disk) -> None:
    files, root = disk
    fd = files.open(root + "/a", create=True)
    words = memoryview(b"\1\0\0\0\2\0\0\0").cast("I")
    write_all(files, fd, [memoryview(b""), words], 0)
    files.close(fd)
    assert bytes(files.read(root + "/a")) == b"\1\0\0\0\2\0\0\0"


def test_a_lock_has_one_owner(disk: Disk) -> None:
    files, root = disk
    fd = files.lock(root + "/LOCK")
    with pytest.raises(DirectoryLocked, match="another process owns the directory"):
        files.lock(root + "/LOCK")
    files.close(fd)
    files.close(files.lock(root + "/LOCK"))


def test_a_dead_owner_holds_no_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    code = "import sys; from fastfeat.files import Files; Files().lock(sys.argv[1]); print('mine', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(DirectoryLocked):
            Files().lock(path)
        owner.kill()
    Files().close(Files().lock(path))


def test_a_missing_file_is_an_error_of_the_system(disk: Disk) -> None:
    files, root = disk
    for attempt in (files.read, files.size, files.remove, files.list, files.open):
        with pytest.raises(FileNotFoundError):
            attempt(root + "/none")
