"""Loads: batch by batch into a durable store, the next one read and encoded while the one before is synced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ._core.table import Table
from .commits import Write
from .report import LoadReport


def load_durably(
    commit: Callable[[Write], object],
    table: Table,
    batches: Iterable[Any],
    threads: int,
    report: LoadReport,
    advance: Callable[[int], object],
) -> None:
    """Commit normalized batches in their order. Raises the first error; the report counts what is durable by then."""
    with ThreadPoolExecutor(1, "fastfeat-commit") as pool:
        under_way: tuple[Future[object], int] | None = None
        try:
            for batch in batches:
                write = Write(table, batch=table.arrow_batch(batch), stamped=False, threads=threads)
                before, under_way = under_way, None
                finish(before, report, advance)
                under_way = pool.submit(commit, write), batch.num_rows
        finally:
            finish(under_way, report, advance)


def finish(under_way: tuple[Future[object], int] | None, report: LoadReport, advance: Callable[[int], object]) -> None:
    """Wait for a batch, which the report counts already."""
    if under_way is None:
        return
    future, rows = under_way
    try:
        future.result()
    except BaseException:
        report.accepted -= rows
        raise
    advance(rows)
