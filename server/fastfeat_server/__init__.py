"""The server program: a Store behind the protocol of docs/PROTOCOL.md.

serve(store, config)          blocks until SIGTERM or SIGINT
await start(store, config)    in an event loop of your own
supervise(config, writer)     a writer process and config.workers reader processes
"""

from __future__ import annotations

from .config import Config
from .server import Server, serve, start
from .supervisor import supervise

__all__ = ["Config", "Server", "serve", "start", "supervise"]
