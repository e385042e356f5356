"""`fastfeat serve --workers 2` in real processes: kills, restarts and stops.

What passes between the processes, in detail, is in tests/test_passing.py.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastfeat_server import Config, writer
from fastfeat_server.lifeline import READY, Lifeline
from fastfeat_server.supervisor import RETRY_SECONDS, Child, Supervisor
from fastfeat_server.worker import start_worker

from fastfeat import Store, connect
from fastfeat.client import Client
from fastfeat.errors import ConnectFailed, Disconnected, FastFeatError, LogFailed, WriterUnavailable

from .serving import Raw

SECONDS = 15.0  # after which a test fails rather than hangs
DEFINITIONS = """
from fastfeat import Entity, FeatureView, Field

user = Entity("user", {"user_id": "int64"})
latest = FeatureView("latest", user, [Field("x", "float64")], keep="latest")
"""
X = ["latest:x"]
NOW_US = 1_700_000_000_000_000
WORKERS = 2


def row(user_id: int, x: float, time_us: int = NOW_US) -> dict[str, Any]:
    return {"user_id": user_id, "x": x, "event_timestamp": time_us}


@dataclass
class Service:
    """A running `fastfeat serve --workers`."""

    process: subprocess.Popen[str]
    url: str
    name: str
    pids: set[int] = field(default_factory=set)  # of children seen

    def connect(self, **options: Any) -> Client:
        return connect(self.url, timeout=SECONDS, **options)

    @property
    def writer_url(self) -> str:
        return f"fastfeat+unix://{self.name}/writer.sock"

    def writer_pid(self) -> int:
        with connect(self.writer_url) as client:
            pid = int(client.info()["server"]["pid"])
        self.pids.add(pid)
        return pid

    def workers(self) -> dict[int, int]:
        """Worker -> pid, of all of them."""
        found: dict[int, int] = {}
        deadline = time.monotonic() + SECONDS

        def ask() -> bool:
            with self.connect() as client:
                said = client.info()["server"]
            found[said["worker"]] = said["pid"]
            return len(found) == WORKERS

        while not ask():
            assert time.monotonic() < deadline, f"one worker has all: {found}"
        self.pids |= set(found.values())
        return found


@contextmanager
def service(tmp_path: Path, *options: str) -> Iterator[Service]:
    definitions = tmp_path / "features.py"
    definitions.write_text(DEFINITIONS, encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="fastfeat-test.", dir="/dev/shm") as shared:
        name = f"{shared}/s"
        command = [sys.executable, "-m", "fastfeat.cli", "serve", str(definitions), "--workers", str(WORKERS)]
        command += ["--port", "0", "--json", "--name", name, "--capacity-mib", "64", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, process.stderr and process.stderr.read()
                running = Service(process, json.loads(line)["url"], name)
                yield running
            finally:
                process.terminate()
                try:
                    process.wait(SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def x_of(client: Client, user_id: int) -> float:
    return float(client.get_feature_vector(X, {"user_id": user_id})[0])


def test_workers_read_what_any_of_them_had_written_and_history_that_none_has(tmp_path: Path) -> None:
    with service(tmp_path, "--directory", str(tmp_path / "data")) as running:
        workers = running.workers()
        assert sorted(workers) == [0, 1]
        assert len({*workers.values(), running.writer_pid(), running.process.pid}) == 4
        clients = [running.connect(read_your_writes=True) for _ in range(8)]
        for i, client in enumerate(clients):
            client.push("latest", row(i, float(i)))
            assert x_of(client, i) == i
            client.push("latest", [row(i, i + 0.5, NOW_US + 1)])
            assert x_of(client, i) == i + 0.5
        for client in clients:
            assert [x_of(client, i) for i in range(8)] == [i + 0.5 for i in range(8)]
            # keep="latest": only the writer's history has what was before
            past = client.get_online_features(X, {"user_id": list(range(8))}, as_of=NOW_US)
            assert past.to_numpy()[:, 0].tolist() == list(range(8))
            past = client.get_online_features(X, {"user_id": list(range(8))}, as_of=NOW_US, receipt=True)
            assert client.replay(past.receipt).to_numpy()[:, 0].tolist() == list(range(8))  # type: ignore[arg-type]
        with Raw(running.url) as raw:
            raw.ask([0, 1, "PREPARE", {"features": X}])
            for wanted in (0, 4):  # by native code, which leaves it; by a thread, which finds that it can't
                assert raw.ask([0, 2, "GET", [0, [[3]], wanted, NOW_US]])[2] is None
            assert raw.ask([0, 3, "GET", [1, [[3]], 0, NOW_US]])[2][0] == 42
            rows = [raw.ask([0, i, "GET", [0, [[i]], 0, NOW_US]])[3][2] for i in range(8)]
            assert rows == [[[float(i)]] for i in range(8)]
        report = clients[0].load(
            "latest",
            pa.table(
                {
                    "user_id": range(100, 50_100),
                    "x": [0.5] * 50_000,
                    "event_timestamp": pa.array([NOW_US] * 50_000, "timestamp[us]"),
                }
            ),
        )
        assert report.accepted == 50_000
        assert [x_of(client, 50_099) for client in clients] == [0.5] * 8
        assert clients[0].info()["shared"]["is_stale"] is False
        assert clients[0].snapshot()["views"]["latest"]["entities"] == 50_008
        for client in clients:
            client.close()


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        before = running.workers()
        with running.connect() as client:
            client.push("latest", row(1, 1.0))
        os.kill(before[0], signal.SIGKILL)
        until(lambda: not is_alive(before[0]))
        after = running.workers()
        assert after[1] == before[1]
        assert after[0] != before[0]
        with running.connect() as client:
            assert x_of(client, 1) == 1.0


def test_reads_go_on_while_a_killed_writer_comes_back_with_all_that_it_acknowledged(tmp_path: Path) -> None:
    with service(tmp_path, "--directory", str(tmp_path / "data")) as running:
        writer = running.writer_pid()
        acknowledged = -1
        with running.connect(retries=0) as reader, running.connect() as pusher, Raw(running.url, hello=False) as told:
            told.ask([0, 0, "HELLO", {"version": 1, "flags": True}])
            told.ask([0, 1, "PREPARE", {"features": X}])
            pusher.push("latest", row(0, -1.0))
            generation = reader.info()["shared"]["generation"]
            refused: list[FastFeatError] = []
            flags, was_stale, client_said, is_killed = set(), False, False, False
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                try:
                    pusher.push("latest", row(0, float(acknowledged + 1), NOW_US + acknowledged + 1))
                    acknowledged += 1
                    if refused:
                        break
                except FastFeatError as error:
                    refused.append(error)
                if acknowledged == 200 and not is_killed:
                    os.kill(writer, signal.SIGKILL)
                    is_killed = True
                assert x_of(reader, 0) >= acknowledged - (1 if refused else 0)  # as its last state, at worst
                says_so = reader.is_stale
                was_stale |= reader.info()["shared"]["is_stale"]
                client_said |= says_so
                flags.add(told.ask([0, 2, "GET", [0, [[0]]]])[0])
            assert {type(error) for error in refused} == {WriterUnavailable}
            assert was_stale
            assert client_said
            assert flags == {1, 3}
            until(lambda: reader.info()["shared"]["generation"] > generation)
            until(lambda: x_of(reader, 0) >= acknowledged)
            until(lambda: told.ask([0, 2, "GET", [0, [[0]]]])[0] == 1)
        assert running.writer_pid() != writer
        with connect(running.writer_url) as client:
            assert x_of(client, 0) == acknowledged


def test_a_stop_answers_what_was_asked_and_ends_all(tmp_path: Path) -> None:
    with service(tmp_path, "--directory", str(tmp_path / "data")) as running:
        running.workers()
        running.writer_pid()
        with Raw(running.url) as raw:
            raw.send(*([0, i, "PUSH", ["latest", [row(i, float(i))]]] for i in range(1, 101)))
            assert raw.read()[1] == 1  # all have been read by then, as they came in one piece
            running.process.send_signal(signal.SIGTERM)
            assert [raw.read()[:3] for _ in range(99)] == [[1, i, None] for i in range(2, 101)]
            assert raw.read() is None
        assert running.process.wait(SECONDS) == 0
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
        assert not any(map(is_alive, running.pids))
        with pytest.raises(ConnectFailed):
            running.connect()
    with Store.open(tmp_path / "data", read_only=True, capacity_bytes=64 << 20) as store:
        found = store.get_feature_vectors(X, {"user_id": [1, 100]})
    assert found[:, 0].tolist() == [1.0, 100.0]


def test_connections_are_shared_out_evenly_and_no_process_outlives_the_supervisor(tmp_path: Path) -> None:
    path = str(tmp_path / "unix")
    with service(tmp_path, "--unix-socket", path) as running, ExitStack() as stack:
        for url in (running.url, f"fastfeat+unix://{path}"):
            clients = [stack.enter_context(connect(url)) for _ in range(20)]
            assert Counter(client.info()["server"]["worker"] for client in clients) == {0: 10, 1: 10}
        running.workers()
        running.writer_pid()
        assert len(running.pids) == 3
        assert all(map(is_alive, running.pids))
        running.process.kill()
        until(lambda: not any(map(is_alive, running.pids)))
        with pytest.raises((Disconnected, ConnectFailed)):
            clients[0].ping()


def test_what_keeps_the_writer_from_starting_ends_the_service_with_its_message(tmp_path: Path) -> None:
    definitions = tmp_path / "wrong.py"
    definitions.write_text("nothing = 1", encoding="utf-8")
    command = [sys.executable, "-m", "fastfeat.cli", "serve", str(definitions), "--workers", "1", "--port", "0"]
    ended = subprocess.run(
        [*command, "--name", str(tmp_path / "s"), "--capacity-mib", "64"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 1
    assert "defines no FeatureView" in ended.stderr


def test_a_failed_log_is_told_to_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LogFailed("fdatasync: input/output error")

    monkeypatch.setattr(writer, "run_server", fail)
    ours, theirs = socket.socketpair()
    with ours:
        with pytest.raises(LogFailed):
            writer.serve_writer(None, Config(), theirs.detach())
        assert ours.recv(64) == b"f"


# Children, without a server in them ----------------------------------------------------------------------------------

SOURCE = "import os, sys; fd = int(sys.argv[1]); first = sys.argv[2] == 'True'; "


def child(code: str, orphan: Callable[[socket.socket], object] = socket.socket.close) -> Child:
    def command(lifeline: int, is_first: bool) -> list[str]:
        return [sys.executable, "-S", "-c", SOURCE + code, str(lifeline), str(is_first)]

    return Child("child", command, dict(os.environ), orphan)


async def test_a_child_that_was_never_ready_is_not_started_again() -> None:
    assert await asyncio.wait_for(child("sys.exit(7)").ended, SECONDS) == 7


async def test_a_child_that_says_that_it_failed_is_not_started_again() -> None:
    code = "os.write(fd, b'r'); os.write(fd, b'f'); sys.exit(5)"
    assert await asyncio.wait_for(child(code).ended, SECONDS) == 5


async def test_a_child_that_was_ready_is_started_again_and_more_slowly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"open({str(log)!r}, 'a').write(f'{{first}} '); os.write(fd, b'r'); sys.exit(3)"
    begun = time.monotonic()
    several = child(code)
    while not log.exists() or len(log.read_text(encoding="utf-8").split()) < 4:
        await asyncio.sleep(0.005)
    assert time.monotonic() - begun >= 0.05 + 0.15  # after the second and the third; the first is replaced at once
    await several.stop(SECONDS)
    assert log.read_text(encoding="utf-8").split()[:2] == ["True", "False"]


async def test_a_connection_that_a_child_did_not_take_goes_to_another() -> None:
    orphans: list[socket.socket] = []
    code = "import socket; os.write(fd, b'r'); socket.socket(fileno=fd).recv(1, socket.MSG_PEEK); os.abort()"
    several = child(code, orphans.append)
    ours, theirs = socket.socketpair()
    with ours:
        while not several.hand_over(theirs):
            await asyncio.sleep(0.005)
        while not orphans:
            await asyncio.sleep(0.005)
        await several.stop(SECONDS)
        assert orphans == [theirs]
        theirs.send(b"alive")
        assert ours.recv(5) == b"alive"
        theirs.close()


async def test_a_child_that_does_not_end_is_killed() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(fd, b'r'); signal.pause()"
    deaf = child(code)
    await asyncio.wait_for(deaf.is_ready.wait(), SECONDS)
    await deaf.stop(0.05)
    assert deaf.ended.result() == -signal.SIGKILL


# Too many open files, in this process --------------------------------------------------------------------------------


@contextmanager
def no_more_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # those that are open stay so
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class RestlessStore:
    """follow() raises each of these once, and then finds that the writer is gone."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.is_stale = False

    def follow(self) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        self.is_stale = True
        return False


async def test_a_worker_looks_on_whatever_a_look_met(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastfeat_server.worker.LOOK_SECONDS", 0.001)
    unexpected: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context["exception"]))
    full, closed, wrong = OSError(errno.EMFILE, "too many open files"), FastFeatError("replaced"), ValueError("wrong")
    worker = await start_worker(RestlessStore(full, closed, wrong), Config(), 7, [])
    try:
        async with asyncio.timeout(SECONDS):
            while not worker.is_stale:
                await asyncio.sleep(0.001)
    finally:
        await worker.stop()
    assert caplog.messages == [f"worker 7: {error}" for error in (full, closed)]
    assert unexpected == [wrong]


async def test_a_connection_that_a_full_process_loses_is_closed_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    lifelines: asyncio.Queue[Lifeline] = asyncio.Queue()
    taken: asyncio.Queue[socket.socket] = asyncio.Queue()
    orphans: list[socket.socket] = []

    def command(fd: int, _: bool) -> list[str]:
        lifelines.put_nowait(Lifeline(os.dup(fd)))  # we hold it in the place of the process
        return [sys.executable, "-S", "-c", "import signal; signal.pause()"]

    several = Child("child", command, dict(os.environ), orphans.append)
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for sock in sum(pairs, ()):
            stack.enter_context(sock).setblocking(False)
        (first, handed_first), (lost, handed_lost), (last, handed_last) = pairs
        try:
            async with asyncio.timeout(SECONDS):
                with await lifelines.get() as lifeline:
                    lifeline.tell(READY)
                    await several.is_ready.wait()
                    ended = asyncio.ensure_future(lifeline.ended(taken.put_nowait))
                    try:
                        assert several.hand_over(handed_first)
                        taken_first = stack.enter_context(await taken.get())
                        with no_more_files():
                            assert several.hand_over(handed_lost)
                            assert await asyncio.get_running_loop().sock_recv(lost, 1) == b""
                        assert several.hand_over(handed_last)
                        taken_last = stack.enter_context(await taken.get())
                    finally:
                        ended.cancel()
                        await asyncio.wait([ended])
        finally:
            await several.stop(SECONDS)
        assert orphans == []
        for client, connection in ((first, taken_first), (last, taken_last)):
            connection.send(b"alive")
            assert client.recv(5) == b"alive"
        assert handed_first.fileno() == handed_lost.fileno() == handed_last.fileno() == -1
    assert caplog.messages == ["connections lost, as too many files are open: 1"]


class FullListener(socket.socket):
    """Cannot accept, for this error, while there is one."""

    error = 0
    calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
async def test_a_supervisor_that_cannot_accept_pauses_and_goes_on(
    error: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    unexpected: list[Any] = []
    loop.set_exception_handler(lambda _, context: unexpected.append(context))
    supervisor = Supervisor(Config(), lambda *_: [], lambda _: None)
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
    monkeypatch.setattr(supervisor, "_hand_over", accepted.put_nowait)
    with FullListener() as listener, socket.socket() as client, socket.socket() as late:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        listener.error = error
        client.connect(listener.getsockname())
        begun = loop.time()
        loop.add_reader(listener, supervisor._accept, listener)
        async with asyncio.timeout(SECONDS):
            while listener.calls < 4:
                await asyncio.sleep(0)
            assert loop.time() - begun >= 3 * RETRY_SECONDS
            assert [record.levelno for record in caplog.records] == [logging.WARNING] * listener.calls
            assert {os.strerror(error) in message for message in caplog.messages} == {True}
            listener.error = 0
            with await accepted.get() as connection:
                assert connection.getpeername() == client.getsockname()
        listener.error = error
        late.connect(listener.getsockname())
        calls = listener.calls
        while listener.calls == calls:
            await asyncio.sleep(0)
        supervisor._is_stopping = True
        loop.remove_reader(listener)
    await asyncio.sleep(2 * RETRY_SECONDS)  # which finds the listener closed
    assert unexpected == []
