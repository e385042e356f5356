"""Store, Client, AsyncClient and pipeline over the same Store: the same rows in, the same answers and receipts out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastfeat import Entity, FeatureService, FeatureView, Field, Receipt, Result, Status, Store, connect
from fastfeat.client import Client
from fastfeat.errors import (
    CODE_OF,
    BeforeHistory,
    DataError,
    FastFeatError,
    IncompatibleSchema,
    StorageError,
    UnknownFeature,
    UnknownView,
)

from .serving import Raw, serving
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
    equal(*(face.get_online_features(features, rows, **times) for face in (store, client)))


def equal(mine: Result, theirs: Result) -> None:
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


# Receipts -------------------------------------------------------------------------------------------------------------

EVERYTHING = [str(feature) for view in (PROFILE, LATEST) for feature in view]
HOUR_US = 3_600_000_000
HOSTILE: list[tuple[dict[str, Any], type[FastFeatError], str]] = [
    ({"features": 5}, DataError, "features is no service's name"),
    ({"features": []}, DataError, "features is no service's name"),
    ({"features": [7]}, DataError, "features is no service's name"),
    ({"version": "1"}, DataError, "version is no integer"),
    ({"version": True}, DataError, "version is no integer"),
    ({"entities": [[1]]}, DataError, "entities is no map"),
    ({"entities": {"user_id": 1}}, DataError, "entities is no map"),
    ({"entities": {"user_id": b"12345678"}}, DataError, "entities is no map"),
    ({"entities": {"user_id": [1], "other": [1, 2]}}, DataError, "differ in length"),
    ({"as_of": None}, DataError, "as_of is no integer"),
    ({"as_of": 1.5}, DataError, "as_of is no integer"),
    ({"as_of": 1 << 62}, DataError, "outside years 1 to 9999"),
    ({"known_at": "now"}, DataError, "known_at is no integer"),
    ({"known_at": -(1 << 63)}, DataError, "outside years 1 to 9999"),
    ({"position": -1}, DataError, "position is no integer from 0"),
    ({"position": None}, DataError, "position is no integer from 0"),
    ({"surprise": 1}, DataError, "not a map of features, version"),
]
STRANGE: list[tuple[dict[str, Any], type[FastFeatError], str]] = [
    ({"version": 0}, DataError, "version 0 of the definitions"),
    ({"version": 1 << 62}, DataError, "of another store"),
    ({"position": (1 << 64) - 1}, DataError, "of another store, or of a later state"),
    ({"features": "nobody"}, UnknownView, "no feature service 'nobody'"),
    ({"features": ("nothing:x",)}, UnknownView, "no feature view 'nothing'"),
    ({"features": ("profile:nothing",)}, UnknownFeature, "no such field"),
    ({"features": ("profile",)}, FastFeatError, "the receipt: 'profile' is not"),
    ({"features": ("profile:age", "profile:age")}, FastFeatError, "twice"),
    ({"entities": {}}, DataError, "'user_id' missing"),
    ({"entities": {"user_id": ["7"]}}, DataError, "'7' is str, not int64"),
    ({"entities": {"user_id": [1.0]}}, DataError, "float, not int64"),
    ({"entities": {"user_id": [[1]]}}, DataError, "list, not int64"),
    ({"entities": {"user_id": [1 << 63]}}, DataError, "outside int64"),
]


class Piped:
    """A Client that asks for everything in pipelines of one request."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def get_online_features(self, *args: Any, **options: Any) -> Result:
        with self.client.pipeline() as pipe:
            pending = pipe.get_online_features(*args, **options)
        return pending.result()

    def replay(self, receipt: Receipt) -> Result:
        with self.client.pipeline() as pipe:
            pending = pipe.replay(receipt)
        return pending.result()


@contextmanager
def faces(store: Store) -> Iterator[list[Any]]:
    with serving(store) as server, connect(server.url) as client, Awaited(server.url) as awaited:
        yield [store, client, awaited, Piped(client)]


def open_store(directory: Path) -> Store:
    return Store.open(directory, capacity_bytes=64 << 20, clock=lambda: NOW_US)


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "data") as store:
        store.apply([PROFILE, LATEST, SERVICE])
        store.load("profile", profiles(40))
        for hours in (5, 3, 1):
            event_time = NOW_US - hours * HOUR_US
            store.push("latest", [{"user_id": i, "x": i + hours / 8, "event_timestamp": event_time} for i in range(9)])
        store.delete("profile", [{"user_id": 5}])
        yield store


def asked(face: Any) -> list[Result]:
    rows = {"user_id": np.arange(-1, 9)}
    return [
        face.get_online_features(features, rows, receipt=True, **times)
        for features in ("scoring", SERVICE, EVERYTHING)
        for times in ({}, {"as_of": NOW_US - 4 * HOUR_US}, {"as_of": NOW_US - 2 * HOUR_US, "known_at": NOW_US + 1})
    ]


def correct_late(store: Store) -> None:
    """Everything that was answered becomes another answer, also for as_of and known_at of before."""
    store.load("profile", profiles(40).set_column(3, "score", pa.array([-1.0] * 40)))
    hours = pa.array([NOW_US - hour * HOUR_US for hour in (1, 2, 4)] * 9, pa.timestamp("us", "UTC"))
    ids = pa.array([i for i in range(9) for _ in range(3)])
    table = pa.table({"user_id": ids, "event_timestamp": hours, "created": hours, "x": [-2.0] * 27})
    store.load("latest", table, created_time="created")
    store.apply([replace(PROFILE, ttl=timedelta(minutes=1)), FeatureService("scoring", [LATEST])])


def test_a_receipt_gives_the_same_answer_through_every_face_for_ever(durable: Store, tmp_path: Path) -> None:
    with faces(durable) as each:
        of_faces = [asked(face) for face in each]
        results = of_faces[0]
        for others in of_faces[1:]:
            for mine, theirs in zip(results, others, strict=True):
                equal(mine, theirs)
                assert mine.receipt == theirs.receipt
        receipts = [Receipt.from_json(result.receipt.to_json()) for result in results if result.receipt]
        assert len(receipts) == len(results)

        def check(faces: list[Any]) -> None:
            for face in faces:
                for result, receipt in zip(results, receipts, strict=True):
                    again = face.replay(receipt)
                    equal(result, again)
                    assert again.names == result.names
                    assert again.receipt == receipt

        check(each)
        correct_late(durable)
        check(each)
        assert all(new.to_dict() != old.to_dict() for new, old in zip(asked(each[1]), results, strict=True))
        durable.compact()
        check(each)
    durable.close()
    with open_store(tmp_path / "data") as again, faces(again) as each:
        check(each)
        again.delete("profile", [{"user_id": 1}])
        for face in each:
            replayed = face.replay(receipts[0])
            assert replayed.statuses["profile"].tolist()[2] == Status.DELETED
            assert replayed.to_dict()["profile:age"][3:] == results[0].to_dict()["profile:age"][3:]


def test_only_who_asks_for_a_receipt_gets_one(durable: Store) -> None:
    with faces(durable) as (store, *clients):
        assert store.get_online_features("scoring", {"user_id": [1]}).receipt is not None
        assert store.get_online_features("scoring", {"user_id": [1]}, receipt=False).receipt is None
        for client in clients:
            assert client.get_online_features("scoring", {"user_id": [1]}).receipt is None
            result = client.get_online_features("scoring", {"user_id": [1]}, receipt=True)
            equal(result, store.get_online_features("scoring", {"user_id": [1]}))


def test_a_store_in_memory_has_no_receipts_and_replays_none(store: Store) -> None:
    with faces(store) as each:
        for face in each:
            result = face.get_online_features("scoring", [{"user_id": 1}], receipt=True)
            assert result.receipt is None
            assert result.statuses["profile"].tolist() == [Status.NOT_FOUND]
            with pytest.raises(StorageError, match="in memory can't replay"):
                face.replay(Receipt("scoring", 1, {"user_id": [1]}, NOW_US, None, 0))


def test_what_a_request_lacks_is_said_alike_with_and_without_a_receipt(durable: Store) -> None:
    requests: list[tuple[Any, Any, dict[str, Any]]] = [
        ("nobody", {"user_id": [1]}, {}),
        (["profile:nothing"], {"user_id": [1]}, {}),
        ("scoring", {"user_id": [1.5]}, {}),
        ("scoring", [{"user": 1}], {}),
        ("scoring", {"user_id": [1]}, {"as_of": "today"}),
        ("scoring", {"user_id": [1]}, {"known_at": 1 << 62}),
    ]
    with faces(durable) as each:
        for features, rows, times in requests:
            said = set()
            for face in each:
                for wants in (True, False):
                    with pytest.raises(FastFeatError) as caught:
                        face.get_online_features(features, rows, receipt=wants, **times)
                    said.add((type(caught.value), str(caught.value)))
            assert len(said) == 1


def test_a_receipt_that_is_none_is_refused(durable: Store) -> None:
    """On the wire the connection stays usable; in Python there is no such Receipt."""
    good = durable.get_online_features("scoring", {"user_id": [1]}).receipt
    assert good is not None
    with serving(durable) as server, Raw(server.url) as raw:
        for change, error, says in HOSTILE:
            code, message = raw.ask([0, 1, "REPLAY", [good.to_dict() | change]])[2]
            assert (code, says in message) == (CODE_OF[error], True), (change, message)
            with pytest.raises(error, match=says):
                Receipt.from_dict(good.to_dict() | change)
        no_maps: list[Any] = [None, 7, [], {}, "{}"]
        for nothing in no_maps:
            assert raw.ask([0, 1, "REPLAY", [nothing]])[2][0] == CODE_OF[DataError]
        assert raw.ask([0, 2, "REPLAY", [good.to_dict()]])[3]["features"] == [
            ["profile:age", "int32"],
            ["profile:score", "float64"],
            ["latest:x", "float64"],
        ]
    for text in ("", "null", "[1]", "{}", '{"features": "scoring"}', "[" * 100_000):
        with pytest.raises(DataError, match="no receipt"):
            Receipt.from_json(text)


def test_a_receipt_of_elsewhere_is_refused_alike(durable: Store) -> None:
    good = durable.get_online_features("scoring", {"user_id": [1]}).receipt
    assert good is not None
    with faces(durable) as each:
        for change, error, says in STRANGE:
            said = set()
            for face in each:
                with pytest.raises(error, match=says) as caught:
                    face.replay(replace(good, **change))
                said.add((type(caught.value), str(caught.value)))
            assert len(said) == 1
        for face in each[1:]:
            with pytest.raises(DataError, match="takes a Receipt, not str"):
                face.replay("scoring")


def test_an_answer_with_a_receipt_keeps_the_limits_of_a_get(durable: Store) -> None:
    limits = "2000 entities in one"
    many = {"user_id": list(range(2000))}
    receipt = durable.get_online_features("scoring", many).receipt
    assert receipt is not None
    with serving(durable, entities_max=1000) as server, connect(server.url) as client:
        with pytest.raises(DataError, match=limits):
            client.get_online_features("scoring", many, receipt=True)
        with pytest.raises(DataError, match=limits):
            client.replay(receipt)
        few = {"user_id": list(range(1000))}
        equal(client.get_online_features("scoring", few, receipt=True), client.get_online_features("scoring", few))
    city = "x" * 5000
    row = {"user_id": 7, "age": 1, "score": 1.0, "city": city, "tags": [], "event_timestamp": NOW_US}
    durable.push("profile", row)
    for features, count in (("scoring", 300), (["profile:city"], 1)):
        large = durable.get_online_features(features, {"user_id": [7] * count}).receipt
        assert large is not None
        with serving(durable) as server, connect(server.url, frame_size_max=4096) as client:
            with pytest.raises(DataError, match="a frame takes 4096 B; ask for fewer entities"):
                client.get_online_features(features, {"user_id": [7] * count}, receipt=True)
            with pytest.raises(DataError, match="a frame takes 4096 B; ask for fewer entities"):
                client.replay(large)
            assert len(client.replay(replace(large, features=("profile:age",), entities={"user_id": [7]}))) == 1


def test_a_connection_is_not_read_on_while_many_of_its_answers_wait(
    durable: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, answer = threading.Event(), durable.answer

    def held(*args: Any, **options: Any) -> Result:
        assert gate.wait(20)
        return answer(*args, **options)

    monkeypatch.setattr(durable, "answer", held)
    with serving(durable) as server, Raw(server.url) as raw:
        raw.send(*([0, number, "ANSWER", ["scoring", {"user_id": [number]}]] for number in range(100)))
        server.until(lambda: any(each.session.is_paused for each in server.server.connections))
        assert server.call(lambda: [each.pending for each in server.server.connections]) == [16]
        gate.set()
        replies = sorted((raw.read() for _ in range(100)), key=lambda reply: int(reply[1]))
        assert [reply[3]["receipt"]["entities"]["user_id"] for reply in replies] == [[i] for i in range(100)]
        assert raw.ask([0, 1, "PING", []]) == [1, 1, None, None]


def test_a_receipt_names_the_definitions_that_its_answer_was_read_under(
    durable: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that changes while it is read is read again."""
    compiled, changes = durable._plan, [FeatureService("scoring", [LATEST])]

    def change_and_go_on(features: Any) -> Any:
        plan = compiled(features)
        if changes:
            durable.apply(changes.pop())
        return plan

    monkeypatch.setattr(durable, "_plan", change_and_go_on)
    result = durable.get_online_features("scoring", {"user_id": [1]})
    assert result.receipt is not None
    assert result.names == durable.replay(result.receipt).names == ("latest:x",)
