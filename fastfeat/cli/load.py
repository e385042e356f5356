"""`fastfeat load`: files into a running server."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEFAULT_URL, AsJson, Url

if TYPE_CHECKING:
    from fastfeat.client import Client


def load(
    view: Annotated[str, typer.Argument(help="The feature view that takes the rows.")],
    paths: Annotated[list[str], typer.Argument(help=".arrow, .parquet or .csv files, or directories of them.")],
    url: Url = DEFAULT_URL,
    event_time: Annotated[str, typer.Option(help="The column that says when a row was true.")] = "event_timestamp",
    created_time: Annotated[
        str | None,
        typer.Option(help="The column that says when it became known; else event time plus the view's delay."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load files into a running server.

    Example: fastfeat load weather hourly.parquet --event-time time_hour

    Rows that do not fit are left out and counted by reason; the exit code is then 1.
    """
    import fastfeat

    from .output import shows_progress

    progress = shows_progress(as_json)
    with fastfeat.connect(url) as client:
        reports = [load_one(client, view, path, event_time, created_time, progress) for path in paths]
    show(view, reports, as_json)
    if any(report["rejected"] for report in reports):
        raise typer.Exit(1)


def load_one(
    client: Client, view: str, path: str, event_time: str, created_time: str | None, progress: bool
) -> dict[str, Any]:
    start = perf_counter()
    report = client.load(view, path, event_time=event_time, created_time=created_time, progress=progress)
    return {
        "path": path,
        "accepted": report.accepted,
        "rejected": report.rejected,
        "reasons": dict(report.reasons),
        "times_floored": report.times_floored,
        "seconds": round(perf_counter() - start, 3),
    }


def show(view: str, reports: list[dict[str, Any]], as_json: bool) -> None:
    from .output import print_json, print_table

    if as_json:
        print_json(reports)
        return
    columns = ("path", "accepted", "rejected", "times_floored", "seconds")
    print_table(f"loaded into {view}", columns, ([report[name] for name in columns] for report in reports))
    reasons = [(r["path"], reason, count) for r in reports for reason, count in r["reasons"].items()]
    if reasons:
        print_table("rejected", ("path", "reason", "rows"), reasons)
