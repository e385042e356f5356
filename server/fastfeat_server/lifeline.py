"""What a supervisor and a process of its share: a socket pair on which the process tells how it is.

    process --"ready\n", "failed\n"--> supervisor
    process <-- end of the stream ---- supervisor, when it is gone, however it went

Why a socket and not a signal at the parent's death: it is the same on every system, and tests can hold it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

READY: Final = "ready"  # it answers
FAILED: Final = "failed"  # it ends, and another one would not do better


class Lifeline:
    """The process's end."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)

    def tell(self, word: str) -> None:
        with suppress(OSError):  # nobody is there any more: `ended` says so
            self._socket.sendall(f"{word}\n".encode())

    async def ended(self) -> None:
        """Returns when the supervisor is gone."""
        with suppress(OSError):
            while await asyncio.get_running_loop().sock_recv(self._socket, 64):
                pass


async def words(ours: socket.socket) -> set[str]:
    """What the process has told, at the supervisor's end; one word at least, or none: it has ended."""
    data = await asyncio.get_running_loop().sock_recv(ours, 64)
    return set(data.decode().split())
