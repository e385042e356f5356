"""A worker beside a writer in one process: what it answers itself, what it passes on, and what it says of a writer that
is gone. Time and deaths are driven here; tests/test_workers.py has them in real processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastfeat_server import Config
from fastfeat_server.pause import Pause
from fastfeat_server.worker import Worker, start_worker
from fastfeat_server.writer import start_writer

from fastfeat import connect, connect_async
from fastfeat.errors import NotYetVisible, WriterUnavailable

from .serving import Raw, Serving, serving
from .table_store import NOW_US, NUMBERS, TableStore, user
from .test_server import ipc_chunks, users

UNAVAILABLE, NOT_YET_VISIBLE, BROKEN = 52, 53, 41


class SharedTableStore(TableStore):
    """One store for both sides, as shared memory is; the test says what a worker sees of the writer."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stale = False
        self.moved = False
        self.hidden = 0  # positions that a worker does not see yet

    @property
    def position(self) -> int:
        return self.created_us - NOW_US - self.hidden

    def follow(self) -> bool:
        moved, self.moved = self.moved, False
        return moved


class Pair(NamedTuple):
    store: SharedTableStore
    writer: Serving
    worker: Serving

    @property
    def url(self) -> str:
        return self.worker.url


async def starting_worker(store: Any, config: Config) -> Worker:
    return await start_worker(store, config, 7)


@contextmanager
def pair(directory: Path, **config: Any) -> Iterator[Pair]:
    store = SharedTableStore()
    store.push("user", [user(i) for i in range(10)])
    with ExitStack() as stack:
        writer = stack.enter_context(serving(store, start_writer, name=f"{directory}/"))
        worker = stack.enter_context(serving(store, starting_worker, name=f"{directory}/", **config))
        yield Pair(store, writer, worker)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Pair]:
    with pair(tmp_path) as both:
        yield both


def break_off(writer: Serving) -> None:
    """Ends the writer's connections as its death would."""

    def abort() -> None:
        for connection in list(writer.server.connections):
            connection.transport.abort()

    writer.call(abort)


# Passing on ----------------------------------------------------------------------------------------------------------


def test_a_worker_reads_by_itself_and_has_the_writer_write(both: Pair) -> None:
    with connect(both.url) as client:
        assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5
        assert both.writer.call(lambda: len(both.writer.server.connections)) == 0  # nobody needed it yet
        client.push("user", user(100))
        assert client.get_feature_vector(NUMBERS, {"user_id": 100})[0] == 100.5
        client.delete("user", [{"user_id": 100}])
        assert list(client.get_online_features(NUMBERS, [{"user_id": 100}]).statuses["user"]) == [4]
        said = client.info()["server"]
    assert (said["process"], said["worker"], said["gets"]) == ("worker", 7, 3)
    assert both.writer.call(both.writer.server.info)["process"] == "writer"
    both.writer.until(lambda: not both.writer.server.connections)  # it goes with the client


def test_replies_of_the_writer_come_back_as_they_are_and_writes_in_order(both: Pair) -> None:
    with Raw(both.url) as raw:
        raw.send(*([0, i, "PUSH", ["user", [user(5, x=float(i))]]] for i in range(1, 51)))
        replies = [raw.read() for _ in range(50)]
        assert [reply[:3] for reply in replies] == [[1, i, None] for i in range(1, 51)]
        created = [reply[3] for reply in replies]
        assert created == sorted(created)
        assert raw.ask([0, 60, "PREPARE", {"features": ["user:x"]}])[2] is None
        assert raw.ask([0, 61, "GET", [0, [[5]]]])[3][2] == [[50.0]]
        assert raw.ask([0, 62, "PUSH", ["nobody", []]])[2][0] == 11
        assert raw.ask([0, 63, "SNAPSHOT", []])[2] is not None  # the store's own error, whatever it is


def test_what_breaks_the_protocol_at_the_writer_ends_the_clients_connection(both: Pair) -> None:
    with Raw(both.url) as raw:
        reply = raw.ask([0, 9, "PUSH", "no array"])
        assert (reply[1], reply[2][0]) == (9, BROKEN)
        assert raw.read() is None
    with Raw(both.url) as raw:
        assert raw.ask([0, 1, "NONSENSE", []])[2][0] == BROKEN
        assert raw.read() is None


def test_an_id_that_comes_twice_is_answered_twice(both: Pair) -> None:
    with Raw(both.url) as raw:
        raw.send([0, 5, "DELETE", ["user", []]], [0, 5, "DELETE", ["user", []]])
        assert [raw.read()[:3] for _ in range(2)] == [[1, 5, None]] * 2
        last = (1 << 64) - 1  # what the worker takes for its own requests, when it has some
        assert raw.ask([0, last, "DELETE", ["user", []]])[:3] == [1, last, None]


def test_a_half_closed_client_gets_its_answers_from_the_writer(both: Pair) -> None:
    with Raw(both.url) as raw:
        raw.send(*([0, i, "PUSH", ["user", [user(i)]]] for i in range(20)))
        raw.socket.shutdown(1)
        assert [raw.read()[1] for _ in range(20)] == list(range(20))
        assert raw.read() is None


def test_a_load_through_a_worker_is_read_as_fast_as_the_writer_takes_it(both: Pair) -> None:
    chunks = ipc_chunks(users(4000), 1 << 14)
    both.store.load_gate.clear()
    with Raw(both.url) as raw:
        load = raw.ask([0, 1, "LOAD", ["begin", "user", {}]])[3]
        filler = b"\0" * (1 << 20)

        def send() -> None:
            raw.send(*([0, i, "LOAD", ["chunk", load, chunk]] for i, chunk in enumerate(chunks, 10)))
            raw.send([0, 2, "LOAD", ["end", load]])
            raw.send(*([0, 3, "LOAD", ["chunk", load, filler]] for _ in range(4)))  # of no load any more

        sender = threading.Thread(target=send)
        sender.start()
        (connection,) = both.worker.call(lambda: list(both.worker.server.connections))
        both.worker.until(lambda: bool(connection._pause & Pause.PASSING))
        both.store.load_gate.set()
        replies = [raw.read() for _ in range(len(chunks) + 5)]
        sender.join(20)
        ended = {reply[1]: reply for reply in replies}
        assert ended[2][3]["accepted"] == 4000
        assert all(ended[i][2] is None for i in range(10, 10 + len(chunks)))
        assert [reply[2][0] for reply in replies if reply[1] == 3] == [20] * 4


# A writer that is gone -----------------------------------------------------------------------------------------------


def test_without_a_writer_writes_say_that_they_were_not_sent_and_reads_go_on(both: Pair) -> None:
    both.writer.stop()
    with connect(both.url) as client:
        for _ in range(2):
            with pytest.raises(WriterUnavailable, match="nothing was done"):
                client.push("user", user(1))
            assert client.get_feature_vector(NUMBERS, {"user_id": 3})[0] == 3.5


def test_a_write_that_the_writer_did_not_answer_is_in_doubt_and_the_next_goes_to_its_heir(both: Pair) -> None:
    both.store.load_gate.clear()
    with Raw(both.url) as raw:
        load = raw.ask([0, 1, "LOAD", ["begin", "user", {}]])[3]
        for i, chunk in enumerate(ipc_chunks(users(200))):
            raw.send([0, 10 + i, "LOAD", ["chunk", load, chunk]])
            assert raw.read()[2] is None
        raw.send([0, 2, "LOAD", ["end", load]], [0, 3, "PING", []])
        assert raw.read() == [1, 3, None, None]
        break_off(both.writer)
        reply = raw.read()
        assert (reply[1], reply[2][0]) == (2, UNAVAILABLE)
        assert "may or may not" in reply[2][1]
        assert raw.ask([0, 4, "PUSH", ["user", [user(1)]]])[:3] == [1, 4, None]
        again = raw.ask([0, 5, "LOAD", ["begin", "user", {}]])[3]
        assert again != load  # the first load's chunks can't meet the second load
        assert raw.ask([0, 6, "LOAD", ["end", load]])[2][0] == 20
    both.store.load_gate.set()


def test_a_client_that_asked_for_flags_is_told_and_no_other(both: Pair) -> None:
    with Raw(both.url, hello=False) as told, Raw(both.url) as other:
        assert told.ask([0, 0, "HELLO", {"version": 1, "flags": True}])[0] == 1
        told.ask([0, 1, "PREPARE", {"features": NUMBERS}])
        other.ask([0, 1, "PREPARE", {"features": NUMBERS}])
        fresh = told.ask([0, 2, "GET", [0, [[3]], 2]])
        both.store.is_stale = True
        both.worker.until(lambda: both.worker.server.is_stale)
        assert told.ask([0, 2, "GET", [0, [[3]], 2]]) == [3, *fresh[1:]]
        assert told.ask([0, 3, "GET", [0, [[3]], 4]])[0] == 3
        assert told.ask([0, 4, "GET", [9, [[3]], 4]])[:2] == [3, 4]
        assert other.ask([0, 2, "GET", [0, [[3]], 2]])[0] == 1
        with Raw(both.url, hello=False) as late:
            assert late.ask([0, 0, "HELLO", {"version": 1, "flags": True}])[0] == 3
        both.store.is_stale = False
        both.worker.until(lambda: not both.worker.server.is_stale)
        assert told.ask([0, 2, "GET", [0, [[3]], 2]]) == fresh


def test_plans_are_made_again_in_place_when_the_writer_has_moved(both: Pair) -> None:
    with Raw(both.url) as raw:
        raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])
        before = raw.ask([0, 2, "GET", [0, [[3, 500]], 2]])
        heir = SharedTableStore()
        heir.push("user", user(500))
        both.store.tables = heir.tables
        assert raw.ask([0, 2, "GET", [0, [[3, 500]], 2]]) == before
        both.store.moved = True
        both.worker.until(lambda: not both.store.moved)
        assert list(raw.ask([0, 2, "GET", [0, [[3, 500]]]])[3][0]) == [2, 0]


def test_a_plan_stays_where_it_can_not_be_made_again(both: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    with Raw(both.url) as raw:
        raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])
        make = both.store.plan
        monkeypatch.setattr(both.store, "plan", lambda features: make(["user:x"]))  # of another shape
        both.store.moved = True
        both.worker.until(lambda: not both.store.moved)
        assert raw.ask([0, 2, "GET", [0, [[3]]]])[3][2] == [[3.5, None, 3]]
        monkeypatch.setattr(both.store, "plan", lambda features: make(["user:none"]))
        both.store.moved = True
        both.worker.until(lambda: not both.store.moved)
        assert raw.ask([0, 2, "GET", [0, [[3]]]])[3][2] == [[3.5, None, 3]]


# Positions -----------------------------------------------------------------------------------------------------------


def test_a_write_gives_its_position_to_who_asked(both: Pair) -> None:
    with Raw(both.url, hello=False) as raw:
        raw.ask([0, 0, "HELLO", {"version": 1, "positions": True}])
        created_us, position = raw.ask([0, 1, "PUSH", ["user", [user(77)]]])[3]
        assert created_us == both.store.created_us
        assert position == both.store.position
        assert raw.ask([0, 2, "WAIT", [position, 0]]) == [1, 2, None, None]


def test_wait_holds_what_comes_after_it_until_the_position_is_visible(both: Pair) -> None:
    position = both.store.position
    both.store.hidden = 1
    with Raw(both.url) as raw, Raw(both.url) as other:
        raw.send([0, 1, "WAIT", [position, 20]], [0, 2, "PING", []])
        assert other.ask([0, 1, "PING", []]) == [1, 1, None, None]
        raw.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            raw.socket.recv(1)
        raw.socket.settimeout(20)
        both.store.hidden = 0
        assert [raw.read(), raw.read()] == [[1, 1, None, None], [1, 2, None, None]]


def test_wait_ends_with_an_error_after_its_seconds(both: Pair) -> None:
    with Raw(both.url) as raw:
        assert raw.ask([0, 1, "WAIT", [1 << 40, 0.01]])[2][0] == NOT_YET_VISIBLE
        assert raw.ask([0, 2, "PING", []]) == [1, 2, None, None]
        assert raw.ask([0, 3, "WAIT", [True, 1]])[2][0] == BROKEN


def test_a_stop_does_not_wait_for_what_is_waited_for(both: Pair) -> None:
    with Raw(both.url) as raw:
        raw.send([0, 1, "WAIT", [1 << 40, 60]])
        both.worker.until(lambda: any(c._pause & Pause.WAITING for c in both.worker.server.connections))
        begun = time.monotonic()
        both.worker.stop()
        assert time.monotonic() - begun < 4  # of the 5 s that a drain may take
        assert raw.read()[2][0] == NOT_YET_VISIBLE
        assert raw.read() is None


def test_a_client_reads_its_writes(both: Pair) -> None:
    with connect(both.url, read_your_writes=True, timeout=1.0) as client:
        client.push("user", user(200))
        assert client.position == both.store.position
        assert client.get_feature_vector(NUMBERS, {"user_id": 200})[0] == 200.5
        client.delete("user", [{"user_id": 1}])
        client.push("user", user(201))
        both.store.hidden = 1
        with pytest.raises(NotYetVisible):
            client.get_feature_vector(NUMBERS, {"user_id": 201})
        with pytest.raises(NotYetVisible), client.pipeline() as pipe:
            pipe.get_feature_vector(NUMBERS, {"user_id": 201})
        both.store.hidden = 0
        with client.pipeline() as pipe:
            made, read = pipe.push("user", user(202)), pipe.get_feature_vector(NUMBERS, {"user_id": 201})
        assert read.result()[0] == 201.5
        assert made.result() == both.store.created_us
        assert client.position == both.store.position


async def test_an_async_client_reads_its_writes(both: Pair) -> None:
    async with await connect_async(both.url, read_your_writes=True, timeout=1.0, connections=2) as client:
        for i in range(4):  # over both connections
            await client.push("user", user(300 + i))
            assert client.position == both.store.position
            assert (await client.get_feature_vector(NUMBERS, {"user_id": 300 + i}))[0] == 300.5 + i
        await client.delete("user", [{"user_id": 1}])
        both.store.hidden = 1
        with pytest.raises(NotYetVisible):
            await client.get_feature_vector(NUMBERS, {"user_id": 300})
        both.store.hidden = 0
        assert (await client.get_feature_vector(NUMBERS, {"user_id": 300}))[0] == 300.5
