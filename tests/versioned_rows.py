"""Rows whose every value is told by their key and version: one made of two shows itself, and so does an older one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastfeat import Entity, FeatureView, Field

if TYPE_CHECKING:
    import pyarrow as pa

START_US = 1_700_000_000_000_000  # of version 0; a version is ten microseconds
USER = Entity("user", {"user_id": "int64"})
CHECKS = 30  # float64 fields; with them a row spans several cache lines
VECTOR_SIZE = 8
FIELDS = [
    Field("version", "int64"),
    *(Field(f"check{i}", "float64") for i in range(CHECKS)),
    Field("vector", f"vector<float32, {VECTOR_SIZE}>"),
    Field("text", "string"),
    Field("list", "list<string>"),
]
LONG_PAST = FeatureView("all", USER, FIELDS)
SHORT_PAST = FeatureView("short", USER, FIELDS, keep=3)
LATEST = FeatureView("latest", USER, FIELDS, keep="latest")
NUMBERS = ["version", *(f"check{i}" for i in range(CHECKS)), "vector"]
TEXTS = ["version", "text", "list"]


def numbers_of(keys: Any, versions: Any) -> Any:
    """The matrix [n, 1 + CHECKS + 8] of NUMBERS for rows of these keys and versions."""
    keys, versions = np.asarray(keys, np.float64)[:, np.newaxis], np.asarray(versions, np.float64)[:, np.newaxis]
    numbers = np.empty((len(keys), 1 + CHECKS + VECTOR_SIZE))
    numbers[:, :1] = versions
    np.add(keys * 1_000_003 + versions * 17, np.arange(CHECKS), out=numbers[:, 1 : 1 + CHECKS])
    np.remainder(keys + versions + np.arange(VECTOR_SIZE), 1000, out=numbers[:, 1 + CHECKS :])
    return numbers


def texts_of(key: int, version: int) -> tuple[str, list[str]]:
    return f"{key}:{version}" * (version % 4), [f"{key}"] * (version % 3) + [f"{version}"]


def table_of(keys: Any, versions: Any, moments: Any = None) -> pa.Table:
    """Rows to push; event times are ten microseconds apart, in the order of the versions, or of `moments`."""
    import pyarrow as pa  # only who writes needs it

    numbers = numbers_of(keys, versions)
    texts = [texts_of(int(key), int(version)) for key, version in zip(keys, versions, strict=True)]
    times_us = START_US + np.asarray(versions if moments is None else moments, np.int64) * 10
    columns: dict[str, Any] = {
        "user_id": np.asarray(keys, np.int64),
        "event_timestamp": pa.array(times_us, pa.timestamp("us", "UTC")),
        "version": np.asarray(versions, np.int64),
        "vector": pa.FixedSizeListArray.from_arrays(
            pa.array(numbers[:, 1 + CHECKS :].astype(np.float32).reshape(-1)), VECTOR_SIZE
        ),
        "text": pa.array([text for text, _ in texts], pa.string()),
        "list": pa.array([items for _, items in texts], pa.list_(pa.string())),
    }
    return pa.table(columns | {f"check{i}": np.ascontiguousarray(numbers[:, 1 + i]) for i in range(CHECKS)})
