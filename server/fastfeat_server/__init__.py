"""The server program: a Store behind the protocol of docs/PROTOCOL.md.

serve(store, config)          blocks until SIGTERM or SIGINT
await start(store, config)    in an event loop of your own
"""

from __future__ import annotations

from .config import Config
from .server import Server, serve, start

__all__ = ["Config", "Server", "serve", "start"]
