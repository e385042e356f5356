"""Shared memory: where an arena that other processes read lies, and how they find it.

    /dev/shm/fastfeat.NAME/     a NAME with a "/" in it is the directory itself
        LOCK                    0600: the writer's; the last generation that one left behind
        arena.<generation>      the arena, 0640: one process writes it, others map it read-only
        readers.<generation>    the reader table, 0660: readers write their pins
        current                 the newest generation
        writer.sock             where the writing process listens

Promise:     a reader finds a whole arena or none: `current` is replaced once the new arena has its catalogue. Whoever
             has an older one mapped goes on reading its last state and learns from its header that there is a newer, or
             that there will be none until another writer takes the name.
Ownership:   the writer holds a lock of the reader table's file, which the kernel drops when it dies; a second writer
             is refused. Files of older generations are removed by the next writer.
Permission:  the directory is 0750 and the files belong to `group`, where one is named: its members may read, and by
             writing the reader table they could make the writer keep memory or take it from other readers too early. So
             the group is one of programs that trust one another.
Errors:      StorageError: no such arena, one of another version, a place where it can't be made.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ._core.arena import Arena, supersede
from .errors import DataError, StorageError

if TYPE_CHECKING:
    from ._core.table import Table

ROOT: Final = "/dev/shm"
ATTEMPTS: Final = 20  # to find files that a new writer is replacing at this moment
GENERATION_MAX: Final = 1 << 62  # far from what a word holds: a number in LOCK may be anything
NAME_MAX: Final = 64
PAGE: Final = 4096
TIDY_SECONDS: Final = 0.2  # between two looks at who is inside


def shared_directory(name: str) -> str:
    """Where the arena of this name lies. Raises DataError."""
    if "/" in name:
        return os.path.abspath(name)
    if not name or len(name) > NAME_MAX or not all(each.isalnum() or each in "._-" for each in name):
        raise DataError(
            f"{name!r} names no shared arena: give letters, digits, '.', '_' and '-', at most {NAME_MAX} of them, or a"
            " path with a '/'"
        )
    return os.path.join(ROOT, f"fastfeat.{name}")


def writer_socket(name: str) -> str:
    """The path at which the writing process listens for those that read its arena."""
    return os.path.join(shared_directory(name), "writer.sock")


def remove(name: str) -> None:
    """Forget the arena of this name: what nobody has mapped is given back to the system."""
    shutil.rmtree(shared_directory(name), ignore_errors=True)


class Sharing:
    """The files of the arena that this process writes, and the thread that frees what readers have left.

    group: whose members may read, by name; None: only processes of this user. Raises StorageError: another process has
    the name; DataError.
    """

    def __init__(self, name: str, group: str | None = None) -> None:
        self.name = name
        self.directory = shared_directory(name)
        self.generation = 0
        self._gid = -1 if group is None else group_id(group)
        self._is_installed = False
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock_fd = -1
        self._claim()
        _sharings.add(self)

    @property
    def is_writer(self) -> bool:
        """False once it is closed, and in a child of fork: the name, and what lies under it, are the parent's."""
        return self._lock_fd >= 0

    def create(self, capacity_bytes: int, seed: bytes | None = None) -> Arena:
        """A new arena, not yet found by readers. Raises StorageError, DataError.

        What writers left that ended before theirs was found goes first: it would keep its memory for ever.
        """
        shown, there = current_generation(self.directory), self._generations()
        self.generation = max({shown, self._last_generation(), *there}) + 1
        for generation in there - {shown}:
            self._retire(generation, self.generation)
        with ExitStack() as closing:
            files = []
            for kind, mode in (("arena", 0o640), ("readers", 0o660)):
                files.append(self._new_file(kind, mode))
                closing.callback(os.close, files[-1])
            return Arena(capacity_bytes, seed, fd=files[0], readers_fd=files[1], generation=self.generation)

    def resume(self, state: dict[str, Any], capacity_bytes: int) -> tuple[Arena, Catalogue] | None:
        """The arena that a process let go of in this state, and what is in it; None where there is no such."""
        generation = current_generation(self.directory)
        try:
            there, owner = open_arena(self.directory, generation)
            catalogue = Catalogue.of(there)
            if (
                owner != os.geteuid()
                or not there.is_clean
                or catalogue.state != {**state, "boot": boot_id()}
                or there.capacity != capacity_bytes & -PAGE
            ):
                return None
            arena, _ = open_arena(self.directory, generation, is_resumed=True)
        except (OSError, StorageError):
            return None
        self.generation = generation
        return arena, catalogue

    def publish(
        self,
        arena: Arena,
        definitions: list[dict[str, Any]],
        tables: Mapping[str, Table],
        state: dict[str, Any] | None = None,
    ) -> None:
        """Put what there is now into the arena. Raises StorageError: no room."""
        places = {name: (table.header_at, table.fingerprint) for name, table in tables.items()}
        arena.publish(Catalogue(definitions, places, {**state, "boot": boot_id()} if state else {}).pack())
        for table in tables.values():
            table.is_kept = True

    def watch(self, tidy: Callable[[], bool]) -> None:
        """Call `tidy` now and then until it says False, or until `rest`."""
        self._thread = threading.Thread(target=self._run, args=(tidy,), name="fastfeat-readers", daemon=True)
        self._thread.start()

    def _run(self, tidy: Callable[[], bool]) -> None:
        while not self._is_over.wait(TIDY_SECONDS) and tidy():
            pass

    def rest(self) -> None:
        """Stop the thread."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def info(self, arena: Arena) -> dict[str, Any]:
        """The arena as its writer sees it."""
        return {"name": self.name, "generation": self.generation, "position": arena.position, "is_stale": False}

    def install(self) -> None:
        """Let readers find the newest arena; those of older ones are told, and the files go. Raises StorageError."""
        path = os.path.join(self.directory, "current")
        try:
            with open(f"{path}.tmp", "w") as file:
                os.fchmod(file.fileno(), 0o640)
                os.fchown(file.fileno(), -1, self._gid)
                file.write(f"{self.generation}\n")
            os.rename(f"{path}.tmp", path)
        except OSError as error:  # such as of a file system that the arena's first pages have filled
            raise StorageError(f"{path} can't be written: {error.strerror}; readers do not find the arena") from None
        self._is_installed = True
        for generation in self._generations():
            if generation != self.generation:
                self._retire(generation, self.generation)

    def close(self, *, is_kept: bool) -> None:
        """Another process may write now. is_kept: the newest arena stays for it, and for those who read it.

        What readers were never shown goes in any case, and no more than that where nothing was shown.
        """
        self.rest()
        if self._lock_fd < 0:
            return
        try:
            if not self._is_ours():
                return
            shown = current_generation(self.directory)
            if self._is_installed and not is_kept:
                os.unlink(os.path.join(self.directory, "current"))
                shown = 0
            for generation in self._generations() - {shown}:
                self._retire(generation, self.generation + 1)  # not there yet, if ever
            with suppress(OSError):  # a full file system; then numbers start again where no file is left
                last = max(self._last_generation(), self.generation)
                os.ftruncate(self._lock_fd, os.pwrite(self._lock_fd, b"%d\n" % last, 0))
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _is_ours(self) -> bool:
        """False where the directory was removed, and perhaps made anew by another writer, which has its own lock."""
        try:
            return os.path.samestat(os.stat(os.path.join(self.directory, "LOCK")), os.fstat(self._lock_fd))
        except OSError:
            return False

    def _claim(self) -> None:
        """Be the one writer of this name."""
        try:
            is_new = not os.path.isdir(self.directory)
            os.makedirs(self.directory, mode=0o750, exist_ok=True)
            os.chown(self.directory, -1, self._gid)
            if is_new and self._gid >= 0:
                os.chmod(self.directory, 0o750)  # whatever the umask is
            fd = os.open(os.path.join(self.directory, "LOCK"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"{self.directory} can't hold a shared arena: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise StorageError(
                f"another process writes the shared arena {self.name!r} ({self.directory}); stop it or choose a name"
            ) from None
        self._lock_fd = fd

    def _retire(self, generation: int, heir: int) -> None:
        """Tell who reads an arena which to look for, then give its files back; what is mapped stays until let go of.

        Whom it can't tell, as files are all in use, it leaves them: the next writer tries again.
        """
        try:
            fd = os.open(self._path("arena", generation), os.O_RDWR | os.O_CLOEXEC)
            try:
                supersede(fd, heir)
            finally:
                os.close(fd)
        except FileNotFoundError:
            pass
        except StorageError:
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                return
        self._unlink(generation)

    def _unlink(self, generation: int) -> None:
        for kind in ("arena", "readers"):
            with suppress(FileNotFoundError):
                os.unlink(self._path(kind, generation))

    def _new_file(self, kind: str, mode: int) -> int:
        path = self._path(kind, self.generation)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            try:
                os.fchmod(fd, mode)  # whatever the umask is
                os.fchown(fd, -1, self._gid)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise StorageError(f"{path} can't be made: {error.strerror}") from None
        return fd

    def _path(self, kind: str, generation: int) -> str:
        return os.path.join(self.directory, f"{kind}.{generation}")

    def _last_generation(self) -> int:
        """Of the last writer that closed: numbers grow also where no file of it is left. 0: there is none."""
        try:
            return min(int(os.pread(self._lock_fd, 32, 0)), GENERATION_MAX)
        except ValueError:
            return 0

    def _generations(self) -> set[int]:
        found = set()
        for name in os.listdir(self.directory):
            kind, _, number = name.partition(".")
            if kind in ("arena", "readers") and number.isdigit():
                found.add(int(number))
        return found


_sharings: weakref.WeakSet[Sharing] = weakref.WeakSet()


def let_go_in_child() -> None:
    """Why: while it has the lock's file open, the name can't be claimed after its parent's death."""
    for sharing in list(_sharings):
        if sharing._lock_fd >= 0:
            os.close(sharing._lock_fd)
            sharing._lock_fd = -1


os.register_at_fork(after_in_child=let_go_in_child)


def attach(name: str) -> tuple[Arena, int]:
    """The newest arena of this name, to be read, and the user whom it belongs to. Raises StorageError."""
    directory = shared_directory(name)
    for _ in range(ATTEMPTS):
        generation = current_generation(directory)
        if not generation:
            break
        with suppress(FileNotFoundError):  # a writer has just put a newer one in its place
            return open_arena(directory, generation)
    raise StorageError(
        f"there is no shared arena {name!r} ({directory}); start `fastfeat serve --workers` with that name"
    )


def open_arena(directory: str, generation: int, *, is_resumed: bool = False) -> tuple[Arena, int]:
    """An arena to be read, or to be gone on with by a new writer, and its owner. FileNotFoundError, StorageError."""
    flags = os.O_CLOEXEC | (os.O_RDWR if is_resumed else os.O_RDONLY)
    try:
        with ExitStack() as closing:
            arena_fd = os.open(os.path.join(directory, f"arena.{generation}"), flags)
            closing.callback(os.close, arena_fd)
            readers_fd = os.open(os.path.join(directory, f"readers.{generation}"), os.O_RDWR | os.O_CLOEXEC)
            closing.callback(os.close, readers_fd)
            arena = Arena(fd=arena_fd, readers_fd=readers_fd, is_resumed=is_resumed, is_reader=not is_resumed)
            return arena, os.fstat(arena_fd).st_uid
    except PermissionError as error:
        raise StorageError(
            f"{error.filename} may not be read by this user; serve with --group and a group that it is in"
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"the shared arena in {directory} can't be opened: {error.strerror}") from None


def boot_id() -> str:
    """Of this run of the machine: what lies on a disk may have lost pages when another one ended."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def has_arena(name: str) -> bool:
    """Whether readers are to find one."""
    return current_generation(shared_directory(name)) > 0


def current_generation(directory: str) -> int:
    """Of the arena that readers are to find; 0: there is none."""
    try:
        with open(os.path.join(directory, "current")) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def group_id(group: str) -> int:
    """Raises DataError."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise DataError(f"there is no group {group!r} on this machine; name one that `getent group` knows") from None


@dataclass(frozen=True)
class Catalogue:
    """What readers, and a writer that takes an arena up again, need to know beside its rows.

    definitions: as definitions_to_list gives them. tables: of each view, where its table lies and its fingerprint.
    state:       the writer's own, of the moment when it let go.
    """

    definitions: list[dict[str, Any]]
    tables: dict[str, tuple[int, int]]
    state: dict[str, Any]

    def pack(self) -> bytes:
        return json.dumps([self.definitions, self.tables, self.state]).encode()

    @classmethod
    def of(cls, arena: Arena) -> Catalogue:
        """The arena's. Raises StorageError."""
        text = arena.catalogue
        if not text:
            raise StorageError("the arena has no catalogue yet; its server is starting")
        definitions, tables, state = json.loads(text)
        return cls(definitions, {name: (at, fingerprint) for name, (at, fingerprint) in tables.items()}, state)
