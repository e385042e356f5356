"""The server over real sockets: limits, back-pressure, broken and half-closed peers, loads, stops, settings."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastfeat_server import Config
from fastfeat_server.loading import QUEUED_CHUNKS_MAX, READ_SIZE
from fastfeat_server.pause import Pause
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfeat import connect
from fastfeat.errors import ConnectFailed, DataError

from .serving import Raw, Serving, frame, serving
from .table_store import EVERYTHING, NOW_US, NUMBERS, TableStore, place, user

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/PROTOCOL.md"


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    store = TableStore()
    store.push("user", [user(i) for i in range(100)])
    store.push("place", place("Paris", (1 << 64) - 1))
    with serving(store) as server:
        yield server


@pytest.fixture
def raw(running: Serving) -> Iterator[Raw]:
    with Raw(running.url) as raw:
        assert raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])[3]["plan"] == 0
        yield raw


def ipc_chunks(table: pa.Table, size: int = 1 << 16) -> list[bytes]:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    data = sink.getvalue()
    return [data[at : at + size] for at in range(0, len(data), size)]


def users(count: int, first: int = 1000) -> pa.Table:
    return pa.Table.from_pylist([user(i) for i in range(first, first + count)])


# Methods -------------------------------------------------------------------------------------------------------------


def test_the_documents_client_reads_what_was_pushed(running: Serving) -> None:
    code = re.search(r"<!-- client -->\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)
    host, port = running.url.removeprefix("fastfeat://").split(":")
    client = names["Client"](host, int(port))
    assert client.rows(["user:x", "user:y", "user:name"], [3, 4444]) == [
        {"user:x": 3.5, "user:y": None, "user:name": "user 3"},
        {"user:x": None, "user:y": None, "user:name": None},
    ]
    assert client.matrix(["user:x", "user:count"], struct.pack("<2q", 3, 4)) == [[3.5, 3.0], [4.5, 4.0]]
    with pytest.raises(RuntimeError, match="12: feature 'user:z' is unknown"):
        client.rows(["user:z"], [3])
    client.close()


def test_hello_tells_the_limits_and_is_said_once(running: Serving) -> None:
    with Raw(running.url, hello=False) as raw:
        said = raw.ask([0, 1, "HELLO", {"version": 1, "frame_size_max": 5000, "from the future": 1}])[3]
        assert said["frame_size_max"] == running.server.config.frame_size_max
        assert said["entities_max"] == 16_384
        assert said["compression"] == "none"
        assert raw.ask([0, 2, "HELLO", {"version": 1}])[2] == [41, "HELLO: said already on this connection"]
        assert raw.read() is None


@pytest.mark.parametrize("said", [{}, {"version": 2}, {"version": 1, "frame_size_max": 10}, []])
def test_a_wrong_hello_ends_the_connection(running: Serving, said: Any) -> None:
    with Raw(running.url, hello=False) as raw:
        assert raw.ask([0, 1, "HELLO", said])[2][0] == 41
        assert raw.read() is None


def test_prepare_describes_the_plan(raw: Raw) -> None:
    assert raw.ask([0, 2, "PREPARE", {"service": "everything"}])[3] == {
        "plan": 1,
        "keys": [["user_id", "int64"], ["city", "string"], ["zone", "uint64"]],
        "features": [
            ["user:x", "float64"],
            ["user:y", "float64"],
            ["user:count", "int64"],
            ["user:name", "string"],
            ["user:tags", "list<string>"],
            ["place:embedding", "vector<float32, 3>"],
            ["place:open", "bool"],
            ["place:seen", "timestamp"],
        ],
        "views": ["user", "place"],
        "view_of": [0, 0, 0, 0, 0, 1, 1, 1],
        "matrix_columns": 0,
    }
    assert raw.ask([0, 3, "PREPARE", {"service": "nobody"}])[2][0] == 11
    assert raw.ask([0, 4, "PREPARE", {"features": ["user:z"]}])[2][0] == 12
    assert raw.ask([0, 5, "GET", [0, [[3]], 2]])[2] is None


@pytest.mark.parametrize("wanted", [0, 1, 4])
def test_few_keys_that_name_much_are_refused_before_any_of_it_is_copied(wanted: int) -> None:
    store = TableStore()
    store.push("user", [{**user(1), "name": "x" * (1 << 20)}])
    with serving(store) as server, Raw(server.url) as raw:
        raw.ask([0, 1, "PREPARE", {"features": ["user:name"]}])
        code, message = raw.ask([0, 2, "GET", [0, [[1] * 100], wanted]])[2]
        assert code == 20
        assert message.startswith("the reply needs over 104857600 B")
        assert raw.ask([0, 3, "GET", [0, [[1]], wanted]])[2] is None


def test_an_arrow_answer_is_a_stream_of_the_exact_types(raw: Raw) -> None:
    assert raw.ask([0, 2, "PREPARE", {"features": EVERYTHING}])[3]["plan"] == 1
    keys = [struct.pack("<2q", 3, 4444), ["Paris", "x"], struct.pack("<2Q", (1 << 64) - 1, 1)]
    statuses, event_times, stream = raw.ask([0, 3, "GET", [1, keys, 4]])[3]
    assert statuses == bytes([0, 2, 0, 2])
    assert np.frombuffer(event_times, "<i8").tolist() == [NOW_US - 1000, 0, NOW_US - 1000, 0]
    table = pa.ipc.open_stream(stream).read_all()
    assert table.column_names == EVERYTHING
    assert table["user:name"].to_pylist() == ["user 3", None]
    assert table["place:embedding"].to_pylist() == [[1.0, 2.0, 3.0], None]
    assert table.schema.field("place:seen").type == pa.timestamp("us", "UTC")


def test_pushes_and_deletes_are_seen_by_the_next_read(raw: Raw) -> None:
    raw.send(
        [0, 2, "PUSH", ["user", [user(500, x=1.25)]]],
        [0, 3, "GET", [0, [[500]]]],
        [0, 4, "DELETE", ["user", [{"user_id": 500}]]],
        [0, 5, "GET", [0, [[500]]]],
    )
    replies = [raw.read() for _ in range(4)]
    assert [reply[1:3] for reply in replies] == [[2, None], [3, None], [4, None], [5, None]]
    assert replies[1][3][2] == [[1.25, None, 500]]
    assert replies[3][3][0] == bytes([4])


def test_large_and_arrow_pushes_go_through_a_thread(running: Serving, raw: Raw) -> None:
    assert raw.ask([0, 2, "PUSH", ["user", [user(i) for i in range(2000, 3000)]]])[2] is None
    assert raw.ask([0, 3, "PUSH", ["user", b"".join(ipc_chunks(users(3, 3000)))]])[2] is None
    rows = raw.ask([0, 4, "GET", [0, [[2999, 3002]]]])[3][2]
    assert [row[0] for row in rows] == [2999.5, 3002.5]
    assert running.call(lambda: running.server.writes.count) == 0


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("PUSH", ["user", [user(1, x="text")]], 20),
        ("PUSH", ["user", b"no Arrow"], 20),
        ("PUSH", ["nobody", [user(1)]], 11),
        ("DELETE", ["user", [{}]], 20),
        ("LOAD", ["chunk", 7, b""], 20),
        ("LOAD", ["end", 7], 20),
        ("GET", [9, [[1]], 4], 42),
        ("GET", [0, [[1], [2]], 4], 20),
        ("GET", [0, [b"123"], 4], 20),
    ],
)
def test_a_request_that_fails_leaves_the_connection_as_it_was(raw: Raw, method: str, params: Any, code: int) -> None:
    assert raw.ask([0, 2, method, params])[1:3][1][0] == code
    assert raw.ask([0, 3, "PING", []]) == [1, 3, None, None]


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("NONSENSE", []),
        ("PREPARE", []),
        ("PREPARE", {}),
        ("PREPARE", {"features": [], "service": "x"}),
        ("PUSH", ["user"]),
        ("PUSH", [1, []]),
        ("PUSH", ["user", 7]),
        ("LOAD", []),
        ("LOAD", ["begin", "user", {"event_time": 1}]),
    ],
)
def test_a_message_that_no_client_should_send_ends_the_connection(raw: Raw, method: str, params: Any) -> None:
    assert raw.ask([0, 2, method, params])[2][0] == 41
    assert raw.read() is None


def test_info_counts_connections_and_gets(running: Serving, raw: Raw) -> None:
    before = raw.ask([0, 2, "INFO", []])[3]["server"]
    raw.ask([0, 3, "GET", [0, [[3]]]])
    after = raw.ask([0, 4, "INFO", []])[3]
    assert after["server"]["gets"] == before["gets"] + 1
    assert after["server"]["connections"] >= 1
    assert after["views"]["place"] == {"rows": 1}


# Peers that misbehave ------------------------------------------------------------------------------------------------


def test_a_broken_stream_ends_alone(running: Serving, raw: Raw) -> None:
    with Raw(running.url) as broken:
        broken.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        reply = broken.read()
        assert reply[1] is None
        assert reply[2][0] == 41
        assert broken.read() is None
    assert raw.ask([0, 2, "GET", [0, [[3]]]])[2] is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_hostile_bytes_never_end_the_server(running: Serving, data: bytes, framed: bool) -> None:
    with Raw(running.url) as hostile:
        hostile.socket.sendall(struct.pack(">I", len(data)) + data if framed else data)
        hostile.socket.shutdown(socket.SHUT_WR)
        while (reply := hostile.read()) is not None:
            assert reply[0] == 1
    with Raw(running.url) as other:
        assert other.ask([0, 1, "PING", []]) == [1, 1, None, None]


def test_a_half_closed_peer_gets_all_its_answers(raw: Raw) -> None:
    raw.send(
        [0, 2, "GET", [0, [[3]]]],
        [0, 3, "PUSH", ["user", [user(i) for i in range(5000, 6000)]]],
        [0, 4, "PING", []],
    )
    raw.socket.shutdown(socket.SHUT_WR)
    assert sorted(raw.read()[1] for _ in range(3)) == [2, 3, 4]
    assert raw.read() is None


def test_a_stream_cut_inside_a_frame_is_told_so(raw: Raw) -> None:
    raw.socket.sendall(frame([0, 2, "PING", []])[:-1])
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.read()[1:3] == [None, [41, "the stream ended inside a frame"]]
    assert raw.read() is None


def test_who_does_not_read_is_not_read_and_later_gets_everything(running: Serving, raw: Raw) -> None:
    request = frame([0, 2, "GET", [0, [struct.pack("<10000q", *range(10_000))], 2]])  # 80 KB asks for 330 KB
    sent = 0
    raw.socket.setblocking(False)
    stuck_since = time.monotonic()
    unsent = memoryview(b"")
    while time.monotonic() - stuck_since < 0.3:
        unsent = unsent or memoryview(request)
        try:
            unsent = unsent[raw.socket.send(unsent) :]
            sent += not unsent
            stuck_since = time.monotonic()
        except BlockingIOError:
            with Raw(running.url) as other:
                assert other.ask([0, 1, "PING", []]) == [1, 1, None, None]
        assert sent < 1000, "the server goes on reading from a peer that takes no answers"
    (paused,) = running.call(lambda: [c for c in running.server.connections if c.session.is_paused])
    assert paused.transport.get_write_buffer_size() < 16 << 20
    raw.socket.setblocking(True)
    raw.socket.settimeout(20)
    rest = threading.Thread(target=raw.socket.sendall, args=(unsent,))
    rest.start()
    for _ in range(sent + (1 if unsent else 0)):
        assert raw.read()[3][2] == 10_000
    rest.join(20)


def test_a_connection_without_hello_is_closed_in_time() -> None:
    with serving(TableStore(), handshake_seconds=0.05) as server, Raw(server.url, hello=False) as raw:
        assert raw.read()[2] == [41, "no HELLO within 0.05 s; say HELLO first"]
        assert raw.read() is None


def test_one_connection_too_many_is_told_so() -> None:
    with serving(TableStore(), connections_max=1) as server:
        with Raw(server.url) as first, Raw(server.url, hello=False) as second:
            code, message = second.read()[2]
            assert (code, second.read()) == (60, None)
            assert message.startswith("1 connections are open, which is the limit")
            with pytest.raises(ConnectFailed, match="1 connections are open"):
                connect(server.url).ping()
            assert first.ask([0, 1, "PING", []]) == [1, 1, None, None]
        server.until(lambda: not server.server.connections)
        with Raw(server.url) as third:
            assert third.ask([0, 1, "PING", []]) == [1, 1, None, None]


def test_a_client_that_comes_while_the_server_stops_is_told_so() -> None:
    """Its connection was in the kernel's queue when the server stopped listening."""
    ours, theirs = socket.socketpair()
    with serving(TableStore()) as server, ours:

        def come_late() -> None:
            server.server.is_stopping = True
            server.server.take(theirs)

        server.call(come_late)
        ours.settimeout(20)
        reply = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        server.call(lambda: setattr(server.server, "is_stopping", False))  # so that the fixture may stop it
    assert reply == frame([1, None, [60, "the server is stopping; connect again when it is back"], None])


def test_plans_of_a_connection_are_limited() -> None:
    with serving(TableStore(), plans_max=1) as server, Raw(server.url) as raw:
        assert raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])[2] is None
        assert raw.ask([0, 2, "PREPARE", {"features": NUMBERS}])[2][0] == 20


def test_answers_go_out_at_once(running: Serving, raw: Raw) -> None:
    def options() -> list[int]:
        sockets = [c.transport.get_extra_info("socket") for c in running.server.connections]
        return [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in sockets]

    assert all(running.call(options))


# LOAD ----------------------------------------------------------------------------------------------------------------


def test_a_load_reads_the_stream_as_it_comes_and_stops_reading_when_behind() -> None:
    store = TableStore()
    with serving(store) as server, Raw(server.url) as raw, Raw(server.url) as other:
        chunks = ipc_chunks(users(1000), 2048)
        assert len(chunks) > 8
        store.load_gate.clear()
        assert raw.ask([0, 1, "LOAD", ["begin", "user", {"event_time": "event_timestamp"}]]) == [1, 1, None, 1]
        raw.send(
            *([0, 2 + i, "LOAD", ["chunk", 1, chunk]] for i, chunk in enumerate(chunks)), [0, 99, "LOAD", ["end", 1]]
        )
        server.until(lambda: any(c.session.is_paused for c in server.server.connections))
        assert other.ask([0, 1, "PING", []]) == [1, 1, None, None]
        assert other.ask([0, 2, "PREPARE", {"features": NUMBERS}])[2] is None
        store.load_gate.set()
        replies = [raw.read() for _ in range(len(chunks) + 1)]
        assert [reply[1] for reply in replies] == [*range(2, 2 + len(chunks)), 99]
        assert all(reply[2] is None for reply in replies)
        assert replies[-1][3] == {
            "view": "user",
            "accepted": 1000,
            "rejected": 0,
            "reasons": {},
            "times_floored": 0,
            "ignored_columns": [],
        }
        assert other.ask([0, 3, "GET", [0, [[1999]]]])[3][2] == [[1999.5, None, 1999]]
        assert raw.ask([0, 100, "LOAD", ["end", 1]])[2][0] == 20
        server.until(lambda: not server.server.loads)


def test_a_load_that_fails_answers_its_chunks_and_its_end_with_the_error() -> None:
    with serving(TableStore()) as server, Raw(server.url) as raw:
        raw.ask([0, 1, "LOAD", ["begin", "user", {"event_time": "nope"}]])
        raw.ask([0, 2, "LOAD", ["chunk", 1, b"".join(ipc_chunks(users(10)))]])
        server.until(lambda: not server.server.loads)
        for request_id in (3, 4):
            params = ["chunk", 1, b"x"] if request_id == 3 else ["end", 1]
            assert raw.ask([0, request_id, "LOAD", params])[2] == [20, "the source has no column 'nope'"]
        raw.ask([0, 5, "LOAD", ["begin", "user", {}]])
        raw.send([0, 6, "LOAD", ["chunk", 2, b"this is no Arrow stream at all"]], [0, 7, "LOAD", ["end", 2]])
        replies = {reply[1]: reply for reply in (raw.read(), raw.read())}
        assert replies[7][2][1].startswith("LOAD: the chunks are not an Arrow stream")


def test_a_load_without_its_connection_or_aborted_ends() -> None:
    with serving(TableStore(), loads_max=1) as server, Raw(server.url) as second:
        with Raw(server.url) as raw:
            raw.ask([0, 1, "LOAD", ["begin", "user", {}]])
            assert second.ask([0, 1, "LOAD", ["begin", "user", {}]])[2][1].startswith("LOAD: 1 loads are under way")
        server.until(lambda: not server.server.loads)
        assert second.ask([0, 2, "LOAD", ["begin", "user", {}]])[2] is None
        assert second.ask([0, 3, "LOAD", ["abort", 1]]) == [1, 3, None, None]
        server.until(lambda: not server.server.loads)


def test_a_push_during_a_load_does_not_hold_up_the_loop() -> None:
    store = TableStore()
    with serving(store) as server, Raw(server.url) as loader, Raw(server.url) as raw:
        store.load_gate.clear()
        loader.ask([0, 1, "LOAD", ["begin", "user", {}]])
        assert raw.ask([0, 1, "PUSH", ["user", [user(1)]]])[2] is None
        threads = [thread.name for thread in threading.enumerate()]
        assert any(name.startswith("fastfeat-write") for name in threads)
        store.load_gate.set()


# Start and stop ------------------------------------------------------------------------------------------------------


def test_a_stop_answers_what_is_under_way_and_accepts_nobody() -> None:
    store = TableStore()
    entered, may_go_on = threading.Event(), threading.Event()
    push = store.push

    def slow_push(view: str, rows: Any) -> int:
        entered.set()
        assert may_go_on.wait(20)
        return push(view, rows)

    store.push = slow_push  # type: ignore[method-assign]
    with serving(store) as server, Raw(server.url) as raw, Raw(server.url) as idle:
        raw.send([0, 1, "PUSH", ["user", [user(i) for i in range(1000)]]])
        assert entered.wait(20)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert idle.read() is None
        with pytest.raises(ConnectFailed):
            Raw(server.url)
        may_go_on.set()
        assert raw.read()[1:3] == [1, None]
        assert raw.read() is None
        stopping.join(20)


def test_a_stop_does_not_wait_for_a_load_that_it_ended() -> None:
    """It fails inside its first chunk, so four still wait: the load holds the connection until its very end."""
    store = TableStore()
    chunks = ipc_chunks(pa.Table.from_pylist([user(i, name="x" * 1000) for i in range(6000)]), READ_SIZE + (1 << 18))
    assert len(chunks) == 1 + QUEUED_CHUNKS_MAX
    with serving(store, drain_seconds=20) as server, Raw(server.url) as raw:
        store.load_gate.clear()
        raw.ask([0, 1, "LOAD", ["begin", "user", {"event_time": "event_timestamp"}]])
        raw.send(*([0, 2 + i, "LOAD", ["chunk", 1, chunk]] for i, chunk in enumerate(chunks)))
        (connection,) = server.call(lambda: list(server.server.connections))
        server.until(lambda: connection._pause is Pause.LOADING)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        server.until(lambda: connection._pause == Pause.LOADING | Pause.STOPPING)
        store.load_gate.set()
        stopping.join(10)
        assert not stopping.is_alive()
        assert not server.server.connections


def test_a_stop_does_not_wait_longer_than_the_drain() -> None:
    store = TableStore()
    may_go_on = threading.Event()
    store.push = lambda view, rows: int(may_go_on.wait(20))  # type: ignore[method-assign]
    with serving(store, drain_seconds=0.05) as server, Raw(server.url) as raw:
        raw.send([0, 1, "PUSH", ["user", [user(i) for i in range(1000)]]])
        server.until(lambda: server.server.writes.count == 1)
        before = time.monotonic()
        server.run(server.server.stop())
        assert time.monotonic() - before < 5
        assert raw.read() is None
        may_go_on.set()


PROGRAM = """
import sys
from tests.table_store import TableStore
from fastfeat_server import Config, serve
serve(TableStore(), Config(port=0, unix_socket=sys.argv[1]), ready=lambda server: print(*server.addresses, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_serve_and_removes_its_socket(tmp_path: Path, number: int) -> None:
    path = tmp_path / "s"
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(path)]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        tcp, unix = process.stdout.readline().split()
        assert unix == f"fastfeat+unix://{path}"
        with Raw(tcp) as one, Raw(unix) as two:
            assert one.ask([0, 1, "PING", []]) == two.ask([0, 1, "PING", []])
            process.send_signal(number)
            assert one.read() is None
            assert two.read() is None
        assert process.wait(20) == 0
    assert not path.exists()


def test_a_unix_socket_is_private_and_only_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(TableStore(), host="", unix_socket=str(path)) as server:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with Raw(server.url) as raw:
            assert raw.ask([0, 1, "PING", []]) == [1, 1, None, None]
        with pytest.raises(DataError, match="a server listens"), serving(TableStore(), unix_socket=str(path)):
            pass
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(TableStore(), host="", unix_socket=str(path)) as server, Raw(server.url) as raw:
        assert raw.ask([0, 1, "PING", []]) == [1, 1, None, None]
    path.write_text("a file of somebody")
    with pytest.raises(DataError, match="not a socket"), serving(TableStore(), unix_socket=str(path)):
        pass
    assert path.read_text() == "a file of somebody"


def test_a_port_in_use_is_a_clear_error() -> None:
    with serving(TableStore()) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(DataError, match=f"cannot listen on 127.0.0.1:{port}"), serving(TableStore(), port=port):
            pass


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "*"])
def test_no_address_but_loopback_is_bound(host: str) -> None:
    with pytest.raises(DataError, match="is not a loopback address, and this version has no access control"):
        Config(host=host)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "fastfeat.toml"
    file.write_text("[server]\nport = 1\nconnections_max = 2\nplans_max = 3\nhandshake_seconds = 4\n")
    environ = {
        "FASTFEAT_PORT": "11",
        "FASTFEAT_CONNECTIONS_MAX": "12",
        "FASTFEAT_CONFIG": str(file),
        "FASTFEAT_URL": "x",
    }
    config = Config.read({"port": 21, "host": None}, environ=environ)
    assert (config.port, config.connections_max, config.plans_max) == (21, 12, 3)
    assert config.handshake_seconds == 4.0
    assert config.host == "127.0.0.1"
    assert Config.read(environ={}) == Config()
    stored = Config.read({"directory": "d"}, environ={"FASTFEAT_FSYNC": "interval", "FASTFEAT_HISTORY": "s3://b"})
    assert (stored.directory, stored.fsync, stored.history) == ("d", "interval", "s3://b")


@pytest.mark.parametrize(
    ("flags", "environ", "text", "says"),
    [
        ({"port": 70_000}, {}, "", "port=70000 is not within 0 to 65535"),
        ({"prot": 1}, {}, "", "flag sets 'prot', which is unknown"),
        ({}, {"FASTFEAT_PORT": "http"}, "", r"port='http' \(environment\) is not a whole number"),
        ({}, {}, "[server]\nport = 1.5", "port=1.5 .* is not a whole number"),
        ({}, {}, "[server]\nport = true", "port=True .* is not a whole number"),
        ({}, {}, "[server]\nhost = 1", "host=1 .* is not text"),
        ({}, {}, "[server]\nport = []", "is not a whole number"),
        ({"drain_seconds": "soon"}, {}, "", r"drain_seconds='soon' \(flag\) is not a number"),
        ({}, {}, "server = 1", "not a table"),
        ({}, {}, "[server", "is not TOML"),
        ({"host": ""}, {}, "", "nobody could connect"),
        ({"fsync": "sometimes"}, {}, "", "fsync='sometimes' is not one of always, interval, off"),
        ({"fsync_interval": 0}, {}, "", "fsync_interval=0.0 is not within 0.001 to 60"),
        ({"snapshot_seconds": 0.5}, {}, "", "snapshot_seconds=0.5 is not within 1 to"),
        ({}, {"FASTFEAT_HISTORY": "s3://b"}, "", "history='s3://b' without a directory"),
        ({}, {}, "[server]\nsnapshots = 's3://b'", "snapshots='s3://b' without a directory"),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_came_from(
    tmp_path: Path, flags: dict[str, Any], environ: dict[str, str], text: str, says: str
) -> None:
    file = tmp_path / "fastfeat.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        Config.read(flags, file=file, environ=environ)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.toml cannot be read"):
        Config.read(file=tmp_path / "absent.toml", environ={})
