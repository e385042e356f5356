"""Ours: the same data in a Store of this process or of a server process, through public names only.

The definitions are what a user would write: one entity, one view of 50 float64 fields, one service.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from fastfeat import Entity, FeatureService, FeatureView, Field, Store

from . import data


def store_of(entities: int, keep: Literal["all", "latest"] = "all") -> Store:
    """A store that holds the data of so many entities."""
    store = empty_store(entities, keep)
    for keys, values in data.chunks(entities):
        load_all(store, data.record_batch(keys, values))
    return store


def empty_store(entities: int, keep: Literal["all", "latest"] = "all") -> Store:
    """A store with the definitions applied and room for several rows per entity."""
    user = Entity("user", join_keys={"user_id": "int64"})
    profile = FeatureView(data.VIEW, entity=user, schema=[Field(f, "float64") for f in data.FEATURE_NAMES], keep=keep)
    store = Store(capacity_bytes=(256 << 20) + entities * 2048)
    store.apply([user, profile, FeatureService(data.SERVICE, [profile])])
    return store


def load_all(store: Store, rows: pa.RecordBatch | pa.Table) -> None:
    report = store.load(data.VIEW, rows)
    if report.accepted != rows.num_rows:
        raise AssertionError(f"loaded {report.accepted} of {rows.num_rows} rows: {report.reasons}")
