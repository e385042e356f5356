"""Durable: one store's directory; what a crash leaves of it becomes the store again.

    directory/  LOCK    held by the owner's kernel lock, so never by a dead one
                log/    every write since the older snapshot and the history's end
                snapshots/, history/        here, or at URLs

    open:    lock -> newest good snapshot -> log from its position -> tail (what the history lacks) -> writes
    running: commits.py writes the log; the keeper, a thread, flushes the tail into the history, takes snapshots,
             compacts, and drops what of the log both cover

Invariant:   what was ever accepted is in the history or in the tail, and the tail is in the log.
Invariant:   the log is dropped only below the older of two snapshots that were read back, and below what the history
             covers.
Concurrency: one owner of a directory; readers (read_only) take what they find and hold nothing.
Errors:      DirectoryLocked, LogCorrupt, SnapshotCorrupt (no snapshot is good and the log does not reach back),
             HistoryCorrupt, ArenaFull (the rows do not fit capacity_bytes), StorageError from a place.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import pyarrow as pa

from ._core.arena import Arena
from ._core.exports import export_shards, shards_of
from ._core.table import Clock, Table
from .commits import DEFINITIONS, DELETE, ROWS, Commits, Prepared, view_of_record
from .cores import usable_cores, writing_threads
from .definitions import Definition, definitions_from_list
from .errors import ArenaFull, DataError, DirectoryLocked, ReadOnly, SnapshotCorrupt, StorageError
from .files import Files
from .history import CompactReport, Covered, History
from .log import Log, Record
from .ownership import claim, name_of_store
from .places import Place, open_place, storage_faults
from .rows import batch_of_rows, entity_columns, heads_batch, heads_of, key_fields, key_hashes, rows_batch, rows_schema
from .schema import FeatureView
from .snapshot import (
    Part,
    SnapshotInfo,
    list_snapshots,
    read_info,
    read_parts,
    remove_snapshots,
    take_parts,
    write_snapshot,
)

if TYPE_CHECKING:
    from ._core.table import Change, RowBatch

log_lines = logging.getLogger("fastfeat")

Item = TypeVar("Item")
Fsync = Literal["always", "interval", "off"]
TAIL_CAPACITY: Final = 1 << 34  # reserved, not used: a tail is flushed long before
READER_ATTEMPTS: Final = 10
KEPT_SNAPSHOTS: Final = 2
REST: Final = 4.0  # of a gentle snapshot: a fifth of the time is work
KEEPER_SECONDS: Final = 1.0  # between two looks
RETRY_SECONDS: Final = 10.0  # after a flush that failed: each attempt encodes the whole tail
POPULATED_AHEAD: Final = 64 << 20
POPULATE_SECONDS: Final = 0.01  # at 1 M rows/s of 200 B, 2 MB
POPULATE_FACTOR: Final = 32  # of the last moment's growth
POPULATE_IDLE_SECONDS: Final = 0.05
EVERY_SEQUENCE: Final = 2**63
NO_VERSION: Final = -1
SEED = struct.Struct("<QQ")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a directory is kept. See Store.open."""

    fsync: Fsync = "always"
    fsync_interval: float = 0.1
    snapshot_seconds: float = 900.0
    flush_bytes: int = 64 << 20
    segment_size: int = 64 << 20
    snapshots: str | None = None
    history: str | None = None
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.fsync not in ("always", "interval", "off"):
            raise DataError(f"fsync is {self.fsync!r}; give 'always', 'interval' or 'off'")
        for name in ("fsync_interval", "snapshot_seconds", "flush_bytes", "segment_size"):
            if not getattr(self, name) > 0:
                raise DataError(f"{name} is {getattr(self, name)!r}; it must be greater than 0")


@dataclass(frozen=True)
class Target:
    """The store that a directory is opened into.

    reset:   begin again, empty, with this seed of the key hash, or a new one.
    install: these definitions, and a table for each view.
    views:   what is installed.
    arena:   that the tables lie in now.
    moved:   told the log's end, once all before it is visible.
    resume:  take up the rows, definitions and all, that a process with this state let go of; False: they are not there.
    """

    reset: Callable[[bytes | None], None]
    install: Callable[[list[Definition]], None]
    views: Callable[[], Mapping[str, tuple[FeatureView, Table]]]
    arena: Callable[[], Arena]
    moved: Callable[[int], object]
    resume: Callable[[dict[str, Any]], bool]


class Tail:
    """Rows and deletes that the history does not hold yet; on demand also as tables that can be asked by key."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._arena: Arena | None = None
        self._batches: dict[str, list[RowBatch]] = {}
        self._tables: dict[str, Table] = {}
        self.renew_lock()
        self.deletes: dict[str, list[tuple[dict[str, list[Any]], int]]] = {}

    def renew_lock(self) -> None:
        """Also in a child of fork, which has no thread that could let go of it."""
        self._lock = threading.Lock()  # of the tables; adding takes none

    def add(self, view: str, batch: RowBatch) -> None:
        if len(batch):
            self._batches.setdefault(view, []).append(batch)

    def add_delete(self, view: str, keys: dict[str, list[Any]], created_us: int) -> None:
        self.deletes.setdefault(view, []).append((keys, created_us))

    def table(self, view: FeatureView) -> Table | None:
        """All rows of a view so far, none dropped; None where there are none."""
        with self._lock:
            batches = self._batches.get(view.name)
            if batches:
                count = len(batches)
                table = self._tables.get(view.name) or self._make_table(view)
                for batch in batches[:count]:
                    table.prepare(batch).commit()
                del batches[:count]
            return self._tables.get(view.name)

    def _make_table(self, view: FeatureView) -> Table:
        if self._arena is None:
            self._arena = Arena(TAIL_CAPACITY)
        self._tables[view.name] = whole_table(self._arena, self._clock, view)
        return self._tables[view.name]

    @property
    def is_empty(self) -> bool:
        return not (any(self._batches.values()) or self._tables or self.deletes)


def whole_table(
    arena: Arena, clock: Clock, view: FeatureView, ttl_us: int | None = None, event_id: str | None = None
) -> Table:
    """A table that keeps every row; with an event id, every one that counts."""
    keys = view.entity.join_keys
    fields = [(each.name, each.dtype, each.nullable) for each in view.schema]
    shape = (view.name, list(keys), list(keys.values()), fields, ttl_us, None, None)
    return Table(arena, clock, *shape, is_event=view.kind == "event", event_id=event_id)


class Storage:
    """An open directory."""

    def __init__(self, files: Files, directory: str, options: Options, clock: Clock, target: Target) -> None:
        self.files = files
        self.directory = os.path.abspath(directory)
        self.options = options
        self.versions: list[dict[str, Any]] = []  # of the definitions: {"version", "definitions"}, oldest first
        self.tails: tuple[Tail, ...] = (Tail(clock),)  # the last one takes what comes; the others wait for the history
        self.read_only = "it was opened read-only" if options.read_only else ""
        self.last_snapshot: SnapshotInfo | None = None
        self._snapshot_version = NO_VERSION  # commits.version when the last snapshot began
        self._damaged: set[int] = set()  # snapshots that can't be read: kept until there is a newer one, counted never
        self.commits: Commits
        self.log: Log
        self.history: History
        self._clock = clock
        self._target = target
        self._lock_fd = -1
        self._flushing = threading.RLock()  # of what writes the history; taken before the next, then commits.lock
        self._snapshotting = threading.Lock()
        self._is_closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._problems: dict[str, str] = {}  # what the keeper failed to do, and why
        _storages.add(self)

    @classmethod
    def open(cls, files: Files, directory: str, options: Options, clock: Clock, target: Target) -> Storage:
        if "://" in directory:
            raise DataError(
                f"{directory!r} is a URL, and the log needs a local directory; give one, and URLs as snapshots= and"
                " history="
            )
        attempts = READER_ATTEMPTS if options.read_only else 1
        while True:
            attempts -= 1
            storage = cls(files, directory, options, clock, target)
            try:
                storage._open()
            except BaseException as error:
                storage._let_go()
                if not (attempts and isinstance(error, (StorageError, OSError)) and storage._has_owner()):
                    raise
                target.reset(None)  # what was there a moment ago may be what the owner has just replaced
            else:
                return storage

    def _has_owner(self) -> bool:
        path = os.path.join(self.directory, "LOCK")
        if not self.files.exists(path):
            return False
        try:
            self.files.close(self.files.lock(path))
        except DirectoryLocked:
            return True
        return False

    def _open(self) -> None:
        if not self.options.read_only:
            with storage_faults("open", self.directory, "look at the disk and the directory's owner"):
                make_directory(self.files, self.directory)
                self._lock_fd = self.files.lock(os.path.join(self.directory, "LOCK"))
        elif not self.files.exists(self.directory):
            raise StorageError(f"{self.directory} is not there; open it without read_only to begin a store")
        self.snapshots = self._place("snapshots", self.options.snapshots)
        self.history = History.open(self._place("history", self.options.history), read_only=self.options.read_only)
        self._recover()
        if not self.options.read_only:
            self._start(self._populate, "fastfeat-pages")
            if self.options.fsync == "interval":
                self._start(self._sync_now_and_then, "fastfeat-sync")
            self._start(self._keep, "fastfeat-keeper")

    def _place(self, holds: str, where: str | None) -> Place:
        """In the directory, or elsewhere: then it is this store's alone."""
        place = open_place(self.files, where or os.path.join(self.directory, holds))
        if where:
            read_only = self.options.read_only
            claim(place, name_of_store(self.files, self.directory, read_only=read_only), holds, read_only=read_only)
        return place

    # --- recovery

    def _recover(self) -> None:
        problems: list[str] = []
        infos = self._snapshot_infos(problems)
        self.log = Log.open(
            self.files,
            os.path.join(self.directory, "log"),
            segment_size=self.options.segment_size,
            required=max([self.history.covered.position, *(info.log_end for info in infos)]),
            read_only=self.options.read_only,
        )
        info = self._resume(infos) or self._read_newest(infos, problems)
        start, sequence, created_us = (info.log_start, info.sequence, info.created_us) if info else (0, 0, 0)
        if start < self.log.start:
            raise SnapshotCorrupt(
                f"{self.directory}: the log begins at {self.log.start} and no snapshot reaches it"
                f" ({'; '.join(problems) or 'there is none'}); restore a backup"
            )
        self.last_snapshot = info
        self._snapshot_version = 0 if info else NO_VERSION
        self.commits = Commits(
            self.log,
            self._clock,
            is_synced=self.options.fsync == "always",
            sequence=sequence,
            created_us=created_us,
            published=self._published,
            moved=self._target.moved,
        )
        self._replay(start)
        self.commits.visible = self.commits.sequence
        self._target.moved(self.log.end)

    def _snapshot_infos(self, problems: list[str]) -> list[SnapshotInfo]:
        """Of the snapshots whose manifest can be read, newest first."""
        infos = []
        for generation in list_snapshots(self.snapshots):
            try:
                infos.append(read_info(self.snapshots, generation))
            except SnapshotCorrupt as error:
                self._is_damaged(generation, error, problems)
        return infos

    def _read_newest(self, infos: list[SnapshotInfo], problems: list[str]) -> SnapshotInfo | None:
        """Take the newest snapshot that can be read."""
        for info in infos:
            try:
                self._read_snapshot(info)
            except SnapshotCorrupt as error:
                self._is_damaged(info.generation, error, problems)
                self._target.reset(None)
            else:
                return info
        return None

    def _is_damaged(self, generation: int, error: SnapshotCorrupt, problems: list[str]) -> None:
        problems.append(str(error))
        self._damaged.add(generation)
        log_lines.warning("snapshot %d can't be used: %s", generation, error)

    def state(self) -> dict[str, Any]:
        """Of a directory in which nothing will be written any more: what the next start knows it by."""
        assert self.last_snapshot is not None
        return self._state_with(self.last_snapshot)

    def _state_with(self, snapshot: SnapshotInfo) -> dict[str, Any]:
        """Why the snapshot's moment: a restored copy may come to the same end of its log with other rows."""
        name = name_of_store(self.files, self.directory, read_only=self.options.read_only)
        return {"store": name, "log_end": self.log.end, "taken_us": snapshot.taken_us}

    def _resume(self, infos: list[SnapshotInfo]) -> SnapshotInfo | None:
        """The snapshot of a clean stop, where memory still has what is in it and it is all there is."""
        if not infos or not self._target.arena().is_shared or not self._target.resume(self._state_with(infos[0])):
            return None
        self.versions = list(infos[0].definitions)
        return infos[0]

    def _read_snapshot(self, info: SnapshotInfo) -> None:
        """Rows shard by shard, several at once; then the heads."""
        self._target.reset(SEED.pack(*info.seed))
        self._set_versions(info.definitions)
        views = self._target.views()
        heads: list[Part] = []

        def take(part: Part) -> None:
            view, table = views[part.view]
            if part.rows.num_rows:
                batch = batch_of_rows(table, view, part.rows)
                if shards_of(table) == info.views[part.view]["shards"]:
                    table.restore_shard(batch, part.shard)
                else:  # another capacity, other shards
                    table.prepare(batch).commit()
            if part.heads.num_rows:
                heads.append(part)

        with self._fitting():
            take_parts(self.snapshots, info.generation, take, threads=usable_cores())
        for part in heads:
            view, table = views[part.view]
            self._apply(table.prepare_heads, entity_columns(view, part.heads), heads_of(part.heads))

    def _apply(self, prepare: Callable[..., Change], *arguments: Any) -> None:
        with self._fitting():
            prepare(*arguments).commit()

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except ArenaFull as error:
            raise ArenaFull(
                f"{self.directory} holds more than fits: {error}; open it with a larger capacity_bytes"
            ) from None

    def _set_versions(self, versions: list[dict[str, Any]]) -> None:
        self.versions = list(versions)
        if versions:
            self._target.install(definitions_from_list(versions[-1]["definitions"]))

    def _replay(self, start: int) -> None:
        """Apply the log: from `start` to memory, from the history's position to the tail."""
        covered = self.history.covered.position
        for record in self.log.records(min(start, covered)):
            is_new, is_tail = record.position >= start, record.position >= covered
            if is_new:
                self._snapshot_version = NO_VERSION
            if record.kind == ROWS:
                self._replay_rows(record, is_new, is_tail)
            elif record.kind == DELETE:
                self._replay_delete(record, is_new, is_tail)
            elif record.kind == DEFINITIONS and is_new:
                self._set_versions([*self.versions, json.loads(bytes(record.payload))])

    def _replay_rows(self, record: Record, is_new: bool, is_tail: bool) -> None:
        name, is_stamped, data = view_of_record(record.payload)
        table = self._target.views()[name][1]
        batch = table.bytes_batch(data)
        if is_tail:
            self.tails[-1].add(name, batch)
        if is_new:
            self._apply(table.prepare, batch, None, writing_threads())
        self.commits.sequence = max(self.commits.sequence, batch.sequence + len(batch))
        if is_stamped and len(batch):
            self.commits.created_us = max(self.commits.created_us, batch.created_max)

    def _replay_delete(self, record: Record, is_new: bool, is_tail: bool) -> None:
        said = json.loads(bytes(record.payload))
        table = self._target.views()[said["view"]][1]
        if is_tail:
            self.tails[-1].add_delete(said["view"], said["keys"], said["created_us"])
        if is_new:
            self._apply(table.prepare_delete, said["keys"], said["created_us"])
        self.commits.created_us = max(self.commits.created_us, said["created_us"])

    # --- while running

    def define(self, definitions: list[dict[str, Any]], install: Callable[[], None]) -> None:
        """Make a new version of the definitions durable, then known."""
        self.check_writable()
        version = {"version": len(self.versions) + 1, "definitions": definitions}

        def known() -> None:
            self.versions.append(version)  # in the log already, whatever comes
            install()

        self.commits.define(json.dumps(version).encode(), known)

    def check_writable(self) -> None:
        if self.read_only:
            raise ReadOnly(f"{self.directory}: the store takes no writes: {self.read_only}")

    def _published(self, change: Prepared) -> None:
        first = change.writes[0]
        if change.batch is not None:
            self.tails[-1].add(first.table.name, change.batch)
        elif change.keys is not None:
            self.tails[-1].add_delete(first.table.name, change.keys, first.created_us)

    def _sync_now_and_then(self) -> None:
        while not self._is_closing.wait(self.options.fsync_interval):
            try:
                with self.commits.lock:
                    self.log.sync()
            except StorageError as error:  # every later write says so
                log_lines.error("%s", error)
                return

    # --- history

    def flush_history(self) -> None:
        """Move the tail into the history."""
        with self._flushing:
            self.check_writable()
            with self.commits.lock:
                if self.log.end == self.history.covered.position:
                    return
                self.log.sync()  # the history must never hold what the log may yet lose
                covered = Covered(self.commits.sequence, self.log.end)
                if not self.tails[-1].is_empty:  # else a flush that failed has left a new one
                    self.tails = (*self.tails, Tail(self._clock))
                frozen = self.tails[:-1]
            rows, hashes, deletes = self._tail_rows(frozen)
            self.history.add(rows, hashes, deletes, covered)
            with self.commits.lock:
                self.tails = self.tails[len(frozen) :]
            self.history.compact()
            if self._snapshotting.acquire(blocking=False):  # else the snapshot under way drops it when it is done
                try:
                    self._drop_log()
                finally:
                    self._snapshotting.release()

    def _tail_rows(self, tails: tuple[Tail, ...]) -> tuple[dict[str, pa.Table], dict[str, Any], dict[str, pa.Table]]:
        rows, hashes, deletes = {}, {}, {}
        for name, (view, _) in self._target.views().items():
            tables = [table for tail in tails if (table := tail.table(view)) is not None]
            if tables:
                parts = [rows_batch(view, export_shards(t, 0, shards_of(t), EVERY_SEQUENCE)) for t in tables]
                rows[name] = pa.Table.from_batches(parts, schema=rows_schema(view))
                hashes[name] = key_hashes(view, entity_columns(view, rows[name]))
            said = [each for tail in tails for each in tail.deletes.get(name, ())]
            if said:
                deletes[name] = deletes_table(view, said)
        return rows, hashes, deletes

    def _drop_log(self) -> None:
        """Remove what of the log the older snapshot and the history cover."""
        generations = [each for each in list_snapshots(self.snapshots) if each not in self._damaged]
        if len(generations) < KEPT_SNAPSHOTS:
            return
        oldest = read_info(self.snapshots, generations[KEPT_SNAPSHOTS - 1])
        with self.commits.lock:
            self.log.drop_before(min(oldest.log_start, self.history.covered.position))

    def compact(self) -> CompactReport:
        """Erase deleted rows from every file: the history's, older snapshots, the log."""
        with self._flushing:
            self.flush_history()
            report = self.history.compact(all_files=True)
            self.commits.begin_segment()
            self.snapshot(keep=1)
            with self.commits.lock:
                assert self.last_snapshot is not None
                self.log.drop_before(min(self.last_snapshot.log_start, self.history.covered.position))
                self.log.remove_torn()
            return report

    # --- snapshots

    def snapshot(self, keep: int = KEPT_SNAPSHOTS, *, is_gentle: bool = False) -> SnapshotInfo:
        """Take a snapshot while reads and writes go on; `keep` of them stay. is_gentle: rest after each part."""
        with self._snapshotting:
            self.check_writable()
            with self.commits.lock:
                sequence, log_start = self.commits.sequence, self.log.end
                created_us, versions = self.commits.created_us, list(self.versions)
                views, version = dict(self._target.views()), self.commits.version
            counts = {name: {"entities": t.entities, "shards": shards_of(t)} for name, (_, t) in views.items()}

            def finish() -> SnapshotInfo:
                with self.commits.lock:  # rows that it saw must not be lost to a crash while it stays
                    self.log.sync()
                    log_end = self.log.end
                return SnapshotInfo(
                    generation=0,
                    sequence=sequence,
                    log_start=log_start,
                    log_end=log_end,
                    created_us=created_us,
                    taken_us=self._clock.now(),
                    seed=SEED.unpack(self._target.arena().seed),
                    definitions=versions,
                    views=counts,
                )

            rest = REST if is_gentle else 0.0
            info = write_snapshot(self.snapshots, resting(parts_of(views, sequence), rest, self._is_closing), finish)
            self._damaged.add(info.generation)
            for _ in resting(read_parts(self.snapshots, info.generation), rest, self._is_closing):
                pass  # raises SnapshotCorrupt: then the older ones and their log stay
            self._damaged.remove(info.generation)
            self.last_snapshot, self._snapshot_version = info, version
            remove_snapshots(self.snapshots, keep, damaged=self._damaged)
            self._drop_log()
            return info

    # --- the threads

    def _start(self, run: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _populate(self) -> None:
        """Keep memory at hand for the rows to come: a writer that waits for the system's pages keeps all waiting.

        As much as the last moment's growth lets expect, so a store that does not grow takes none.
        """
        lower_priority()
        used, seconds = self._target.arena().used, POPULATE_IDLE_SECONDS
        while not self._is_closing.wait(seconds):
            arena = self._target.arena()
            grown, used = arena.used - used, arena.used
            seconds = POPULATE_SECONDS if grown > 0 else POPULATE_IDLE_SECONDS
            if grown > 0:
                arena.populate_ahead(min(POPULATE_FACTOR * grown, POPULATED_AHEAD))

    def _keep(self) -> None:
        lower_priority()
        snapshot_at = time.monotonic() + self.options.snapshot_seconds
        flush_at = 0.0
        while not self._is_closing.wait(KEEPER_SECONDS):
            if self.tail_size >= self.options.flush_bytes and time.monotonic() >= flush_at:
                self._try("history", self.flush_history)
                flush_at = time.monotonic() + RETRY_SECONDS if "history" in self._problems else 0.0
            if time.monotonic() >= snapshot_at:
                snapshot_at = time.monotonic() + self.options.snapshot_seconds
                if not self.is_snapshot_current:
                    self._try("snapshot", lambda: self.snapshot(is_gentle=True))

    def _try(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
            self._problems.pop(what, None)
        except Exception as error:  # the store goes on; INFO says what is behind, and the next look tries again
            self._problems[what] = str(error)
            log_lines.warning("%s: %s", what, error)

    @property
    def tail_size(self) -> int:
        """Bytes of the log that the history does not cover."""
        return self.log.end - self.history.covered.position

    @property
    def is_snapshot_current(self) -> bool:
        return self._snapshot_version == self.commits.version

    def info(self) -> dict[str, Any]:
        """The state of the directory, as plain values."""
        snapshot = self.last_snapshot
        return {
            "directory": self.directory,
            "fsync": self.options.fsync,
            "read_only": self.read_only or str(self.log.refusal or ""),
            "sequence": self.commits.sequence,
            "definitions": len(self.versions),
            "log": {"start": self.log.start, "end": self.log.end, "durable": self.log.durable},
            "snapshot": None
            if snapshot is None
            else {"generation": snapshot.generation, "log_end": snapshot.log_end, "taken_us": snapshot.taken_us},
            "history": {"sequence": self.history.covered.sequence, "position": self.history.covered.position},
            "problems": dict(self._problems),
        }

    # --- the end

    @property
    def is_whole(self) -> bool:
        """True once it is closed, and memory, the newest snapshot and the log say the same."""
        return self._lock_fd < 0 and self.is_snapshot_current and self.log.is_marked

    def close(self) -> None:
        """A clean stop: a snapshot where one is due, the log's last mark, the lock let go."""
        self._is_closing.set()
        try:
            for thread in self._threads:
                thread.join()
            if not self.read_only and self.log.refusal is None:
                # An arena that outlives this process is taken up at once if there is no tail to be read again.
                if self.tail_size >= (1 if self._target.arena().is_shared else self.options.flush_bytes // 4):
                    self._try("history", self.flush_history)
                if not self.is_snapshot_current:
                    self._try("snapshot", self.snapshot)
        finally:
            # What other threads began ends before the lock is let go; what they begin later is refused.
            with self._flushing, self._snapshotting, self.commits.lock:
                self._let_go()

    def _let_go(self) -> None:
        self._is_closing.set()
        for thread in self._threads:
            thread.join()
        self.read_only = self.read_only or "it is closed"
        try:
            if hasattr(self, "log"):
                self.log.close()
        finally:
            if self._lock_fd >= 0:
                self.files.close(self._lock_fd)
                self._lock_fd = -1

    def leave_to_parent(self) -> None:
        """In a child of fork: the directory is its parent's, as are the threads that may have had the locks."""
        self.read_only = self.read_only or "it was opened by the process that this one was forked from"
        self._threads.clear()
        self._flushing, self._snapshotting = threading.RLock(), threading.Lock()
        if hasattr(self, "log"):
            self.log.refuse(ReadOnly(f"{self.directory}: the store takes no writes: {self.read_only}"))
        if hasattr(self, "commits"):
            self.commits.lock = threading.RLock()
        for tail in self.tails:
            tail.renew_lock()
        self._is_closing = threading.Event()
        if self._lock_fd >= 0:  # else the directory could not be opened after its parent's death
            self.files.close(self._lock_fd)
            self._lock_fd = -1


_storages: weakref.WeakSet[Storage] = weakref.WeakSet()


def leave_to_parents() -> None:
    """Two processes that write one log, each unaware of the other, would lose what both acknowledged."""
    for storage in list(_storages):
        storage.leave_to_parent()


os.register_at_fork(after_in_child=leave_to_parents)


def resting(items: Iterator[Item], rest: float, is_over: threading.Event) -> Iterator[Item]:
    """The items; after each a sleep of `rest` times what it took to make and to use, at most a second.

    Why: while a part is copied, compressed and written it has the interpreter, the caches and now and then the whole
    core. Readers meet that in the tail of their latency; a snapshot that takes five times as long meets few of them.
    """
    began = time.perf_counter()
    for item in items:
        yield item
        if rest:
            is_over.wait(min(rest * (time.perf_counter() - began), 1.0))
        began = time.perf_counter()


def parts_of(views: Mapping[str, tuple[FeatureView, Table]], sequence_end: int) -> Iterator[Part]:
    """Every shard of every view, each under a pin of its own."""
    for name, (view, table) in views.items():
        for shard in range(shards_of(table)):
            exported = export_shards(table, shard, shard + 1, sequence_end)
            yield Part(name, shard, rows_batch(view, exported), heads_batch(view, exported))


def deletes_table(view: FeatureView, said: list[tuple[dict[str, list[Any]], int]]) -> pa.Table:
    """Deletes as the history takes them."""
    fields = key_fields(view)
    columns = [pa.array([value for keys, _ in said for value in keys[field.name]], field.type) for field in fields]
    times = [created_us for keys, created_us in said for _ in next(iter(keys.values()))]
    return pa.table([*columns, pa.array(times, pa.int64())], schema=pa.schema([*fields, ("deleted_us", pa.int64())]))


def make_directory(files: Files, path: str) -> None:
    """The directory, durable in its parent, whose parents are made where they are missing."""
    if files.exists(path):
        return
    parent = os.path.dirname(path)
    make_directory(files, parent)
    files.make_directory(path)
    files.sync_directory(parent)


def lower_priority() -> None:
    """Let this thread yield to those that serve. Linux takes a thread's number where POSIX says process."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
