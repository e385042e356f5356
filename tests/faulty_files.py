"""A disk with a page cache in memory, which crashes, fails and forgets as real ones may.

    write, truncate --> cached (what every read sees) --sync--> durable (what a power loss leaves)
                        versions of each 512-byte sector, since its last sync

    crash_at=n     the n-th change raises Crashed before it takes effect, and so does every call after it: the process
                   is dead. (Crashing after a change is crashing before the next one.)
    image(seed)    a disk as power loss may leave it: each sector is any of its versions since the last sync, so writes
                   without one are kept, lost, torn and reordered; each change of a name is kept or lost until its
                   directory is synced.
    restart()      the process died, the machine did not: the cache stays.
    fail_at, fail_every, short_every     calls that fail, and writes that take only a part.

A failed sync leaves its sectors clean but not durable, as Linux does: a later sync covers only what was written again.
A failed sync of a directory leaves its changes pending (file systems keep names in a journal, which fails as a whole).
A failed write or allocation takes effect in part where the error allows it.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from fastfeat.errors import DirectoryLocked
from fastfeat.files import Files, views_of

if TYPE_CHECKING:
    from fastfeat.files import Data

SECTOR = 512  # what a disk writes whole or not at all
ROOT = "/disk"
WITHOUT_EFFECT = {errno.EINTR, errno.EROFS, errno.EACCES, errno.EPERM}  # calls that fail so have changed nothing
T = TypeVar("T")


class Crashed(BaseException):
    """The process ends here; nothing may catch this and go on."""


class Version(NamedTuple):
    time: int
    content: bytes


class Change(NamedTuple):
    """One change of names: what is removed and what is there instead."""

    time: int
    directory: str
    removed: str
    added: str
    file: Inode | None  # None: a directory


@dataclass(eq=False)
class Inode:
    cached: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)  # whole sectors
    durable_size: int = 0
    versions: dict[int, list[Version]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (time, size) since the last sync
    dirty: set[int] = field(default_factory=set)

    @classmethod
    def holding(cls, content: bytes) -> Inode:
        inode = cls(bytearray(content), bytearray(content), len(content))
        inode.durable.extend(bytes(-len(content) % SECTOR))
        return inode

    def sector(self, number: int) -> bytes:
        content = bytes(self.cached[number * SECTOR : (number + 1) * SECTOR])
        return content + bytes(SECTOR - len(content))

    def resize(self, size: int, time: int) -> None:
        old = len(self.cached)
        if size < old:
            del self.cached[size:]
            self.touch(size, old, time)
        else:
            self.cached.extend(bytes(size - old))
        if size != old:
            self.sizes.append((time, size))

    def put(self, data: bytes, at: int, time: int) -> None:
        self.resize(max(len(self.cached), at + len(data)), time)
        self.cached[at : at + len(data)] = data
        self.touch(at, at + len(data), time)

    def touch(self, begin: int, end: int, time: int) -> None:
        for number in range(begin // SECTOR, -(-end // SECTOR)):
            self.versions.setdefault(number, []).append(Version(time, self.sector(number)))
            self.dirty.add(number)

    def commit(self) -> None:
        """A sync that works: what is dirty becomes durable."""
        for number in self.dirty:
            self.place(self.durable, number, self.sector(number))
            del self.versions[number]
        self.dirty.clear()
        self.sizes.clear()
        self.durable_size = len(self.cached)

    @staticmethod
    def place(content: bytearray, number: int, sector: bytes) -> None:
        content.extend(bytes(max(0, (number + 1) * SECTOR - len(content))))
        content[number * SECTOR : (number + 1) * SECTOR] = sector

    def after_power_loss(self, chance: Chance) -> Inode:
        content = bytearray(self.durable)
        for number, versions in self.versions.items():
            if version := chance.pick(versions, lambda version: version.time):
                self.place(content, number, version.content)
        size = chance.pick(self.sizes, lambda size: size[0])
        kept = self.durable_size if size is None else size[1]
        content.extend(bytes(max(0, kept - len(content))))
        return Inode.holding(bytes(content[:kept]))


class Chance:
    """How a power loss chooses what it keeps: nothing, all, up to a moment, call by call, or each sector for itself."""

    def __init__(self, seed: int, now: int) -> None:
        self._random = random.Random(seed)
        self._mode = self._random.choice(["none", "all", "moment", "calls", "calls", "each", "each"])
        self._moment = now - int(self._random.expovariate(0.2))
        self._share = self._random.choice([0.2, 0.5, 0.8])
        self._calls: dict[int, bool] = {}

    def keeps(self, time: int) -> bool:
        if self._mode in ("none", "all"):
            return self._mode == "all"
        if self._mode == "moment":
            return time <= self._moment
        if self._mode == "each":
            return self._random.random() < self._share
        return self._calls.setdefault(time, self._random.random() < self._share)

    def pick(self, options: list[T], time: Callable[[T], int]) -> T | None:
        """The newest of the options that is kept; None: the durable one."""
        return next((option for option in reversed(options) if self.keeps(time(option))), None)


class FaultyFiles(Files):
    """Files on a disk in memory. Directories that are there at first: `root` and those above it."""

    def __init__(
        self,
        root: str = ROOT,
        *,
        crash_at: int | None = None,
        fail_at: tuple[int, int] | None = None,  # (n, errno): the n-th call fails, once
        fail_every: tuple[int, int] | None = None,  # (n, errno): every n-th call
        only: str | None = None,  # the method that fails, and whose calls are counted
        short_every: int | None = None,  # every n-th write takes only a part
    ) -> None:
        self.root = root
        self.crash_at = crash_at
        self.fail_at = fail_at
        self.fail_every = fail_every
        self.only = only
        self.short_every = short_every
        self.operations = 0  # changes so far: crash_at counts them
        self.calls = 0  # that could have failed
        self.writes = 0
        self.is_crashed = False
        self.trace: list[str] = []
        self._names: dict[str, Inode | None] = dict.fromkeys(parents(root + "/x"))
        self._durable_names = dict(self._names)
        self._changes: list[Change] = []
        self._open: dict[int, tuple[str, Inode]] = {}
        self._locks: dict[int, str] = {}
        self._fd = 100
        self._lock = threading.RLock()

    # --- what a test does with it

    @classmethod
    def holding(cls, contents: Mapping[str, bytes], root: str = ROOT) -> Self:
        """A disk with these files, all durable."""
        disk = cls(root)
        for path, content in contents.items():
            disk._names.update(dict.fromkeys(parents(path)))
            disk._names[path] = Inode.holding(content)
        disk._durable_names = dict(disk._names)
        return disk

    def contents(self) -> dict[str, bytes]:
        """Every file as a read would see it."""
        return {path: bytes(inode.cached) for path, inode in sorted(self._names.items()) if inode is not None}

    def image(self, seed: int) -> Self:
        """A disk as a power loss now may leave it; nothing fails on it."""
        chance = Chance(seed, self.operations)
        names = dict(self._durable_names)
        for change in self._changes:
            if chance.keeps(change.time):
                apply(names, change)
        disk = type(self)(self.root)
        for path, inode in names.items():
            if all(parent in names for parent in parents(path)):
                disk._names[path] = None if inode is None else inode.after_power_loss(chance)
        disk._durable_names = dict(disk._names)
        return disk

    def restart(self) -> None:
        """The process is gone, with its descriptors and locks; the page cache stays. Nothing fails from now on."""
        self.is_crashed = False
        self.crash_at = self.fail_at = self.fail_every = self.short_every = None
        self._open.clear()
        self._locks.clear()

    # --- how calls go wrong

    @contextmanager
    def _call(
        self, name: str, what: str, *, changes: bool = True, partly: Callable[[], None] | None = None
    ) -> Iterator[None]:
        with self._lock:
            if not self.is_crashed and changes:
                self.operations += 1
                self.trace.append(f"{self.operations} {name} {what}")
                self.is_crashed = self.operations == self.crash_at
            if self.is_crashed:
                raise Crashed(f"{name} {what}")
            if code := self._failure(name):
                self.trace.append(f"failed: {errno.errorcode[code]}")
                if partly is not None and code not in WITHOUT_EFFECT:
                    partly()
                raise OSError(code, os.strerror(code), what)
            yield

    def _failure(self, name: str) -> int:
        if self.only not in (None, name):
            return 0
        self.calls += 1
        if self.fail_at is not None and self.calls == self.fail_at[0]:
            return self.fail_at[1]
        if self.fail_every is not None and self.calls % self.fail_every[0] == 0:
            return self.fail_every[1]
        return 0

    # --- files

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> int:
        with self._call("open", path, changes=create):
            self._need_parent(path)
            if create and path not in self._names:
                self._change(removed="", added=path, file=Inode())
            inode = self._file(path)
            if create:
                inode.resize(0, self.operations)
            return self._descriptor(path, inode)

    def write(self, fd: int, data: Data, at: int) -> int:
        path, inode = self._open[fd]
        whole = b"".join(views_of(data))
        half = whole[: len(whole) // 2]
        self.writes += 1
        if self.short_every is not None and self.writes % self.short_every == 0 and half:
            whole = half
        with self._call("write", f"{path} {at}+{len(whole)}", partly=lambda: inode.put(half, at, self.operations)):
            inode.put(whole, at, self.operations)
            return len(whole)

    def allocate(self, fd: int, size: int) -> None:
        path, inode = self._open[fd]

        def grow(to: int) -> None:
            inode.resize(max(len(inode.cached), to), self.operations)

        with self._call("allocate", f"{path} {size}", partly=lambda: grow(size // 2)):
            grow(size)

    def truncate(self, fd: int, size: int) -> None:
        path, inode = self._open[fd]
        with self._call("truncate", f"{path} {size}"):
            inode.resize(size, self.operations)

    def sync(self, fd: int) -> None:
        path, inode = self._open[fd]
        with self._call("sync", path, partly=inode.dirty.clear):
            inode.commit()

    def close(self, fd: int) -> None:
        with self._lock:
            if self.is_crashed:
                raise Crashed("close")
            self._locks.pop(fd, None)
            del self._open[fd]

    def size(self, path: str) -> int:
        with self._call("size", path, changes=False):
            return len(self._file(path).cached)

    def written_size(self, path: str) -> int:
        return self.size(path)

    def read(self, path: str) -> memoryview:
        with self._call("read", path, changes=False):
            return memoryview(bytes(self._file(path).cached))

    def lock(self, path: str) -> int:
        with self._lock:
            if path in self._locks.values():
                raise DirectoryLocked(f"{path} is locked: another process owns the directory")
            fd = self.open(path, create=path not in self._names)
            self._locks[fd] = path
            return fd

    # --- names

    def rename(self, old: str, new: str) -> None:
        with self._call("rename", f"{old} {new}"):
            self._need_parent(new)
            self._change(removed=old, added=new, file=self._file(old))

    def remove(self, path: str) -> None:
        with self._call("remove", path):
            self._file(path)
            self._change(removed=path, added="", file=None)

    def make_directory(self, path: str) -> None:
        with self._call("make_directory", path):
            self._need_parent(path)
            if path not in self._names:
                self._change(removed="", added=path, file=None)

    def remove_directory(self, path: str) -> None:
        with self._call("remove_directory", path):
            self._need_parent(path + "/x")
            if any(os.path.dirname(name) == path for name in self._names):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
            self._change(removed=path, added="", file=None)

    def sync_directory(self, path: str) -> None:
        with self._call("sync_directory", path):
            self._need_parent(path + "/x")
            for change in self._changes:
                if change.directory == path:
                    apply(self._durable_names, change)
            self._changes = [change for change in self._changes if change.directory != path]

    def list(self, path: str) -> list[str]:
        with self._call("list", path, changes=False):
            self._need_parent(path + "/x")
            return sorted(os.path.basename(name) for name in self._names if os.path.dirname(name) == path)

    def exists(self, path: str) -> bool:
        return path in self._names

    def is_directory(self, path: str) -> bool:
        return path in self._names and self._names[path] is None

    # --- inside

    def _descriptor(self, path: str, inode: Inode) -> int:
        self._fd += 1
        self._open[self._fd] = (path, inode)
        return self._fd

    def _file(self, path: str) -> Inode:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        inode = self._names[path]
        if inode is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return inode

    def _need_parent(self, path: str) -> None:
        if not self.is_directory(os.path.dirname(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _change(self, *, removed: str, added: str, file: Inode | None) -> None:
        change = Change(self.operations, os.path.dirname(added or removed), removed, added, file)
        apply(self._names, change)
        self._changes.append(change)


def apply(names: dict[str, Inode | None], change: Change) -> None:
    names.pop(change.removed, None)
    if change.added:
        names[change.added] = change.file


def parents(path: str) -> list[str]:
    """The directories above a path, the nearest first."""
    above = []
    while (up := os.path.dirname(path)) != path:
        above.append(up)
        path = up
    return above
