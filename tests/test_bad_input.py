"""Bad input, one contract for every face: the right class, a message that names the fault, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat import (
    DataError,
    Entity,
    FastFeatError,
    FeatureService,
    FeatureView,
    Field,
    SchemaError,
    Store,
    UnknownFeature,
    UnknownView,
    connect,
)

from .serving import serving
from .strategies import START_US
from .test_client import Awaited

USER = Entity("user", {"user_id": "int32"})
PLACE = Entity("place", {"city": "string", "house": "uint64"})
PROFILE = FeatureView(
    "profile",
    USER,
    [
        Field("age", "int8"),
        Field("score", "float64", nullable=False),
        Field("name", "string"),
        Field("seen", "timestamp"),
        Field("flag", "bool"),
        Field("raw", "bytes"),
        Field("vector", "vector<float32, 2>"),
        Field("tags", "list<string>"),
    ],
)
HOME = FeatureView("home", PLACE, [Field("x", "uint64")])
GOOD = {
    "user_id": 1,
    "event_timestamp": START_US,
    "age": 30,
    "score": 0.5,
    "name": "Ann",
    "seen": START_US,
    "flag": True,
    "raw": b"\x00",
    "vector": [1.0, 2.0],
    "tags": ["a", ""],
}
ASKED = [str(feature) for feature in PROFILE]
LONE = "\ud800"


@contextmanager
def over(store: Store, connecting: Callable[[str], Any], **config: Any) -> Iterator[Any]:
    with serving(store, **config) as server, connecting(server.url) as client:
        yield client


FACES: dict[str, Callable[[Store, Path], Any]] = {
    "store": lambda store, path: nullcontext(store),
    "client": lambda store, path: over(store, connect),
    "client on a unix socket": lambda store, path: over(store, connect, host="", unix_socket=str(path / "socket")),
    "async client": lambda store, path: over(store, Awaited),
}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with Store(16 << 20, clock=lambda: START_US + 1_000) as store:
        store.apply([PROFILE, HOME, FeatureService("scoring", [PROFILE["age"]])])
        store.push("profile", GOOD)
        yield store


@pytest.fixture(scope="module", params=FACES)
def face(request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with FACES[request.param](store, tmp_path_factory.mktemp("face")) as face:
        yield face


def ask(features: Any, entity_rows: Any, **when: Any) -> Callable[[Any], object]:
    return lambda face: face.get_online_features(features, entity_rows, **when)


def push(**changes: Any) -> Callable[[Any], object]:
    """A good row, then one with changes; ... leaves the field out."""
    bad = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return lambda face: face.push("profile", [GOOD, bad])


def arrow(**changes: Any) -> pa.Table:
    columns = {name: pa.array([value]) for name, value in GOOD.items()} | changes
    columns["event_timestamp"] = columns["event_timestamp"].cast(pa.timestamp("us"))
    return pa.table({name: column for name, column in columns.items() if column is not None})


def home(**keys: Any) -> Callable[[Any], object]:
    return ask(["home:x"], [keys])


ONE = [{"user_id": 1}]
# Name -> (the call, the class, what the message must name).
BAD: dict[str, tuple[Callable[[Any], object], type[FastFeatError], str]] = {
    # what is asked for
    "unknown view": (ask(["nobody:age"], ONE), UnknownView, "nobody"),
    "unknown feature": (ask(["profile:shoe"], ONE), UnknownFeature, "shoe"),
    "unknown service": (ask("ranking", ONE), UnknownView, "ranking"),
    "no feature": (ask([], ONE), SchemaError, "profile:age"),
    "a name that is no feature": (ask(["age"], ONE), SchemaError, "age"),
    "a feature twice": (ask(["profile:age", "profile:age"], ONE), SchemaError, "profile:age"),
    "a vector of text": (
        lambda face: face.get_feature_vector(["profile:name"], {"user_id": 1}),
        DataError,
        "name",
    ),
    "a matrix of lists": (lambda face: face.get_feature_vectors(["profile:tags"], ONE), DataError, "tags"),
    # entity rows
    "missing key": (ask(ASKED, [{"user_id": 1}, {}]), DataError, "user_id"),
    "null key": (ask(ASKED, [{"user_id": None}]), DataError, "user_id"),
    "float key": (ask(ASKED, [{"user_id": 1.0}]), DataError, "user_id"),
    "bool key": (ask(ASKED, [{"user_id": True}]), DataError, "user_id"),
    "text for an integer key": (ask(ASKED, [{"user_id": "1"}]), DataError, "user_id"),
    "integer key beyond its type": (ask(ASKED, [{"user_id": 2**31}]), DataError, "user_id"),
    "integer key beyond any": (ask(ASKED, [{"user_id": 2**70}]), DataError, "user_id"),
    "floats as a column of keys": (ask(ASKED, {"user_id": np.array([1.0])}), DataError, "user_id"),
    "null in a column of keys": (ask(ASKED, {"user_id": [1, None]}), DataError, "user_id"),
    "column of keys beyond its type": (ask(ASKED, {"user_id": np.array([2**40])}), DataError, "user_id"),
    "number for a text key": (home(city=1, house=1), DataError, "city"),
    "bytes for a text key": (home(city=b"a", house=1), DataError, "city"),
    "lone surrogate in a key": (home(city=LONE, house=1), DataError, "city"),
    "negative key": (home(city="a", house=-1), DataError, "house"),
    "half a key": (home(city="a"), DataError, "house"),
    "columns of keys of two lengths": (ask(["home:x"], {"city": ["a"], "house": [1, 2]}), DataError, "house"),
    "no rows but a number": (ask(ASKED, 5), DataError, ""),
    # moments
    "as_of without a zone": (ask(ASKED, ONE, as_of=datetime(2026, 1, 1)), DataError, "as_of"),
    "known_at without a zone": (ask(ASKED, ONE, known_at=datetime(2026, 1, 1)), DataError, "known_at"),
    "as_of as a float": (ask(ASKED, ONE, as_of=1.5), DataError, "as_of"),
    "as_of as text": (ask(ASKED, ONE, as_of="2026-01-01"), DataError, "as_of"),
    "as_of after year 9999": (ask(ASKED, ONE, as_of=2**62), DataError, "as_of"),
    "known_at beyond int64": (ask(ASKED, ONE, known_at=2**64), DataError, "known_at"),
    # rows
    "push to an unknown view": (lambda face: face.push("nobody", GOOD), UnknownView, "nobody"),
    "row without a field": (push(age=...), DataError, "age"),
    "row with an unknown field": (push(shoe=1), DataError, "shoe"),
    "row without a time": (push(event_timestamp=...), DataError, "event_timestamp"),
    "row without a key": (push(user_id=...), DataError, "user_id"),
    "row with a null key": (push(user_id=None), DataError, "user_id"),
    "row with a float key": (push(user_id=1.0), DataError, "user_id"),
    "row with a key beyond its type": (push(user_id=-(2**31) - 1), DataError, "user_id"),
    "row with a null time": (push(event_timestamp=None), DataError, "event_timestamp"),
    "time without a zone": (push(event_timestamp=datetime(2026, 1, 1)), DataError, "event_timestamp"),
    "time before year 1": (push(event_timestamp=-(2**62)), DataError, "event_timestamp"),
    "time beyond int64": (push(event_timestamp=2**70), DataError, "event_timestamp"),
    "null where none may be": (push(score=None), DataError, "score"),
    "integer beyond its type": (push(age=128), DataError, "age"),
    "float for an integer": (push(age=1.5), DataError, "age"),
    "bool for an integer": (push(age=True), DataError, "age"),
    "text for a float": (push(score="0.5"), DataError, "score"),
    "number for a text": (push(name=1), DataError, "name"),
    "lone surrogate": (push(name=LONE), DataError, "name"),
    "timestamp without a zone": (push(seen=datetime(2026, 1, 1)), DataError, "seen"),
    "integer for a bool": (push(flag=1), DataError, "flag"),
    "text for bytes": (push(raw="a"), DataError, "raw"),
    "vector too long": (push(vector=[1.0, 2.0, 3.0]), DataError, "vector"),
    "null in a vector": (push(vector=[1.0, None]), DataError, "vector"),
    "number for a vector": (push(vector=1.0), DataError, "vector"),
    "null in a list": (push(tags=["a", None]), DataError, "tags"),
    "lone surrogate in a list": (push(tags=["a", LONE]), DataError, "tags"),
    "text for a list": (push(tags="abc"), DataError, "tags"),
    "row that is no dict": (lambda face: face.push("profile", [GOOD, 5]), DataError, ""),
    "Arrow without a column": (lambda face: face.push("profile", arrow(age=None)), DataError, "age"),
    "Arrow with a column of another type": (
        lambda face: face.push("profile", arrow(score=pa.array(["much"]))),
        DataError,
        "score",
    ),
    "Arrow with a null key": (
        lambda face: face.push("profile", arrow(user_id=pa.array([None], pa.int32()))),
        DataError,
        "user_id",
    ),
    "Arrow with a float key": (lambda face: face.push("profile", arrow(user_id=pa.array([1.0]))), DataError, "user_id"),
    "load without a time": (lambda face: face.load("profile", arrow(), event_time="when"), DataError, "when"),
    "load of an unknown view": (lambda face: face.load("nobody", arrow()), UnknownView, "nobody"),
    "load of a column of another type": (
        lambda face: face.load("profile", arrow(score=pa.array(["much"]))),
        DataError,
        "score",
    ),
    "delete without a key": (lambda face: face.delete("profile", [{"user_id": 1}, {}]), DataError, "user_id"),
    "delete of a float key": (
        lambda face: face.delete("profile", [{"user_id": 1}, {"user_id": 2.0}]),
        DataError,
        "user_id",
    ),
    "delete in an unknown view": (lambda face: face.delete("nobody", ONE), UnknownView, "nobody"),
}


@pytest.mark.parametrize("case", BAD)
def test_is_refused_by_name_and_changes_nothing(store: Store, face: Any, case: str) -> None:
    call, error, says = BAD[case]
    before = store.info()["views"], store.get_online_features(ASKED, ONE).to_dict()
    with pytest.raises(error) as caught:
        call(face)
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert len(str(caught.value)) > 20, "a message says what, which, limit and remedy"
    assert (store.info()["views"], store.get_online_features(ASKED, ONE).to_dict()) == before
    assert face.get_online_features(ASKED, ONE).to_dict() == before[1]  # the face goes on


def test_a_lone_bad_row_of_a_load_is_reported_and_the_rest_is_taken(face: Any, store: Store) -> None:
    table = pa.table(
        {
            "city": ["a", None, "b"],
            "house": pa.array([1, 2, 3], pa.uint64()),
            "event_timestamp": pa.array([START_US] * 3, pa.timestamp("us")),
            "x": pa.array([1, 2, 3], pa.uint64()),
        }
    )
    report = face.load("home", table)
    assert (report.accepted, report.rejected) == (2, 1)
    assert sum(report.reasons.values()) == 1
    assert "city" in next(iter(report.reasons))
