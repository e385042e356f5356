"""Timing: peers take turns within one run, every call is timed by itself, and what is kept are percentiles.

    round 0:  A A A A | B B B B | C C C C       a block per peer; each block opens with untimed calls
    round 1:  C C C C | B B B B | A A A A       the order turns, so drift of the machine meets every peer alike

The clock's own cost (about 50 ns) is part of every number, of ours and of theirs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTS = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99, 100.0)


@dataclass(frozen=True)
class Size:
    """How much a run measures. A smoke run proves that everything runs; its numbers mean nothing."""

    smoke: bool
    entities: int
    entities_large: int
    calls: dict[int, int]  # batch size -> timed calls per peer
    rounds: int
    seconds: float  # of one window of load
    open_rate: float  # requests per second of the open loop
    load_rows: int
    load_repeats: int


FULL = Size(False, 100_000, 5_000_000, {1: 20_000, 100: 5_000, 1_000: 1_000}, 20, 1.0, 50_000.0, 1_000_000, 5)
SMOKE = Size(True, 1_000, 3_000, {1: 40, 100: 20, 1_000: 4}, 2, 0.1, 2_000.0, 2_000, 1)


@dataclass(frozen=True)
class Latency:
    """Percentiles of single calls, in microseconds."""

    count: int
    percentiles_us: dict[str, float]

    @staticmethod
    def of_samples(samples_ns: npt.NDArray[np.int64]) -> Latency:
        # "higher" is a latency that a call really had, never one interpolated below it.
        values = np.percentile(samples_ns, PERCENTS, method="higher") / 1000.0
        return Latency(len(samples_ns), {f"{p:g}": float(v) for p, v in zip(PERCENTS, values, strict=True)})

    def at(self, percent: float) -> float:
        return self.percentiles_us[f"{percent:g}"]


@dataclass
class Findings:
    """What one group of bars found."""

    bars: dict[str, float] = field(default_factory=dict)  # bar name -> measured
    latencies: dict[str, Latency] = field(default_factory=dict)  # "group.batch.peer" -> percentiles
    rates: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> numbers that are not latencies
    checksums: dict[str, str] = field(default_factory=dict)  # of the answers compared with the data
    unmeasured: dict[str, str] = field(default_factory=dict)  # bar name -> why it could not be measured here

    def ratio(self, bar: str, ours: str, theirs: str, percent: float) -> None:
        self.bars[bar] = self.latencies[ours].at(percent) / self.latencies[theirs].at(percent)


@dataclass(frozen=True)
class Subject:
    """One peer's way to answer: a call of one argument, and the arguments prepared beforehand."""

    name: str
    call: Callable[[Any], object]
    arguments: Sequence[Any]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside; what lives now is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def interleave(subjects: Sequence[Subject], calls: int, rounds: int) -> dict[str, Latency]:
    """Percentiles per subject of `calls` calls each, taken in `rounds` alternating blocks."""
    block = max(1, calls // rounds)
    samples: dict[str, list[int]] = {subject.name: [] for subject in subjects}
    with quiet():
        for turn in range(rounds):
            for subject in subjects if turn % 2 == 0 else reversed(subjects):
                time_block(subject, turn * block, block, samples[subject.name])
    return {name: Latency.of_samples(np.array(values)) for name, values in samples.items()}


def time_block(subject: Subject, start: int, calls: int, samples: list[int]) -> None:
    """Time `calls` calls, each by itself, after a tenth as many untimed ones with other arguments."""
    call, clock, keep = subject.call, time.perf_counter_ns, samples.append
    arguments = [subject.arguments[(start + i) % len(subject.arguments)] for i in range(calls)]
    for i in range(1 + calls // 10):
        call(subject.arguments[(start + calls + i) % len(subject.arguments)])
    for argument in arguments:
        began = clock()
        call(argument)
        keep(clock() - began)


def cores() -> tuple[int, int]:
    """The core that servers run on and the core that asks; the same one where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def pin_to(core: int) -> None:
    os.sched_setaffinity(0, {core})
