"""Loads: batch by batch into a durable store, the next ones read and encoded while one is synced."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final

from ._core.table import Table
from .commits import Write
from .report import LoadReport

UNDER_WAY_MAX: Final = 3  # batches in memory: one that is synced, one that waits so that the next sync begins at once


class DurableLoad:
    """A series of batches on its way, in order; after the first that is refused none is taken."""

    def __init__(self, commit: Callable[[Write], object], report: LoadReport, advance: Callable[[int], object]) -> None:
        self._commit = commit
        self._report = report
        self._advance = advance
        self._pool = ThreadPoolExecutor(1, "fastfeat-commit")
        self._under_way: deque[tuple[Future[bool], int]] = deque()
        self._has_failed = False

    def run(self, table: Table, batches: Iterable[Any], threads: int) -> None:
        """Commit normalized batches. Raises the first error; the report counts what is durable by then."""
        with self._pool, ExitStack() as rest:
            rest.callback(self._finish_all)
            for batch in batches:
                write = Write(table, batch=table.arrow_batch(batch), stamped=False, threads=threads)
                while len(self._under_way) >= UNDER_WAY_MAX:
                    self._finish_one()
                self._under_way.append((self._pool.submit(self._take, write), batch.num_rows))

    def _finish_all(self) -> None:
        with ExitStack() as rest:
            for _ in self._under_way:
                rest.callback(self._finish_one)

    def _take(self, write: Write) -> bool:
        """In the thread: False where an earlier batch was refused."""
        if self._has_failed:
            return False
        try:
            self._commit(write)
        except BaseException:
            self._has_failed = True
            raise
        return True

    def _finish_one(self) -> None:
        """Wait for the oldest batch, which the report counts already."""
        future, rows = self._under_way.popleft()
        is_taken = False
        try:
            is_taken = future.result()
        finally:
            if is_taken:
                self._advance(rows)
            else:
                self._report.accepted -= rows
