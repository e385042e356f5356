"""Runs the C load generator (loadgen.c) against one server and reads what it found."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import data, programs
from .measure import Latency

CONNECTIONS = 50
CHECKED = 20  # first replies of each connection whose bits are compared with the data


@dataclass(frozen=True)
class Target:
    """A server as the generator sees it: prebuilt requests, and replies of one size and opening."""

    name: str
    port: int
    requests: Path
    reply_size: int
    opening: bytes = b""
    payload_size: int = 0  # of the answer's doubles; they end tail_size bytes before the reply does
    tail_size: int = 0
    greeting: Path | None = None
    checksum: str = ""  # that its answers must have; "" where they are no data


@dataclass(frozen=True)
class Run:
    """One window of load."""

    per_second: float
    generator_busy: float  # share of its core; near 1 the generator is the limit, not the server
    checksum: str
    latency: Latency


def generate(
    target: Target, core: int, seconds: float, *, depth: int = 1, rate: float = 0, connections: int = CONNECTIONS
) -> Run:
    """Closed loop at a depth, or open loop at a rate per second. Raises AssertionError where the answers are wrong."""
    options = {
        "port": target.port,
        "requests": target.requests,
        "reply_size": target.reply_size,
        "opening": target.opening.hex(),
        "payload_size": target.payload_size,
        "tail_size": target.tail_size,
        "connections": connections,
        "depth": depth,
        "rate": rate,
        "seconds": seconds,
        "warmup": seconds / 4,
        "check": CHECKED,
    }
    if target.greeting:
        options["greeting"] = target.greeting
    words = [f"{name}={value}" for name, value in options.items()]
    try:
        found = json.loads(programs.run(programs.on_core(core, [str(programs.loadgen()), *words])))
    except RuntimeError as error:
        raise RuntimeError(f"{target.name}: {error}") from None
    if target.checksum and found["checksum"] != target.checksum:
        raise AssertionError(f"{target.name} answers {found['checksum']}, the data are {target.checksum}")
    latency = Latency(found["count"], found["percentiles_us"])
    return Run(found["per_second"], found["generator_busy"], found["checksum"], latency)


def write_records(path: Path, records: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(struct.pack("<I", len(record)) + record for record in records))
    return path


def expected_checksum(keys: npt.NDArray[np.int64], connections: int = CONNECTIONS) -> str:
    """What a run over requests for these keys must print: each connection starts in a place of its own."""
    starts = np.arange(connections) * (len(keys) // connections)
    asked = (starts[:, None] + np.arange(CHECKED)).ravel() % len(keys)
    return data.word_sum(data.rows_of(keys[asked]))
