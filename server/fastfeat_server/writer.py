"""The writer process: the whole server of a shared store, on a unix socket that only its workers and peers use."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from dataclasses import replace
from typing import Any, Final

from fastfeat.errors import LogFailed
from fastfeat.shared import writer_socket

from .config import Config
from .lifeline import FAILED, Lifeline
from .server import Server, run_server

PEERS_MAX: Final = 256  # connections of others than our workers: processes that map the arena themselves


class Writer(Server):
    """The one process that owns the store."""

    role = "writer"

    def first_load(self) -> int:
        """Why random: to a worker's client several connections, even of several writers, are one; the number of a load
        that broke off must not be that of a later one."""
        return secrets.randbits(48)


async def start_writer(store: Any, config: Config) -> Writer:
    """Listens beside the shared memory only. Every client of a worker may have a connection here."""
    path = writer_socket(config.name)
    connections_max = config.connections_max * max(config.workers, 1) + PEERS_MAX
    inner = replace(config, host="", unix_socket=path, connections_max=connections_max)
    writer = Writer(store, inner, asyncio.get_running_loop())
    await writer.listen()
    if config.group:
        shutil.chown(path, group=config.group)
        os.chmod(path, 0o660)
    return writer


def serve_writer(store: Any, config: Config, lifeline_fd: int) -> None:
    """Serves until SIGTERM, SIGINT or the supervisor's end, then stops gracefully. Raises LogFailed as `serve`."""
    with Lifeline(lifeline_fd) as lifeline:
        try:
            run_server(lambda: start_writer(store, config), lifeline=lifeline)
        except LogFailed:
            lifeline.tell(FAILED)
            raise
