"""Writes of a durable store behind the server: grouped, in order, off the event loop, and an end when the log fails."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from fastfeat import connect
from fastfeat._core.plan import Plan
from fastfeat._core.table import Table
from fastfeat.dtypes import DType
from fastfeat.errors import BeforeHistory, FastFeatError, LogFailed, ReadOnly

from .serving import Raw, Serving, serving
from .table_store import NOW_US, NUMBERS, USER_FIELDS, TableStore, user
from .test_client import Awaited

ROOT = Path(__file__).resolve().parent.parent


class Snapshot(NamedTuple):
    """The fields of a SnapshotInfo that tests look at."""

    generation: int = 7
    sequence: int = 3
    log_end: int = 4096
    taken_us: int = NOW_US
    views: Any = MappingProxyType({})
    seed: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Compacted:
    files: int = 5


class GatedStore(TableStore):
    """A store whose writes wait for a disk: `sync` opens it for one write or group, `gate` for all.

    groups: the sizes of what was written together. failure: what every write raises.
    """

    is_durable = True
    log_failure: LogFailed | None = None

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.groups: list[int] = []
        self.failure: BaseException | None = None

    def _wait_for_the_disk(self) -> None:
        self.entered.release()
        assert self.gate.wait(20)
        if self.failure is not None:
            raise self.failure

    def push_group(self, pushes: list[tuple[str, Any]]) -> list[int | FastFeatError]:
        self.groups.append(len(pushes))
        self._wait_for_the_disk()
        return super().push_group(pushes)

    def delete(self, view: str, rows: Any) -> int:
        self._wait_for_the_disk()
        return super().delete(view, rows)

    def snapshot(self, *, is_gentle: bool = False) -> Snapshot:
        assert is_gentle  # a server's
        if self.failure is not None:
            raise self.failure
        return Snapshot(views={"user": {"rows": 1}})

    def compact(self) -> Compacted:
        return Compacted()


@pytest.fixture
def store() -> GatedStore:
    return GatedStore()


@pytest.fixture
def running(store: GatedStore) -> Iterator[Serving]:
    with serving(store) as server:
        yield server
        store.gate.set()


@pytest.fixture
def raw(running: Serving) -> Iterator[Raw]:
    with Raw(running.url) as raw:
        assert raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])[3]["plan"] == 0
        yield raw


class PastStore(GatedStore):
    """A store whose memory keeps one row of each user; the others are in its past."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = self.tables["user"]
        fields = [(name, DType.parse(kind), True) for name, kind in USER_FIELDS]
        self.tables["user"] = Table(self.arena, self.clock, "user", ["user_id"], ["int64"], fields, None, 1, None)

    def push(self, view: str, rows: Any) -> int:
        created_us = super().push(view, rows)
        self.whole.append_rows(rows, created_us)
        return created_us

    def past(self, plan: Any, entity_rows: dict[str, Any], error: BeforeHistory) -> Plan:
        assert threading.current_thread().name.startswith("fastfeat-read")
        if 404 in list(entity_rows["user_id"]):
            raise error
        return Plan(self.clock, [(self.whole, name.split(":")[1]) for name in plan.features])


def push(request_id: int, user_id: int, **values: Any) -> list[Any]:
    return [0, request_id, "PUSH", ["user", [user(user_id, **values)]]]


def hold(store: GatedStore, raw: Raw) -> None:
    """A push of user 1, number 100, is with the disk and stays there."""
    store.gate.clear()
    raw.send(push(100, 1))
    assert store.entered.acquire(timeout=20)


def test_writes_that_wait_for_a_sync_share_the_next(store: GatedStore, running: Serving, raw: Raw) -> None:
    hold(store, raw)
    others = [Raw(running.url) for _ in range(10)]
    for i, other in enumerate(others):
        other.send(push(1, 1000 + i), push(2, 2000 + i))
    running.until(lambda: running.server.writes.count == 21)
    store.gate.set()
    assert raw.read()[1:3] == [100, None]
    for other in others:
        assert [other.read()[1:3] for _ in range(2)] == [[1, None], [2, None]]
        other.socket.close()
    assert store.groups == [1, 20]
    assert raw.ask([0, 3, "GET", [0, [[1009, 2009]]]])[3][2] == [[1009.5, None, 1009], [2009.5, None, 2009]]


def test_a_write_that_waits_for_the_disk_keeps_nobody_else_waiting(
    store: GatedStore, running: Serving, raw: Raw
) -> None:
    hold(store, raw)
    assert raw.ask([0, 2, "GET", [0, [[1]]]])[3][0] == bytes([2])  # not durable, so not there
    with Raw(running.url) as other:
        assert other.ask([0, 1, "PING", []]) == [1, 1, None, None]
    store.gate.set()
    assert raw.read()[1:3] == [100, None]
    assert raw.ask([0, 3, "GET", [0, [[1]]]])[3][0] == bytes([0])


def test_the_writes_of_a_connection_keep_their_order(store: GatedStore, raw: Raw) -> None:
    hold(store, raw)
    raw.send(
        push(2, 7, x=1.0),
        [0, 3, "DELETE", ["user", [{"user_id": 7}]]],
        push(4, 8),
        push(5, 7, x=2.0),
        [0, 6, "DELETE", ["user", [{"user_id": 8}]]],
    )
    store.gate.set()
    replies = [raw.read() for _ in range(6)]
    assert [reply[1:3] for reply in replies] == [[number, None] for number in (100, 2, 3, 4, 5, 6)]
    created = [reply[3] for reply in replies]
    assert created == sorted(set(created))
    statuses, _, rows = raw.ask([0, 7, "GET", [0, [[7, 8]]]])[3]
    assert statuses == bytes([0, 4])
    assert rows[0][0] == 2.0


def test_each_write_of_a_group_has_its_own_error(store: GatedStore, raw: Raw) -> None:
    hold(store, raw)
    raw.send(
        push(2, 7, x="text"),
        [0, 3, "PUSH", ["user", b"no Arrow"]],
        push(4, 7),
        [0, 5, "PUSH", ["nobody", [user(7)]]],
        [0, 6, "DELETE", ["user", [{}]]],
    )
    store.gate.set()
    codes = {reply[1]: reply[2] and reply[2][0] for reply in (raw.read() for _ in range(6))}
    assert codes == {100: None, 2: 20, 3: 20, 4: None, 5: 11, 6: 20}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ReadOnly("the disk allows no writes"), [36, "the disk allows no writes"]),
        (RuntimeError("a bug"), [1, "internal error: RuntimeError: a bug"]),
    ],
)
def test_an_error_of_the_whole_group_is_every_writes_answer_and_the_server_goes_on(
    store: GatedStore, running: Serving, raw: Raw, error: Exception, told: list[Any]
) -> None:
    store.failure = error
    raw.send(push(2, 7), push(3, 8), [0, 4, "DELETE", ["user", [{"user_id": 7}]]])
    assert [raw.read()[2] for _ in range(3)] == [told] * 3
    store.failure = None
    assert raw.ask(push(5, 7))[2] is None
    assert running.call(lambda: running.server.failure) is None


def test_a_connection_is_not_read_on_while_many_of_its_writes_wait(
    store: GatedStore, running: Serving, raw: Raw
) -> None:
    hold(store, raw)
    raw.send(*(push(1000 + i, i) for i in range(1000)))
    running.until(lambda: any(c.session.is_paused for c in running.server.connections))
    assert running.call(lambda: running.server.writes.count) == 256
    store.gate.set()
    assert [raw.read()[1:3] for _ in range(1001)] == [[100, None], *([1000 + i, None] for i in range(1000))]
    running.until(lambda: not any(c.session.is_paused for c in running.server.connections))


def test_a_large_write_weighs_as_much_as_its_rows(store: GatedStore, running: Serving, raw: Raw) -> None:
    hold(store, raw)
    raw.send([0, 2, "PUSH", ["user", [user(i) for i in range(256 * 256)]]], push(3, 1))
    running.until(lambda: any(c.session.is_paused for c in running.server.connections))
    assert running.call(lambda: running.server.writes.count) == 2
    store.gate.set()
    assert [raw.read()[1:3] for _ in range(3)] == [[100, None], [2, None], [3, None]]


def test_a_half_closed_peer_gets_the_answers_of_its_writes(store: GatedStore, running: Serving, raw: Raw) -> None:
    hold(store, raw)
    raw.send(push(2, 7))
    raw.socket.shutdown(socket.SHUT_WR)
    running.until(lambda: running.server.writes.count == 2)
    store.gate.set()
    assert [raw.read()[1:3] for _ in range(2)] == [[100, None], [2, None]]
    assert raw.read() is None


def test_a_peer_that_left_changes_nothing_for_its_writes(store: GatedStore, running: Serving, raw: Raw) -> None:
    with Raw(running.url) as gone:
        hold(store, gone)
        gone.send(push(101, 2))
        running.until(lambda: running.server.writes.count == 2)
    store.gate.set()
    running.until(lambda: len(running.server.connections) == 1)
    assert raw.ask([0, 2, "GET", [0, [[1, 2]]]])[3][0] == bytes([0, 0])


def test_a_stop_waits_for_writes(store: GatedStore, running: Serving, raw: Raw) -> None:
    hold(store, raw)
    raw.send(push(2, 7), [0, 3, "DELETE", ["user", [{"user_id": 1}]]])
    running.until(lambda: running.server.writes.count == 3)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    running.until(lambda: not running.server._listeners[0].is_serving())
    store.gate.set()
    assert [raw.read()[1:3] for _ in range(3)] == [[100, None], [2, None], [3, None]]
    assert raw.read() is None
    stopping.join(20)
    assert not stopping.is_alive()


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("keys", [[1, 2], struct.pack("<2q", 1, 2)])
def test_what_memory_dropped_is_answered_from_the_past_as_memory_would_have(wanted: int, keys: Any) -> None:
    asked = [0, 2, "GET", [0, [keys], wanted, NOW_US - 1500, NOW_US + 100]]
    replies = []
    for store in (PastStore(), TableStore()):
        for event_us, x in ((NOW_US - 2000, 1.0), (NOW_US - 1000, 2.0)):
            store.push("user", [user(i, x=x, event_timestamp=event_us) for i in (1, 2)])
        with serving(store) as server, Raw(server.url) as raw:
            raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])
            replies.append(raw.ask(asked))
    assert replies[0] == replies[1]
    assert replies[0][2] is None


@pytest.mark.parametrize("wanted", [0, 4])
def test_what_the_past_does_not_hold_is_an_error(wanted: int) -> None:
    store = PastStore()
    for event_us in (NOW_US - 2000, NOW_US - 1000):
        store.push("user", [user(404, event_timestamp=event_us)])
    with serving(store) as server, Raw(server.url) as raw:
        raw.ask([0, 1, "PREPARE", {"features": NUMBERS}])
        code, message = raw.ask([0, 2, "GET", [0, [[404]], wanted, NOW_US - 1500]])[2]
        assert code == 34
        assert "user_id=404" in message
        assert raw.ask([0, 3, "GET", [0, [[404]]]])[2] is None


@pytest.mark.parametrize("client_of", [connect, Awaited])
def test_a_client_asks_for_a_snapshot_and_for_compaction(running: Serving, client_of: Any) -> None:
    with client_of(running.url) as client:
        made = client.snapshot()
        assert client.compact() == {"files": 5}
    assert made == {"generation": 7, "sequence": 3, "log_end": 4096, "taken_us": NOW_US, "views": {"user": {"rows": 1}}}


@pytest.mark.parametrize("method", ["PUSH", "DELETE", "SNAPSHOT"])
def test_a_failed_log_is_remembered_as_the_servers_end(
    store: GatedStore, running: Serving, raw: Raw, method: str
) -> None:
    store.failure = LogFailed("fdatasync: Input/output error")
    params = {"PUSH": ["user", [user(7)]], "DELETE": ["user", [{"user_id": 7}]], "SNAPSHOT": []}[method]
    assert raw.ask([0, 2, method, params])[2] == [38, "fdatasync: Input/output error"]
    running.until(lambda: running.server.failed.is_set())
    assert running.call(lambda: running.server.failure) is store.failure


def test_a_sync_that_failed_in_the_background_is_noticed_without_a_write(
    store: GatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastfeat_server.server.LOOK_SECONDS", 0.01)
    with serving(store) as running:
        assert running.call(lambda: running.server.failure) is None
        store.log_failure = LogFailed("fdatasync: Input/output error")
        running.until(lambda: running.server.failed.is_set())


FAILING = """
import sys
from fastfeat.errors import LogFailed
from fastfeat_server import Config, serve
from tests.test_durable_server import GatedStore

store = GatedStore()
store.failure = LogFailed("fdatasync: Input/output error")
try:
    serve(store, Config(port=0), ready=lambda server: print(*server.addresses, flush=True))
except LogFailed as error:
    sys.exit(f"ended by {error}")
"""


def test_serve_ends_at_once_when_the_log_fails_and_tells_who_waits() -> None:
    command = [sys.executable, "-W", "error", "-c", FAILING]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        with Raw(url) as one, Raw(url) as idle:
            one.send(push(1, 1), push(2, 2))
            assert [one.read()[2] for _ in range(2)] == [[38, "fdatasync: Input/output error"]] * 2
            assert one.read() is None
            assert idle.read() is None
        assert process.wait(20) == 1
        assert process.stderr.read() == "ended by fdatasync: Input/output error\n"
