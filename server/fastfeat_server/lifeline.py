"""What a supervisor and a process of its share: a socket pair.

    process --READY, TAKEN, FAILED------> supervisor       a byte each
    process <-- accepted connections ---- supervisor       open files, one with each byte
    process <-- end of the stream ------- supervisor, when it is gone, however it went

A process at its limit of open files gets the byte alone: that connection is lost. TAKEN is told of it all the same, as
the supervisor then closes what it kept of it, and the client sees its connection closed.

Why a socket and not a signal at the parent's death: it is the same on every system, and tests can hold it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

log = logging.getLogger("fastfeat.server")
READY: Final = b"r"  # it answers
TAKEN: Final = b"t"  # it has the oldest connection that it was handed, or has lost it
FAILED: Final = b"f"  # it ends, and another one would not do better
AT_ONCE: Final = 64  # connections in one receive


class Lifeline:
    """The process's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def tell(self, word: bytes) -> None:
        with suppress(OSError):  # nobody is there any more: `ended` says so
            self._socket.sendall(word)

    async def ended(self, handed: Callable[[socket.socket], object]) -> None:
        """Calls `handed` with each connection that comes; returns when the supervisor is gone. Logs those lost."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def take() -> None:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, AT_ONCE, AT_ONCE)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            for fd in fds:
                handed(socket.socket(fileno=fd))
            if lost := len(data) - len(fds):
                log.warning("connections lost, as too many files are open: %d", lost)
            self.tell(TAKEN * len(data))
            if not data and not ended.done():
                ended.set_result(None)

        loop.add_reader(self._socket, take)
        try:
            await ended
        finally:
            loop.remove_reader(self._socket)


async def words(ours: socket.socket) -> bytes:
    """What the process has told, at the supervisor's end; nothing once it has ended."""
    try:
        return await asyncio.get_running_loop().sock_recv(ours, 4096)
    except ConnectionError:  # it left some connections untaken
        return b""


def hand_over(ours: socket.socket, connection: socket.socket) -> bool:
    """Gives the process a connection, which it has once it says so; False: it takes none now."""
    try:
        socket.send_fds(ours, [b"."], [connection.fileno()])
    except OSError:
        return False
    return True
