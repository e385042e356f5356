"""The writer of a shared arena, a process of its own: python -m benchmarks.shared_store VERB NAME ENTITIES [DIRECTORY].

    hold   a store in memory with the data of so many entities, and as many with 200 features
    open   the durable store of the directory, loaded first where it is empty
    stop   the same, stopped cleanly at once
    time   the same once all is imported: prints what opening and one answer took

Each prints one line of JSON; hold and open then wait for the end of their input and stop cleanly.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import numpy as np

from fastfeat import Entity, FeatureService, FeatureView, Field, Store

from . import data
from .fastfeat_peer import load_all

WIDE: Final = "wide"  # the view and the service of 200 features
WIDE_PARTS: Final = 4  # of which each has the data's 50 values
WIDE_NAMES: Final = tuple(f"{name}_{part}" for part in range(WIDE_PARTS) for name in data.FEATURE_NAMES)


def definitions() -> list[Any]:
    user = Entity("user", join_keys={"user_id": "int64"})
    profile, wide = (
        FeatureView(name, entity=user, schema=[Field(field, "float64") for field in fields], keep="latest")
        for name, fields in ((data.VIEW, data.FEATURE_NAMES), (WIDE, WIDE_NAMES))
    )
    return [user, profile, wide, FeatureService(data.SERVICE, [profile]), FeatureService(WIDE, [wide])]


def load_profile(store: Store, entities: int) -> None:
    for keys, values in data.chunks(entities):
        load_all(store, data.record_batch(keys, values))


def load_wide(store: Store, entities: int) -> None:
    """Every entity's 50 values four times over."""
    for keys, values in data.chunks(entities):
        batch = data.record_batch(keys, values)
        columns = {"user_id": batch["user_id"], "event_timestamp": batch["event_timestamp"]}
        columns |= {f"{name}_{part}": batch[name] for part in range(WIDE_PARTS) for name in data.FEATURE_NAMES}
        store.load(WIDE, columns_table(columns))


def columns_table(columns: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


def hold(name: str, entities: int) -> Store:
    store = Store(capacity_bytes=(1 << 30) + entities * 2560, shared=name)
    store.apply(definitions())
    load_profile(store, entities)
    load_wide(store, entities)
    return store


def open_store(name: str, entities: int, directory: str) -> Store:
    """Snapshots only when it stops."""
    store = Store.open(
        directory, capacity_bytes=(1 << 30) + entities * 1024, shared=name, fsync="off", snapshot_seconds=86_400.0
    )
    store.apply(definitions())
    if not store.info()["views"][data.VIEW]["rows"]:
        load_profile(store, entities)
    return store


def timed(name: str, entities: int, directory: str) -> dict[str, float]:
    """Seconds from the call of Store.open to the first answer."""
    key = {"user_id": entities - 1}
    began = time.perf_counter()
    store = Store.open(directory, capacity_bytes=(1 << 30) + entities * 1024, shared=name, fsync="off")
    answer = store.get_feature_vector(data.SERVICE, key)
    took = time.perf_counter() - began
    data.check_equal("fastfeat", data.rows_of(np.array([entities - 1])), answer[np.newaxis])
    generation = store.info()["shared"]["generation"]
    store.close()
    return {"took_s": took, "generation": generation}


def say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    verb, name, entities, *rest = sys.argv[1:]
    if verb == "time":
        import fastfeat.durable  # noqa: F401  what a running process has long imported

        say(timed(name, int(entities), *rest))
    else:
        with hold(name, int(entities)) if verb == "hold" else open_store(name, int(entities), *rest) as store:
            say({"rows": store.info()["views"][data.VIEW]["rows"], **store.info()["shared"]})
            if verb != "stop":
                sys.stdin.read()
