"""Both clients over a real server: same answers, the server's errors, limits, retries, time-outs, pipelines, loads."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat.client import AsyncClient, Client, connect, connect_async
from fastfeat.client.address import Address
from fastfeat.errors import (
    ConnectFailed,
    DataError,
    Disconnected,
    LocalProtocolError,
    RemoteProtocolError,
    SchemaError,
    Timeout,
    UnknownFeature,
    UnknownView,
)
from fastfeat.schema import Entity, FeatureService, FeatureView, Field

from .serving import SECONDS, Raw, Serving, frame, serving, silent_server
from .table_store import EVERYTHING, NOW_US, NUMBERS, TableStore, place, user

LIMIT = 50  # entities of one GET of the server below, so that larger requests are split
PARIS = (1 << 64) - 1


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    store = TableStore()
    store.push("user", [user(i) for i in range(200)])
    store.push("place", place("Paris", PARIS))
    with serving(store, entities_max=LIMIT) as server:
        yield server


class Awaited:
    """An AsyncClient with the blocking face, so that one test serves both."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(connect_async(url, **options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


FACES = {"Client": connect, "AsyncClient": Awaited}


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> Any:
    return FACES[request.param]


@pytest.fixture
def client(face: Any, running: Serving) -> Iterator[Any]:
    with face(running.url) as client:
        yield client


# The same answers as the plan ----------------------------------------------------------------------------------------


def expected(running: Serving, features: list[str], rows: Any, as_of: int | None = None) -> Any:
    return running.call(lambda: running.store.plan(features).matrix(rows, as_of, None, None))


@pytest.mark.parametrize("count", [0, 1, 2, LIMIT, LIMIT + 1, 180])
def test_matrices_are_those_of_the_core_also_beyond_the_limit(client: Any, running: Serving, count: int) -> None:
    rows = {"user_id": np.arange(100, 100 + count)}
    matrix = client.get_feature_vectors(NUMBERS, rows)
    assert matrix.dtype == np.float64
    assert np.array_equal(matrix, expected(running, NUMBERS, rows), equal_nan=True)
    as_dicts = [{"user_id": int(key)} for key in rows["user_id"]]
    assert np.array_equal(client.get_feature_vectors(NUMBERS, as_dicts), matrix, equal_nan=True)
    out = np.zeros((count, 3), np.float32)
    assert client.get_feature_vectors(NUMBERS, rows, out=out) is out
    assert np.array_equal(out, matrix.astype(np.float32), equal_nan=True)


def test_one_vector_and_one_into_ones_own_memory(client: Any) -> None:
    assert client.get_feature_vector(NUMBERS, {"user_id": 3}).tolist()[::2] == [3.5, 3.0]
    out = np.zeros(3)
    assert client.get_feature_vector(NUMBERS, {"user_id": 4}, out=out) is out
    assert out[0] == 4.5


@pytest.mark.parametrize("count", [0, 1, 120])
def test_results_have_every_type_status_and_time(client: Any, count: int) -> None:
    rows = {
        "user_id": list(range(150, 150 + count)),
        "city": ["Paris"] * count,
        "zone": np.full(count, PARIS, np.uint64),
    }
    result = client.get_online_features("everything", rows)
    assert result.names == tuple(EVERYTHING)
    assert len(result) == count
    present = min(count, 50)
    assert result.statuses["user"].tolist() == [0] * present + [2] * (count - present)
    assert result.statuses["place"].tolist() == [0] * count
    assert result.event_times["place"].tolist() == [NOW_US - 1000] * count
    values = result.to_dict()
    assert values["user:name"] == [f"user {i}" for i in range(150, 150 + present)] + [None] * (count - present)
    assert values["user:y"] == [None] * count
    assert values["place:embedding"] == [[1.0, 2.0, 3.0]] * count
    assert values["place:open"] == [True] * count
    assert values["place:seen"] == [datetime.fromtimestamp(NOW_US / 1e6, UTC)] * count
    assert result.to_arrow().num_rows == count


def test_as_of_takes_aware_datetimes_and_microseconds(client: Any) -> None:
    before = NOW_US - 1001
    assert np.isnan(client.get_feature_vector(NUMBERS, {"user_id": 3}, as_of=before)).all()
    assert client.get_feature_vector(NUMBERS, {"user_id": 3}, as_of=NOW_US - 1000)[0] == 3.5
    assert np.isnan(client.get_feature_vectors(NUMBERS, [{"user_id": 3}], known_at=NOW_US)).all()
    at = datetime.fromtimestamp(NOW_US // 1_000_000 + 1, UTC)
    assert client.get_online_features(NUMBERS, [{"user_id": 3}], as_of=at).to_dict()["user:x"] == [3.5]
    with pytest.raises(DataError, match="no time zone"):
        client.get_feature_vector(NUMBERS, {"user_id": 3}, as_of=datetime(2020, 1, 1))


def test_features_may_be_a_list_a_tuple_a_service_or_its_name(client: Any) -> None:
    view = FeatureView("user", Entity("user", {"user_id": "int64"}), [Field("x", "float64"), Field("count", "int64")])
    for features in (
        ["user:x", "user:count"],
        ("user:x", "user:count"),
        FeatureService("s", [view]),
        [view["x"], "user:count"],
    ):
        assert client.get_feature_vector(features, {"user_id": 3}).tolist() == [3.5, 3.0]
    features = ["user:x"]
    assert client.get_feature_vector(features, {"user_id": 3}).tolist() == [3.5]
    features.append("user:count")
    assert client.get_feature_vector(features, {"user_id": 3}).tolist() == [3.5, 3.0]
    for wrong in ([], ["user:x", "user:x"], ["x"], 7):
        with pytest.raises(SchemaError):
            client.get_feature_vector(wrong, {"user_id": 3})


# Writes --------------------------------------------------------------------------------------------------------------


def test_pushes_deletes_and_loads_are_read_back(client: Any) -> None:
    first = client.push("user", user(900, x=1.0))
    second = client.push("user", [user(901), user(902, event_timestamp=datetime.fromtimestamp(0, UTC))])
    assert second > first
    third = client.push("user", pa.Table.from_pylist([user(903, name=None)]))
    assert third > second
    assert client.get_feature_vectors(["user:x"], {"user_id": [900, 901, 902, 903]})[:, 0].tolist() == [
        1.0,
        901.5,
        902.5,
        903.5,
    ]
    assert client.delete("user", [{"user_id": 900}]) > third
    assert client.get_online_features(["user:x"], [{"user_id": 900}]).statuses["user"].tolist() == [4]
    report = client.load("user", pa.Table.from_pylist([user(i) for i in range(10_000, 30_000)]))
    assert (report.accepted, report.rejected) == (20_000, 0)
    assert client.get_feature_vector(["user:x"], {"user_id": 29_999})[0] == 29_999.5
    assert client.info()["views"]["place"] == {"rows": 1}
    assert client.ping() is None


def test_a_load_from_a_generator_of_batches_that_fails_leaves_the_server_well(client: Any, running: Serving) -> None:
    table = pa.Table.from_pylist([user(i) for i in range(50)])

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches()
        raise OSError("the disk of the source")

    with pytest.raises(DataError, match="the disk of the source"):
        client.load("user", pa.RecordBatchReader.from_batches(table.schema, batches()))
    running.until(lambda: not running.server.loads)
    with pytest.raises(DataError, match="no column 'nope'"):
        client.load("user", table, event_time="nope")
    assert client.load("user", table).accepted == 50


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda c: c.get_feature_vector(["user:z"], {"user_id": 1}), UnknownFeature, "'user:z' is unknown"),
        (lambda c: c.get_feature_vector("nobody", {"user_id": 1}), UnknownView, "'nobody' is not applied"),
        (lambda c: c.get_feature_vector(NUMBERS, {"user": 1}), DataError, "'user_id' missing"),
        (lambda c: c.get_feature_vector(NUMBERS, {"user_id": 1.0}), DataError, "float"),
        (lambda c: c.get_feature_vector(NUMBERS, {"user_id": None}), DataError, "null"),
        (lambda c: c.get_feature_vectors(NUMBERS, {"user_id": np.array([1.0])}), DataError, "float64"),
        (lambda c: c.get_feature_vectors(NUMBERS, 7), DataError, "entity_rows"),
        (lambda c: c.get_feature_vectors(NUMBERS, [{"user_id": 1}], out=np.zeros((2, 3))), DataError, "out has shape"),
        (lambda c: c.get_feature_vectors(NUMBERS, [{"user_id": 1}], out=np.zeros((1, 3), int)), DataError, "float32"),
        (
            lambda c: c.get_feature_vectors(NUMBERS, [{"user_id": 1}], out=np.zeros((1, 6))[:, ::2]),
            DataError,
            "C-contiguous",
        ),
        (lambda c: c.get_feature_vectors(["user:name"], [{"user_id": 1}]), DataError, "no float form"),
        (lambda c: c.push("user", user(1, x="text")), DataError, "x"),
        (lambda c: c.push("user", user(1, name="\ud800")), DataError, "lone surrogate"),
        (lambda c: c.push("user", user(1, event_timestamp=datetime(2020, 1, 1))), DataError, "zone"),
        (lambda c: c.push("user", user(1, x=object())), DataError, "type object"),
        (lambda c: c.push("user", 7), DataError, "rows must be"),
        (lambda c: c.push("nobody", user(1)), UnknownView, "nobody"),
        (lambda c: c.delete("user", [7]), DataError, "list of dicts"),
        (lambda c: c.load("user", 7), DataError, "not int"),
    ],
)
def test_an_error_is_of_its_class_and_leaves_the_client_usable(client: Any, call: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        call(client)
    assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5


def test_a_closed_client_says_so(face: Any, running: Serving) -> None:
    client = connect(running.url)
    client.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        client.ping()


@pytest.mark.parametrize(
    "url",
    ["http://x", "fastfeat://", "fastfeat://h:99999", "fastfeat+unix://h/p", "fastfeat+unix://", "fastfeat://h/p", 7],
)
def test_a_wrong_url_shows_the_right_ones(url: Any) -> None:
    with pytest.raises(ConnectFailed, match="is not fastfeat://host:port, fastfeat"):
        Address.parse(url)


def test_urls_are_read_and_written() -> None:
    for url in ("fastfeat://127.0.0.1:7077", "fastfeat://[::1]:1", "fastfeat+unix:///run/fastfeat.sock"):
        assert str(Address.parse(url)) == url
    assert Address.parse("fastfeat://localhost").port == 7077


def test_no_server_is_a_clear_error(face: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for url in (f"fastfeat://127.0.0.1:{port}", f"fastfeat+unix://{tmp_path}/absent"):
        with pytest.raises(ConnectFailed, match="is `fastfeat serve` running there"):
            asyncio.run(connect_async(url)) if face is Awaited else face(url)


def test_a_unix_socket_serves_alike(face: Any, tmp_path: Path) -> None:
    store = TableStore()
    store.push("user", [user(3)])
    with serving(store, host="", unix_socket=str(tmp_path / "s")) as server, face(server.url) as client:
        assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5


# Connections that fail -----------------------------------------------------------------------------------------------


def hello_reply(connection: socket.socket) -> bytes:
    size = struct.unpack(">I", connection.recv(4))[0]
    connection.recv(size)
    return frame([1, 1, None, {"version": 1, "frame_size_max": 1 << 20, "entities_max": 100}])


def test_a_server_that_does_not_answer_is_a_timeout(face: Any) -> None:
    def say_hello_only(connection: socket.socket) -> None:
        connection.sendall(hello_reply(connection))
        while connection.recv(1 << 16):
            pass

    with silent_server(say_hello_only) as url, face(url, timeout=0.05) as client:
        with pytest.raises(Timeout, match=r"did not answer within 0\.05 s"):
            client.ping()
        with pytest.raises(TimeoutError):
            client.push("user", user(1))


def test_a_server_that_never_greets_is_a_timeout(face: Any) -> None:
    def listen(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    with silent_server(listen) as url, pytest.raises(Timeout):
        asyncio.run(connect_async(url, timeout=0.05)) if face is Awaited else face(url, timeout=0.05)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame([1, 77, None, None]),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 0xFFFFFFFF),
        frame([1, None, [41, "you broke it"], None]),
    ],
)
def test_a_server_that_speaks_nonsense_is_a_protocol_error(face: Any, answer: bytes) -> None:
    def speak(connection: socket.socket) -> None:
        connection.sendall(hello_reply(connection))
        connection.recv(1 << 16)
        connection.sendall(answer)
        while connection.recv(1 << 16):
            pass

    with silent_server(speak) as url, face(url) as client, pytest.raises(RemoteProtocolError):
        client.ping()


def flaky(failures: int) -> tuple[Callable[[socket.socket], None], list[bytes]]:
    """Greets, and closes at the first request, so many times; then answers everything with nil."""
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(hello_reply(connection))
        while request := connection.recv(1 << 16):
            seen.append(request)
            if len(seen) <= failures:
                return
            connection.sendall(frame([1, request[6], None, None]))

    return serve, seen


def test_reads_are_tried_again_and_writes_never(face: Any) -> None:
    serve, seen = flaky(2)
    with silent_server(serve) as url, face(url, retries=2) as client:
        assert client.ping() is None
        assert len(seen) == 3
    serve, seen = flaky(3)
    with silent_server(serve) as url, face(url, retries=2) as client:
        with pytest.raises(Disconnected):
            client.ping()
        assert len(seen) == 3
    serve, seen = flaky(1)
    with silent_server(serve) as url, face(url, retries=2) as client:
        with pytest.raises(Disconnected):
            client.delete("user", [{"user_id": 1}])
        assert len(seen) == 1


def test_a_client_outlives_its_server(face: Any, tmp_path: Path) -> None:
    store = TableStore()
    store.push("user", [user(3)])
    path = str(tmp_path / "s")
    with serving(store, host="", unix_socket=path) as server:
        client = face(server.url)
        assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5
    with pytest.raises((Disconnected, ConnectFailed)):
        client.get_feature_vector(NUMBERS, {"user_id": 3})
    with serving(store, host="", unix_socket=path):
        assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5
        assert client.push("user", user(4)) > 0
    with serving(store, host="", unix_socket=path):
        if face is Awaited:
            client.ping()  # its loop stood still since the connection ended; now it learns of it
        assert client.push("user", user(5)) > 0  # a connection that is known to be dead is not written to
        client.close()


# Client alone --------------------------------------------------------------------------------------------------------


def test_threads_share_a_client_and_its_pool_stays_small(running: Serving) -> None:
    with connect(running.url, pool_size=2) as client:
        wrong: list[object] = []

        def read(first: int) -> None:
            for key in range(first, first + 40):
                vector = client.get_feature_vector(NUMBERS, {"user_id": key})
                if vector[0] != key + 0.5:
                    wrong.append((key, vector))

        threads = [threading.Thread(target=read, args=(first,)) for first in (0, 40, 80, 120)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert wrong == []
        assert len(client._idle) <= 2


def test_a_pipeline_answers_each_request_or_gives_its_error(running: Serving) -> None:
    with connect(running.url) as client:
        out = np.zeros(3)
        with client.pipeline() as pipe:
            pushed = pipe.push("user", user(700, x=7.0))
            vector = pipe.get_feature_vector(NUMBERS, {"user_id": 700}, out=out)
            wrong = pipe.push("user", user(700, x="text"))
            matrix = pipe.get_feature_vectors(NUMBERS, {"user_id": np.arange(5)})
            deleted = pipe.delete("user", [{"user_id": 700}])
            result = pipe.get_online_features(NUMBERS, [{"user_id": 700}], as_of=NOW_US + 1)
            with pytest.raises(LocalProtocolError, match="has not come"):
                vector.result()
        assert pushed.result() > 0
        assert vector.result() is out
        assert out[0] == 7.0
        with pytest.raises(DataError):
            wrong.result()
        assert matrix.result()[:, 2].tolist() == [0, 1, 2, 3, 4]
        assert deleted.result() > pushed.result()
        assert result.result().statuses["user"].tolist() == [4]
        with pytest.raises(LocalProtocolError, match="not open"):
            pipe.push("user", user(1))
        with pytest.raises(DataError, match="at most 50"), client.pipeline() as pipe:
            pipe.get_feature_vectors(NUMBERS, {"user_id": np.arange(51)})
        assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5


def test_a_pipeline_longer_than_all_buffers_does_not_lock_up(running: Serving) -> None:
    features = [f"user:{name}" for name in ("x", "y", "count")]
    keys = {"user_id": np.arange(LIMIT)}
    with connect(running.url) as client:
        with client.pipeline() as pipe:
            answers = [pipe.get_feature_vectors(features, keys) for _ in range(12_000)]
        assert sum(float(answer.result()[1, 0]) for answer in answers) == 12_000 * 1.5


def test_a_child_process_does_not_talk_on_its_parents_connection(running: Serving) -> None:
    program = """
import os, sys
from fastfeat.client import connect
client = connect(sys.argv[1])
client.ping()
child = os.fork()
if child == 0:
    assert not client._idle
    for _ in range(200):
        client.ping()
    os._exit(0)
for _ in range(200):
    client.ping()
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program, running.url], check=True, timeout=SECONDS)


def test_an_interrupt_does_not_leave_an_answer_for_the_next_request(running: Serving) -> None:
    store = TableStore()
    store.push("user", [user(3)])
    may_go_on = threading.Event()
    push = store.push

    def slow_push(view: str, rows: Any) -> int:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert may_go_on.wait(SECONDS)
        return push(view, rows)

    store.push = slow_push  # type: ignore[method-assign]
    # Why: a shell starts what it puts in the background with the interrupt ignored, and so would this be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with serving(store) as server, connect(server.url) as client:
        try:
            with pytest.raises(KeyboardInterrupt):
                client.push("user", [user(i) for i in range(1000)])
        finally:
            signal.signal(signal.SIGINT, before)
        may_go_on.set()
        assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5


def test_importing_the_client_is_light() -> None:
    heavy = "{'pyarrow', 'uvloop', 'aiohttp', 'sqlalchemy', 'asyncio', 'msgpack', 'pandas'}"
    program = f"import sys, fastfeat.client; fastfeat.client.connect; print({heavy} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "set()\n"


@pytest.mark.parametrize("timeout", [0, -1, 1e-6, float("nan"), 1e30])
def test_a_timeout_that_means_nothing_is_refused(running: Serving, timeout: float) -> None:
    with pytest.raises(DataError, match="timeout"):
        Client(running.url, timeout=timeout)


# AsyncClient alone ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def awaited(running: Serving) -> AsyncIterator[AsyncClient]:
    async with await connect_async(running.url, connections=2) as client:
        yield client


async def test_many_requests_are_in_flight_at_once(awaited: AsyncClient) -> None:
    keys = range(150)
    vectors = await asyncio.gather(*[awaited.get_feature_vector(NUMBERS, {"user_id": key}) for key in keys])
    assert [vector[0] for vector in vectors] == [key + 0.5 for key in keys]
    assert all(len(link.plans) == 1 for link in awaited._links if link)


async def test_who_gives_up_does_not_disturb_the_others(awaited: AsyncClient) -> None:
    tasks = [asyncio.ensure_future(awaited.get_feature_vector(NUMBERS, {"user_id": key})) for key in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [vector[0] for vector in done[1::2]] == [key + 0.5 for key in range(1, 20, 2)]  # type: ignore[index]
    assert await awaited.get_feature_vector(NUMBERS, {"user_id": 3}) is not None


async def test_closing_ends_what_is_in_flight(running: Serving) -> None:
    client = await connect_async(running.url)
    task = asyncio.ensure_future(client.ping())
    await asyncio.sleep(0)  # it is sent; its answer is not read before the loop polls again
    await client.close()
    with pytest.raises(Disconnected):
        await task
    with pytest.raises(LocalProtocolError, match="closed"):
        await client.ping()


def test_a_raw_peer_and_a_client_share_the_server(running: Serving) -> None:
    with Raw(running.url) as raw, connect(running.url) as client:
        client.ping()
        assert raw.ask([0, 1, "PING", []]) == [1, 1, None, None]


@pytest.mark.parametrize("spin_us", [0, 50, 10_000])
def test_waiting_awake_or_asleep_gives_the_same_answer(running: Serving, spin_us: float) -> None:
    with connect(running.url, spin_us=spin_us) as client:
        got = client.get_feature_vector(NUMBERS, {"user_id": 7})
        assert got.tobytes() == expected(running, NUMBERS, [{"user_id": 7}])[0].tobytes()


def test_a_spin_out_of_range_is_refused() -> None:
    with pytest.raises(DataError, match=r"spin_us=-1: give microseconds from 0"):
        connect("fastfeat://127.0.0.1:1", spin_us=-1)
