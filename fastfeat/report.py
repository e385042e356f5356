"""The report of a load: what became of a source's rows, and the bar that shows them go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """What became of a source's rows.

    accepted, rejected: rows. reasons: reason -> rows refused for it. times_floored: times finer than a microsecond.
    ignored_columns: columns of the source that the view does not have.
    """

    view: str
    accepted: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    times_floored: int = 0
    ignored_columns: tuple[str, ...] = ()

    def reject(self, reason: str, rows: int = 1) -> None:
        self.rejected += rows
        self.reasons[reason] = self.reasons.get(reason, 0) + rows

    def __str__(self) -> str:
        lines = [f"view {self.view!r}: {self.accepted:,} rows accepted, {self.rejected:,} rejected"]
        lines += [f"  {rows:,}: {reason}" for reason, rows in sorted(self.reasons.items(), key=lambda item: -item[1])]
        if self.times_floored:
            lines.append(f"  {self.times_floored:,} times were floored to microseconds")
        if self.ignored_columns:
            lines.append(f"  columns not in the view: {', '.join(self.ignored_columns)}")
        return "\n".join(lines)


def ignore_rows(rows: int) -> None:
    """No progress bar was asked for."""


@contextmanager
def load_progress(view: str, source: object) -> Iterator[Callable[[int], None]]:
    """A bar of rows on stderr, with an end where the source knows its size; gives what to call after each batch."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    rows = TextColumn("{task.completed:,.0f} rows")
    columns = (TextColumn("{task.description}"), BarColumn(), rows, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(view, total=getattr(source, "num_rows", None))
        yield lambda rows: bar.advance(task, rows)
