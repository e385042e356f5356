"""The server: listens, admits connections, stops gracefully."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from fastfeat.errors import ConnectFailed, DataError, FastFeatError, LogFailed

from .config import Config, check_host
from .connection import Connection, refuse
from .lifeline import READY, Lifeline
from .loading import Load
from .pace import Pace
from .writes import WriteQueue

log = logging.getLogger("fastfeat.server")
BACKLOG = 1024  # connections that wait to be accepted
MAINTENANCE_NICENESS = 10
READERS = 4  # threads for answers that take long
ROWS_INLINE_MAX = 256  # of a write in the event loop
LOOK_SECONDS = 1.0  # between two looks at whether a sync in the background has failed
FAILURE_DRAIN_SECONDS = 1.0  # for the answers under way when the log has failed


class Server:
    """A running server. Made by `start`; `addresses` are URLs that `fastfeat.connect` takes.

    executor: answers in Arrow and from the history. maintenance: snapshots and compaction. writes: those that may wait.
    failure:  why the server must end: its log failed. `failed` is set then.
    pace:     which functions the loop may wait for.
    role:     what INFO says of this process where it is one of several: "writer", "worker".
    writer_path, is_stale: of a worker: where it passes writes on, and whether the writer is gone.
    """

    role = ""
    writer_path = ""
    is_stale = False

    def __init__(self, store: Any, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self.config = config
        self.loop = loop
        self.addresses: list[str] = []
        self.connections: set[Connection] = set()
        self.loads: set[Load] = set()
        self.executor = ThreadPoolExecutor(READERS, "fastfeat-read")
        self.maintenance = ThreadPoolExecutor(1, "fastfeat-maintenance", lower_priority)
        self.writes = WriteQueue(self)
        self.pace = Pace(loop)
        self.failed = asyncio.Event()
        self.failure: LogFailed | None = None
        self._listeners: list[asyncio.Server] = []
        self._accepting: set[asyncio.Task[Any]] = set()  # a loop keeps no task alive
        self._gone = asyncio.Event()
        self.is_stopping = False
        self.is_durable = bool(getattr(store, "is_durable", False))
        self._bound_path = ""
        self._gets_of_closed = 0

    # Connections ------------------------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> ConnectFailed | None:
        """Counts a new connection in; the error to send it where it is one too many."""
        if self.is_stopping:
            return ConnectFailed("the server is stopping; connect again when it is back")
        if len(self.connections) >= self.config.connections_max:
            return refuse(self.config.connections_max)
        self.connections.add(connection)
        return None

    def forget(self, connection: Connection) -> None:
        if connection in self.connections:
            self._gets_of_closed += connection.session.gets
            self.connections.discard(connection)
        if not self.connections:
            self._gone.set()

    def info(self) -> dict[str, Any]:
        gets = self._gets_of_closed + sum(connection.session.gets for connection in self.connections)
        counts: dict[str, Any] = {"connections": len(self.connections), "gets": gets, "loads": len(self.loads)}
        return counts | {"process": self.role, "pid": os.getpid()} if self.role else counts

    def first_load(self) -> int:
        """The number of the first load of a connection."""
        return 1

    def position(self) -> int:
        """Writes below it are visible here."""
        position: int = self.store.position
        return position

    def note(self, error: BaseException) -> None:
        """Logs an error that is nobody's but ours; remembers one that the server must end for."""
        if not isinstance(error, FastFeatError):
            log.error("internal error", exc_info=error)
        if isinstance(error, LogFailed) and self.failure is None:
            self.failure = error
            self.failed.set()

    def may_write_at_once(self, rows: Any) -> bool:
        """Whether a write of these rows keeps the loop for well under a millisecond: it waits for no disk, for no other
        write and for no load, and is small."""
        if self.is_durable or self.writes.count or self.loads:
            return False
        return type(rows) is list and len(rows) <= ROWS_INLINE_MAX

    # Listening --------------------------------------------------------------------------------------------------------

    async def listen(self, sockets: list[socket.socket] | None = None) -> None:
        """On bound sockets, or on those that the settings name."""
        if sockets is None:
            sockets = bound_sockets(self.config)
            self._bound_path = self.config.unix_socket
        for sock in sockets:
            create = self.loop.create_unix_server if sock.family == socket.AF_UNIX else self.loop.create_server
            self._listeners.append(await create(lambda: Connection(self), sock=sock, backlog=BACKLOG))
            self.addresses.append(address_of(sock))
        if self.is_durable:
            self._look_at_the_log()

    def take(self, client: socket.socket) -> None:
        """Serves a client that another process has accepted for us."""
        accepting = self.loop.create_task(self.loop.connect_accepted_socket(lambda: Connection(self), client))
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepting.discard)

    def _look_at_the_log(self) -> None:
        """With fsync "interval" a sync may fail that no write waits for."""
        if (error := self.store.log_failure) is not None:
            self.note(error)
        elif not self.is_stopping:
            self.loop.call_later(LOOK_SECONDS, self._look_at_the_log)

    async def stop(self) -> None:
        """Accepts nobody, answers what was asked, and closes, within drain_seconds (within one if the log failed)."""
        if self.is_stopping:
            return
        self.is_stopping = True
        for listener in self._listeners:
            listener.close()
        remove_bound_path(self._bound_path)
        for connection in list(self.connections):
            connection.stop()
        if self.connections:
            self._gone.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), self._drain_seconds())
        for connection in list(self.connections):
            connection.transport.abort()
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.maintenance.shutdown(wait=False, cancel_futures=True)
        self.writes.stop()

    def _drain_seconds(self) -> float:
        seconds = self.config.drain_seconds
        return seconds if self.failure is None else min(seconds, FAILURE_DRAIN_SECONDS)


def lower_priority() -> None:
    """Lets this thread yield to the event loop. Linux takes a thread's number where POSIX says process."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), MAINTENANCE_NICENESS)


def bound_sockets(config: Config) -> list[socket.socket]:
    """Of every address that the settings name. Raises DataError: in use, or not loopback."""
    sockets = tcp_sockets(config) if config.host else []
    if config.unix_socket:
        try:
            sockets.append(unix_socket(config.unix_socket))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
    return sockets


def address_of(sock: socket.socket) -> str:
    """The URL that `fastfeat.connect` takes."""
    if sock.family == socket.AF_UNIX:
        return f"fastfeat+unix://{os.path.abspath(sock.getsockname())}"
    host, port = sock.getsockname()[:2]
    return f"fastfeat://[{host}]:{port}" if ":" in host else f"fastfeat://{host}:{port}"


def tcp_sockets(config: Config) -> list[socket.socket]:
    """Bound sockets of every address of the host, all on one port. Raises DataError: not loopback, or in use."""
    check_host(config.host)
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise DataError(f"host {config.host!r} has no address: {error.strerror}") from None
    sockets: list[socket.socket] = []
    port = config.port
    try:
        for family, _, _, _, address in found:
            if not ip_address(address[0]).is_loopback:
                raise DataError(f"host {config.host!r} is {address[0]}, which is no loopback address")
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port))
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise DataError(f"cannot listen on {config.host}:{port}: {error.strerror}; choose another port") from None
    except DataError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def unix_socket(path: str) -> socket.socket:
    """A bound socket that only this user may connect to. Takes over a dead server's path, never a living one's."""
    remove_dead_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise DataError(f"cannot listen on {path}: {error}; choose another path") from None
    finally:
        os.umask(before)
    return sock


def remove_bound_path(path: str) -> None:
    """The path of a unix socket of ours, which a stop leaves to nobody."""
    if path:
        with suppress(OSError):
            os.unlink(path)


def remove_dead_socket(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise DataError(f"{path} exists and is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise DataError(f"a server listens on {path} already; stop it or choose another path")


async def start(store: Any, config: Config | None = None) -> Server:
    """A server of the store in the running event loop. Raises DataError where it cannot listen."""
    server = Server(store, config or Config(), asyncio.get_running_loop())
    try:
        await server.listen()
    except BaseException:
        await server.stop()
        raise
    return server


def serve(store: Any, config: Config | None = None, *, ready: Callable[[Server], object] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully; a second signal ends the drain.

    ready: called with the Server once it accepts connections.
    Raises LogFailed as soon as a sync of the store's log failed and those who waited were told.
    """
    run_server(lambda: start(store, config), ready=ready)


def run_server(
    start: Callable[[], Awaitable[Server]],
    *,
    ready: Callable[[Server], object] | None = None,
    lifeline: Lifeline | None = None,
) -> None:
    """Starts a server in a new event loop; else as `serve`. It stops at the end of the lifeline too."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_signal(start, ready, lifeline))


async def serve_until_signal(
    start: Callable[[], Awaitable[Server]], ready: Callable[[Server], object] | None, lifeline: Lifeline | None
) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = await start()
    if ready is not None:
        ready(server)
    reasons: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(signals.get()),
        asyncio.ensure_future(server.failed.wait()),
    ]
    if lifeline is not None:
        lifeline.tell(READY)
        reasons.append(asyncio.ensure_future(lifeline.ended(server.take)))
    await wait_for_one(*reasons)
    await wait_for_one(asyncio.ensure_future(server.stop()), asyncio.ensure_future(signals.get()))
    if server.failure is not None:
        raise server.failure


async def wait_for_one(*tasks: asyncio.Future[Any]) -> None:
    """Returns when one of them is done; the others are cancelled."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
