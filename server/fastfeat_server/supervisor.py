"""`fastfeat serve --workers N`: the process that holds the sockets and keeps the others alive.

    client --> supervisor --accepted connections, in turn--> worker 0 .. N-1
                   |
                   +------> writer    owns the store; listens on writer.sock alone

Promises: a process that dies is replaced at once, more slowly where it keeps dying. Connections are shared out evenly;
          those that no worker has taken yet wait for one. At a stop workers drain before the writer ends. No child
          outlives us (see lifeline.py).
Errors:   the first start of a process must succeed; a failed log ends everything: the exit code is the process's own,
          which has said why.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from .config import Config, as_environment
from .lifeline import FAILED, READY, TAKEN, hand_over, words
from .server import BACKLOG, address_of, bound_sockets, remove_bound_path

Command = Callable[[int, bool], Sequence[str]]
log = logging.getLogger("fastfeat.server")
QUICK_SECONDS: Final = 1.0  # a process that dies younger than this is started again more slowly
BACKOFF_SECONDS: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 5.0
RETRY_SECONDS: Final = 0.01  # between two looks at whether there is a worker, or an open file to spare
KILL_SECONDS: Final = 2.0  # after the drain, for a worker to end


class Child:
    """One process after the other.

    command:  the program and its arguments, of the number of its lifeline and of whether none was ready before.
    is_ready: some process of it has answered.
    orphan:   called with each connection that a process was handed and did not take before it ended.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        environment: dict[str, str],
        orphan: Callable[[socket.socket], object] = socket.socket.close,
    ) -> None:
        self.name = name
        self.is_ready = asyncio.Event()
        self._command = command
        self._environment = environment
        self._orphan = orphan
        self._lifeline: socket.socket | None = None  # our end, while a process answers
        self._handed: deque[socket.socket] = deque()  # to it, and not taken yet
        self._process: asyncio.subprocess.Process | None = None
        self._has_failed = False
        self._stopping = asyncio.Event()
        self.ended = asyncio.ensure_future(self._keep())

    async def stop(self, seconds: float | None) -> None:
        """Ends it: asks, and kills it after so many seconds; None: however long it takes."""
        self._stopping.set()
        self.terminate()
        done, _ = await asyncio.wait([self.ended], timeout=seconds)
        if not done and self._process is not None:
            log.warning("%s did not end within %g s and is killed", self.name, seconds)
            with suppress(ProcessLookupError):
                self._process.kill()
        await self.ended

    def hand_over(self, connection: socket.socket) -> bool:
        """Gives the process a connection; False: there is none, or it takes none now."""
        if self._lifeline is None or not hand_over(self._lifeline, connection):
            return False
        self._handed.append(connection)
        return True

    def terminate(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    async def _keep(self) -> int:
        """The exit code of the last process: we were stopped, or another one would not do better."""
        loop = asyncio.get_running_loop()
        delay = 0.0
        while True:
            begun = loop.time()
            try:
                code = await self._live()
            except OSError as error:  # no memory, too many processes: that may pass
                log.error("%s cannot be started: %s", self.name, error)
                code = 1
            if self._stopping.is_set() or self._has_failed or (code >= 0 and not self.is_ready.is_set()):
                return code
            log.warning("%s ended with %d; it is started again", self.name, code)
            if loop.time() - begun >= QUICK_SECONDS:
                delay = 0.0
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return code
            delay = min(2 * delay + BACKOFF_SECONDS, BACKOFF_SECONDS_MAX)

    async def _live(self) -> int:
        """One process, from its start to its exit code (negative: of the signal)."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                # Why a group of its own: Ctrl-C at a terminal is for us, who stop the others in order.
                self._process = await asyncio.create_subprocess_exec(
                    *self._command(theirs.fileno(), not self.is_ready.is_set()),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=self._environment,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            if self._stopping.is_set():
                self.terminate()
            while told := await words(ours):
                if READY in told:
                    self.is_ready.set()
                    self._lifeline = ours
                self._has_failed |= FAILED in told
                for _ in range(told.count(TAKEN)):
                    self._handed.popleft().close()
            self._lifeline = None
            while self._handed:
                self._orphan(self._handed.popleft())
            code = await self._process.wait()
        self._process = None
        return code


class Supervisor:
    """The writer and its workers.

    writer: the writer's command, as Child takes it.
    ready:  called with the URLs once all answer.
    """

    def __init__(
        self,
        config: Config,
        writer: Command,
        ready: Callable[[list[str]], object],
    ) -> None:
        self._config = config
        self._writer_command = writer
        self._ready = ready
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._children: list[Child] = []
        self._turn = 0
        self._is_stopping = False

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT, or until a process ended for good; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        sockets = bound_sockets(self._config)  # what raises leaves nothing of ours behind
        asked = asyncio.ensure_future(self._signals.get())
        try:
            for sock in sockets:
                sock.listen(BACKLOG)
                sock.setblocking(False)
            await self._serve(sockets, asked)
        finally:
            for sock in sockets:
                loop.remove_reader(sock)
                sock.close()
            remove_bound_path(self._config.unix_socket)
            code = await self._stop()
            asked.cancel()
        return code

    async def _serve(self, sockets: list[socket.socket], asked: asyncio.Future[int]) -> None:
        """Returns when we are to stop."""
        environment = as_environment(self._config)
        self._children = [writer := Child("writer", self._writer_command, environment)]
        if not await self._all_ready([writer], asked):
            return
        for index in range(self._config.workers):
            self._children.append(Child(f"worker {index}", worker_command(index), environment, self._hand_over))
        if await self._all_ready(self._children, asked):
            for sock in sockets:
                self._listen(sock)
            self._ready([address_of(sock) for sock in sockets])
            await asyncio.wait([asked, *self._endings()], return_when=asyncio.FIRST_COMPLETED)

    async def _all_ready(self, children: Sequence[Child], asked: asyncio.Future[int]) -> bool:
        """False where we are to stop before."""
        ready = asyncio.gather(*(child.is_ready.wait() for child in children))
        reasons: list[asyncio.Future[Any]] = [ready, asked, *self._endings()]
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return not asked.done()
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)  # else the loop complains of what nobody looked at
        return False

    def _listen(self, listener: socket.socket) -> None:
        """Accepts from now on."""
        if not self._is_stopping:  # else it is closed
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            # Why the pause: who waits goes on waiting, so the event loop would call us again at once.
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.warning("no connection can be accepted: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(RETRY_SECONDS, self._listen, listener)
            return  # otherwise it has gone meanwhile
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._hand_over(connection)

    def _hand_over(self, connection: socket.socket) -> None:
        """Gives a connection to the next worker that takes it; where none does now, it waits."""
        workers = self._children[1:]
        for _ in workers:
            self._turn = (self._turn + 1) % len(workers)
            if workers[self._turn].hand_over(connection):
                return
        if self._is_stopping:
            connection.close()
        else:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._hand_over, connection)

    def _endings(self) -> list[asyncio.Future[int]]:
        return [child.ended for child in self._children]

    async def _stop(self) -> int:
        """Workers, then the writer; a second signal is passed on, which ends their drains."""
        self._is_stopping = True
        code = next((ended.result() for ended in self._endings() if ended.done()), 0)
        again = asyncio.ensure_future(self._pass_on_signals())
        seconds = self._config.drain_seconds + KILL_SECONDS
        await asyncio.gather(*(child.stop(seconds) for child in self._children[1:]))
        await asyncio.gather(*(child.stop(None) for child in self._children[:1]))
        again.cancel()
        return code

    async def _pass_on_signals(self) -> None:
        while True:
            await self._signals.get()
            for child in self._children:
                child.terminate()


def worker_command(index: int) -> Command:
    def command(lifeline: int, is_first: bool) -> list[str]:
        return [sys.executable, "-m", "fastfeat_server.worker", str(index), str(lifeline)]

    return command


def supervise(config: Config, writer: Command, *, ready: Callable[[list[str]], object]) -> int:
    """Serves with config.workers processes beside a writer's; the exit code. Raises DataError: cannot listen."""
    return asyncio.run(Supervisor(config, writer, ready).run())
