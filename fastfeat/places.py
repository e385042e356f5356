"""Places: where snapshots and history lie, a local directory or a bucket, behind one face.

    open_place --> DirectoryPlace --> Files            a path or a file:// URL
               \\-> ObjectPlace    --> pyarrow.fs       s3://bucket/prefix?endpoint_override=...&scheme=http, gs://...

Promise:     what `write` was given is seen whole or not at all, and once it returns it survives a crash; so does what
             `remove` took away. A directory needs temp file, sync, rename and its own sync; a bucket is so by nature.
Concurrency: one writer; any number of readers, in other processes too.
Errors:      FileNotFoundError where nothing has that name; DiskFull and ReadOnly as the disk says; StorageError for
             anything else, with the name and what to look at.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from .errors import DiskFull, ReadOnly, StorageError
from .files import Files, write_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

TEMPORARY = ".tmp"  # how `write_file` names what it has not finished
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_WRITES = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Place(ABC):
    """Named files below one root. A name may hold "/"; what has no files below it does not exist."""

    where: str  # for messages: a path or URL without its options

    @abstractmethod
    def write(self, name: str, data: Buffer) -> None:
        """Make the file, or replace it: durable and whole when this returns, the old or the new if it raises."""

    @abstractmethod
    def read(self, name: str) -> memoryview:
        """The whole file; of a local one a mapping, so nothing is read before it is looked at."""

    @abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """The file for random access (Parquet): a mapping, or ranged requests."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted; never one that is half written."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of the file."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take the file away, durably; no error where it is gone already."""

    @abstractmethod
    def sub(self, name: str) -> Place:
        """The place below this one; nothing is made before the first write."""

    def tidy(self) -> None:  # noqa: B027  (a bucket has nothing to tidy)
        """Remove what a crash left half written, and directories that hold nothing. For the one writer only."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r})"


def open_place(files: Files, where: str) -> Place:
    """The place at a path or a pyarrow.fs URL; a bucket is asked once, so a wrong URL is known now.

    Credentials come from the environment (AWS_ACCESS_KEY_ID, ...). Raises StorageError: an unknown kind of URL or
    option, a place that does not answer, a bucket that is not there.
    """
    url = urlsplit(where)
    if "://" not in where:
        return DirectoryPlace(files, os.path.abspath(where))
    if url.scheme == "file":
        return DirectoryPlace(files, unquote(url.path))
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # no secret of the URL in a message
    try:
        filesystem, path = fs.FileSystem.from_uri(where)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{shown} is no place for files: {error}; give a directory, or a URL such as"
            " s3://bucket/prefix?endpoint_override=http://host:port"
        ) from error
    place = ObjectPlace(filesystem, path, shown)
    place.check_bucket()
    return place


class DirectoryPlace(Place):
    """A local directory; every system call goes through `files`."""

    def __init__(self, files: Files, path: str, above: DirectoryPlace | None = None) -> None:
        self.where = path
        self._files = files
        self._root: str = above._root if above else path
        self._made: set[str] = above._made if above else set()  # directories that this process knows to be durable

    def write(self, name: str, data: Buffer) -> None:
        path = self._path(name)
        with self._faults("write", name):
            self._make(os.path.dirname(path))
            write_file(self._files, path, data)

    def read(self, name: str) -> memoryview:
        with self._faults("read", name):
            return self._files.read(self._path(name))

    def open(self, name: str) -> pa.NativeFile:
        return pa.BufferReader(pa.py_buffer(self.read(name)))

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        with self._faults("list", prefix):
            return sorted(name for name in self._walk(folder) if name.startswith(prefix))

    def size(self, name: str) -> int:
        with self._faults("look at", name):
            return self._files.size(self._path(name))

    def remove(self, name: str) -> None:
        path = self._path(name)
        with self._faults("remove", name), suppress(FileNotFoundError):
            self._files.remove(path)
            self._files.sync_directory(os.path.dirname(path))

    def sub(self, name: str) -> DirectoryPlace:
        return DirectoryPlace(self._files, self._path(name), self)

    def tidy(self) -> None:
        with self._faults("tidy", ""):
            if self._files.is_directory(self.where):
                self._tidy(self.where)

    def _tidy(self, folder: str) -> None:
        for entry in self._files.list(folder):
            path = os.path.join(folder, entry)
            if self._files.is_directory(path):
                self._tidy(path)
                if not self._files.list(path):
                    self._made.discard(path)
                    self._files.remove_directory(path)
            elif entry.endswith(TEMPORARY):
                self._files.remove(path)

    def _path(self, name: str) -> str:
        return os.path.join(self.where, name) if name else self.where

    def _make(self, path: str) -> None:
        """Make a directory and those above it, each entry durable before anything is put below it.

        Why also where it exists: the process that made it may have died before its entry was synced.
        """
        if path in self._made:
            return
        parent = os.path.dirname(path)
        if path.startswith(self._root + "/") or not self._files.exists(parent):
            self._make(parent)
        self._files.make_directory(path)
        self._files.sync_directory(parent)
        self._made.add(path)

    def _walk(self, folder: str) -> Iterator[str]:
        path = self._path(folder)
        if not self._files.is_directory(path):
            return
        for entry in self._files.list(path):
            name = f"{folder}/{entry}" if folder else entry
            if self._files.is_directory(self._path(name)):
                yield from self._walk(name)
            elif not entry.endswith(TEMPORARY):
                yield name

    def _faults(self, verb: str, name: str) -> Any:
        return storage_faults(verb, self._path(name), "look at the disk and the directory's owner")


class ObjectPlace(Place):
    """A bucket, or a prefix in one, through a pyarrow filesystem."""

    def __init__(self, filesystem: fs.FileSystem, path: str, where: str) -> None:
        self.where = where.rstrip("/")
        self._filesystem = filesystem
        self._root = path.rstrip("/")

    def check_bucket(self) -> None:
        """Raises StorageError where the bucket can't be reached or is not there."""
        bucket = self._root.partition("/")[0]
        with self._faults("reach", ""):
            found = self._filesystem.get_file_info(bucket)
        if not bucket or found.type == fs.FileType.NotFound:
            raise StorageError(f"{self.where}/: there is no bucket {bucket!r}; make it, or correct the URL")

    def write(self, name: str, data: Buffer) -> None:
        with self._faults("write", name), self._filesystem.open_output_stream(self._path(name)) as stream:
            stream.write(pa.py_buffer(data))

    def read(self, name: str) -> memoryview:
        with self._faults("read", name), self._filesystem.open_input_file(self._path(name)) as file:
            return memoryview(file.read_buffer())

    def open(self, name: str) -> pa.NativeFile:
        with self._faults("read", name):
            return self._filesystem.open_input_file(self._path(name))

    def list(self, prefix: str = "") -> list[str]:
        folder = self._path(prefix.rpartition("/")[0]).rstrip("/")
        with self._faults("list", prefix):
            found = self._filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
        names = (info.path.removeprefix(f"{self._root}/") for info in found if info.is_file)
        return sorted(name for name in names if name.startswith(prefix))

    def size(self, name: str) -> int:
        with self._faults("look at", name):
            info = self._filesystem.get_file_info(self._path(name))
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.where}/{name}")
        return int(info.size)

    def remove(self, name: str) -> None:
        with self._faults("remove", name), suppress(FileNotFoundError):
            self._filesystem.delete_file(self._path(name))

    def sub(self, name: str) -> ObjectPlace:
        return ObjectPlace(self._filesystem, self._path(name), f"{self.where}/{name}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _faults(self, verb: str, name: str) -> Any:
        return storage_faults(
            verb, f"{self.where}/{name}", "look at the URL, the credentials in the environment and the network"
        )


@contextmanager
def storage_faults(verb: str, what: str, remedy: str) -> Iterator[None]:
    """Say what failed where, as a typed error; a missing file stays a FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFull(f"cannot {verb} {what}: {error.strerror}; free some space") from error
        if error.errno in NO_WRITES:
            raise ReadOnly(f"cannot {verb} {what}: {error.strerror}; {remedy}") from error
        raise StorageError(f"cannot {verb} {what}: {error}; {remedy}") from error
