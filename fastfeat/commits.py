"""Commits: how writes become durable, then visible, many with one sync.

    submit --queue--> group: merge per view -> created times -> prepare -> log -> sync -> publish -> acknowledge

Whoever finds nobody committing commits for all that wait (the leader); what arrives while it syncs is the next group.
A group has one change per view: pushes of Python rows to one view are one record, anything else is a record by itself.

Invariant:   what is visible is in the log, and synced under fsync="always": nothing is published before its record is.
Invariant:   preparing may fail (DataError, ArenaFull) and then the log knows nothing of it; after the log has it,
             nothing can fail. So a write that was refused is not there after a restart, and one acknowledged is.
Invariant:   created times of pushes and deletes grow from write to write, and rows' sequences from row to row, in the
             order of the log, which is the order in which writes become visible.
Concurrency: any number of threads submit; one commits at a time. `version` is odd while a group is being published: a
             reader that finds it even and the same before and after its read saw whole groups only.
Errors:      each write carries its own; an error of the log is every write's of the group, and none of it is visible.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from ._core.table import Change, Clock, Table
from .errors import ArenaFull, DataError, LogFailed, StorageError

if TYPE_CHECKING:
    from ._core.table import RowBatch
    from .log import Log

ROWS: Final = 1  # kinds of records; their numbers are part of the log's format
DELETE: Final = 2
DEFINITIONS: Final = 3

NAME = struct.Struct("<II")  # in front of a record of rows: bytes of the view's name, 1 where we gave the created times
DELETE_PART: Final = 64  # entities: small enough for the arena's reserve
GROUP_ROWS_MAX: Final = 65_536
ATTEMPTS: Final = 100  # of a read to meet no publishing, before it keeps the writers waiting

Answer = TypeVar("Answer")


Keys = dict[str, list[int | str]]  # checked: see request.plain_keys


class Write:
    """One write on its way: rows as Python values or as a batch, or the keys of a delete (request.plain_keys).

    stamped: its created time is given here, when its turn comes; it is in `created_us` then. error: why it was refused.
    """

    __slots__ = ("batch", "created_us", "error", "is_done", "keys", "rows", "stamped", "table", "threads")

    def __init__(
        self,
        table: Table,
        *,
        rows: Sequence[Any] | None = None,
        batch: RowBatch | None = None,
        keys: Keys | None = None,
        stamped: bool = True,
        threads: int = 1,
    ) -> None:
        self.table = table
        self.rows = rows
        self.batch = batch
        self.keys = keys
        self.stamped = stamped
        self.threads = threads
        self.created_us = 0
        self.error: BaseException | None = None
        self.is_done = False


class Prepared:
    """A change of one view: the writes it makes, the record that the log is to keep, the rows or the keys in it."""

    __slots__ = ("batch", "change", "keys", "kind", "record", "writes")

    def __init__(
        self,
        writes: Sequence[Write],
        change: Change,
        kind: int,
        record: list[Any],
        *,
        batch: RowBatch | None = None,
        keys: Keys | None = None,
    ) -> None:
        self.writes = writes
        self.change = change
        self.kind = kind
        self.record = record
        self.batch = batch
        self.keys = keys


class Commits:
    """The one way into a durable store.

    log: None keeps everything but durability. is_synced: sync before publishing. sequence: of the next row. created_us:
    the greatest created time given so far. published: called with every change that was logged, in order, while nothing
    else commits.
    """

    def __init__(
        self,
        log: Log,
        clock: Clock,
        *,
        is_synced: bool,
        sequence: int,
        created_us: int,
        published: Callable[[Prepared], object],
        moved: Callable[[int], object],
    ) -> None:
        self.log = log
        self.sequence = sequence
        self.created_us = created_us
        self.visible = sequence  # rows below it are published
        self.version = 0
        self._fault: LogFailed | None = None
        self.lock = threading.RLock()  # of the committing; whoever holds it sees a store between two groups
        self._clock = clock
        self._is_synced = is_synced
        self._published = published
        self._moved = moved
        self._queue: deque[Write] = deque()

    # --- the border

    def submit(self, writes: Iterable[Write]) -> None:
        """Commit these writes, with whatever else waits; return when all are done. Each carries its own error."""
        wanted = list(writes)
        self._queue.extend(wanted)
        for write in wanted:
            while not write.is_done:
                with self.lock:
                    if not write.is_done:
                        self._commit(self._next_group())

    def define(self, payload: bytes, install: Callable[[], None]) -> None:
        """Make a version of the definitions durable, then known."""
        with self.lock:
            self.log.append(DEFINITIONS, [payload])
            if self._is_synced:
                self.log.sync()
            self.version += 1
            try:
                install()
            finally:
                self.version += 1
                self._moved(self.log.end)

    def begin_segment(self) -> None:
        """Go on in a new segment of the log, so that those before it can be dropped."""
        with self.lock:
            self.log.roll()

    def _stamp(self) -> int:
        self.created_us = max(self._clock.now(), self.created_us + 1)
        return self.created_us

    def consistent(self, read: Callable[[], Answer]) -> tuple[Answer, int]:
        """What `read` gives, having seen whole groups only, and the sequence below which it saw every row."""
        for _ in range(ATTEMPTS):
            version, visible = self.version, self.visible
            answer = read()
            if version & 1 == 0 and version == self.version:
                return answer, visible
        with self.lock:
            return read(), self.visible

    # --- one group

    def _next_group(self) -> list[list[Write]]:
        """Runs of the longest queue prefix that has one change per view; the lock is held."""
        runs: dict[Table, list[Write]] = {}
        rows = 0
        while self._queue and rows < GROUP_ROWS_MAX:
            write = self._queue[0]
            run = runs.get(write.table)
            if run is not None and (write.rows is None or run[0].rows is None):
                break
            self._queue.popleft()
            if run is None:
                runs[write.table] = [write]
            else:
                run.append(write)
            rows += len(write.rows) if write.rows is not None else 1
        return list(runs.values())

    def _commit(self, runs: list[list[Write]]) -> None:
        try:
            waiting = deque(self._attempt(runs))
            while waiting:
                waiting.extendleft(reversed(self._attempt([waiting.popleft()])))
        except BaseException as error:  # an interrupt: what is not acknowledged yet is not
            for run in runs:
                fail([write for write in run if not write.is_done and write.error is None], error)
            raise
        finally:
            for run in runs:
                for write in run:
                    write.is_done = True

    def _attempt(self, runs: list[list[Write]]) -> list[list[Write]]:
        """Commit a group; the runs that are to be tried again, each in a group of its own."""
        prepared: list[Prepared] = []
        again: list[list[Write]] = []
        full: list[Write] = []
        for run in runs:
            try:
                prepared.append(self._prepare(run))
            except ArenaFull as error:
                if run[0].keys is not None:
                    full.append(run[0])
                elif len(run) == 1:
                    run[0].error = error
                else:
                    again += [[write] for write in run]
            except DataError as error:
                again += without_bad(run, error)
            except BaseException:
                self._take_back_sequences(prepared)
                for each in prepared:
                    each.change.abort()
                raise
        if prepared:
            self._finish(prepared)
        for write in full:
            self._delete_in_parts(write)
        return again

    def _prepare(self, run: list[Write]) -> Prepared:
        table, first = run[0].table, run[0]
        for write in run:
            if write.stamped:
                write.created_us = self._stamp()
        if first.keys is not None:
            return self._prepare_delete(first, 0, None)
        batch = first.batch
        if batch is None:
            batch = encoded(table, run)
        elif first.stamped and len(batch):
            batch.set_created(np.full(len(batch), first.created_us, np.int64))
        change = table.prepare(batch, self.sequence, first.threads)
        try:
            record = [view_header(table.name, first.stamped), *table.record(batch, self.sequence)]
        except BaseException:
            change.abort()
            raise
        self.sequence += len(batch)
        return Prepared(run, change, ROWS, record, batch=batch)

    def _prepare_delete(self, write: Write, low: int, high: int | None) -> Prepared:
        table = write.table
        change = table.prepare_delete(write.keys, write.created_us, low, high)
        try:
            keys = {name: values[low:high] for name, values in (write.keys or {}).items()}
            record = {"view": table.name, "created_us": write.created_us, "keys": keys}
            return Prepared([write], change, DELETE, [json.dumps(record).encode()], keys=keys)
        except BaseException:
            change.abort()
            raise

    def _delete_in_parts(self, write: Write) -> None:
        """A delete that does not fit: in small parts, each living on what the one before gave back."""
        count = len(next(iter((write.keys or {}).values())))
        for low in range(0, count, DELETE_PART):
            try:
                self._finish([self._prepare_delete(write, low, min(low + DELETE_PART, count))])
            except ArenaFull:
                write.error = ArenaFull(
                    f"view {write.table.name!r}: the arena is full: {low} of {count} entities are deleted, the rest are"
                    " as they were; raise capacity_bytes and delete again"
                )
            if write.error is not None:
                return

    def _finish(self, prepared: list[Prepared]) -> None:
        """Log, sync, publish. What the log refuses is given back."""
        logged = 0
        error: BaseException | None = self._fault
        try:
            if error is None:
                for each in prepared:
                    self.log.append(each.kind, each.record)
                    logged += 1
        except StorageError as refused:  # of those behind; what the log has goes on
            error = refused
        except BaseException as interrupt:
            self._break(interrupt)
            error, logged = interrupt, 0
        try:
            if logged and self._is_synced:
                self.log.sync()
        except StorageError as failed:
            error, logged = failed, 0
        except BaseException as interrupt:
            self._break(interrupt)
            error, logged = interrupt, 0
        self._take_back_sequences(prepared[logged:])
        self._publish(prepared[:logged])
        for each in prepared[logged:]:
            each.change.abort()
            fail(each.writes, error)

    def _take_back_sequences(self, refused: list[Prepared]) -> None:
        """The next rows get those of the refused ones: the log goes on there, and so does a store opened from it.

        Why it matters: a receipt's position would lie beyond rows that are to come.
        """
        self.sequence = next((each.batch.sequence for each in refused if each.batch is not None), self.sequence)

    def _publish(self, prepared: list[Prepared]) -> None:
        self.version += 1
        for each in prepared:
            each.change.commit()
            self._published(each)
        self.visible = self.sequence
        self.version += 1
        self._moved(self.log.end)
        for each in prepared:
            for write in each.writes:
                write.is_done = True

    def _break(self, interrupt: BaseException) -> None:
        """The log may hold what memory does not: take no more writes, or the two would drift apart."""
        self._fault = LogFailed(
            f"a commit was interrupted ({type(interrupt).__name__}) between the log and memory; no write is taken until"
            " the store is opened again"
        )


def without_bad(run: list[Write], error: DataError) -> list[list[Write]]:
    """The writes of a run that are good by themselves, as one run; the others are told why they are not."""
    if len(run) == 1:
        run[0].error = error
        return []
    for write in run:
        try:
            write.table.rows_batch(write.rows or [], 0)
        except DataError as refused:
            write.error = refused
    good = [write for write in run if write.error is None]
    return [good] if good and len(good) < len(run) else [[write] for write in good]


def fail(writes: Iterable[Write], error: BaseException | None) -> None:
    for write in writes:
        write.error = error


def encoded(table: Table, run: list[Write]) -> RowBatch:
    """The rows of all writes of a run as one batch, each write's with its created time."""
    if len(run) == 1:
        return table.rows_batch(run[0].rows or [], run[0].created_us)
    rows: list[Any] = []
    for write in run:
        rows += write.rows or []
    batch = table.rows_batch(rows, 0)
    if rows:
        created = [write.created_us for write in run]
        batch.set_created(np.repeat(np.array(created, np.int64), [len(write.rows or ()) for write in run]))
    return batch


# --- records


def view_header(name: str, is_stamped: bool) -> bytes:
    text = name.encode()
    return NAME.pack(len(text), is_stamped) + text + bytes(-len(text) % 8)


def view_of_record(payload: memoryview) -> tuple[str, bool, memoryview]:
    """The view's name, whether its created times are ours, and the batch's bytes, of a record of rows."""
    size, is_stamped = NAME.unpack_from(payload)
    start = NAME.size + size + -size % 8
    return bytes(payload[NAME.size : NAME.size + size]).decode(), bool(is_stamped), payload[start:]
