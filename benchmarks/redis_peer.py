"""The peer: redis-py with hiredis on a redis-server of our own, holding the data in the two ways its users do.

    u:00001234  ->  one 400-byte string            GET / MGET: the best a Redis user can do by hand
    h:00001234  ->  hash of 50 fields of 8 bytes   HMGET of 50 fields, pipelined: what a feature store does

Everything is done for Redis that can be: no persistence where it is not the question, keys formatted beforehand, values
packed as raw doubles (so that decoding is one join and one frombuffer), one connection without a pool, the C parser,
the core pinned.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import redis
import redis.utils

from . import data
from .programs import free_port, on_core, stop, wait_for_port

KEY_DIGITS = 8
PACKED_REPLY_SIZE = len("$400\r\n") + data.ROW_SIZE + len("\r\n")
PACKED_REPLY_OPENING = b"$400\r\n"
LOAD_BATCH = 10_000

Bytes = npt.NDArray[np.uint8]


class RedisPeer:
    """A redis-server on a free port of this machine, and a client of it. A context manager.

    append_only: the directory of its append-only file and when that is synced: "always" or "everysec".
    """

    def __init__(self, core: int | None = None, append_only: tuple[Path, str] | None = None) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is not installed; on Debian: apt-get install redis-server")
        if not redis.utils.HIREDIS_AVAILABLE:
            raise RuntimeError("hiredis is not installed and the comparison would be unfair; pip install hiredis")
        self.port = free_port()
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += append_only_options(append_only)
        self.process = subprocess.Popen(
            command if core is None else on_core(core, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_port(self.port, self.process)
            self.client: Any = redis.Redis(port=self.port, single_connection_client=True)
            self.client.ping()
        except BaseException:
            stop(self.process)
            raise

    def __enter__(self) -> RedisPeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.close()
        stop(self.process)

    def connect(self) -> socket.socket:
        """A socket for bytes made beforehand."""
        return socket.create_connection(("127.0.0.1", self.port))

    @property
    def version(self) -> str:
        return str(self.client.info("server")["redis_version"])

    def load(self, entities: int, *, packed: bool = True, hashes: bool = True) -> None:
        with self.connect() as connection:
            for keys, values in data.chunks(entities):
                for at in range(0, len(keys), LOAD_BATCH):
                    some_keys, some_values = keys[at : at + LOAD_BATCH], values[at : at + LOAD_BATCH]
                    if packed:
                        send_commands(connection, set_commands(some_keys, some_values), b"+OK\r\n")
                    if hashes:
                        send_commands(connection, hset_commands(some_keys, some_values), b":50\r\n")

    def get_packed(self, key: bytes) -> npt.NDArray[np.float64]:
        return np.frombuffer(self.client.get(key))

    def mget_packed(self, keys: Sequence[bytes]) -> npt.NDArray[np.float64]:
        return np.frombuffer(b"".join(self.client.mget(keys))).reshape(-1, data.FEATURES)

    def hmget(self, keys: Sequence[bytes]) -> npt.NDArray[np.float64]:
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.hmget(key, data.FEATURE_NAMES)
        values = [value for row in pipeline.execute() for value in row]
        return np.frombuffer(b"".join(values)).reshape(-1, data.FEATURES)


def append_only_options(append_only: tuple[Path, str] | None) -> list[str]:
    if append_only is None:
        return ["--appendonly", "no"]
    folder, policy = append_only
    # A rewrite of the file is left out: it would be charged to whoever is measured when it begins.
    return ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", policy, "--auto-aof-rewrite-percentage", "0"]


def packed_keys(keys: npt.NDArray[np.int64]) -> list[bytes]:
    return [b"u:%08d" % key for key in keys.tolist()]


def hash_keys(keys: npt.NDArray[np.int64]) -> list[bytes]:
    return [b"h:%08d" % key for key in keys.tolist()]


def get_requests(keys: npt.NDArray[np.int64]) -> list[bytes]:
    """GETs of packed blobs as bytes on the wire."""
    return [b"*2\r\n$3\r\nGET\r\n$10\r\n%b\r\n" % key for key in packed_keys(keys)]


def send_commands(connection: socket.socket, commands: Bytes, reply: bytes) -> None:
    """Send one command per row and see that each is answered by `reply`."""
    connection.sendall(commands.data.cast("B"))
    expected = reply * len(commands)
    received = bytearray()
    while len(received) < len(expected):
        some = connection.recv(1 << 20)
        if not some:
            raise RuntimeError("redis-server closed the connection while it was loaded")
        received += some
    if received != expected:
        raise RuntimeError(f"redis-server refused a command: {bytes(received[:200])!r}")


def set_commands(keys: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Bytes:
    rows = values.view(np.uint8)
    size = b"\r\n$%d\r\n" % rows.shape[1]
    return joined(len(keys), b"*3\r\n$3\r\nSET\r\n$10\r\nu:", digits(keys), size, rows, b"\r\n")


def hset_commands(keys: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Bytes:
    parts: list[bytes | Bytes] = [b"*102\r\n$4\r\nHSET\r\n$10\r\nh:", digits(keys), b"\r\n"]
    for i, name in enumerate(data.FEATURE_NAMES):
        parts += [
            f"$3\r\n{name}\r\n$8\r\n".encode(),
            np.ascontiguousarray(values[:, i : i + 1]).view(np.uint8),
            b"\r\n",
        ]
    return joined(len(keys), *parts)


def digits(keys: npt.NDArray[np.int64]) -> Bytes:
    powers = 10 ** np.arange(KEY_DIGITS - 1, -1, -1)
    return (keys[:, None] // powers % 10 + ord("0")).astype(np.uint8)


def joined(count: int, *parts: bytes | Bytes) -> Bytes:
    """One row of bytes per command: what is the same for all, and columns of what differs."""
    columns = [
        np.broadcast_to(np.frombuffer(p, np.uint8), (count, len(p))) if isinstance(p, bytes) else p for p in parts
    ]
    return np.ascontiguousarray(np.concatenate(columns, axis=1))
