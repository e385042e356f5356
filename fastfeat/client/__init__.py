"""Clients: `connect(url) -> Client` blocks, `connect_async(url) -> AsyncClient` awaits; same methods, same results.

Importing this package needs neither pyarrow nor an event loop.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .asynchronous import AsyncClient, connect_async
    from .blocking import Client, connect
    from .pipeline import Pending, Pipeline

__all__ = ["AsyncClient", "Client", "Pending", "Pipeline", "connect", "connect_async"]

_HOME = {
    "AsyncClient": "asynchronous",
    "connect_async": "asynchronous",
    "Client": "blocking",
    "connect": "blocking",
    "Pending": "pipeline",
    "Pipeline": "pipeline",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
