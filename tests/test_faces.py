"""Store, Client and AsyncClient over the same Store: the same rows in, the same answers out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfeat import Entity, FeatureService, FeatureView, Field, Store, connect
from fastfeat.errors import BeforeHistory, FastFeatError, IncompatibleSchema

from .serving import serving
from .test_client import Awaited

NOW_US = 1_700_000_000_000_000
USER = Entity("user", join_keys={"user_id": "int64"})
PROFILE = FeatureView(
    "profile",
    entity=USER,
    ttl=timedelta(days=1),
    schema=[Field("age", "int32"), Field("score", "float64"), Field("city", "string"), Field("tags", "list<int16>")],
)
LATEST = FeatureView("latest", entity=USER, keep="latest", schema=[Field("x", "float64", nullable=False)])
SERVICE = FeatureService("scoring", [PROFILE["age"], PROFILE["score"], LATEST])


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(64 << 20, clock=lambda: NOW_US) as store:
        store.apply([PROFILE, LATEST, SERVICE])
        yield store


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request: pytest.FixtureRequest, store: Store) -> Iterator[Any]:
    with serving(store) as server, (connect if request.param == "Client" else Awaited)(server.url) as client:
        yield client


def profiles(count: int, offset_us: int = 0) -> pa.Table:
    times = pa.array([NOW_US - i * 3_600_000_000 - offset_us for i in range(count)], pa.timestamp("us"))
    return pa.table(
        {
            "user_id": pa.array(range(count), pa.int32()),
            "event_timestamp": times,
            "age": pa.array([i % 90 if i % 7 else None for i in range(count)], pa.int64()),
            "score": np.arange(count) / 3,
            "city": [f"city {i}" for i in range(count)],
            "tags": [list(range(i % 4)) for i in range(count)],
            "unknown": ["ignored"] * count,
        }
    )


def same(store: Store, client: Any, features: Any, rows: Any, **times: Any) -> None:
    mine, theirs = (face.get_online_features(features, rows, **times) for face in (store, client))
    assert mine.to_dict() == theirs.to_dict()
    assert mine.to_arrow().equals(theirs.to_arrow())
    for view in mine.views:
        assert mine.statuses[view].tolist() == theirs.statuses[view].tolist()
        assert mine.event_times[view].tolist() == theirs.event_times[view].tolist()


def test_what_goes_in_through_the_client_comes_out_of_both(store: Store, client: Any) -> None:
    assert client.load("profile", profiles(100)).ignored_columns == ("unknown",)
    row = {"user_id": 3, "x": 0.5, "event_timestamp": datetime.fromtimestamp(NOW_US / 1e6, UTC) - timedelta(hours=1)}
    assert client.push(LATEST, row) >= NOW_US
    client.delete("profile", [{"user_id": 5}])
    everything = [str(feature) for view in (PROFILE, LATEST) for feature in view]
    rows = {"user_id": np.arange(-1, 101)}
    same(store, client, everything, rows)
    same(store, client, SERVICE, rows)
    same(store, client, "scoring", [{"user_id": 3}], as_of=NOW_US - 1)
    same(store, client, everything, rows, as_of=NOW_US + 86_400_000_000, known_at=NOW_US)
    matrices = [face.get_feature_vectors("scoring", rows) for face in (store, client)]
    assert matrices[0].tobytes() == matrices[1].tobytes()
    assert store.info()["views"] == client.info()["views"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "directory"])
def test_files_load_alike_through_both(store: Store, client: Any, tmp_path: Path, kind: str) -> None:
    table = profiles(50).drop_columns(["tags"])
    (tmp_path / "part").mkdir()
    if kind == "csv":
        path = tmp_path / "profiles.csv"
        lines = [
            "user_id,event_timestamp,age,score,city",
            "1,2023-11-14T22:00:00Z,30,0.5,Paris",
            "too,many,values,in,this,line",
        ]
        path.write_text("\n".join([*lines, "2,2023-11-14T22:00:00Z,not a number,0.5,Paris", ""]))
    else:
        path = tmp_path if kind == "directory" else tmp_path / "a.parquet"
        pq.write_table(table, tmp_path / "a.parquet")
        if kind == "directory":
            pq.write_table(profiles(60, 1).drop_columns(["tags"]), tmp_path / "part" / "b.parquet")
    view = FeatureView("flat", entity=USER, schema=[f for f in PROFILE.schema if f.name != "tags"])
    store.apply(view)
    theirs = client.load("flat", path)
    with Store(64 << 20, clock=lambda: NOW_US) as alone:
        alone.apply(view)
        mine = alone.load("flat", str(path))
        assert theirs == mine
        assert mine.accepted == {"csv": 1, "parquet": 50, "directory": 110}[kind]
        assert mine.rejected == (2 if kind == "csv" else 0)
        same(alone, client, [str(feature) for feature in view], {"user_id": np.arange(70)})


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda face: face.get_feature_vector("nobody", {"user_id": 1}), FastFeatError),
        (lambda face: face.get_feature_vector(["profile:nothing"], {"user_id": 1}), FastFeatError),
        (lambda face: face.get_feature_vectors(["profile:age"], [{"user_id": 1}, {}]), FastFeatError),
        (lambda face: face.get_feature_vectors(["profile:age"], {"user_id": [1.5]}), FastFeatError),
        (lambda face: face.get_feature_vectors(["profile:age"], [{"user_id": 1}], as_of=1 << 62), FastFeatError),
        (lambda face: face.push("profile", {"user_id": 1}), FastFeatError),
        (lambda face: face.push("latest", {"user_id": 1, "x": None, "event_timestamp": NOW_US}), FastFeatError),
        (lambda face: face.push("latest", {"user_id": "1", "x": 1.0, "event_timestamp": NOW_US}), FastFeatError),
        (lambda face: face.load("profile", pa.table({"user_id": [1]})), FastFeatError),
        (lambda face: face.load("profile", profiles(3), event_time="nope"), FastFeatError),
        (lambda face: face.delete("profile", [{"user": 1}]), FastFeatError),
    ],
)
def test_errors_are_alike(store: Store, client: Any, call: Any, error: type[Exception]) -> None:
    said = []
    for face in (store, client):
        with pytest.raises(error) as caught:
            call(face)
        said.append((type(caught.value), str(caught.value)))
    assert said[0] == said[1]


def test_before_history_travels(store: Store, client: Any) -> None:
    for hours in (2, 1):
        client.push("latest", {"user_id": 1, "x": hours, "event_timestamp": NOW_US - hours * 3_600_000_000})
    with pytest.raises(BeforeHistory, match="user_id=1"):
        client.get_feature_vector(["latest:x"], {"user_id": 1}, as_of=NOW_US - 5_400_000_000)
    other = FeatureView("latest", entity=USER, schema=[Field("x", "float32")])
    with pytest.raises(IncompatibleSchema):
        store.push(other, [])
