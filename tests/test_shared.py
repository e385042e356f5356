"""One arena, many processes: what readers see, what happens to them, and what a writer may do meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastfeat import (
    ArenaFull,
    BeforeHistory,
    DataError,
    DirectoryLocked,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    ReadOnly,
    StorageError,
    Store,
    UnknownView,
    connect,
    shared,
)
from fastfeat._core.arena import Arena
from fastfeat._core.plan import Plan
from fastfeat.attached import AttachedStore
from fastfeat.definitions import Definition, definitions_from_list
from fastfeat.errors import ConnectFailed
from fastfeat.shared import attach, shared_directory

USER = Entity("user", {"user_id": "int64"})
FIELDS = [
    Field("number", "float64"),
    Field("text", "string"),
    Field("vector", "vector<float32, 4>"),
    Field("tags", "list<int64>"),
]
LATEST = FeatureView("latest", USER, FIELDS, keep="latest")
WHOLE = FeatureView("whole", USER, FIELDS)
SERVICE = FeatureService("all", [LATEST, WHOLE])
NUMBERS = ["latest:number", "latest:vector", "whole:number"]
START_US = 1_700_000_000_000_000
CAPACITY = 64 << 20
HUGE = 2 << 20


def row(user: int, version: int, **more: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_timestamp": START_US + version,
        "number": user + version / 1000,
        "text": f"{user}:{version}" * (version % 4),
        "vector": [float(version)] * 4,
        "tags": list(range(version % 5)),
        **more,
    }


def fill(store: Store, users: int, versions: int = 3) -> None:
    for version in range(versions):
        for view in ("latest", "whole"):
            store.push(view, [row(user, version) for user in range(users)])


@pytest.fixture
def name(tmp_path: Path) -> Iterator[str]:
    """The directory of an arena, in shared memory."""
    path = Path("/dev/shm") / f"fastfeat-test-{os.getpid()}-{tmp_path.name}"
    yield str(path)
    for file in path.glob("*"):
        file.unlink()
    if path.exists():
        path.rmdir()


@pytest.fixture
def store(name: str) -> Iterator[Store]:
    with Store(CAPACITY, shared=name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        yield store


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.01)


@contextmanager
def reader(name: str, code: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has attached as `store` and runs `code`; it is killed at the end."""
    opening = f"import sys, time\nfrom fastfeat.attached import AttachedStore\nstore = AttachedStore({name!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", opening + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


INSIDE = """
# Inside a read for most of the time.
keys = {"user_id": list(range(200)) * 50}
print("reading", flush=True)
while True:
    store.get_online_features("all", keys)
"""


# --- what readers see


def test_a_reader_answers_as_the_store_does(name: str, store: Store) -> None:
    fill(store, 100)
    keys = {"user_id": list(range(-5, 105))}
    with AttachedStore(name) as other:
        for as_of in (None, START_US, START_US + 1, START_US - 1):
            wanted = "all" if as_of is None else [f"whole:{field.name}" for field in FIELDS]
            numbers = NUMBERS if as_of is None else ["whole:vector", "whole:number"]
            expected = store.get_online_features(wanted, keys, as_of=as_of)
            found = other.get_online_features(wanted, keys, as_of=as_of)
            assert found.to_dict() == expected.to_dict()
            matrix = other.get_feature_vectors(numbers, keys, as_of=as_of)
            assert matrix.tobytes() == store.get_feature_vectors(numbers, keys, as_of=as_of).tobytes()
            vector = other.get_feature_vector(numbers, {"user_id": 7}, as_of=as_of)
            assert vector.tobytes() == store.get_feature_vector(numbers, {"user_id": 7}, as_of=as_of).tobytes()


def test_a_push_is_seen_at_once_and_a_delete_too(name: str, store: Store) -> None:
    with AttachedStore(name) as other:
        for version in range(50):
            store.push("latest", row(1, version))
            assert other.get_feature_vector(["latest:number"], {"user_id": 1})[0] == 1 + version / 1000
        store.delete("latest", [{"user_id": 1}])
        assert np.isnan(other.get_feature_vector(["latest:number"], {"user_id": 1})[0])
        assert other.position == store.position


def test_a_view_that_is_applied_later_is_followed(name: str, store: Store) -> None:
    with AttachedStore(name) as other:
        with pytest.raises(UnknownView):
            other.get_feature_vector(["later:number"], {"user_id": 1})
        assert not other.follow()
        store.apply(FeatureView("later", USER, FIELDS))
        store.push("later", row(1, 5))
        assert other.get_feature_vector(["later:number"], {"user_id": 1})[0] == 1.005
        assert other.follow()
        assert not other.follow()


def test_writes_and_definitions_are_the_writers(name: str, store: Store) -> None:
    with AttachedStore(name) as other:
        for write in (
            lambda: other.push("latest", row(1, 1)),
            lambda: other.delete("latest", [{"user_id": 1}]),
            lambda: other.apply(FeatureView("mine", USER, FIELDS)),
        ):
            with pytest.raises(ReadOnly, match="another process"):
                write()
        assert (
            other.get_online_features("all", {"user_id": [1]}).statuses
            == store.get_online_features("all", {"user_id": [1]}).statuses
        )


def test_rows_that_memory_dropped_are_said_to_be(name: str) -> None:
    short = FeatureView("short", USER, FIELDS, keep=timedelta(seconds=1))
    with Store(CAPACITY, shared=name) as store:
        store.apply(short)
        store.push("short", [row(1, 0), row(1, 10_000_000)])
        with AttachedStore(name) as other, pytest.raises(BeforeHistory):
            other.get_feature_vector(["short:number"], {"user_id": 1}, as_of=START_US + 5)


def test_plans_are_at_hand_while_they_hold(name: str, store: Store) -> None:
    fill(store, 3)
    with AttachedStore(name) as other:
        key, keys = {"user_id": 1}, {"user_id": [1, 2]}
        wanted = store.get_feature_vectors(NUMBERS, keys).tolist()
        store.apply(FeatureService("numbers", [LATEST["number"], LATEST["vector"], WHOLE["number"]]))

        def at_hand() -> bool:
            one, many = other.at_hand.vector("numbers", key, None), other.at_hand.matrix("numbers", keys, None)
            assert (one is None) == (many is None)
            assert one is None or one.tolist() == wanted[0]
            assert many is None or many.tolist() == wanted
            return one is not None

        assert not at_hand()
        assert other.get_feature_vector("numbers", key).tolist() == wanted[0]
        assert at_hand()
        assert other.at_hand.vector(NUMBERS, key, None) is None, "a list is compiled by the long way"
        store.apply(FeatureService("more", [LATEST["number"]]))
        assert not at_hand()
        assert other.get_feature_vectors("numbers", keys).tolist() == wanted
        assert at_hand()
    assert other.at_hand.vector("numbers", key, None) is None


def test_many_threads_share_an_attachment(name: str, store: Store) -> None:
    fill(store, 1_000, 1)
    keys = {"user_id": np.arange(1_000)}
    expected = store.get_feature_vectors(NUMBERS, keys)
    faults: list[str] = []
    with AttachedStore(name) as other:
        plan = other.plan(NUMBERS)
        assert isinstance(plan, Plan)
        assert plan.release_min <= 1_000, "else no two of them are inside at once"

        def read() -> None:
            answers = (other.get_feature_vectors(NUMBERS, keys) for _ in range(100))
            faults.extend("an answer differs" for answer in answers if not np.array_equal(answer, expected))

        threads = [threading.Thread(target=read) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert len(own_slots(other)) > 1


# --- readers that die, fork, or stop


def test_a_child_reads_under_slots_of_its_own(name: str, store: Store) -> None:
    fill(store, 10)
    with AttachedStore(name) as other:
        expected = other.get_feature_vector(NUMBERS, {"user_id": 3}).tolist()
        came, went = os.pipe()
        child = os.fork()
        if not child:
            try:
                answer = other.get_feature_vector(NUMBERS, {"user_id": 3}).tolist()
                os.write(went, json.dumps([answer, other.is_stale, own_slots(other)]).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(went)
        answer, is_stale, slots = json.loads(os.read(came, 4096))
        os.close(came)
        assert answer == expected
        assert not is_stale
        assert slots
        assert not set(slots) & set(own_slots(other))


def own_slots(store: AttachedStore) -> list[int]:
    return list(store._arena.own_slots)


def test_a_killed_reader_frees_its_slot_and_its_pin_within_a_second(name: str, store: Store) -> None:
    fill(store, 200)
    arena = store._open_arena()
    for _ in range(3):
        with reader(name, INSIDE) as process:
            assert line(process) == "reading"
            until(lambda: bool(arena.pinned))
            process.send_signal(signal.SIGSTOP)  # so that it is killed inside, more often than not
            until(lambda: state_of(process.pid) == "T")
            process.kill()
            process.wait()
        for version in range(20):
            store.push("latest", [row(user, version) for user in range(200)])
        until(lambda: not arena.pinned, seconds=1.0)
    with AttachedStore(name) as other:
        other.get_feature_vector(NUMBERS, {"user_id": 1})
        assert own_slots(other)[0] == 128  # the first of all, again


def state_of(process: int) -> str:
    """As ps shows it; X where there is no such process any more."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def test_a_stopped_reader_holds_no_memory_for_ever_and_reads_again(name: str, store: Store) -> None:
    """It is stopped inside a read; the writer replaces all rows over and over, in no more memory than before."""
    fill(store, 200)
    arena = store._open_arena()
    code = """
keys = {"user_id": list(range(200)) * 50}
print("reading", flush=True)
while True:
    result = store.get_online_features(["latest:number", "latest:text", "latest:tags"], keys).to_dict()
    for user, number, text in zip(range(200), result["latest:number"], result["latest:text"]):
        version = round((number - user) * 1000)
        assert text == f"{user}:{version}" * (version % 4), (user, number, text)
    if not sys.stdin.closed and __import__("select").select([sys.stdin], [], [], 0)[0]:
        print("whole", flush=True)
        break
"""
    with reader(name, code) as process:
        assert line(process) == "reading"
        stop_inside(process, arena)
        slot = next(iter(arena.pinned))
        version, deadline = 10, time.monotonic() + 20
        while arena.pinned[slot] is not None:
            assert time.monotonic() < deadline, "it was not expelled"
            store.push("latest", [row(user, version) for user in range(200)])
            version += 1
        before = arena.used
        for _ in range(300):
            store.push("latest", [row(user, version) for user in range(200)])
            version += 1
        assert arena.used <= before + (1 << 20)
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        time.sleep(0.2)
        process.stdin.write("end\n")
        process.stdin.flush()
        assert line(process) == "whole"
        assert process.wait(10) == 0


# --- writers that end, and others that come


def directory_store(path: Path, name: str, **options: Any) -> Store:
    return Store.open(path / "store", capacity_bytes=CAPACITY, shared=name, **options)


def test_a_clean_stop_is_taken_up_as_it_is(tmp_path: Path, name: str) -> None:
    with directory_store(tmp_path, name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        fill(store, 100)
        store.delete("latest", [{"user_id": 3}])
        keys = {"user_id": list(range(101))}
        expected = store.get_online_features("all", keys).to_dict()
    with AttachedStore(name) as other:
        assert other.is_stale
        assert other.get_online_features("all", keys).to_dict() == expected
        with directory_store(tmp_path, name) as store:
            assert store.info()["shared"]["generation"] == other.info()["shared"]["generation"]
            assert not other.is_stale
            assert store.get_online_features("all", keys).to_dict() == expected
            fill(store, 100, versions=8)
            after = store.get_online_features("all", keys).to_dict()
            assert after != expected
            assert other.get_online_features("all", keys).to_dict() == after
    with Store.open(tmp_path / "store", capacity_bytes=CAPACITY) as store:  # and the directory says the same
        assert store.get_online_features("all", keys).to_dict() == after


def test_a_writer_that_takes_an_arena_up_knows_who_is_inside(tmp_path: Path, name: str) -> None:
    """What such a reader may see must not be used again by a writer that was not there when it came."""
    with directory_store(tmp_path, name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        fill(store, 200)
        generation = store.info()["shared"]["generation"]
    with reader(name, INSIDE) as process:
        assert line(process) == "reading"
        with AttachedStore(name) as other:
            arena = other._open_arena()
            stop_inside(process, arena)
        with directory_store(tmp_path, name) as store:
            assert store.info()["shared"]["generation"] == generation
            assert list(store._open_arena().pinned) == [128]


def stop_inside(process: subprocess.Popen[str], arena: Arena) -> None:
    """Stop a reader while it is inside the arena."""
    deadline = time.monotonic() + 20
    while True:
        process.send_signal(signal.SIGSTOP)
        until(lambda: state_of(process.pid) == "T")
        if arena.pinned:
            return
        assert time.monotonic() < deadline, "it was never caught inside a read"
        process.send_signal(signal.SIGCONT)
        time.sleep(0.003)


def test_what_a_dead_writer_left_is_never_trusted_and_readers_move_over(tmp_path: Path, name: str) -> None:
    code = f"""
import sys
from tests.test_shared import *
from pathlib import Path
store = directory_store(Path({str(tmp_path)!r}), {name!r})
store.apply([USER, LATEST, WHOLE, SERVICE])
fill(store, 50)
print("filled", flush=True)
sys.stdin.readline()
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert line(writer) == "filled"
        with AttachedStore(name) as other:
            keys = {"user_id": list(range(50))}
            expected = other.get_online_features("all", keys).to_dict()
            generation = other.info()["shared"]["generation"]
            writer.kill()
            writer.wait()
            assert other.is_stale
            assert other.get_online_features("all", keys).to_dict() == expected
            with directory_store(tmp_path, name) as store:
                assert store.info()["shared"]["generation"] > generation
                assert store.get_online_features("all", keys).to_dict() == expected
                store.push("latest", row(1, 77))
                assert other.get_feature_vector(["latest:number"], {"user_id": 1})[0] == 1.077
                assert other.info()["shared"]["generation"] == store.info()["shared"]["generation"]
                assert not other.is_stale
                files = sorted(file.name for file in Path(shared_directory(name)).iterdir())
                generation = store.info()["shared"]["generation"]
                assert files == ["LOCK", f"arena.{generation}", "current", f"readers.{generation}"]
    finally:
        writer.kill()
        writer.wait()
        for pipe in (writer.stdin, writer.stdout):
            assert pipe is not None
            pipe.close()


ROOT = Path(__file__).resolve().parent.parent


def test_an_arena_of_another_state_of_the_directory_is_not_taken_up(tmp_path: Path, name: str) -> None:
    with directory_store(tmp_path, name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        fill(store, 10)
        generation = store.info()["shared"]["generation"]
    with Store.open(tmp_path / "store", capacity_bytes=CAPACITY) as store:  # it goes on without the arena
        store.push("latest", row(1, 99))
    with directory_store(tmp_path, name) as store:
        assert store.info()["shared"]["generation"] > generation
        assert store.get_feature_vector(["latest:number"], {"user_id": 1})[0] == 1.099
    with Store.open(tmp_path / "other", capacity_bytes=CAPACITY, shared=name) as store:
        assert store.info()["views"] == {}


def test_a_writer_that_can_not_open_its_directory_leaves_the_arena_as_it_was(tmp_path: Path, name: str) -> None:
    with directory_store(tmp_path, name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        fill(store, 10)
        generation = store.info()["shared"]["generation"]
        files = sorted(file.name for file in Path(name).iterdir())
    with Store.open(tmp_path / "store", capacity_bytes=CAPACITY), pytest.raises(DirectoryLocked):
        directory_store(tmp_path, name)
    assert sorted(file.name for file in Path(name).iterdir()) == files
    with directory_store(tmp_path, name) as store:
        assert store.info()["shared"]["generation"] == generation
        with AttachedStore(name) as other:
            assert other.get_feature_vector(["latest:number"], {"user_id": 3})[0] == 3.002


def test_two_writers_of_one_name_are_one_too_many(name: str, store: Store) -> None:
    with pytest.raises(StorageError, match="another process writes"):
        Store(CAPACITY, shared=name)
    store.push("latest", row(1, 1))


def test_a_store_that_could_not_begin_lets_go_of_the_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="the least is"):
        Store(10, shared=name)
    with Store(CAPACITY, shared=name), pytest.raises(DataError, match="only the process that writes"):
        Store.open(tmp_path / "store", shared=name, read_only=True)
    with pytest.raises(DataError, match="the least is"):
        Store.open(tmp_path / "store", capacity_bytes=10, shared=name)
    with directory_store(tmp_path, name):
        pass


def test_a_reader_too_many_is_told_so(name: str, store: Store) -> None:
    """One process has the locks of all slots that are not the writer's."""
    with next(Path(name).glob("readers.*")).open("r+b") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 128, 896, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK if hasattr(fcntl, "F_OFD_SETLK") else 37, lock)
        with pytest.raises(StorageError, match="all 896 slots"):
            AttachedStore(name)
    AttachedStore(name).close()


def test_a_restored_copy_does_not_take_up_the_originals_rows(tmp_path: Path, name: str) -> None:
    """Both go by the same name and end at the same place of their logs, with other rows."""
    with directory_store(tmp_path, name) as store:
        store.apply([USER, LATEST])
        store.push("latest", row(1, 1))
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path / "store", copied / "store")
    with Store.open(copied / "store", capacity_bytes=CAPACITY) as store:
        store.push("latest", row(2, 2))
        end = store.position
    with directory_store(tmp_path, name) as store:
        store.push("latest", row(3, 2))
        assert store.position == end
    with directory_store(copied, name) as store:
        numbers = store.get_feature_vectors(["latest:number"], {"user_id": [1, 2, 3]})[:, 0]
        np.testing.assert_array_equal(numbers, [1.001, 2.002, np.nan])


def test_a_store_without_a_directory_leaves_nothing(name: str) -> None:
    with Store(CAPACITY, shared=name) as store:
        store.apply(LATEST)
        other = AttachedStore(name)
    assert [file.name for file in Path(name).iterdir()] == ["LOCK"]
    assert np.isnan(other.get_feature_vector(["latest:number"], {"user_id": 1})[0])
    other.close()
    with pytest.raises(StorageError, match="there is no shared arena"):
        AttachedStore(name)


@pytest.mark.parametrize("size", [0, 100, CAPACITY])
def test_what_a_writer_left_that_died_as_it_began_is_taken_away(name: str, size: int) -> None:
    Path(name).mkdir()
    for kind in ("arena", "readers"):
        with (Path(name) / f"{kind}.7").open("wb") as file:
            file.truncate(size if kind == "arena" else 0)
    with Store(CAPACITY, shared=name) as store:
        store.apply(LATEST)
        assert sorted(file.name for file in Path(name).iterdir()) == ["LOCK", "arena.8", "current", "readers.8"]


def test_readers_of_a_store_that_ended_move_to_the_next_of_its_name(name: str) -> None:
    """A store without a directory takes its files away; whoever reads it goes on, and looks for another."""
    with Store(CAPACITY, shared=name) as store:
        store.apply(LATEST)
        for version in range(5):
            store.push("latest", row(1, version))
        reader = AttachedStore(name)
        assert reader.info()["shared"]["generation"] == 1
    assert reader.is_stale
    assert reader.get_feature_vector(["latest:number"], {"user_id": 1}).tolist() == [1.004]
    assert not reader.follow()
    with Store(CAPACITY, shared=name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE, FeatureService("numbers", [LATEST["number"]])])
        store.push("latest", row(1, 7))
        assert reader.wait_for(store.position, 1.0)
        assert reader.position == store.position, "not that of the store before, which was further"
        assert reader.get_feature_vector("numbers", {"user_id": 1}).tolist() == [1.007]
        assert not reader.is_stale
        assert reader.follow()
        assert reader.info()["shared"]["generation"] == 2
        assert reader.at_hand.vector("numbers", {"user_id": 1}, None) is not None
    reader.close()


def test_an_arena_that_can_not_be_read_is_not_looked_at_by_every_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(name: str) -> tuple[Arena, int]:
        looked.append(name)
        return attach(name)

    monkeypatch.setattr("fastfeat.attached.attach", look)
    monkeypatch.setattr("fastfeat.attached.LOOK_SECONDS", 1000.0)
    with Store(CAPACITY, shared=name) as store:
        store.apply(LATEST)
        reader = AttachedStore(name)
    for _ in range(100):
        reader.get_feature_vector(["latest:number"], {"user_id": 1})
    assert len(looked) == 1, "there is none"
    (Path(name) / "current").write_text("77\n")
    for _ in range(100):
        reader.get_feature_vector(["latest:number"], {"user_id": 1})
    assert len(looked) == 2
    reader.close()


def test_what_is_no_number_in_the_lock_counts_as_none(name: str) -> None:
    Path(name).mkdir()
    (Path(name) / "LOCK").write_text("a disk's noise")
    for generation in (1, 2):
        with Store(CAPACITY, shared=name) as store:
            assert store.info()["shared"]["generation"] == generation


# --- what goes wrong in between

WRITER = """
import os, sys, time
from fastfeat import Entity, FeatureView, Field, Store
user = Entity("user", {"user_id": "int64"})
store = Store(64 << 20, shared=sys.argv[1])
store.apply(FeatureView("latest", user, [Field("number", "float64")], keep="latest"))
store.push("latest", [{"user_id": 1, "event_timestamp": 1, "number": 1.0}])
"""
NUMBER = FeatureView("latest", USER, [Field("number", "float64")], keep="latest")


@contextmanager
def other_writer(name: str, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has a store of this name, and then does what `code` says and sleeps; killed at the end."""
    text = f"{WRITER}{code}\nprint('ready', flush=True)\ntime.sleep(1000)\n"
    process = subprocess.Popen([sys.executable, "-c", text, name], stdout=subprocess.PIPE, text=True)
    try:
        assert line(process) == "ready"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def number(store: Any) -> float:
    return float(store.get_feature_vector(["latest:number"], {"user_id": 1})[0])


def test_two_definitions_between_two_looks_are_both_seen(name: str, store: Store) -> None:
    """The second catalogue lies where the one before the first did."""
    with AttachedStore(name) as other:
        for round_number in range(4):
            store.apply(FeatureService(f"a{round_number}", [LATEST["number"]]))
            store.apply(FeatureService(f"b{round_number}", [WHOLE["number"]]))
            assert other.follow()
            for kind in "ab":
                assert np.isnan(other.get_feature_vector(f"{kind}{round_number}", {"user_id": 1})).all()


def test_what_never_was_found_goes_before_another_is_made(name: str) -> None:
    """Else each start that dies as it recovers would keep as much memory as it had filled."""
    Path(name).mkdir()
    for generation in (3, 5):
        (Path(name) / f"arena.{generation}").write_bytes(bytes(4096))
        (Path(name) / f"readers.{generation}").touch()
    sharing = shared.Sharing(name)
    sharing.create(CAPACITY)
    assert sorted(file.name for file in Path(name).iterdir()) == ["LOCK", "arena.6", "readers.6"]
    sharing.close(is_kept=False)


def test_readers_that_could_not_be_told_are_told_by_the_next_writer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, generation: int) -> None:
        raise StorageError("the system refused")

    with other_writer(name) as process:
        reader = AttachedStore(name)
        process.kill()
        process.wait()
        with monkeypatch.context() as patched:
            patched.setattr("fastfeat.shared.supersede", refuse)
            Store(CAPACITY, shared=name).close()
        assert (Path(name) / "arena.1").exists()
        assert number(reader) == 1.0
        with Store(CAPACITY, shared=name) as store:
            store.apply(NUMBER)
            store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 2.0})
            assert number(reader) == 2.0
            assert not (Path(name) / "arena.1").exists()
        reader.close()


def test_readers_of_a_removed_directory_move_by_themselves(tmp_path: Path, name: str) -> None:
    """Whoever removes it, to give the memory back, says nothing to them; nobody reads meanwhile."""
    with directory_store(tmp_path, name) as store:
        store.apply(NUMBER)
        store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 1.0})
        reader = AttachedStore(name)
    shutil.rmtree(name)
    assert number(reader) == 1.0
    with directory_store(tmp_path, name) as store:
        store.push("latest", {"user_id": 1, "event_timestamp": 2, "number": 2.0})
        until(lambda: not reader.is_stale)
        assert number(reader) == 2.0
    reader.close()


def test_a_store_whose_directory_was_removed_leaves_the_next_ones_alone(name: str) -> None:
    first = Store(CAPACITY, shared=name)
    first.apply(NUMBER)
    shutil.rmtree(name)
    with Store(CAPACITY, shared=name) as second, AttachedStore(name) as reader:
        second.apply(NUMBER)
        first.close()
        second.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 2.0})
        assert number(reader) == 2.0
        assert (Path(name) / "current").exists()


def test_a_reader_without_files_to_spare_keeps_what_it_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if "readers." in str(path) and not arguments[0] & os.O_CREAT:
            raise OSError(24, "Too many open files", path)
        return really(path, *arguments, **options)

    with other_writer(name) as process:
        reader = AttachedStore(name)
        process.kill()
        process.wait()
        with Store(CAPACITY, shared=name) as store:
            with monkeypatch.context() as patched:
                patched.setattr(os, "open", refuse)
                assert number(reader) == 1.0
                with pytest.raises(StorageError, match="Too many open files"):
                    AttachedStore(name)
            store.apply(NUMBER)
            until(lambda: np.isnan(number(reader)))
        reader.close()


CHILD_WITHOUT_FILES = """
import os, resource, sys
from fastfeat import StorageError
from fastfeat.attached import AttachedStore
store = AttachedStore(sys.argv[1])
read = lambda: store.get_feature_vector(["latest:number"], {"user_id": 1})
read()
highest = max(map(int, os.listdir("/proc/self/fd")))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(files) + 1, 10_000))
child = os.fork()
if child == 0:
    try:
        read()
    except StorageError as error:
        said = str(error)
    store.close()
    del store
    os._exit(7 if "could not open the reader table" in said else 8)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), read()[0])
"""


def test_a_child_that_has_no_file_to_spare_is_told_so(name: str) -> None:
    with other_writer(name):
        words = [sys.executable, "-c", CHILD_WITHOUT_FILES, name]
        said = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    assert said.split() == ["7", "1.0"]


WITH_A_CHILD = """
child = os.fork()
if child == 0:
    store.close()
    time.sleep(1000)
time.sleep(0.3)
print(child, flush=True)
"""


def test_a_writers_child_neither_ends_the_arena_nor_keeps_its_name(name: str) -> None:
    text = f"{WRITER}{WITH_A_CHILD}time.sleep(1000)\n"
    process = subprocess.Popen([sys.executable, "-c", text, name], stdout=subprocess.PIPE, text=True)
    child = int(line(process))
    try:
        with AttachedStore(name) as reader:
            assert number(reader) == 1.0
            assert not reader.is_stale
            process.kill()
            process.wait()
            with Store(CAPACITY, shared=name) as store:
                store.apply(NUMBER)
                assert np.isnan(number(reader))
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


WRITING_CHILD = """
import os, sys
from fastfeat import Entity, FeatureView, Field, ReadOnly, Store
view = FeatureView("latest", Entity("user", {"user_id": "int64"}), [Field("number", "float64")], keep="latest")
row = {"user_id": 1, "event_timestamp": 1, "number": 1.0}
def refused(*calls):
    for call in calls:
        try:
            call()
        except ReadOnly:
            continue
        return False
    return True
kind, directory, name = sys.argv[1:]
options = {"capacity_bytes": 64 << 20, "shared": None if kind == "durable" else name}
with Store(**options) if kind == "shared" else Store.open(directory, **options) as store:
    store.apply(view)
    store.push("latest", row)
    child = os.fork()
    if child == 0:
        more = FeatureView("more", view.entity, [Field("number", "float64")])
        is_refused = refused(
            lambda: store.push("latest", row),
            lambda: store.delete("latest", [{"user_id": 1}]),
            lambda: store.apply(more),
        )
        answer = store.get_feature_vector(["latest:number"], {"user_id": 1})[0]
        store.close()
        os._exit(7 if is_refused and answer == 1.0 else 8)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    store.push("latest", {**row, "number": 2.0, "event_timestamp": 2})
if kind != "shared":
    with Store.open(directory) as store:
        print(store.get_feature_vector(["latest:number"], {"user_id": 1})[0], store.info()["views"]["latest"]["rows"])
"""


@pytest.mark.parametrize("kind", ["durable", "shared", "both"])
def test_a_child_of_a_store_reads_and_writes_nothing(tmp_path: Path, name: str, kind: str) -> None:
    words = [sys.executable, "-c", WRITING_CHILD, kind, str(tmp_path / "store"), name]
    said = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout.split()
    assert said == (["7"] if kind == "shared" else ["7", "2.0", "1"])


LIVING_CHILD = """
import os, sys, time
from fastfeat import Entity, FeatureView, Field, Store
store = Store.open(sys.argv[1], capacity_bytes=64 << 20, shared=sys.argv[2])
store.apply(FeatureView("latest", Entity("user", {"user_id": "int64"}), [Field("number", "float64")], keep="latest"))
store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 1.0})
child = os.fork()
if child == 0:
    time.sleep(1000)
print(child, flush=True)
time.sleep(1000)
"""


def test_a_child_that_lives_on_keeps_neither_directory_nor_name(tmp_path: Path, name: str) -> None:
    words = [sys.executable, "-c", LIVING_CHILD, str(tmp_path / "store"), name]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    child = int(line(process))
    try:
        process.kill()
        process.wait()
        time.sleep(0.2)  # until the child has let go: it may not have run yet
        with Store.open(tmp_path / "store", capacity_bytes=64 << 20, shared=name) as store:
            assert number(store) == 1.0
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def test_nobody_reads_by_a_half_made_move(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread that maps pages moves, slowly here, others wait."""
    is_moving = threading.Event()

    def slowly(items: list[dict[str, Any]]) -> list[Definition]:
        is_moving.set()
        time.sleep(0.3)
        return definitions_from_list(items)

    with other_writer(name) as process:
        reader = AttachedStore(name)
        process.kill()
        process.wait()
        monkeypatch.setattr("fastfeat.attached.definitions_from_list", slowly)
        with Store(CAPACITY, shared=name) as store:
            store.apply(NUMBER)
            store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 2.0})
            assert is_moving.wait(10), "an idle reader moves by itself"
            position = reader.position
            assert number(reader) == 2.0
            assert position <= store.position
        reader.close()


def test_an_arena_of_another_run_of_the_machine_is_not_taken_up(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name may be a path on a disk, which may have kept the header and lost the rows."""
    generations = []
    for boot in ("one", "one", "two"):
        monkeypatch.setattr("fastfeat.shared.boot_id", lambda boot=boot: boot)
        with directory_store(tmp_path, name) as store:
            store.apply(NUMBER)
            store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 1.0})
            assert number(store) == 1.0
            generations.append(store.info()["shared"]["generation"])
    assert generations[0] == generations[1] < generations[2]


def test_a_stop_that_can_not_leave_the_arena_in_order_is_a_stop(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = directory_store(tmp_path, name)
    store.apply(NUMBER)
    store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 1.0})

    def refuse(*_: object) -> None:
        raise StorageError("the arena has no room for a catalogue")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_publish", refuse)
        store.close()
    with directory_store(tmp_path, name) as again:
        assert number(again) == 1.0
        assert again.info()["shared"]["generation"] > 1


def test_definitions_that_readers_could_not_be_told_of_are_told_when_applied_again(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("the arena has no room for a catalogue")

    with directory_store(tmp_path, name) as store, AttachedStore(name) as reader:
        with monkeypatch.context() as patched:
            patched.setattr(store._sharing, "publish", refuse)
            with pytest.raises(StorageError, match="no room"):
                store.apply(NUMBER)
        store.push("latest", {"user_id": 1, "event_timestamp": 1, "number": 1.0})
        assert number(store) == 1.0
        with pytest.raises(UnknownView):
            number(reader)
        store.apply(NUMBER)
        assert number(reader) == 1.0
        store.apply(FeatureService("more", [NUMBER["number"]]))
    with directory_store(tmp_path, name) as store:
        assert [version["version"] for version in store._storage.versions] == [1, 2]  # type: ignore[union-attr]
        assert number(store) == 1.0


# --- what is refused


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (0, b"FASTFOOD", "no arena"),
        (8, (99).to_bytes(4, "little"), "version 99"),
        (12, (1 << 24).to_bytes(4, "little"), "the arena's layout"),
        (24, (1 << 30).to_bytes(8, "little"), "its file has"),
    ],
)
def test_a_header_that_is_not_ours_is_refused(name: str, store: Store, at: int, value: bytes, match: str) -> None:
    arena = next(Path(name).glob("arena.*"))
    with arena.open("r+b") as file:
        file.seek(at)
        was = file.read(len(value))
        file.seek(at)
        file.write(value)
        file.flush()
        with pytest.raises(StorageError, match=match):
            AttachedStore(name)
        file.seek(at)
        file.write(was)


def test_a_damaged_catalogue_and_other_rows_are_refused(name: str, store: Store) -> None:
    arena = store._open_arena()
    text = arena.catalogue
    definitions, tables, state = json.loads(text)
    at, fingerprint = tables["latest"]
    arena.publish(json.dumps([definitions, {**tables, "latest": [at, fingerprint ^ 1]}, state]).encode())
    with pytest.raises(StorageError, match="laid out by another version"):
        AttachedStore(name)
    arena.publish(json.dumps([definitions, {**tables, "latest": [1 << 50, fingerprint]}, state]).encode())
    with pytest.raises(StorageError, match="outside of the arena"):
        AttachedStore(name)
    arena.publish(text)
    path = next(Path(name).glob("arena.*"))
    with path.open("r+b") as file:
        file.seek((arena.catalogue_word & (1 << 46) - 1) + 20)
        file.write(b"\xff")
    with pytest.raises(StorageError, match="catalogue is damaged"):
        AttachedStore(name)


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "a\0b"])
def test_a_name_that_names_nothing_is_refused(bad: str) -> None:
    with pytest.raises(DataError, match="names no shared arena"):
        Store(CAPACITY, shared=bad)


def test_permissions_are_for_the_group_and_nobody_else(name: str, store: Store) -> None:
    modes = {file.name.partition(".")[0]: file.stat().st_mode & 0o777 for file in Path(name).iterdir()}
    assert modes == {"arena": 0o640, "readers": 0o660, "current": 0o640, "LOCK": 0o600}
    assert Path(name).stat().st_mode & 0o777 == 0o750
    with pytest.raises(DataError, match="no group"):
        Store(CAPACITY, shared=name + "x", shared_group="no-such-group")


def fill_up(store: Store, first: int = 0) -> int:
    """The user, from the first on, that no longer fits."""
    for user in range(first, 1_000_000, 500):
        try:
            store.push("latest", [row(user + i, 1, text="x" * 1000) for i in range(500)])
        except ArenaFull:
            return user
    raise AssertionError("it never was full")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of its own, of 16 MiB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("a file system of its own can't be mounted here: needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)  # a test that failed may have it open


def test_a_full_file_system_is_an_error_and_no_signal(small: Path) -> None:
    """A small file system of its own, filled 20 times (200 in the benchmarks)."""
    with Store(CAPACITY, shared=f"{small}/arena") as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        with AttachedStore(f"{small}/arena") as other:
            for _ in range(20):
                user = fill_up(store)
                assert user > 0
                number = other.get_feature_vector(["latest:number"], {"user_id": user - 1})[0]
                assert number == pytest.approx(user - 1 + 0.001)
                store.delete("latest", {"user_id": list(range(user))})


def test_room_that_comes_in_a_full_file_system_is_used_to_its_last_pages(small: Path) -> None:
    """No page is taken, as part of a huge one, that the arena can't use because those before it are missing."""
    with Store(CAPACITY, shared=f"{small}/arena") as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        ballast = small / "ballast"
        ballast.write_bytes(bytes(3 << 20))
        users = fill_up(store)
        assert store.info()["arena"]["used"] > 12 << 20
        ballast.unlink()
        fill_up(store, users)
        assert store.info()["arena"]["used"] > (16 << 20) - (512 << 10)


def fill_the_rest(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_store_that_ends_on_a_full_file_system_lets_go_of_its_name(
    small: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Kept or not, and also where it could not even begin."""
    ballast, directory = small / "ballast", tmp_path_factory.mktemp("durable") / "store"
    options: dict[str, Any] = {"capacity_bytes": 8 << 20, "shared": f"{small}/arena"}
    for is_durable in (True, False):
        store = Store.open(directory, **options) if is_durable else Store(**options)
        store.apply(LATEST)
        fill_the_rest(ballast)
        store.close()
        fill_the_rest(ballast)
        with pytest.raises(StorageError, match=r"full|No space left|can.t be written"):
            Store(**options)
        ballast.unlink()
    with Store.open(directory, **options) as store:
        assert "latest" in store.info()["views"]


def test_an_arena_that_readers_cannot_be_told_of_is_an_error_of_ours(name: str) -> None:
    Path(name).mkdir()
    in_its_way = Path(name) / "current.tmp"
    in_its_way.mkdir()
    with pytest.raises(StorageError, match="current can't be written: Is a directory"):
        Store(CAPACITY, shared=name)
    in_its_way.rmdir()


def makes_huge_pages(directory: Path) -> bool:
    """Whether the system makes a huge page of two MiB of a file there, asked without a word of ours."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    readable, shared, anonymous, fixed, collapse = mmap.PROT_READ | mmap.PROT_WRITE, 0x01, 0x20, 0x10, 25
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(HUGE))
        file.flush()
        reserved = libc.mmap(None, 2 * HUGE, 0, 0x02 | anonymous, -1, 0)
        start = (reserved + HUGE - 1) // HUGE * HUGE
        assert libc.mmap(start, HUGE, readable, shared | fixed, file.fileno(), 0) == start
        made = bool(libc.madvise(start, HUGE, collapse) == 0)
        libc.munmap(ctypes.c_void_p(reserved), 2 * HUGE)
        return made


def huge_sizes(name: str) -> list[int]:
    """Of each mapping of the arena in this process: the bytes that lie in huge pages."""
    mappings = Path("/proc/self/smaps").read_text().split(f"{name}/arena.1\n")[1:]
    return [int(re.findall(r"ShmemPmdMapped: +(\d+) kB", text)[0]) << 10 for text in mappings]


def test_an_arena_lies_in_huge_pages_for_its_writer_and_its_readers(name: str) -> None:
    if not makes_huge_pages(Path("/dev/shm")):
        pytest.skip("this system makes no huge pages in /dev/shm (Linux before 6.1, or it is told not to)")
    with Store(CAPACITY, shared=name) as store:
        store.apply([USER, LATEST, WHOLE, SERVICE])
        fill(store, 40_000, versions=1)
        used = store.info()["arena"]["used"]
        with AttachedStore(name) as other:
            assert other.get_feature_vector(["latest:number"], {"user_id": 7})[0] == 7
            until(lambda: min(huge_sizes(name)) > used - 3 * HUGE)  # a reader maps as it goes
            assert len(huge_sizes(name)) == 2


# --- the client


def test_a_client_reads_from_memory_and_has_no_server_to_ask(name: str, store: Store) -> None:
    fill(store, 10)
    with connect(f"fastfeat+shm://{name}") as client:
        keys = {"user_id": list(range(12))}
        assert client.get_online_features("all", keys).to_dict() == store.get_online_features("all", keys).to_dict()
        out = np.empty((12, 6))
        assert client.get_feature_vectors(NUMBERS, keys, out=out) is out
        assert out.tobytes() == store.get_feature_vectors(NUMBERS, keys).tobytes()
        with pytest.raises(ConnectFailed, match=r"writer\.sock"):
            client.push("latest", row(1, 1))
    with pytest.raises(StorageError, match="there is no shared arena"):
        connect("fastfeat+shm://nobody-has-this-name")
    with pytest.raises(ConnectFailed, match="is not fastfeat"):
        connect("fastfeat+shm://")
