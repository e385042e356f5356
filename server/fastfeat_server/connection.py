"""One client's connection: a thin asyncio protocol around ServerSession.

Back-pressure: while the peer does not read, or a LOAD or its writes are behind, nothing more is read from it. What is
passed on to the writer process (see upstream.py) keeps the same rule: who does not read is not written to.
Half-closed: what was asked before the end is answered, then the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from fastfeat.errors import ConnectFailed, FastFeatError, RemoteProtocolError
from fastfeat.protocol import REPLY, REPLY_STALE, ServerSession

from . import requests
from .loading import Load
from .pause import Pause
from .upstream import Upstream

if TYPE_CHECKING:
    from .server import Server

# Weight of one connection's writes (see writes.py) at which it is not read on until half of it is answered: a bound for
# the rows that wait in memory.
WRITES_WEIGHT_MAX = 256
IN_THREADS_MAX = 16  # answers of one connection that threads make or have before them; a bound for the keys that wait
NOT_PAUSED = Pause.NONE


class Connection(asyncio.Protocol):
    """pending: requests whose answer is still to come, from a thread or from the writer.

    upstream: a worker's connection to the writer process; None until a request needs it.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        config = server.config
        self.upstream: Upstream | None = None
        self.session = ServerSession(
            partial(requests.handle, self),
            config.frame_size_max,
            config.entities_max,
            requests.WRITERS if server.writer_path else frozenset(),
            self._forward,
        )
        self.loads: dict[int, Load] = {}  # begun and not ended
        self.pending = 0
        self._writes_weight = 0  # of the writes among them
        self._in_threads = 0  # of the others
        self.transport: asyncio.Transport
        self._pause = Pause.NONE
        self._next_load = server.first_load()
        self._is_ended = False  # the peer has sent its last byte
        self._wants_flags = False
        self.wants_positions = False
        self._handshake: asyncio.TimerHandle | None = None

    # Called by the event loop -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods, not by its class
        if refusal := self.server.admit(self):
            self.session.fail(None, refusal)
            self._send(self.session.take())
            transport.close()
            return
        seconds = self.server.config.handshake_seconds
        self._handshake = self.server.loop.call_later(seconds, self._handshake_is_late)

    def data_received(self, data: bytes) -> None:
        session = self.session
        out = session.receive(data)
        if out is not None:
            self.transport.write(out)
        if session.has_more or session.is_closing:
            self._go_on()

    def eof_received(self) -> bool:
        self._is_ended = True
        self._close_if_done()
        return True

    def pause_writing(self) -> None:
        self.pause(Pause.WRITING)
        if self.upstream is not None:
            self.upstream.pause_reading()

    def resume_writing(self) -> None:
        if self.upstream is not None:
            self.upstream.resume_reading()
        self.resume(Pause.WRITING)

    def connection_lost(self, error: Exception | None) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
        for load in self.loads.values():
            load.abort()
        if self.upstream is not None:
            self.upstream.close()
        self.server.forget(self)

    # Called by requests -----------------------------------------------------------------------------------------------

    def greet(self, frame_size_max: int, *, flags: bool, positions: bool) -> None:
        assert self._handshake is not None
        self._handshake.cancel()
        self.session.greet(frame_size_max)
        self._wants_flags = flags
        self.wants_positions = positions
        self.flag(self.server.is_stale)

    def flag(self, is_stale: bool) -> None:
        """From now on replies say whether the writer is gone, to a client that asked to be told."""
        self.session.reply_type = REPLY_STALE if is_stale and self._wants_flags else REPLY

    def to_writer(self) -> Upstream:
        """A worker's way on, made where there is none."""
        if self.upstream is None:
            self.upstream = Upstream(self, self.server.writer_path)
        return self.upstream

    def break_off(self, error: FastFeatError | None) -> None:
        """Ends, as the writer found the stream broken; the error is sent where the writer's own reply was not."""
        if error is not None:
            self.session.fail(None, error)
        self.flush()
        self.transport.close()

    def written(self, created_us: int) -> int | list[int]:
        """The result of a write that is visible now."""
        return [created_us, self.server.position()] if self.wants_positions else created_us

    def pause(self, why: Pause) -> None:
        if not self._pause:
            self.session.pause()
            self.transport.pause_reading()
        self._pause |= why

    def resume(self, why: Pause) -> None:
        was = self._pause
        self._pause &= ~why
        if was and not self._pause:
            self._send(self.session.resume())
            self._go_on()
            if not self._pause and not self.transport.is_closing():
                self.transport.resume_reading()
        elif self._pause is Pause.STOPPING:
            self._close_if_done()  # what it waited for is over

    def reply(self, request_id: int, result: object) -> None:
        """Answers later than in the order of the stream."""
        self.session.reply(request_id, result)
        self._flush()

    def fail(self, request_id: int, error: BaseException) -> None:
        self.session.fail(request_id, error)
        self._flush()

    def write_begins(self, weight: int) -> None:
        """A write of this connection waits for the writing thread."""
        self.pending += 1
        self._writes_weight += weight
        if self._writes_weight >= WRITES_WEIGHT_MAX and not self._pause & Pause.STORING:
            self.pause(Pause.STORING)

    def write_ends(self, request_id: int, answer: int | BaseException, weight: int) -> None:
        """Its created time or its error; `flush` sends it."""
        self.pending -= 1
        self._writes_weight -= weight
        if isinstance(answer, BaseException):
            self.session.fail(request_id, answer)
        else:
            self.session.reply(request_id, self.written(answer))

    def flush(self) -> None:
        """Sends the answers of writes; reads on where too many had waited."""
        self._send(self.session.take())
        if self._is_ended:
            self._close_if_done()
        # Why `is`: each operation of a flag costs as much as the rest of this, and there is a call for every push.
        if self._pause is not NOT_PAUSED and self._pause & Pause.STORING and self._has_room:
            self.resume(Pause.STORING)

    @property
    def _has_room(self) -> bool:
        return self._writes_weight <= WRITES_WEIGHT_MAX // 2

    def in_thread(self, request_id: int, executor: Executor, work: Callable[[], object]) -> None:
        """Answers the request with what `work` gives, a result or a Frame, from a thread."""
        self.pending += 1
        self._in_threads += 1
        if self._in_threads >= IN_THREADS_MAX and not self._pause & Pause.THREADS:
            self.pause(Pause.THREADS)
        future = self.server.loop.run_in_executor(executor, work)
        future.add_done_callback(lambda done: self._thread_done(request_id, done))

    def add_load(self, load: Load) -> int:
        """The load's number on this connection."""
        number = self._next_load
        self._next_load += 1
        self.loads[number] = load
        return number

    def stop(self) -> None:
        """Reads nothing more; closes once all is answered."""
        self.pause(Pause.STOPPING)
        for load in self.loads.values():
            load.abort()
        self._is_ended = True
        self._close_if_done()

    # Own --------------------------------------------------------------------------------------------------------------

    def _forward(self, request_id: int, frame: bytes) -> None:
        self.to_writer().forward(request_id, frame)

    def _thread_done(self, request_id: int, done: asyncio.Future[Any]) -> None:
        self.pending -= 1
        self._in_threads -= 1
        if done.cancelled():
            return
        self._answer_from_thread(request_id, done)
        if self._pause & Pause.THREADS and self._in_threads <= IN_THREADS_MAX // 2:
            self.resume(Pause.THREADS)

    def _answer_from_thread(self, request_id: int, done: asyncio.Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            self.server.note(error)
            self.fail(request_id, error)
        elif isinstance(done.result(), requests.AskWriter):
            self.to_writer().get(request_id, *done.result())
        elif isinstance(done.result(), requests.Frame):
            self.session.send(done.result().data)
            self._flush()
        else:
            self.reply(request_id, done.result())

    def _send(self, out: bytes | memoryview | None) -> None:
        if out is not None and not self.transport.is_closing():
            self.transport.write(out)

    def _flush(self) -> None:
        self._send(self.session.take())
        self._close_if_done()

    def _go_on(self) -> None:
        """Handles what `receive` left because its replies were many; closes after a broken stream."""
        while self.session.has_more and not self.session.is_paused and not self.transport.is_closing():
            self._send(self.session.resume())
        if self.session.is_closing:
            self.transport.close()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._is_ended or self.pending or self._pause not in (Pause.NONE, Pause.STOPPING):
            return
        if self.session.held_size and not self._pause and not self.session.is_closing:
            self.session.fail(None, RemoteProtocolError("the stream ended inside a frame"))
            self._send(self.session.take())
        self.transport.close()

    def _handshake_is_late(self) -> None:
        seconds = self.server.config.handshake_seconds
        self.session.fail(None, RemoteProtocolError(f"no HELLO within {seconds} s; say HELLO first"))
        self._flush()
        self.transport.close()


def refuse(limit: int) -> ConnectFailed:
    return ConnectFailed(f"{limit} connections are open, which is the limit; close some or raise connections_max")
