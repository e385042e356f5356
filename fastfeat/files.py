"""The system calls that durable storage stands on, one method each, so that tests can put a faulty disk below it all.

    Log, Place  -->  write_all, write_file  -->  Files  -->  the disk

Promises (of the disk, which tests/faulty_files.py models and everything above relies on):
    * A write is durable once `sync` on its file returned; until then any of its 512-byte sectors may be lost.
    * A name (created, renamed, removed) is durable once `sync_directory` on its directory returned; a rename is atomic.
    * After a failed `sync` nothing is known: pages may be marked clean without being on the disk. It is never retried.
Ownership:   `read` gives a read-only view of a mapping that lives as long as the view.
Concurrency: no state; any thread may call.
Errors:      OSError as the kernel reports it, for the caller to translate; DirectoryLocked.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from .errors import DirectoryLocked

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Data = Buffer | list[memoryview]

PARTS_MAX = 1024  # IOV_MAX of Linux: what one pwritev takes
INTERRUPTIONS_MAX = 100  # of one write, in a row: beyond it something else is wrong, and a loop would hide it


class Files:
    """The real disk. Paths are strings; every method is one system call or the few that belong to it."""

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> int:
        """A descriptor of the file; `create` makes it, or empties it where it is."""
        flags = os.O_RDONLY if read_only else os.O_RDWR
        return os.open(path, flags | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0), 0o644)

    def write(self, fd: int, data: Data, at: int) -> int:
        """Write at an offset; how many bytes were taken may be less than were given."""
        if isinstance(data, list):
            return os.pwritev(fd, data if len(data) <= PARTS_MAX else data[:PARTS_MAX], at)
        return os.pwrite(fd, data, at)

    def allocate(self, fd: int, size: int) -> None:
        """Reserve the file's first `size` bytes; those never written read as zeros."""
        os.posix_fallocate(fd, 0, size)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Give the file another name, also where that name is taken."""
        os.rename(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        """Make one directory; its parent must be there. No error where it exists."""
        with suppress(FileExistsError):
            os.mkdir(path)

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def size(self, path: str) -> int:
        return os.stat(path).st_size

    def written_size(self, path: str) -> int:
        """All bytes from here to the file's end are zero: the file system has nothing for them."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        end = at = 0
        try:
            while True:
                at = os.lseek(fd, at, os.SEEK_DATA)
                end = at = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no more data
                raise
            return end
        finally:
            os.close(fd)

    def read(self, path: str) -> memoryview:
        """The whole file, mapped."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)

    def lock(self, path: str) -> int:
        """Own a lock file until the descriptor is closed or the process dies; DirectoryLocked where another does."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise DirectoryLocked(
                f"{path} is locked: another process owns the directory; stop it, or open with read_only=True"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd


def views_of(data: Data) -> list[memoryview]:
    return data if isinstance(data, list) else [memoryview(data)]


def after(parts: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of the parts behind their first `count` bytes."""
    rest = []
    for part in parts:
        if count >= part.nbytes:
            count -= part.nbytes
        else:
            rest.append(part.cast("B")[count:])
            count = 0
    return rest


def write_all(files: Files, fd: int, data: Data, at: int) -> None:
    """Write everything, however short the single writes are."""
    parts = after(views_of(data), 0)
    interruptions = 0
    while parts:
        try:
            count = files.write(fd, parts, at)
        except InterruptedError:
            interruptions += 1
            if interruptions > INTERRUPTIONS_MAX:
                raise
            continue
        if count <= 0:
            raise OSError(errno.EIO, "a write took no bytes and gave no reason")
        interruptions = 0
        parts = after(parts, count)
        at += count


WRITE_SIZE = 32 << 10  # of a file's bytes at once: the system may run nothing else on this core meanwhile


def write_file(files: Files, path: str, data: Data) -> None:
    """Make a file that is there whole and durable, or not at all; one of that name is replaced.

    A crash may leave `path` + ".tmp" behind; writing the file again takes it over.
    """
    temporary = path + ".tmp"
    fd = files.open(temporary, create=True)
    try:
        try:
            at = 0
            for part in views_of(data):
                for start in range(0, part.nbytes, WRITE_SIZE):
                    piece = part[start : start + WRITE_SIZE]
                    write_all(files, fd, piece, at)
                    at += piece.nbytes
            files.sync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            files.remove(temporary)
        raise
    files.sync_directory(os.path.dirname(path) or os.curdir)
