"""LOAD: an Arrow stream in chunks, read by a thread of its own while it comes.

begin --> Load --thread--> store.load(view, reader)
chunk --> LoadStream.put --> queue --> read      answered when taken; the connection stops reading while QUEUED wait
end   --> the report, when the thread is done
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from fastfeat.errors import DataError, Disconnected, RemoteProtocolError

from .pause import Pause

if TYPE_CHECKING:
    from .connection import Connection

QUEUED_CHUNKS_MAX: Final = 4
READ_SIZE: Final = 1 << 20


@dataclass(frozen=True)
class Options:
    """How to read a load. text: columns are text as in a CSV file, to be read as the view's types say."""

    event_time: str
    created_time: str | None
    text: bool

    @staticmethod
    def read(given: dict[str, Any]) -> Options:
        """Raises RemoteProtocolError."""
        event_time, created_time = given.get("event_time", "event_timestamp"), given.get("created_time")
        text = given.get("text", False)
        if not isinstance(event_time, str) or not isinstance(created_time, str | None) or not isinstance(text, bool):
            raise RemoteProtocolError("LOAD: event_time and created_time are names of columns, text is a bool")
        return Options(event_time, created_time, text)


class LoadStream(io.RawIOBase):
    """The chunks as a file, for one reading thread. taken(request_id) is called in that thread."""

    def __init__(self, taken: Callable[[int], object]) -> None:
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._taken = taken
        self._chunk = memoryview(b"")
        self._is_over = False
        self._is_aborted = False

    def put(self, request_id: int, chunk: bytes) -> None:
        self._queue.put((request_id, chunk))

    def end(self) -> None:
        self._queue.put(None)

    def abort(self) -> None:
        self._is_aborted = True
        self._queue.put(None)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._chunk and not self._is_over:
            item = self._queue.get()
            if item is None:
                self._is_over = True
            else:
                self._chunk = memoryview(item[1])
                self._taken(item[0])
        if self._is_aborted:
            raise Disconnected("the load was not finished: its connection ended")
        size = min(len(buffer), len(self._chunk))
        buffer[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size


class Load:
    """One load under way. Its thread runs `store.load`; everything else happens in the event loop."""

    def __init__(self, connection: Connection, view: str, options: Options) -> None:
        self.connection = connection
        self.stream = LoadStream(lambda request_id: self._call_soon(self._taken, request_id))
        self.waiting: list[int] = []  # chunks not taken yet
        self.end_id: int | None = None
        self.error: BaseException | None = None
        self.report: dict[str, Any] | None = None
        self.thread = threading.Thread(
            target=self._run, args=(view, options), name=f"fastfeat-load-{view}", daemon=True
        )
        self.thread.start()

    def chunk(self, request_id: int, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.waiting.append(request_id)
        self.connection.pending += 1
        self.stream.put(request_id, data)
        if len(self.waiting) >= QUEUED_CHUNKS_MAX:
            self.connection.pause(Pause.LOADING)

    def end(self, request_id: int) -> None:
        if self.error is not None:
            raise self.error
        self.end_id = request_id
        self.connection.pending += 1
        self.stream.end()
        self._answer_end()

    def abort(self) -> None:
        self.stream.abort()

    def _call_soon(self, call: Callable[..., object], *args: object) -> None:
        """From the load's thread into the loop, which may be closed already at the end of a stop."""
        try:
            self.connection.server.loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            self.stream.abort()

    def _taken(self, request_id: int) -> None:
        if request_id not in self.waiting:
            return  # failed meanwhile
        self.waiting.remove(request_id)
        self.connection.pending -= 1
        self.connection.reply(request_id, None)
        if len(self.waiting) < QUEUED_CHUNKS_MAX:
            self.connection.resume(Pause.LOADING)

    def _run(self, view: str, options: Options) -> None:
        """In the thread."""
        server = self.connection.server
        try:
            report = load_stream(server.store, view, self.stream, options)
        except BaseException as error:
            self._call_soon(self._failed, error)
        else:
            self._call_soon(self._finished, report)

    def _finished(self, report: dict[str, Any]) -> None:
        self.report = report
        self._answer_end()

    def _failed(self, error: BaseException) -> None:
        self.error = error
        self.connection.server.note(error)
        for request_id in [*self.waiting, *([] if self.end_id is None else [self.end_id])]:
            self.connection.pending -= 1
            self.connection.fail(request_id, error)
        self.waiting.clear()
        self._leave()

    def _answer_end(self) -> None:
        if self.end_id is not None and self.report is not None:
            self.connection.pending -= 1
            self.connection.reply(self.end_id, self.report)
            self._leave()

    def _leave(self) -> None:
        self.connection.server.loads.discard(self)
        self.connection.resume(Pause.LOADING)


def load_stream(store: Any, view: str, stream: LoadStream, options: Options) -> dict[str, Any]:
    """Loads while the stream comes; the report as a map."""
    import pyarrow as pa

    from fastfeat.sources import Part

    try:
        # Buffered, because Arrow takes a short read for the end.
        with pa.ipc.open_stream(io.BufferedReader(stream, READ_SIZE)) as reader:
            source = reader
            if options.text:
                source = Part("the load", reader.schema, lambda columns, reject: iter(reader), is_csv=True)
            report = store.load(view, source, event_time=options.event_time, created_time=options.created_time)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"LOAD: the chunks are not an Arrow stream: {error}") from None
    return asdict(report)


def handle_load(connection: Connection, request_id: int, params: object) -> None:
    """["begin", view, options] -> load; ["chunk", load, bin] -> nil; ["end", load] -> report; ["abort", load]."""
    match params:
        case ["begin", str(view), dict(options)]:
            connection.session.reply(request_id, begin(connection, view, options))
        case ["chunk", int(number), bytes(data)] if number in connection.loads:
            connection.loads[number].chunk(request_id, data)
        case ["end", int(number)] if number in connection.loads:
            connection.loads.pop(number).end(request_id)
        case ["abort", int(number)] if number in connection.loads:
            connection.loads.pop(number).abort()
            connection.session.reply(request_id, None)
        case ["chunk", int(number), bytes()] | ["end" | "abort", int(number)]:
            raise DataError(f"LOAD: no load {number} on this connection; begin one")
        case _:
            raise RemoteProtocolError("LOAD: params must be [begin, view, options], [chunk, load, bin] or [end, load]")


def begin(connection: Connection, view: str, given: dict[str, Any]) -> int:
    options = Options.read(given)
    limit = connection.server.config.loads_max
    if len(connection.server.loads) >= limit:
        raise DataError(f"LOAD: {limit} loads are under way, which is the limit; wait for one or raise loads_max")
    load = Load(connection, view, options)
    connection.server.loads.add(load)
    return connection.add_load(load)
