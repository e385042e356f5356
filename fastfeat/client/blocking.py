"""Client: one thread, one request, one answer; a pool of connections behind it for more threads.

method --Wanted--> plan of the connection --encode--> sendall ... recv --Inbox--> NumPy
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    ConnectFailed,
    DataError,
    Disconnected,
    FastFeatError,
    LocalProtocolError,
    RemoteProtocolError,
    Timeout,
    TransportError,
    UnknownPlan,
)
from ..protocol import (
    FRAME_SIZE_MAX,
    ClientSession,
    Columns,
    Format,
    Inbox,
    PreparedPlan,
    columns_of,
    join_columns,
    receive_soon,
    reply_of,
)
from ..report import LoadReport, ignore_rows, load_progress
from ..result import Result
from .address import Address
from .features import Wanted, WantedFeatures
from .loading import CHUNKS_UNANSWERED_MAX, add_report, streams
from .messages import (
    CLIENT_NAME,
    answer_params,
    answered_result,
    delete_params,
    expect_int,
    expect_map,
    matrix_format,
    matrix_target,
    push_params,
    replay_params,
    result_of,
    time_us,
    view_name,
    wait_params,
    written,
)
from .prepared import prepared

if TYPE_CHECKING:
    from ..receipts import Receipt
    from ..schema import FeatureService, FeatureView
    from .pipeline import Pipeline

P = ParamSpec("P")
R = TypeVar("R")

INBOX_SIZE = 1 << 14  # of small replies in one receive; what is larger goes straight into its array
SPIN_US = 50  # about one round trip on the machine itself
SPIN_US_MAX = 10_000
CLIENTS: weakref.WeakSet[Client] = weakref.WeakSet()


class Connection:
    """One socket and its session. For one thread at a time.

    is_clean: no answer is outstanding, so the connection can be used again.
    seen:     writes up to this position are visible to it.
    """

    def __init__(
        self,
        address: Address,
        timeout: float | None,
        frame_size_max: int,
        spin_us: float = 0,
        positions: bool = False,
    ) -> None:
        self.address = address
        self.spin_ns = int(spin_us * 1000)
        self.timeout = timeout
        self.session = ClientSession(frame_size_max)
        self.inbox = Inbox(frame_size_max, INBOX_SIZE)
        self.plans: dict[Wanted, tuple[PreparedPlan, int]] = {}
        self.socket = address.connect(timeout)
        self.is_clean = True
        self.seen = 0
        try:
            self._set_timeout()
            options = {"positions": True} if positions else {}
            self.session.greeted(self._answer(*self.session.hello(CLIENT_NAME, **options)))
        except BaseException:
            self.socket.close()
            raise

    def _set_timeout(self) -> None:
        """Lets the kernel keep the time: a Python timeout costs a poll before every call."""
        self.socket.settimeout(None)
        if self.timeout is not None:
            interval = struct.pack("@ll", int(self.timeout), int(self.timeout % 1 * 1e6))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)

    def close(self) -> None:
        self.is_clean = False
        self.socket.close()

    def is_alive(self) -> bool:
        """False where the server has closed it meanwhile, or has sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    # One request ------------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        self.is_clean = False
        try:
            self.socket.sendall(frame)
        except BlockingIOError:
            raise self.late() from None
        except OSError as error:
            raise self.lost(error) from error

    def receive_into(self, buffer: Any, flags: int = 0) -> int:
        """Receives at least one byte."""
        try:
            size = receive_soon(self.socket.fileno(), buffer, self.spin_ns) if self.spin_ns and not flags else -1
            if size < 0:
                size = self.socket.recv_into(buffer, 0, flags)
        except BlockingIOError:
            raise self.late() from None
        except OSError as error:
            raise self.lost(error) from error
        if size == 0:
            raise self.lost("the server closed the connection")
        return size

    def receive_frame(self) -> bytes:
        payload = self.inbox.frame()
        deadline = self._deadline()
        while payload is None:
            self._check(deadline)
            self.inbox.make_room()
            self.inbox.filled(self.receive_into(self.inbox))
            payload = self.inbox.frame()
        return payload

    def _deadline(self) -> float:
        return float("inf") if self.timeout is None else time.monotonic() + self.timeout

    def _check(self, deadline: float) -> None:
        """The kernel keeps the time of one receive; this keeps that of many."""
        if time.monotonic() > deadline:
            raise self.late()

    def call(self, method: str, params: object) -> object:
        """One request, its result. Raises the server's error as the same class, or TransportError."""
        return self._answer(*self.session.request(method, params))

    def after(self, position: int) -> None:
        """Returns when writes up to the position are visible to this connection's reads. Raises NotYetVisible."""
        if position > self.seen:
            self.call("WAIT", wait_params(position, self.timeout))
            self.seen = position

    def _answer(self, request_id: int, frame: bytes) -> object:
        self.send(frame)
        error, result = self._outcome(request_id)
        self.is_clean = not isinstance(error, RemoteProtocolError)
        if error is not None:
            raise error
        return result

    def _outcome(self, request_id: int) -> tuple[FastFeatError | None, object]:
        """Error or result of the oldest request without an answer."""
        got, error, result = reply_of(self.receive_frame())
        if got not in (request_id, None):
            raise RemoteProtocolError(f"reply: answers request {got}, not {request_id}")
        return error, result

    def late(self) -> Timeout:
        return Timeout(f"{self.address} did not answer within {self.timeout} s; raise timeout or ask for less at once")

    def lost(self, reason: object) -> Disconnected:
        return Disconnected(f"{self.address}: the connection ended before the answer came: {reason}")

    # Reads ------------------------------------------------------------------------------------------------------------

    def plan(self, wanted: Wanted) -> tuple[PreparedPlan, int]:
        """The plan of this connection, prepared when first wanted, and the entities that one GET of it may have."""
        known = self.plans.get(wanted)
        if known is None:
            plan = prepared(self.call("PREPARE", wanted.prepare))
            known = self.plans[wanted] = plan, self.session.entities_per_request(plan)
        return known

    def vector(
        self, wanted: Wanted, row: Mapping[str, object], as_of: int | None, known_at: int | None, out: Any
    ) -> NDArray[Any]:
        plan, _ = self.plans.get(wanted) or self.plan(wanted)
        plan.entity(row)
        target = matrix_target(plan, 1, out if out is None else out[np.newaxis])
        self._read_matrix(plan, 0, 1, as_of, known_at, target)
        return target[0] if out is None else out  # type: ignore[no-any-return]

    def vectors(self, wanted: Wanted, rows: object, as_of: int | None, known_at: int | None, out: Any) -> NDArray[Any]:
        plan, per_request = self.plans.get(wanted) or self.plan(wanted)
        count = plan.entities(rows)
        target = matrix_target(plan, count, out)
        if count <= per_request:
            self._read_matrix(plan, 0, count, as_of, known_at, target)
            return target
        for start in range(0, count, per_request):
            stop = min(start + per_request, count)
            self._read_matrix(plan, start, stop, as_of, known_at, target[start:stop])
        return target

    def _read_matrix(
        self, plan: PreparedPlan, start: int, stop: int, as_of: int | None, known_at: int | None, out: NDArray[Any]
    ) -> None:
        request_id = self.session.next_id()
        self.send(plan.encode(request_id, start, stop, matrix_format(out), as_of, known_at))
        inbox = self.inbox
        size = -1
        while size < 0:
            inbox.make_room()
            inbox.filled(self.receive_into(inbox))
            try:
                size = inbox.matrix(request_id, stop - start, plan.matrix_columns, out)
            except FastFeatError as error:
                self.is_clean = not isinstance(error, RemoteProtocolError)
                raise
        if size < out.nbytes:
            rest = out.data.cast("B")[size:]
            deadline = self._deadline()
            while rest:
                self._check(deadline)
                rest = rest[self.receive_into(rest, socket.MSG_WAITALL) :]
        self.is_clean = True

    def columns(
        self, wanted: Wanted, rows: object, as_of: int | None, known_at: int | None
    ) -> tuple[PreparedPlan, Columns]:
        plan, per_request = self.plan(wanted)
        count = plan.entities(rows)
        parts = []
        for start in range(0, max(count, 1), per_request):
            request_id = self.session.next_id()
            frame = plan.encode(request_id, start, min(start + per_request, count), Format.COLUMNS, as_of, known_at)
            parts.append(columns_of(plan, self._answer(request_id, frame)))
        return plan, join_columns(plan, parts)

    def answer(self, wanted: Wanted, rows: object, as_of: int | None, known_at: int | None) -> Result:
        """An answer with its receipt: of one moment of the store, so it is never asked for in parts."""
        plan, _ = self.plan(wanted)
        return answered_result(self.call("ANSWER", answer_params(wanted, plan, rows, as_of, known_at)))

    def load(self, view: str, options: dict[str, Any], chunks: Iterator[bytes]) -> object:
        """One stream, sent in chunks a few ahead of the answers; the server's report."""
        load = expect_int(self.call("LOAD", ["begin", view, options]), "LOAD")
        self.is_clean = False  # until "end" is answered: closing the connection is what ends a load that failed
        waiting: deque[int] = deque()
        for chunk in chunks:
            request_id, frame = self.session.request("LOAD", ["chunk", load, chunk])
            self.send(frame)
            waiting.append(request_id)
            if len(waiting) >= CHUNKS_UNANSWERED_MAX:
                self._expect_taken(waiting.popleft())
        while waiting:
            self._expect_taken(waiting.popleft())
        return self.call("LOAD", ["end", load])

    def _expect_taken(self, request_id: int) -> None:
        error, _ = self._outcome(request_id)
        if error is not None:
            raise error


class Client:
    """A server's features, with the methods and results of a Store. Any number of threads may share one.

    timeout:      seconds for each answer; None waits for ever.
    retries:      how often a read is tried again on a new connection when the old one fails; writes never are.
    pool_size:    idle connections kept.
    spin_us:      how long an answer is waited for awake before the thread sleeps (0: not at all). Waking up costs tens
                  of microseconds on many machines; staying awake costs this much processor time at most per answer.
    read_your_writes: a read waits until the writes made before it through this client are visible to it, whichever
                  of a server's processes answers. `position` is that of the last of them.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = 10.0,
        retries: int = 2,
        pool_size: int = 8,
        frame_size_max: int = FRAME_SIZE_MAX,
        spin_us: float = SPIN_US,
        read_your_writes: bool = False,
    ) -> None:
        if not 0 <= spin_us <= SPIN_US_MAX:
            raise DataError(f"spin_us={spin_us!r}: give microseconds from 0 (sleep at once) to {SPIN_US_MAX}")
        self.spin_us = spin_us
        if timeout is not None and not 0.001 <= timeout <= 1e9:
            raise DataError(f"timeout={timeout!r}: give seconds, at least 0.001, or None to wait for ever")
        self.address = Address.parse(url)
        self.timeout = timeout
        self.retries = retries
        self.pool_size = pool_size
        self.frame_size_max = frame_size_max
        self.read_your_writes = read_your_writes
        self.position = 0
        self._idle: deque[Connection] = deque()
        self._is_closed = False
        self._wanted = WantedFeatures()
        self._is_stale = False
        CLIENTS.add(self)
        self._begin()

    def _begin(self) -> None:
        """Fail at once where there is no server."""
        self._release(self._connect())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the idle connections; one in use is closed when its answer has come."""
        self._is_closed = True
        self._close_idle()

    # Reads ------------------------------------------------------------------------------------------------------------

    def get_feature_vector(
        self,
        features: FeatureService | str | Sequence[str],
        entity_row: Mapping[str, object],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """One entity's features as float64 [m] (float32 where `out` is); null is NaN. Raises as Store does."""
        wanted = self._wanted.find(features)
        if as_of is not None or known_at is not None:
            as_of, known_at = time_us(as_of, "as_of"), time_us(known_at, "known_at")
        return self._read(Connection.vector, wanted, entity_row, as_of, known_at, out)

    def get_feature_vectors(
        self,
        features: FeatureService | str | Sequence[str],
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Features of n entities as float64 [n, m] (float32 where `out` is); null is NaN. Raises as Store does."""
        wanted = self._wanted.find(features)
        if as_of is not None or known_at is not None:
            as_of, known_at = time_us(as_of, "as_of"), time_us(known_at, "known_at")
        return self._read(Connection.vectors, wanted, entity_rows, as_of, known_at, out)

    def get_online_features(
        self,
        features: FeatureService | str | Sequence[str],
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        receipt: bool = False,
    ) -> Result:
        """Features of n entities with their statuses and event times. Raises as Store does.

        receipt: carry one, if the server's store is durable. It takes the server a thread, and the entities must fit
        in one request.
        """
        wanted = self._wanted.find(features)
        as_of, known_at = time_us(as_of, "as_of"), time_us(known_at, "known_at")
        if receipt:
            return self._read(Connection.answer, wanted, entity_rows, as_of, known_at)
        return result_of(*self._read(Connection.columns, wanted, entity_rows, as_of, known_at))

    def replay(self, receipt: Receipt) -> Result:
        """The answer of this receipt again, as Store.replay: of whatever client or store it came, of that store."""
        return answered_result(self._read(Connection.call, "REPLAY", replay_params(receipt)))

    def info(self) -> dict[str, Any]:
        """The server's views, services, memory and limits."""
        return expect_map(self._read(Connection.call, "INFO", []), "INFO")

    def ping(self) -> None:
        """Returns when the server has answered."""
        self._read(Connection.call, "PING", [])

    def pipeline(self) -> Pipeline:
        """Many requests in one round trip: a block that collects requests and sends them at its end."""
        from .pipeline import Pipeline

        return Pipeline(self)

    # Writes -----------------------------------------------------------------------------------------------------------

    def push(self, view: str | FeatureView, rows: object) -> int:
        """Adds rows (a dict, a list of dicts, or Arrow), all or none; their created time in microseconds."""
        return self._written(self._write(Connection.call, "PUSH", push_params(view, rows)), "PUSH")

    def delete(self, view: str | FeatureView, entity_rows: Sequence[Mapping[str, object]]) -> int:
        """Takes every row of these entities created before now out of every answer; that moment in microseconds."""
        return self._written(self._write(Connection.call, "DELETE", delete_params(view, entity_rows)), "DELETE")

    def _written(self, result: object, method: str) -> int:
        """The created time of a write; its position is remembered."""
        created_us, position = written(result, method)
        self.position = max(self.position, position)
        return created_us

    def load(
        self,
        view: str | FeatureView,
        source: object,
        *,
        event_time: str = "event_timestamp",
        created_time: str | None = None,
        progress: bool = False,
    ) -> LoadReport:
        """Adds a source's rows, as Store.load; files are read here and sent.

        Rows become visible batch by batch. Every part of a source (file of a directory) is a load of its own. `timeout`
        holds for each chunk. Never retried.
        """
        report = LoadReport(view_name(view))
        with load_progress(report.view, source) if progress else nullcontext(ignore_rows) as advance:
            for options, chunks in streams(source, event_time, created_time, report, advance):
                add_report(report, self._write(Connection.load, report.view, options, chunks))
        return report

    # Storage ----------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Makes the server write what is in its memory to its directory now; the snapshot's numbers.

        It may take minutes, so give the client a `timeout` to match. Raises StorageError where the store has no
        directory.
        """
        return expect_map(self._write(Connection.call, "SNAPSHOT", []), "SNAPSHOT")

    def compact(self) -> dict[str, Any]:
        """Makes the server merge its history's files and erase what was deleted; what was done. Else as snapshot."""
        return expect_map(self._write(Connection.call, "COMPACT", []), "COMPACT")

    # Connections ------------------------------------------------------------------------------------------------------

    def _read(self, call: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls with a connection; again with a new one where the connection failed, which a read may."""
        attempt = 0
        while True:
            try:
                if self.position:
                    return self._with_connection(read_after, self.position, call, *args, **kwargs)
                return self._with_connection(call, *args, **kwargs)
            except (Disconnected, ConnectFailed, UnknownPlan):
                attempt += 1
                if attempt > self.retries:
                    raise

    def _write(self, call: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls once, with a connection that the server has not closed meanwhile."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive():
                self._idle.append(connection)
                break
            connection.close()
        return self._with_connection(call, *args, **kwargs)

    def _with_connection(self, call: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        connection = self._checkout()
        try:
            return call(connection, *args, **kwargs)
        except UnknownPlan:
            connection.plans.clear()
            raise
        except TransportError:
            self._close_idle()  # made to the same server: likely as dead, and each would cost a retry
            raise
        finally:
            self._is_stale = connection.inbox.is_stale
            self._release(connection)

    @property
    def is_stale(self) -> bool:
        """True where the last answer came from the last state of a writer that is gone: a worker gave it."""
        return self._is_stale

    def _checkout(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _connect(self) -> Connection:
        if self._is_closed:
            raise LocalProtocolError("the client is closed; connect again")
        return Connection(self.address, self.timeout, self.frame_size_max, self.spin_us, self.read_your_writes)

    def _release(self, connection: Connection) -> None:
        if connection.is_clean and not self._is_closed and len(self._idle) < self.pool_size:
            self._idle.append(connection)
        else:
            connection.close()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def connect(
    url: str,
    *,
    timeout: float | None = 10.0,
    retries: int = 2,
    pool_size: int = 8,
    frame_size_max: int = FRAME_SIZE_MAX,
    spin_us: float = SPIN_US,
    read_your_writes: bool = False,
) -> Client:
    """A Client of the server at `fastfeat://host:port`, `fastfeat+unix:///path` or, on its machine, `fastfeat+shm://NAME`.

    Raises ConnectFailed, and StorageError where no server shares its memory under that name.
    """
    kind = Client
    if str(url).startswith("fastfeat+shm:"):
        from .shared import SharedClient

        kind = SharedClient
    return kind(
        url,
        timeout=timeout,
        retries=retries,
        pool_size=pool_size,
        frame_size_max=frame_size_max,
        spin_us=spin_us,
        read_your_writes=read_your_writes,
    )


def read_after(
    connection: Connection,
    position: int,
    call: Callable[Concatenate[Connection, P], R],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    connection.after(position)
    return call(connection, *args, **kwargs)


def forget_connections() -> None:
    """After fork: the child's copies of idle connections belong to the parent's conversations."""
    for client in list(CLIENTS):
        client._close_idle()


os.register_at_fork(after_in_child=forget_connections)
