"""What the commands print: tables for people, JSON for machines, percentiles for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter_ns
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FILE_WIDTH = 120
PERCENTILES = (50.0, 99.0, 99.9)


def print_json(value: object) -> None:
    """One JSON document on stdout; bytes become hexadecimal text."""
    json.dump(value, sys.stdout, default=plain, indent=2)
    print()


def plain(value: Any) -> Any:
    """A JSON form of what json does not know."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table for a person; a column whose cells are all numbers is set right."""
    body = [list(row) for row in rows]
    out = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        numeric = bool(body) and all(isinstance(row[i], (int, float)) for row in body)
        out.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        out.add_row(*(cell_text(cell) for cell in row))
    return out


def screen(*, quiet: bool = False) -> Console:
    """Where people read: stdout, as wide as the terminal, and wide enough for our tables where there is none."""
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else FILE_WIDTH)


def shows_progress(quiet: bool) -> bool:
    """Whether a bar on stderr has somebody to look at it."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def waiting(for_what: str, quiet: bool) -> Iterator[None]:
    """Something that moves on stderr while it takes long, if anybody looks."""
    if not shows_progress(quiet):
        yield
        return
    with Console(stderr=True).status(for_what):
        yield


@contextmanager
def steps(quiet: bool) -> Iterator[Callable[[str, int, int], object]]:
    """For long work: call it with the step, how much is done and of how much (0: unknown). Bars on stderr, if anybody
    looks."""
    if not shows_progress(quiet):
        yield lambda step, done, total: None
        return
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=None)
            bars.update(tasks[step], completed=done, total=total or None)

        yield advance


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    screen().print(table(title, columns, rows))


def cell_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return str(value)


def time_text(time_us: int) -> str:
    """A time of ours for people: UTC to the second, with what is finer only where it is not zero."""
    moment = EPOCH + timedelta(microseconds=int(time_us))
    return moment.strftime("%Y-%m-%d %H:%M:%S") + (f".{moment.microsecond:06d}" if moment.microsecond else "")


def parse_time(text: str) -> datetime:
    """A moment with a zone from ISO 8601 text, "2013-07-04T15:00Z". Raises ValueError without one."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no moment of ISO 8601; write one such as 2013-07-04T15:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no zone; write {text}Z for UTC or an offset such as {text}-05:00")
    return moment


def size_text(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def measure(call: Callable[[int], object], count: int) -> np.ndarray:
    """Microseconds of each of `count` calls, after a tenth as many that are not counted."""
    for i in range(max(1, count // 10)):
        call(i)
    took = np.empty(count, dtype=np.int64)
    for i in range(count):
        start = perf_counter_ns()
        call(i)
        took[i] = perf_counter_ns() - start
    return took / 1e3


def percentiles(latency_us: np.ndarray) -> dict[str, float]:
    """p50, p99 and p99.9 by name."""
    values = np.percentile(latency_us, PERCENTILES)
    return {f"p{p:g}": round(float(v), 2) for p, v in zip(PERCENTILES, values, strict=True)}
