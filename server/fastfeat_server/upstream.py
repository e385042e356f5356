"""A worker's way to the writer process: one connection for each client connection that needs it, made when it does.

    client --frame--> ServerSession.forward --the same bytes--> writer.sock
    client <--the same bytes-- Connection.session.send <------- reply, its id looked up

A read that only the writer can answer (its rows left memory) goes the same way on a plan prepared here.

Promises: requests reach the writer in the client's order, and every one is answered: by the writer, or by
          WriterUnavailable which says whether the writer may have done it. While either side does not read, the other
          is not read.
Why not one connection for all clients: each would wait for the slowest, and ids would have to be rewritten.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

from fastfeat.errors import FastFeatError, RemoteProtocolError, WriterUnavailable, code_of
from fastfeat.protocol import VERSION, FrameSplitter, pack_frame, reply_head, reply_of

from .pause import Pause

if TYPE_CHECKING:
    from .connection import Connection

HEAD: Final = struct.Struct(">I")
BROKEN: Final = code_of(RemoteProtocolError(""))  # the error after which a peer closes
NOT_SENT: Final = "the writer process is not there, so nothing was done; reads go on, ask again when INFO is not stale"
IN_DOUBT: Final = (
    "the writer process went away before it answered: a write may or may not have been done; read what you wrote, or"
    " write it again where twice does no harm"
)
GETS_MAX: Final = 16  # that wait for a plan, before the client is not read on; a bound for their keys
LAST_ID: Final = (1 << 64) - 1

Plan = Any
Get = tuple[int, list[Any]]  # request id and params


class Upstream(asyncio.Protocol):
    """What one client connection has with the writer, until either ends; then the next request makes another."""

    def __init__(self, connection: Connection, path: str) -> None:
        self._connection = connection
        self._path = path
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._is_over = False
        self._is_full = False  # the writer does not take what is written
        self._splitter = FrameSplitter(connection.server.config.frame_size_max)
        self._unsent: list[bytes] = []  # until the connection is made
        self._under_way: Counter[int] = Counter()  # the client's requests, by id
        self._own: dict[int, Plan | None] = {}  # ours, by id: the plan of a PREPARE, or None for HELLO
        self._plans: dict[Plan, int | list[Get]] = {}  # -> the writer's number, or the GETs that wait for it
        self._refusal = ""

    # Called by the client's connection --------------------------------------------------------------------------------

    def forward(self, request_id: int, frame: bytes) -> None:
        """Passes a whole request on."""
        if request_id in self._own:
            raise RemoteProtocolError(f"request {request_id}: this server uses that id itself now; count from 0 up")
        self._under_way[request_id] += 1
        self._connection.pending += 1
        self._send(frame)

    def get(self, request_id: int, plan: Plan, asked: list[Any]) -> None:
        """Asks the writer what memory cannot answer; its plan is prepared once."""
        self._under_way[request_id] += 1
        self._connection.pending += 1
        known = self._plans.get(plan)
        if isinstance(known, int):
            self._send(get_frame(request_id, known, asked))
        elif known is not None:
            known.append((request_id, asked))
            if len(known) >= GETS_MAX:
                self._connection.pause(Pause.PASSING)
        else:
            self._plans[plan] = [(request_id, asked)]
            own_id = self._own_id()
            self._own[own_id] = plan
            self._send(pack_frame([0, own_id, "PREPARE", {"features": list(plan.features)}]))

    def pause_reading(self) -> None:
        """The client does not read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """The client is gone."""
        self._is_over = True
        if self._transport is not None:
            self._transport.close()

    # Called by the event loop -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods, not by its class
        if self._is_over:
            self._transport.close()
            return
        self._transport.write(b"".join(self._unsent))
        self._unsent = []
        if not self._is_full:
            self._connection.resume(Pause.PASSING)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._splitter.feed(data):
                self._take(payload)
        except FastFeatError as error:
            self._break(f"the writer process answered with {type(error).__name__}: {error}")
        self._connection.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._break(IN_DOUBT)

    def pause_writing(self) -> None:
        self._is_full = True
        self._connection.pause(Pause.PASSING)

    def resume_writing(self) -> None:
        self._is_full = False
        self._connection.resume(Pause.PASSING)

    # Own --------------------------------------------------------------------------------------------------------------

    def _send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)
            return
        self._unsent.append(frame)
        if self._connecting is None:
            own_id = self._own_id()
            self._own[own_id] = None
            session = self._connection.session
            said = {
                "version": VERSION,
                "client": "fastfeat-worker",
                "frame_size_max": session.reply_size_max,
                "positions": self._connection.wants_positions,
            }
            self._unsent.insert(0, pack_frame([0, own_id, "HELLO", said]))
            self._connection.pause(Pause.PASSING)  # a bound for what waits unsent
            self._connecting = self._connection.server.loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._connection.server.loop.create_unix_connection(lambda: self, self._path)
        except OSError:
            self._break(NOT_SENT)

    def _own_id(self) -> int:
        """An id that no request under way has; clients count from below."""
        own_id = LAST_ID
        while own_id in self._own or own_id in self._under_way:
            own_id -= 1
        return own_id

    def _take(self, payload: bytes) -> None:
        request_id, code = reply_head(payload)
        if request_id is None:
            _, error, _ = reply_of(payload)
            self._refusal = str(error)
        elif request_id in self._own:
            self._own_answered(request_id, payload)
        else:
            self._answered(request_id)
            self._connection.session.send(HEAD.pack(len(payload)) + payload)
        if code == BROKEN:
            self._connection.break_off(RemoteProtocolError(self._refusal) if request_id is None else None)

    def _own_answered(self, own_id: int, payload: bytes) -> None:
        plan = self._own.pop(own_id)
        _, error, result = reply_of(payload)
        if plan is None:  # HELLO
            if error is not None:
                raise error
            return
        waiting = cast("list[Get]", self._plans.pop(plan))
        if error is not None:
            for request_id, _ in waiting:
                self._answered(request_id)
                self._connection.session.fail(request_id, error)
        else:
            number = self._plans[plan] = cast("dict[str, int]", result)["plan"]
            for request_id, asked in waiting:
                self._send(get_frame(request_id, number, asked))
        if not self._is_full:
            self._connection.resume(Pause.PASSING)

    def _answered(self, request_id: int) -> None:
        if request_id not in self._under_way:
            raise RemoteProtocolError(f"reply: answers request {request_id}, which was not passed on")
        self._under_way[request_id] -= 1
        if not self._under_way[request_id]:
            del self._under_way[request_id]
        self._connection.pending -= 1

    def _break(self, why: str) -> None:
        """Answers what is under way with an error; the next request makes a new connection."""
        if self._is_over:
            return
        self._is_over = True
        self._connection.upstream = None
        if self._transport is not None:
            self._transport.abort()
        error = WriterUnavailable(f"the writer process refused: {self._refusal}" if self._refusal else why)
        under_way = list(self._under_way.elements())
        self._connection.pending -= len(under_way)
        for request_id in under_way:
            self._connection.session.fail(request_id, error)
        self._connection.flush()
        self._connection.resume(Pause.PASSING)


def get_frame(request_id: int, number: int, asked: list[Any]) -> bytes:
    return pack_frame([0, request_id, "GET", [number, *asked[1:]]])
