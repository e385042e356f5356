"""A server in a thread of its own, and a raw socket that speaks frames, for tests."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import msgpack
import uvloop
from fastfeat_server import Config, Server, start

from fastfeat.client.address import Address

T = TypeVar("T")
SECONDS = 20.0  # after which a test fails rather than hangs


class Serving:
    """A running server; its loop is another thread's."""

    def __init__(
        self, store: Any, config: Config, starting: Callable[[Any, Config], Coroutine[Any, Any, Server]] = start
    ) -> None:
        self.store = store
        self._config = config
        self._starting = starting
        self._started = threading.Event()
        self._stopping: asyncio.Event
        self._error: BaseException | None = None
        self.server: Server
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()
        assert self._started.wait(SECONDS)
        if self._error is not None:
            self._thread.join(SECONDS)
            raise self._error

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                self._error = error
                self._started.set()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self.server = await self._starting(self.store, self._config)
        self._started.set()
        await self._stopping.wait()
        await self.server.stop()

    @property
    def url(self) -> str:
        return self.server.addresses[0]

    def call(self, function: Callable[[], T]) -> T:
        """What the function gives in the server's thread."""

        async def called() -> T:
            return function()

        return self.run(called())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.server.loop).result(SECONDS)

    def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds in the server's thread."""

        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        self.run(asyncio.wait_for(wait(), SECONDS))

    def stop(self) -> None:
        if self._thread.is_alive():
            self.server.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(SECONDS)
        assert not self._thread.is_alive()


@contextmanager
def serving(
    store: Any, starting: Callable[[Any, Config], Coroutine[Any, Any, Server]] = start, **config: Any
) -> Iterator[Serving]:
    running = Serving(store, Config(**{"port": 0, "drain_seconds": 5.0, **config}), starting)
    try:
        yield running
    finally:
        running.stop()


class Raw:
    """A socket that sends what it is told and reads replies."""

    def __init__(self, url: str, hello: bool = True) -> None:
        self.socket = Address.parse(url).connect(SECONDS)
        if hello:
            assert self.ask([0, 0, "HELLO", {"version": 1}])[3]["version"] == 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *messages: Any) -> None:
        self.socket.sendall(b"".join(frame(message) for message in messages))

    def read(self) -> Any:
        """The next reply; None where the server has closed the connection."""
        head = self.receive(4)
        return None if head is None else msgpack.unpackb(self.receive(struct.unpack(">I", head)[0]) or b"")

    def ask(self, message: Any) -> Any:
        self.send(message)
        return self.read()

    def receive(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                assert not data, "the stream ended inside a frame"
                return None
            data += part
        return data


def frame(message: Any) -> bytes:
    payload = bytes(msgpack.packb(message))
    return struct.pack(">I", len(payload)) + payload


@contextmanager
def silent_server(replies: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does with each connection what `replies` says; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopping = threading.Event()

        def accept() -> None:
            while not stopping.is_set():
                connection, _ = listener.accept()
                with connection:
                    if not stopping.is_set():
                        replies(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield f"fastfeat://{host}:{port}"
        finally:
            stopping.set()
            with socket.create_connection((host, port), SECONDS):
                thread.join(SECONDS)
