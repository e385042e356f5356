"""Serve the events from a process of its own: python -m benchmarks.event_server ENTITIES."""

from __future__ import annotations

import sys

from fastfeat_server import Config, serve

from .events import store_of
from .store_server import announce

if __name__ == "__main__":
    serve(store_of(int(sys.argv[1])), Config(port=0), ready=announce)
