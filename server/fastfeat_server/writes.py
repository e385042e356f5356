"""Writes that may wait, for a disk or for other writes: off the event loop, and together.

    PUSH, DELETE --put--> waiting --when it is free and no more comes--> thread --> store.push_group, store.delete
    replies <--one call into the loop per group, one send per connection-- answers

A group is all that came while the one before it was written and answered, so writes that wait for a sync share the
next one.

Promises: writes are applied in the order they came. Each is answered, also when the group breaks in an unexpected way.
Errors:   a write's own error is its answer; an error of the log is the answer of every write that it met.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from fastfeat.errors import DataError

if TYPE_CHECKING:
    from .connection import Connection
    from .server import Server

# connection, request id, is a delete, view, rows, weight. Why a plain tuple: making one is part of each push's cost.
Write = tuple["Connection", int, bool, str, Any, int]
TURNS_MAX: Final = 4  # of the loop, for which a group waits for more
IS_DELETE: Final = itemgetter(2)
TARGET: Final = itemgetter(3, 4)


class WriteQueue:
    """The writes of all connections and the thread that applies them.

    count: put and not yet answered.
    """

    def __init__(self, server: Server) -> None:
        self.count = 0
        self._server = server
        self._waiting: list[Write] = []
        self._is_writing = False
        self._groups: queue.SimpleQueue[list[Write] | None] = queue.SimpleQueue()
        self._is_over = False
        self._thread: threading.Thread | None = None

    # In the event loop ------------------------------------------------------------------------------------------------

    def put(self, connection: Connection, request_id: int, is_delete: bool, view: str, rows: Any) -> None:
        if not self._waiting and not self._is_writing:
            self._server.loop.call_soon(self._hand_over, 0, TURNS_MAX)
        weight = weigh(rows)
        self._waiting.append((connection, request_id, is_delete, view, rows, weight))
        self.count += 1
        connection.write_begins(weight)

    def stop(self) -> None:
        """The thread ends after the group that it is writing; what still waits is not written."""
        self._is_over = True
        self._groups.put(None)

    def _hand_over(self, seen: int, turns: int) -> None:
        """Gives the thread what waits, unless the last turn of the loop brought more: then the next may as well, and a
        group costs one sync however large it is."""
        if turns and len(self._waiting) > seen:
            self._server.loop.call_soon(self._hand_over, len(self._waiting), turns - 1)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fastfeat-write", daemon=True)
            self._thread.start()
        self._is_writing = True
        self._groups.put(self._waiting)
        self._waiting = []

    def _answer(self, group: list[Write], answers: list[Any]) -> None:
        self.count -= len(group)
        self._is_writing = False
        if self._waiting:
            self._server.loop.call_soon(self._hand_over, 0, TURNS_MAX)
        told: dict[Connection, None] = {}
        errors: dict[int, BaseException] = {}  # by identity: one error may be the answer of many
        for (connection, request_id, _, _, _, weight), answer in zip(group, answers, strict=True):
            connection.write_ends(request_id, answer, weight)
            told[connection] = None
            if isinstance(answer, BaseException):
                errors[id(answer)] = answer
        for connection in told:
            connection.flush()
        for error in errors.values():
            self._server.note(error)

    # In the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (group := self._groups.get()) is not None and not self._is_over:
            answers = apply(self._server.store, group)
            with suppress(RuntimeError):  # the loop is closed: the drain of a stop was over before this group was
                self._server.loop.call_soon_threadsafe(self._answer, group, answers)


def weigh(rows: list[Any] | bytes) -> int:
    """What a write counts towards its connection's limit: 1 for a small one, one more for each 256 rows or 16 KiB."""
    return 1 + (len(rows) >> (14 if type(rows) is bytes else 8))


def apply(store: Any, group: Iterable[Write]) -> list[Any]:
    """The created time or the error of each write, in their order."""
    answers: list[Any] = []
    for is_delete, run in groupby(group, IS_DELETE):
        pairs = list(map(TARGET, run))
        answers += [delete(store, *pair) for pair in pairs] if is_delete else push_all(store, pairs)
    return answers


def delete(store: Any, view: str, keys: list[Any]) -> Any:
    try:
        return store.delete(view, keys)
    except BaseException as error:
        return error


def push_all(store: Any, pairs: list[tuple[str, Any]]) -> list[Any]:
    """One push_group for all; a push whose Arrow stream cannot be read is answered by its own error."""
    answers: list[Any] = [None] * len(pairs)
    readable: list[tuple[str, Any]] = []
    for i, (view, rows) in enumerate(pairs):
        if type(rows) is bytes:
            try:
                readable.append((view, read_arrow(rows)))
            except DataError as error:
                answers[i] = error
        else:
            readable.append((view, rows))
    try:
        pushed = iter(store.push_group(readable))
    except BaseException as error:
        pushed = iter([error] * len(readable))
    return [next(pushed) if answer is None else answer for answer in answers]


def read_arrow(stream: bytes) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(stream).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"PUSH: the rows are not an Arrow stream: {error}") from None
