"""A durable store in a process of its own: python -m benchmarks.durable_store VERB DIRECTORY [ARGUMENT].

    ingest ROWS    load so many rows in batches, each a record and a sync; prints what it took; never closes
    fill ENTITIES  load the data of so many entities and stop cleanly: leaves a snapshot
    recover        open, as after a restart; prints what it took and a checksum of what is there
    serve FSYNC    serve what is there

Each prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from fastfeat_server import Config, Server, serve

from fastfeat import Entity, FeatureService, FeatureView, Field, Store

from . import data

EVENTS: Final = "events"  # the view of the write path: 10 features, where `data.VIEW` has 50
EVENT_FEATURES: Final = 10
EVENT_NAMES: Final = data.FEATURE_NAMES[:EVENT_FEATURES]
BATCH: Final = 1_000
SYNC_INTERVAL_S: Final = 1.0  # of fsync "interval": Redis's "everysec"
CAPACITY_BYTES: Final = 4 << 30
CHECKED_ROWS: Final = 1_000


def open_store(directory: str, fsync: Any = "always") -> Store:
    """The directory's store, with the definitions applied; it takes no snapshot by itself while it is measured."""
    user = Entity("user", join_keys={"user_id": "int64"})
    events, profile = (
        FeatureView(name, entity=user, schema=[Field(f, "float64") for f in names], keep="latest")
        for name, names in ((EVENTS, EVENT_NAMES), (data.VIEW, data.FEATURE_NAMES))
    )
    store = Store.open(
        directory, capacity_bytes=CAPACITY_BYTES, fsync=fsync, fsync_interval=SYNC_INTERVAL_S, snapshot_seconds=86_400.0
    )
    store.apply([user, events, profile, FeatureService(data.SERVICE, [profile]), FeatureService(EVENTS, [events])])
    return store


def event_values(keys: data.Integers) -> data.Floats:
    """The events' rows: the first features of the data."""
    return np.ascontiguousarray(data.rows_of(keys)[:, :EVENT_FEATURES])


def event_chunks(rows: int) -> Iterator[tuple[data.Integers, data.Floats]]:
    """Keys and values of one batch after the other."""
    for keys, values in data.chunks(rows):
        for at in range(0, len(keys), BATCH):
            yield keys[at : at + BATCH], np.ascontiguousarray(values[at : at + BATCH, :EVENT_FEATURES])


def ingest(directory: str, rows: str) -> None:
    batches = [data.record_batch(keys, values) for keys, values in event_chunks(int(rows))]
    store = open_store(directory)
    reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
    began = time.perf_counter()
    report = store.load(EVENTS, reader)
    took = time.perf_counter() - began
    if report.accepted != int(rows):
        raise AssertionError(f"ingested {report.accepted} of {rows} rows: {report.reasons}")
    say(took_s=took)
    os._exit(0)  # no clean stop: what was acknowledged must be there all the same


def fill(directory: str, entities: str) -> None:
    with open_store(directory) as store:
        for keys, values in data.chunks(int(entities)):
            store.load(data.VIEW, data.record_batch(keys, values))
    say(rows=int(entities))


def recover(directory: str) -> None:
    with tempfile.TemporaryDirectory() as other:  # what is imported at the first opening is code and no row's time
        Store.open(other, capacity_bytes=CAPACITY_BYTES).close()
    began = time.perf_counter()
    store = Store.open(directory, capacity_bytes=CAPACITY_BYTES)
    took = time.perf_counter() - began
    views = store.info()["views"]
    say(took_s=took, rows={name: view["rows"] for name, view in views.items()}, checksum=checksum(store, views))
    os._exit(0)  # no clean stop: it would write the snapshot that the next recovery is to do without


def checksum(store: Store, views: dict[str, Any]) -> str:
    """Of random rows of the largest view, each equal to the data bit for bit. Raises AssertionError."""
    view = max(views, key=lambda name: int(views[name]["rows"]))
    keys = data.random_keys(views[view]["rows"], (CHECKED_ROWS,), 8)
    service, values = (EVENTS, event_values) if view == EVENTS else (data.SERVICE, data.rows_of)
    return data.check_equal("fastfeat", values(keys), store.get_feature_vectors(service, {"user_id": keys}))


def serve_store(directory: str, fsync: str) -> None:
    with open_store(directory, fsync) as store:
        serve(store, Config(port=0), ready=announce)


def announce(server: Server) -> None:
    say(port=urlsplit(server.addresses[0]).port)


def say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    verb, directory, *arguments = sys.argv[1:]
    Path(directory).parent.mkdir(parents=True, exist_ok=True)
    verbs: dict[str, Any] = {"ingest": ingest, "fill": fill, "recover": recover, "serve": serve_store}
    verbs[verb](directory, *arguments)
