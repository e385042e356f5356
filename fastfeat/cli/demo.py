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
    """Run the main job on real flights, in about a minute.

    The job: predict which of the 336,776 flights that were to leave New York in 2013 arrive late. Defines features,
    loads the data, serves it on a free port, asks about a flight as of an hour before it was to leave and now, shows
    that as-of answers hold nothing from later, makes a training set of all flights, trains a model, shows that what is
    served equals what it learned from, and times the requests.
    Needs data and scikit-learn: pip install 'fastfeat[demo]'. Example: fastfeat demo
    """
    from .flights import run_demo

    if not run_demo(requests, as_json):
        raise typer.Exit(1)
