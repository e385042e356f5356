"""On-demand features through every face: Store, clients, pipelines, shared memory, workers, and the bytes of a GET."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat import (
    DataError,
    FastFeatError,
    Field,
    Receipt,
    RemoteProtocolError,
    StorageError,
    Store,
    UnknownView,
    connect,
    on_demand_feature_view,
)
from fastfeat.attached import AttachedStore
from fastfeat.client import Client
from fastfeat.client.prepared import prepared
from fastfeat.client.shared import SharedClient
from fastfeat.shared import attach

from .serving import Raw, serving
from .test_client import Awaited
from .test_faces import Piped
from .test_ondemand import HOUR_US, NOW_US, PROFILE, REQUESTS, ROWS, fill, moment, transaction_checks
from .test_workers import service

NUMBERS = ["spending:share", "profile:age", "transaction_checks:is_night_time_transaction", "summary:score"]
NIGHT = ["transaction_checks:is_night_time_transaction"]
FEATURES_FILE = """
import numpy as np
from fastfeat import Entity, FeatureView, Field, on_demand_feature_view

user = Entity("user", {"user_id": "int64"})
latest = FeatureView("latest", user, [Field("x", "float64")], keep="latest")

@on_demand_feature_view(inputs=[latest], request=[Field("amount", "float64")], schema=[Field("y", "float64")])
def ratio(inputs):
    return {"y": inputs["amount"] / inputs["x"]}
"""


def same(mine: Any, theirs: Any) -> None:
    """Results are alike, to the bit."""
    assert mine.names == theirs.names
    assert mine.dtypes == theirs.dtypes
    assert mine.views == theirs.views
    for view in mine.views:
        assert mine.statuses[view].tolist() == theirs.statuses[view].tolist()
        assert mine.event_times[view].tolist() == theirs.event_times[view].tolist()
    for a, b in zip(mine.columns, theirs.columns, strict=True):
        assert [part if part is None else part.tobytes() for part in a] == [
            part if part is None else part.tobytes() for part in b
        ]


@contextmanager
def faces(store: Store, shared: str, **config: Any) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        server = stack.enter_context(serving(store, **config))
        client = stack.enter_context(connect(server.url))
        shm = stack.enter_context(connect(f"fastfeat+shm://{shared}"))
        assert isinstance(shm, SharedClient)
        yield [store, client, stack.enter_context(Awaited(server.url)), Piped(client), shm]


@pytest.fixture
def shared() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="fastfeat-test.", dir="/dev/shm") as directory:
        yield f"{directory}/s"


@pytest.fixture
def store(shared: str) -> Iterator[Store]:
    with Store(64 << 20, clock=lambda: NOW_US, shared=shared) as store:
        fill(store)
        yield store


FORMS: list[Any] = [
    ROWS,
    {name: [row[name] for row in ROWS] for name in ROWS[0]},
    {"user_id": np.arange(5), "amount": np.arange(5.0), "transaction_time": np.arange(5) * HOUR_US},
    {"user_id": np.arange(5), "amount": [None, 1, 2.5, None, 3], "transaction_time": [moment(i) for i in range(5)]},
    {"user_id": [], "amount": [], "transaction_time": []},
]


@pytest.mark.parametrize("rows", FORMS)
def test_every_face_gives_the_stores_answers(store: Store, shared: str, rows: Any) -> None:
    with faces(store, shared) as each:
        expected = store.get_online_features("scoring", rows, as_of=NOW_US)
        for face in each:
            same(face.get_online_features("scoring", rows, as_of=NOW_US), expected)
        matrix = store.get_feature_vectors(NUMBERS, rows, as_of=NOW_US)
        for face in [face for face in each if not isinstance(face, Piped)]:
            assert face.get_feature_vectors(NUMBERS, rows, as_of=NOW_US).tobytes() == matrix.tobytes()
            out = np.empty(matrix.shape, "float32")
            assert face.get_feature_vectors(NUMBERS, rows, as_of=NOW_US, out=out) is out
            assert np.array_equal(out, matrix.astype("float32"), equal_nan=True)
        if isinstance(rows, list):
            for row in rows:
                vector = store.get_feature_vector(NUMBERS, row, as_of=NOW_US)
                for face in (each[1], each[2], each[4]):
                    assert face.get_feature_vector(NUMBERS, row, as_of=NOW_US).tobytes() == vector.tobytes()


@pytest.mark.parametrize(("rows", "says"), REQUESTS)
def test_what_a_request_lacks_is_said_alike(store: Store, shared: str, rows: Any, says: str) -> None:
    with faces(store, shared) as each:
        said = set()
        for face in each:
            with pytest.raises(DataError, match=says) as caught:
                face.get_online_features("scoring", rows, as_of=NOW_US)
            said.add(str(caught.value))
        assert len(said) == 1


def test_what_a_function_does_wrong_is_said_alike(store: Store, shared: str) -> None:
    @on_demand_feature_view(request=[Field("x", "string")], schema=[Field("y", "int8")])
    def number(inputs: Any) -> Any:
        return {"y": [int(text) for text in inputs["x"]]}

    store.apply(number)
    with faces(store, shared) as each:
        for x, says in (
            ("300", "'number:y': entity 0: 300 is outside int8"),
            ("?", "view 'number': its function failed"),
        ):
            for face in each:
                with pytest.raises(DataError, match=says):
                    face.get_online_features(["number:y"], [{"x": x}])
                assert face.get_online_features(["number:y"], [{"x": "7"}]).to_dict() == {"number:y": [7]}


def test_entities_beyond_one_request_are_asked_in_parts(store: Store, shared: str) -> None:
    rows = {"user_id": np.arange(250) % 5, "amount": np.arange(250.0), "transaction_time": np.arange(250) * HOUR_US}
    with faces(store, shared, entities_max=100) as (_, client, awaited, piped, _):
        expected = store.get_online_features("scoring", rows)
        for face in (client, awaited):
            same(face.get_online_features("scoring", rows), expected)
            assert np.array_equal(
                face.get_feature_vectors(NIGHT, rows), store.get_feature_vectors(NIGHT, rows), equal_nan=True
            )
        with pytest.raises(DataError, match="250 entities in one"):
            piped.get_online_features("scoring", rows)


def test_receipts_carry_request_fields_through_every_face(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "data", capacity_bytes=64 << 20, clock=lambda: NOW_US) as store,
        serving(store) as server,
        connect(server.url) as client,
        Awaited(server.url) as awaited,
    ):
        fill(store)
        expected = store.get_online_features("scoring", ROWS)
        assert expected.receipt is not None
        for face in (client, awaited, Piped(client)):
            got = face.get_online_features("scoring", ROWS, receipt=True)
            same(got, expected)
            assert got.receipt == expected.receipt
            same(face.replay(Receipt.from_json(got.receipt.to_json())), expected)


def test_functions_of_another_users_arena_are_not_run(
    store: Store, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(16 << 20, shared=f"{shared}.plain") as plain:
        plain.apply(PROFILE)
        monkeypatch.setattr("fastfeat.attached.attach", lambda name: (attach(name)[0], 12_345))
        with pytest.raises(StorageError, match=r"is user 12345's, and its definitions have functions"):
            AttachedStore(shared)
        with AttachedStore(f"{shared}.plain") as other:
            plain.apply(transaction_checks)
            with pytest.raises(UnknownView):
                other.get_online_features(NIGHT, {"transaction_time": [0]})
    monkeypatch.undo()
    with AttachedStore(shared) as mine:
        assert mine.get_online_features(NIGHT, {"transaction_time": [0]}).to_dict() == {NIGHT[0]: [True]}


# The wire -------------------------------------------------------------------------------------------------------------


def test_every_format_of_a_get_answers_with_request_fields(store: Store) -> None:
    times = [int(row["transaction_time"].timestamp()) * 1_000_000 for row in ROWS]
    amounts = [row["amount"] for row in ROWS]
    expected = store.get_online_features(NUMBERS, ROWS)
    lists = [list(row) for row in zip(*expected.to_dict().values(), strict=True)]
    with serving(store) as server, Raw(server.url) as raw:
        described = raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])[3]
        assert described["keys"] == [["user_id", "int64"]]
        assert described["request"] == [["amount", "float64"], ["transaction_time", "timestamp"]]
        assert described["matrix_columns"] == 4
        packed = np.array(amounts).tobytes(), np.array(times).tobytes()
        for fields in ([amounts, times], packed, [amounts, packed[1]]):
            keys = [list(range(5)), *fields]
            statuses, event_times, rows = raw.ask([0, 2, "GET", [0, keys]])[3]
            assert str(rows) == str(lists)
            assert len(statuses) == 5 * len(described["views"])
            assert len(event_times) == 8 * len(statuses)
            n, columns = raw.ask([0, 3, "GET", [0, keys, 1]])[3][2:]
            assert n == 5
            assert columns == [[part.tobytes() for part in column if part is not None] for column in expected.columns]
            for wanted, dtype in ((2, "float64"), (3, "float32")):
                n, m, data = raw.ask([0, 4, "GET", [0, keys, wanted, NOW_US, None]])[3][2:]
                assert (n, m, data) == (5, 4, expected.to_numpy(dtype).tobytes())
            stream = raw.ask([0, 5, "GET", [0, keys, 4]])[3][2]
            assert pa.ipc.open_stream(stream).read_all().equals(expected.to_arrow()) or "nan" in str(lists)


def test_a_get_that_lacks_what_its_functions_read_is_refused_and_the_connection_stays(store: Store) -> None:
    faults: list[tuple[Any, int, str]] = [
        ([0, [[1]]], 20, "GET has 1 key columns, the plan has 1 and 2 request fields"),
        ([0, [[1], [1.0]]], 20, "GET has 2 key columns"),
        ([0, [[1], [1.0], b"123"]], 20, "request field 'transaction_time': a bin of 3 B is no column of timestamp"),
        ([0, [[1], ["x"], [0]]], 20, "request field 'amount': entity 0: 'x' is str, not float64"),
        ([0, [[1], [1.0, 2.0], [0]]], 20, "has 1 values, 'amount' has 2"),
        ([0, [[1], 5, [0]]], 20, "GET: keys are a map"),
        ([0, [[1, 2], [1.0], [0]]], 20, "has 1 values for 2 entities"),
        ([0, [[1] * 101, [1.0] * 101, [0] * 101]], 20, "101 entities in one GET, at most 100"),
        ([0, [[1], [1.0], [0]], 0, "now"], 20, "as_of must be a datetime"),
        ([7, [[1], [1.0], [0]]], 42, "plan 7 is not one"),
    ]
    with serving(store, entities_max=100) as server, Raw(server.url) as raw:
        raw.ask([0, 1, "PREPARE", {"service": "scoring"}])
        for params, code, says in faults:
            error = raw.ask([0, 2, "GET", params])[2]
            assert (error[0], says in error[1]) == (code, True), (params, error)
        matrix = raw.ask([0, 2, "GET", [0, [[1], [1.0], [0]], 2]])[2]
        assert matrix == [
            20,
            "feature 'summary:text' is string, which a float matrix can't hold; leave it out or read columns",
        ]
        assert raw.ask([0, 3, "GET", [0, [[1], [1.0], [0]]]])[2] is None
        assert raw.ask([0, 4, "GET", [0, [[1], [1.0], [0]], 9]])[2][0] == 41


PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3)
WIRE = st.recursive(PLAIN | st.binary(max_size=24), lambda inner: st.lists(inner, max_size=3), max_leaves=6)
COLUMN = st.lists(PLAIN, max_size=2) | st.binary(max_size=16) | WIRE


@given(
    keys=st.lists(COLUMN, min_size=2, max_size=4) | WIRE,
    more=st.lists(st.none() | st.integers(0, 5) | WIRE, max_size=3),
)
def test_whatever_a_get_carries_is_answered_or_refused_for_what_it_is(fuzzed: str, keys: Any, more: list[Any]) -> None:
    with Raw(fuzzed) as raw:
        raw.ask([0, 1, "PREPARE", {"service": "scoring"}])
        reply = raw.ask([0, 2, "GET", [0, keys, *more]])
        error = reply[2]
        assert error is None or error[0] in (20, 41), error
        if error is None or error[0] == 20:
            assert raw.ask([0, 3, "PING", []]) == [1, 3, None, None]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[str]:
    with Store(64 << 20, clock=lambda: NOW_US) as store:
        fill(store)
        with serving(store) as server:
            yield server.url


def test_a_bool_is_one_byte_of_0_or_1(store: Store) -> None:
    @on_demand_feature_view(request=[Field("x", "bool")], schema=[Field("y", "bool")])
    def inverse(inputs: Any) -> Any:
        return {"y": ~inputs["x"]}

    store.apply(inverse)
    with serving(store) as server, Raw(server.url) as raw:
        raw.ask([0, 1, "PREPARE", {"features": ["inverse:y"]}])
        assert raw.ask([0, 2, "GET", [0, [b"\x00\x01"]]])[3][2] == [[True], [False]]
        assert raw.ask([0, 2, "GET", [0, [[False, True]]]])[3][2] == [[True], [False]]
        assert "2 is not bool" in raw.ask([0, 2, "GET", [0, [b"\x00\x02"]]])[2][1]
        with connect(server.url) as client:
            assert client.get_online_features(["inverse:y"], {"x": np.array([True, False])}).to_dict() == {
                "inverse:y": [False, True]
            }


def test_a_reply_beyond_the_frame_is_refused(store: Store) -> None:
    @on_demand_feature_view(request=[Field("n", "int64")], schema=[Field("y", "string")])
    def long(inputs: Any) -> Any:
        return {"y": ["x" * n for n in inputs["n"]]}

    store.apply(long)
    with serving(store) as server, connect(server.url, frame_size_max=4096) as client:
        assert client.get_online_features(["long:y"], {"n": [5]}).to_dict() == {"long:y": ["xxxxx"]}
        with pytest.raises(DataError, match="a frame takes 4096 B; ask for fewer entities"):
            client.get_online_features(["long:y"], {"n": [5000]})
        assert client.get_online_features(["long:y"], {"n": [2]}).to_dict() == {"long:y": ["xx"]}


def test_a_plan_of_another_servers_making_is_no_plan() -> None:
    good = {
        "plan": 0,
        "keys": [],
        "features": [["a:b", "int8"]],
        "views": ["a"],
        "view_of": [0],
        "matrix_columns": 1,
        "request": [["x", "int8"]],
    }
    assert prepared(good).request_fields[0][0] == "x"
    bad: list[Any] = [
        {"request": 5},
        {"request": [["x"]]},
        {"request": [["x", "int9"]]},
        {"request": [["a b", "int8"]]},
    ]
    for change in bad:
        with pytest.raises(RemoteProtocolError, match="not a plan"):
            prepared(good | change)


def test_clients_send_no_definitions(store: Store) -> None:
    """What a client can say ends in names and values: nothing takes a function's source."""
    source = {"type": "on_demand", "name": "evil", "source": "def evil(inputs): ..."}
    messages: list[Any] = [
        ["PREPARE", {"features": [source]}],
        ["PREPARE", {"features": ["a:b"], "on_demand": [source]}],
        ["PREPARE", {"service": source}],
        ["ANSWER", [[source], {}]],
        ["APPLY", [source]],
    ]
    with serving(store) as server:
        for method, params in messages:
            with Raw(server.url) as raw:
                assert raw.ask([0, 1, method, params])[2][0] in (10, 20, 41)
        assert sorted(store.info()["on_demand"]) == ["spending", "summary", "transaction_checks"]


def test_a_slow_function_does_not_hold_up_others(store: Store) -> None:
    gate = threading.Event()
    plan = store.plan(NIGHT)
    (call,) = plan._computation._calls  # type: ignore[union-attr]
    function = call._function

    def slow(inputs: Any) -> Any:
        assert gate.wait(20)
        return function(inputs)

    call._function = slow
    try:
        with serving(store) as server, connect(server.url) as client, connect(server.url) as other:
            answers: list[Any] = []
            thread = threading.Thread(
                target=lambda: answers.append(client.get_online_features(NIGHT, {"transaction_time": [0]}))
            )
            thread.start()
            server.until(lambda: any(each.pending for each in server.server.connections))
            began = time.monotonic()
            other.ping()
            assert other.get_feature_vector(["profile:age"], {"user_id": 1}).tolist() == [21.0]
            assert time.monotonic() - began < 10
            gate.set()
            thread.join(20)
            assert answers[0].to_dict() == {NIGHT[0]: [True]}
    finally:
        gate.set()
        call._function = function


# Several processes ----------------------------------------------------------------------------------------------------


def ratio(client: Client, x: float, **times: Any) -> Any:
    return client.get_online_features(["ratio:y"], [{"user_id": 1, "amount": x}], **times).to_dict()["ratio:y"]


def test_workers_compute_and_ask_the_writer_for_rows_that_left_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_workers.DEFINITIONS", FEATURES_FILE)
    with (
        service(tmp_path, "--directory", str(tmp_path / "data")) as running,
        running.connect(read_your_writes=True) as client,
        connect(f"fastfeat+shm://{running.name}") as shm,
    ):
        for i, x in enumerate((2.0, 4.0)):
            client.push("latest", [{"user_id": 1, "x": x, "event_timestamp": NOW_US + i}])
        assert client.info()["server"]["process"] == "worker"
        for face in (client, shm):
            assert ratio(face, 8.0) == [2.0]
            assert ratio(face, 8.0, as_of=NOW_US) == [4.0]
            assert ratio(face, 8.0, as_of=NOW_US, receipt=True) == [4.0]
            assert face.get_feature_vector(["ratio:y"], {"user_id": 1, "amount": 1.0}).tolist() == [0.25]
            with pytest.raises(FastFeatError, match="request field 'amount' missing"):
                face.get_feature_vector(["ratio:y"], {"user_id": 1})


async def test_many_at_once_on_one_connection_get_their_own_answers(store: Store) -> None:
    from fastfeat import connect_async

    with serving(store) as server:
        client = await connect_async(server.url)
        asked = [client.get_online_features(NIGHT, {"transaction_time": [i * HOUR_US]}) for i in range(48)]
        answers = [each.to_dict()[NIGHT[0]][0] for each in await asyncio.gather(*asked)]
        assert answers == [i % 24 >= 22 or i % 24 < 6 for i in range(48)]
        await client.close()
