"""Serve the bare echo: python -m benchmarks.echo_server REQUEST_SIZE REPLY_SIZE."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

import uvloop

from .programs import echo_module


async def serve(request_size: int, reply_size: int) -> None:
    sys.path.insert(0, str(echo_module()))
    echo = importlib.import_module("echo")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: echo.Echo(request_size, reply_size), "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
