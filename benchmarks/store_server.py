"""Serve the data from a process of its own: python -m benchmarks.store_server ENTITIES [all|latest]."""

from __future__ import annotations

import json
import sys
from typing import Literal
from urllib.parse import urlsplit

from fastfeat_server import Config, Server, serve

from .fastfeat_peer import store_of


def announce(server: Server) -> None:
    print(json.dumps({"port": urlsplit(server.addresses[0]).port}), flush=True)


if __name__ == "__main__":
    keep: Literal["all", "latest"] = "latest" if sys.argv[2:] == ["latest"] else "all"
    serve(store_of(int(sys.argv[1]), keep), Config(port=0), ready=announce)
