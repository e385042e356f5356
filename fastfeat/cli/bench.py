"""`fastfeat bench`: how fast it is here, or how fast a running server is from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Entities, checked_url

if TYPE_CHECKING:
    from fastfeat import Store
    from fastfeat.client import Client

BATCHES = (1, 100, 1_000)
SEED = 7
BATCH_REQUESTS_MIN = 500


def bench(
    features: Annotated[
        list[str] | None, typer.Argument(help="With --url: a feature service, or features as view:field.")
    ] = None,
    entity: Entities = None,
    url: Annotated[
        str | None,
        typer.Option("--url", "-u", callback=checked_url, help="A running server instead of one of our own."),
    ] = None,
    entities: Annotated[int, typer.Option(help="How many entities to load into our own.", min=1_000)] = 100_000,
    requests: Annotated[int, typer.Option(help="How many requests to time.", min=100)] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Time reads, of our own server or of a running one.

    Prints p50, p99 and p99.9 in microseconds, from Python to a NumPy array.

    Alone it loads 100,000 entities of 50 float64 features into this process and into a server of its own, and reads
    random batches from both. With --url it asks a running server for what you name:

    fastfeat bench airport_delays:minutes_mean_1h -e origin=EWR --url fastfeat://127.0.0.1:7077
    """
    from .output import print_json, print_table

    if url is None:
        if features or entity:
            raise typer.BadParameter("features and --entity need --url", param_hint="--url")
        took = time_own(entities, requests)
    else:
        took = time_server(url, features or [], entity or [], requests)
    if as_json:
        print_json(took)
        return
    print_table(
        f"microseconds over {requests:,} requests",
        ("from", "entities", "p50", "p99", "p99.9"),
        ((row["from"], row["batch"], row["p50"], row["p99"], row["p99.9"]) for row in took),
    )


def time_own(entities: int, requests: int) -> list[dict[str, Any]]:
    """Latencies of the embedded store and of a server that we start, over the same rows."""
    from fastfeat import Store, connect

    from . import synthetic
    from .child import served

    table = synthetic.rows(entities)
    store = Store()
    store.apply([synthetic.numbers, synthetic.everything])
    store.load("numbers", table)
    took = time_batches("embedded", store, entities, requests)
    with served("fastfeat.cli.synthetic") as url, connect(url) as client:
        client.load("numbers", table)
        took += time_batches("server", client, entities, requests)
    return took


def time_batches(name: str, source: Store | Client, entities: int, requests: int) -> list[dict[str, Any]]:
    import numpy as np

    from .output import measure, percentiles

    took = []
    for batch in BATCHES:
        count = max(BATCH_REQUESTS_MIN, requests // batch)
        keys = np.random.default_rng(SEED).integers(0, entities, (count, batch))

        def one(i: int, keys: Any = keys) -> object:
            return source.get_feature_vector("everything", {"entity_id": int(keys[i % len(keys), 0])})

        def many(i: int, keys: Any = keys) -> object:
            return source.get_feature_vectors("everything", {"entity_id": keys[i % len(keys)]})

        took.append({"from": name, "batch": batch, **percentiles(measure(one if batch == 1 else many, count))})
    return took


def time_server(url: str, features: list[str], entity: list[str], requests: int) -> list[dict[str, Any]]:
    """Latencies of a running server: the smallest round trip, and the features asked for."""
    import fastfeat

    from .output import measure, percentiles
    from .read import given_types, parse_entity, wanted_features

    if not features or not entity:
        raise typer.BadParameter("name features and at least one --entity to ask for", param_hint="--url")
    wanted = wanted_features(features)
    with fastfeat.connect(url) as client:
        rows = [parse_entity(text, given_types(client.info())) for text in entity]
        ping = percentiles(measure(lambda _: client.ping(), requests))
        read = percentiles(measure(lambda _: client.get_online_features(wanted, rows), requests))
    return [{"from": "ping", "batch": 0, **ping}, {"from": url, "batch": len(rows), **read}]
