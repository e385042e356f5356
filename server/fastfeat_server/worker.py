"""A worker: answers reads from the writer's shared memory, passes everything else on to the writer.

    python -m fastfeat_server.worker INDEX LIFELINE      numbers; the second is an open file, over which clients come

Promises: reads go on while the writer is gone; who asked for flags is told. Plans follow the writer to a new
          generation and to new definitions by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any, Final

from fastfeat.attached import AttachedStore
from fastfeat.errors import FastFeatError
from fastfeat.shared import writer_socket

from .config import Config
from .lifeline import Lifeline
from .server import Server, run_server

log = logging.getLogger("fastfeat.server")
LOOK_SECONDS: Final = 0.05  # between two looks at the writer


class Worker(Server):
    """A server of an AttachedStore."""

    role = "worker"

    def __init__(
        self, store: Any, config: Config, loop: asyncio.AbstractEventLoop, *, index: int, writer_path: str
    ) -> None:
        super().__init__(store, config, loop)
        self.index = index
        self.writer_path = writer_path

    async def listen(self, sockets: list[socket.socket] | None = None) -> None:
        await super().listen(sockets)
        self._look()

    def info(self) -> dict[str, Any]:
        return super().info() | {"worker": self.index}

    def position(self) -> int:
        position = super().position()
        self.follow()  # after it, else plans could be of a generation before the position's
        return position

    def follow(self) -> None:
        """Moves plans and flags to where the writer is now."""
        if self.store.follow():
            for connection in self.connections:
                connection.session.replace_plans(lambda plan: self.store.plan(list(plan.features)))
        if self.store.is_stale != self.is_stale:
            self.is_stale = not self.is_stale
            for connection in self.connections:
                connection.flag(self.is_stale)

    def _look(self) -> None:
        """Follows the writer, now and every LOOK_SECONDS, whatever a look meets."""
        try:
            self.follow()
        except (FastFeatError, OSError) as error:
            # The generation was replaced while we looked, or there are too many open files: the next look may see it.
            log.warning("worker %d: %s", self.index, error)
        finally:
            if not self.is_stopping:
                self.loop.call_later(LOOK_SECONDS, self._look)


async def start_worker(store: Any, config: Config, index: int, sockets: list[socket.socket] | None = None) -> Worker:
    """sockets: to listen on; where there are none, clients come by `take` alone; None: those of the settings."""
    worker = Worker(store, config, asyncio.get_running_loop(), index=index, writer_path=writer_socket(config.name))
    await worker.listen(sockets)
    return worker


def main(arguments: list[str]) -> int:
    """The exit code."""
    index, lifeline_fd = map(int, arguments)
    try:
        config = Config.read()
        with Lifeline(lifeline_fd) as lifeline, AttachedStore(config.name) as store:
            run_server(lambda: start_worker(store, config, index, []), lifeline=lifeline)
    except FastFeatError as error:
        print(f"fastfeat: worker {index}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
