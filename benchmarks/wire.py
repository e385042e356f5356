"""Prebuilt request bytes and blocking sockets: a server measured without any client library.

The bytes follow docs/PROTOCOL.md and are made with the stock msgpack library.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from . import data

FLOAT64_MATRIX = 2  # the format of a GET
FRAME_SIZE_MAX = 1 << 20
REQUEST_ID = 3  # HELLO and PREPARE come first; one id for all GETs keeps every reply the same size


def frame(message: Sequence[object]) -> bytes:
    payload: bytes = msgpack.packb(message)
    return struct.pack(">I", len(payload)) + payload


GREETING = (
    frame([0, 1, "HELLO", {"version": 1, "client": "benchmarks", "frame_size_max": FRAME_SIZE_MAX}]),
    frame([0, 2, "PREPARE", {"service": data.SERVICE}]),
)


def get_requests(plan: int, keys: npt.NDArray[np.int64]) -> list[bytes]:
    """A GET of one key each, as a float64 matrix."""
    return [frame([0, REQUEST_ID, "GET", [plan, [key.tobytes()], FLOAT64_MATRIX]]) for key in keys.astype("<i8")]


def receive_frame(connection: socket.socket) -> bytes:
    (size,) = struct.unpack(">I", receive_exactly(connection, 4))
    return receive_exactly(connection, size)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        some = connection.recv(size - len(received))
        if not some:
            raise RuntimeError("the server closed the connection")
        received += some
    return bytes(received)


def ask(connection: socket.socket, request: bytes) -> Any:
    """The result of one request. Raises RuntimeError with the error that came instead."""
    connection.sendall(request)
    return receive_result(connection)


def receive_result(connection: socket.socket) -> Any:
    _, _, error, result = msgpack.unpackb(receive_frame(connection), strict_map_key=False)
    if error is not None:
        raise RuntimeError(f"the server answers error {error}")
    return result


class FixedConnection:
    """A blocking socket whose every reply has one known size: the least a client can do."""

    def __init__(self, port: int, reply_size: int = 0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reply_size = reply_size
        self.reply = bytearray(reply_size)

    def greet(self) -> int:
        """Say HELLO, PREPARE the service; the number of its plan."""
        ask(self.socket, GREETING[0])
        return int(ask(self.socket, GREETING[1])["plan"])

    def learn_reply_size(self, request: bytes) -> None:
        self.socket.sendall(request)
        self.reply_size = 4 + len(receive_frame(self.socket))
        self.reply = bytearray(self.reply_size)

    def exchange(self, request: bytes) -> None:
        """Send the request and wait for its whole reply, left in `self.reply`."""
        self.socket.sendall(request)
        filled = self.socket.recv_into(self.reply)
        while 0 < filled < self.reply_size:
            filled += self.socket.recv_into(memoryview(self.reply)[filled:])

    def rows(self, requests: Sequence[bytes]) -> npt.NDArray[np.float64]:
        """The payloads of the replies: the last bytes of each."""
        answers = np.empty((len(requests), data.FEATURES))
        for i, request in enumerate(requests):
            self.exchange(request)
            answers[i] = np.frombuffer(self.reply[-data.ROW_SIZE :])
        return answers

    def close(self) -> None:
        self.socket.close()
