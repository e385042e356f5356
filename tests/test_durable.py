"""Store.open: what was acknowledged is there again, whoever asks and however the store ended."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import fastfeat
from fastfeat import (
    ArenaFull,
    DataError,
    DirectoryLocked,
    DiskFull,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    IncompatibleSchema,
    LogFailed,
    ReadOnly,
    Receipt,
    Status,
    StorageError,
    Store,
)
from fastfeat.durable import resting
from fastfeat.files import Files

from .serving import serving

USER = Entity("user", {"user_id": "int64"})
FIELDS = [Field("balance", "float64"), Field("country", "string"), Field("tags", "list<string>")]
LATEST = FeatureView("latest", USER, FIELDS, keep="latest")
WHOLE = FeatureView("whole", USER, FIELDS)
RECENT = FeatureView("recent", USER, FIELDS, keep=timedelta(seconds=10), ttl=timedelta(days=1))
SERVICE = FeatureService("everything", [LATEST, WHOLE, RECENT])
START_US = 1_700_000_000_000_000
CAPACITY = 64 << 20


class Time:
    """A clock that tests drive."""

    def __init__(self) -> None:
        self.us = START_US + 1_000_000_000

    def __call__(self) -> int:
        return self.us


def open_store(directory: Path, **options: Any) -> Store:
    return Store.open(directory, **{"capacity_bytes": CAPACITY, "clock": Time(), "segment_size": 1 << 16, **options})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "some" / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    with open_store(directory) as store:
        store.apply([LATEST, WHOLE, RECENT, SERVICE])
        yield store


def row(user: int, second: int) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_timestamp": START_US + second * 1_000_000,
        "balance": user + second / 10,
        "country": f"c{second}",
        "tags": ["t"] * (second % 3),
    }


def fill(store: Store, seconds: range = range(30)) -> None:
    for second in seconds:
        for view in ("latest", "whole", "recent"):
            store.push(view, [row(user, second) for user in range(4)])


def crash(store: Store) -> None:
    """End like a process that dies: nothing is flushed, only the lock is let go, as the kernel would."""
    storage, store._storage = store._storage, None
    assert storage is not None
    storage._is_closing.set()
    for thread in storage._threads:
        thread.join()
    os.close(storage._lock_fd)


def answers(store: Store, seconds: range = range(-1, 40, 3)) -> list[Any]:
    out: list[Any] = []
    for second in seconds:
        for known_at in (None, START_US + 1_000_000_000 + 40):
            result = store.get_online_features(
                "everything", {"user_id": [0, 1, 2, 3, 4]}, as_of=START_US + second * 1_000_000, known_at=known_at
            )
            out.append((result.to_dict(), {name: each.tolist() for name, each in result.statuses.items()}))
    return out


def test_a_store_that_ended_is_there_again(directory: Path, store: Store) -> None:
    fill(store)
    store.delete("latest", [{"user_id": 2}])
    before = answers(store)
    store.close()
    with open_store(directory) as again:
        assert answers(again) == before
        assert again.info()["views"].keys() == {"latest", "whole", "recent"}


@pytest.mark.parametrize("kept", ["log", "snapshot", "snapshot and log", "history", "all"])
def test_a_store_that_crashed_is_there_again(directory: Path, kept: str) -> None:
    store = open_store(directory)
    store.apply([LATEST, WHOLE, RECENT, SERVICE])
    fill(store, range(20))
    store.delete("whole", [{"user_id": 1}])
    if kept in ("history", "all"):
        store.flush_history()
    if kept != "log" and kept != "history":
        store.snapshot()
    if kept in ("snapshot and log", "all"):
        fill(store, range(20, 30))
        store.delete("latest", [{"user_id": 2}])
        store.push("whole", row(2, 3))  # late
    before = answers(store)
    crash(store)
    with open_store(directory) as again:
        assert answers(again) == before
        fill(again, range(30, 32))
        assert again.get_feature_vector(["latest:balance"], {"user_id": 0}, as_of=START_US + 31_000_000) == [3.1]


def test_dropped_rows_are_answered_from_the_past_in_every_form(store: Store) -> None:
    """A view that keeps one row answers like one that keeps all."""
    fill(store, range(10))
    store.flush_history()
    fill(store, range(10, 20))
    ids = {"user_id": np.arange(6)}
    for second in (-1, 0, 4, 9, 10, 15, 19, 25):
        at = START_US + second * 1_000_000 + 1
        for known_at in (None, START_US + 1_000_000_000 + 31):
            names = [[f"{view}:{field}" for field in ("balance", "country", "tags")] for view in ("latest", "whole")]
            one, all_ = (store.get_online_features(each, ids, as_of=at, known_at=known_at) for each in names)
            assert list(one.to_dict().values()) == list(all_.to_dict().values())
            assert one.statuses["latest"].tolist() == all_.statuses["whole"].tolist()
            assert one.event_times["latest"].tolist() == all_.event_times["whole"].tolist()
            matrices = [
                store.get_feature_vectors([f"{view}:balance"], ids, as_of=at, known_at=known_at)
                for view in ("latest", "whole")
            ]
            assert matrices[0].tobytes() == matrices[1].tobytes()
            vectors = [
                store.get_feature_vector([f"{view}:balance"], {"user_id": 1}, as_of=at, known_at=known_at)
                for view in ("latest", "whole")
            ]
            assert vectors[0].tobytes() == vectors[1].tobytes()


def test_a_client_reads_the_past_as_the_store_does(store: Store) -> None:
    fill(store, range(10))
    store.flush_history()
    fill(store, range(10, 15))
    ids = {"user_id": [0, 3, 9]}
    with serving(store) as server, fastfeat.connect(server.url) as client:
        for second in (2, 12):
            at = START_US + second * 1_000_000
            assert (
                client.get_online_features("everything", ids, as_of=at).to_dict()
                == store.get_online_features("everything", ids, as_of=at).to_dict()
            )
            given = client.get_feature_vectors(["latest:balance"], ids, as_of=at)
            assert given.tobytes() == store.get_feature_vectors(["latest:balance"], ids, as_of=at).tobytes()


def test_a_receipt_gives_the_same_answer_for_ever(directory: Path, store: Store) -> None:
    fill(store)
    results = [
        store.get_online_features("everything", {"user_id": [0, 1, 5]}),
        store.get_online_features(["latest:tags", "recent:country"], [{"user_id": 3}], as_of=START_US + 5_000_000),
    ]
    receipts = [Receipt.from_json(result.receipt.to_json()) for result in results if result.receipt]
    assert len(receipts) == 2

    def check(store: Store) -> None:
        for result, receipt in zip(results, receipts, strict=True):
            again = store.replay(receipt)
            assert again.to_dict() == result.to_dict()
            assert again.names == result.names
            assert again.receipt == receipt

    store.push("latest", [{**row(user, 5), "balance": -1.0} for user in range(4)])  # a late correction
    late = {"user_id": [0], "event_timestamp": [START_US + 29_500_000], "created": [START_US], "balance": [-7.0]}
    schema = pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.int64()), ("created", pa.int64())])
    table = pa.table({**{f.name: pa.array(late[f.name], f.type) for f in schema}, "balance": late["balance"]})
    table = table.append_column("country", pa.array(["x"])).append_column("tags", pa.array([[]], pa.list_(pa.string())))
    for name in ("event_timestamp", "created"):
        i = table.schema.get_field_index(name)
        table = table.set_column(i, name, table.column(name).cast(pa.timestamp("us", "UTC")))
    store.load("latest", table, created_time="created")  # that says it was known long ago
    store.apply(FeatureView("recent", USER, FIELDS, keep=timedelta(seconds=10), ttl=timedelta(seconds=1)))
    check(store)
    assert store.get_online_features("everything", {"user_id": [0, 1, 5]}).to_dict() != results[0].to_dict()
    store.compact()
    check(store)
    store.close()
    with open_store(directory) as again:
        check(again)
        again.delete("latest", [{"user_id": 0}])
        assert again.replay(receipts[0]).statuses["latest"].tolist()[0] == Status.DELETED


def test_a_receipt_of_elsewhere_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="version 9 of the definitions"):
        store.replay(Receipt("everything", 9, {"user_id": [1]}, 0, None, 0))
    with pytest.raises(DataError, match="no receipt"):
        Receipt.from_json("{}")
    with pytest.raises(StorageError, match="in memory"), Store(1 << 20) as other:
        other.replay(Receipt("everything", 1, {"user_id": [1]}, 0, None, 0))


def test_one_owner_at_a_time(directory: Path, store: Store) -> None:
    with pytest.raises(DirectoryLocked, match=str(directory)):
        open_store(directory)
    store.close()
    open_store(directory).close()


def test_a_reader_beside_the_owner_sees_what_was_there(directory: Path, store: Store) -> None:
    fill(store, range(5))
    with open_store(directory, read_only=True) as reader:
        assert answers(reader) == answers(store)
        fill(store, range(5, 6))
        assert answers(reader) != answers(store)
        for write in (
            lambda: reader.push("latest", row(1, 1)),
            lambda: reader.delete("latest", [{"user_id": 1}]),
            lambda: reader.apply(FeatureView("new", USER, FIELDS)),
            lambda: reader.snapshot(),
            lambda: reader.flush_history(),
        ):
            with pytest.raises(ReadOnly, match="opened read-only"):
                write()
    fill(store, range(6, 7))


def test_a_reader_opens_whatever_the_owner_does_meanwhile(directory: Path, store: Store) -> None:
    is_over = threading.Event()

    def own() -> None:
        second = 0
        while not is_over.is_set():
            fill(store, range(second, second + 1))
            store.snapshot()
            store.flush_history()
            second += 1

    owner = threading.Thread(target=own)
    owner.start()
    try:
        for _ in range(15):
            with open_store(directory, read_only=True) as reader:
                rows = {name: view["rows"] for name, view in reader.info()["views"].items()}
                assert rows["whole"] % 4 == 0
    finally:
        is_over.set()
        owner.join()


def test_a_reader_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not there"):
        open_store(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_definitions_are_remembered_and_held_to(directory: Path, store: Store) -> None:
    store.close()
    with open_store(directory) as again:
        again.apply([LATEST, SERVICE])
        with pytest.raises(IncompatibleSchema):
            again.apply(FeatureView("latest", USER, FIELDS[:1], keep="latest"))
        assert again.info()["storage"]["definitions"] == 1
        again.apply(FeatureView("whole", USER, FIELDS, ttl=timedelta(days=3)))
    with open_store(directory) as again:
        assert again.info()["views"]["whole"]["ttl_us"] == 3 * 86_400 * 1_000_000


def test_created_times_go_on_where_they_were(directory: Path, store: Store) -> None:
    last = store.push("whole", row(1, 1))
    last = store.delete("whole", [{"user_id": 3}])
    crash(store)
    time = Time()
    time.us = START_US  # a clock that was set back
    with open_store(directory, clock=time) as again:
        assert again.push("whole", row(1, 2)) == last + 1


def test_writes_of_many_threads_are_all_there(directory: Path, store: Store) -> None:
    def write(number: int) -> None:
        for i in range(25):
            store.push("whole", [row(number * 100 + i, 1), row(number * 100 + i, 2)])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    crash(store)
    with open_store(directory) as again:
        assert again.info()["views"]["whole"]["rows"] == 8 * 25 * 2


def test_a_bad_push_of_a_group_spoils_no_other(store: Store) -> None:
    answers = store.push_group(
        [
            ("whole", row(1, 1)),
            ("whole", {**row(2, 1), "balance": "much"}),
            ("nothing", row(3, 1)),
            ("whole", []),
            ("latest", [row(4, 1)]),
            ("whole", pa.table({"user_id": [5]})),
            ("whole", row(6, 1)),
        ]
    )
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == ["int", "DataError", "UnknownView", "int", "int", "DataError", "int"]
    of_whole = [answers[0], answers[3], answers[6]]
    assert all(isinstance(each, int) for each in of_whole)
    assert of_whole == sorted(of_whole, key=str)  # int us of one length
    assert len({*of_whole, answers[4]}) == 4
    found = store.get_online_features(["whole:balance"], {"user_id": [1, 2, 5, 6]}).statuses["whole"]
    assert found.tolist() == [Status.PRESENT, Status.NOT_FOUND, Status.NOT_FOUND, Status.PRESENT]


def test_one_bad_push_costs_the_others_no_sync_each(directory: Path) -> None:
    disk = Disk()
    with open_store(directory, files=disk) as store:
        store.apply([WHOLE])
        before = disk.syncs
        pushes: list[tuple[str, Any]] = [("whole", row(user, 1)) for user in range(50)]
        pushes[7] = ("whole", {**row(7, 1), "country": 7})
        answers = store.push_group(pushes)
        assert [i for i, answer in enumerate(answers) if not isinstance(answer, int)] == [7]
        assert disk.syncs - before == 1
        assert store.info()["views"]["whole"]["rows"] == 49


class Disk(Files):
    """The real disk, but where a test says no."""

    def __init__(self) -> None:
        self.sync_error = 0
        self.allocate_error = 0
        self.syncs = 0

    def sync(self, fd: int) -> None:
        if self.sync_error:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        self.syncs += 1
        super().sync(fd)

    def allocate(self, fd: int, size: int) -> None:
        if self.allocate_error:
            raise OSError(self.allocate_error, os.strerror(self.allocate_error))
        super().allocate(fd, size)


def test_a_full_disk_refuses_writes_until_there_is_space(directory: Path) -> None:
    disk = Disk()
    store = open_store(directory, files=disk, segment_size=2048)
    store.apply([WHOLE])
    disk.allocate_error = errno.ENOSPC
    taken = 0
    while not isinstance(store.push_group([("whole", row(1, taken))])[0], DiskFull):
        taken += 1
        assert taken < 100
    for _ in range(3):
        with pytest.raises(DiskFull):
            store.push("whole", row(1, taken))
    assert store.get_feature_vector(["whole:balance"], {"user_id": 1}) == [1 + (taken - 1) / 10]
    assert store.info()["views"]["whole"]["rows"] == taken
    disk.allocate_error = 0
    store.push("whole", row(1, taken))
    crash(store)
    with open_store(directory) as again:
        assert again.get_feature_vector(["whole:balance"], {"user_id": 1}) == [1 + taken / 10]
        assert again.info()["views"]["whole"]["rows"] == taken + 1


def test_after_a_failed_sync_no_write_is_taken(directory: Path) -> None:
    disk = Disk()
    store = open_store(directory, files=disk)
    store.apply([WHOLE])
    store.push("whole", row(1, 1))
    disk.sync_error = errno.EIO
    with pytest.raises(LogFailed):
        store.push("whole", row(1, 2))
    disk.sync_error = 0
    with pytest.raises(LogFailed):
        store.push("whole", row(1, 3))
    with pytest.raises(LogFailed):
        store.apply(FeatureView("new", USER, FIELDS))
    assert store.get_feature_vector(["whole:balance"], {"user_id": 1}) == [1.1]
    assert store.info()["storage"]["read_only"]
    store.close()
    with open_store(directory) as again:  # the one that was refused may be there or not
        assert again.info()["views"]["whole"]["rows"] in (1, 2)


def test_fsync_on_an_interval_and_never(tmp_path: Path) -> None:
    for fsync in ("interval", "off"):
        store = open_store(tmp_path / fsync, fsync=fsync, fsync_interval=0.01)
        store.apply([LATEST, WHOLE, RECENT, SERVICE])
        fill(store, range(5))
        before = answers(store)
        crash(store)
        with open_store(tmp_path / fsync) as again:
            assert answers(again) == before
    with pytest.raises(DataError, match="fsync is 'sometimes'"):
        open_store(tmp_path / "x", fsync="sometimes")


def test_the_log_is_dropped_once_two_snapshots_and_the_history_cover_it(directory: Path, store: Store) -> None:
    for second in range(100):
        store.push("whole", [row(user, second) for user in range(50)])
    segments = len(list((directory / "log").glob("*.seg")))
    assert segments > 1
    store.flush_history()
    store.snapshot()
    store.snapshot()
    assert len(list((directory / "log").glob("*.seg"))) == 1
    before = answers(store)
    crash(store)
    with open_store(directory) as again:
        assert answers(again) == before


def test_a_gentle_snapshot_rests_after_each_part_and_holds_the_same(directory: Path, store: Store) -> None:
    fill(store, range(10))
    before = answers(store)
    took = []
    for is_gentle in (False, True):
        began = time.perf_counter()
        store.snapshot(is_gentle=is_gentle)
        took.append(time.perf_counter() - began)
    hurried, gentle = sorted((directory / "snapshots").iterdir())
    sizes = [sorted(part.stat().st_size for part in at.rglob("*.arrow")) for at in (hurried, gentle)]
    assert sizes[0] == sizes[1]
    assert took[1] > took[0]
    crash(store)
    with open_store(directory) as again:
        assert answers(again) == before


def test_what_rests_sleeps_in_proportion_and_not_once_it_is_over() -> None:
    asked: list[float] = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            asked.append(timeout)
            return True

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    assert list(resting(slow(), 0.0, Watched())) == [0, 1, 2]
    assert not asked
    assert list(resting(slow(), 3.0, Watched())) == [0, 1, 2]
    assert len(asked) == 3
    assert all(0.03 <= seconds <= 1 for seconds in asked)


def test_a_damaged_snapshot_gives_way_to_the_one_before(directory: Path, store: Store) -> None:
    fill(store, range(10))
    store.snapshot()
    fill(store, range(10, 12))
    newest = store.snapshot()
    before = answers(store)
    crash(store)
    part = max((directory / "snapshots" / f"{newest.generation:020}").rglob("*.arrow"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with open_store(directory) as again:
        assert answers(again) == before


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["manifest.json", "latest/rows/*.arrow"])
def test_either_snapshot_may_be_damaged_and_the_next_one_takes_its_place(
    directory: Path, store: Store, which: int, name: str
) -> None:
    for second in range(0, 30, 10):
        fill(store, range(second, second + 10))
        store.flush_history()
        store.snapshot()
    expected = answers(store)
    crash(store)
    older, newer = sorted((directory / "snapshots").iterdir())
    victim = next([older, newer][which].glob(name))
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.write_bytes(content)
    with open_store(directory) as again:
        assert answers(again) == expected
        again.snapshot()
        assert sorted((directory / "snapshots").iterdir())[:-1] == [older if which else newer]
    with open_store(directory, read_only=True) as again:
        assert answers(again) == expected


def test_compaction_takes_the_deleted_from_every_file(directory: Path, store: Store) -> None:
    marker = "a-country-that-only-this-user-lives-in"
    store.push("whole", {**row(7, 1), "country": marker})
    store.flush_history()
    store.snapshot()
    fill(store, range(3))

    def files_with_marker() -> list[Path]:
        found = []
        for path in directory.rglob("*"):
            if path.suffix == ".arrow":
                content = str(pa.ipc.open_file(path).read_all().to_pydict())
            elif path.suffix == ".parquet":
                content = str(pa.parquet.read_table(path).to_pydict())
            else:
                content = path.read_bytes().decode("latin-1") if path.is_file() else ""
            if marker in content:
                found.append(path)
        return found

    assert {path.suffix for path in files_with_marker()} == {".arrow", ".parquet", ".seg"}
    store.delete("whole", [{"user_id": 7}])
    store.compact()
    assert files_with_marker() == []
    assert store.get_online_features(["whole:country"], {"user_id": [7]}).statuses["whole"] == [Status.DELETED]


def load_batches(rows: int) -> pa.RecordBatchReader:
    """Batches of ten rows: user i at second 1."""
    schema = pa.schema([("user_id", pa.int64()), ("event_timestamp", pa.timestamp("us", "UTC")), ("balance", "f8")])
    schema = schema.append(pa.field("country", pa.string())).append(pa.field("tags", pa.list_(pa.string())))

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, 10):
            yield pa.RecordBatch.from_pylist([row(user, 1) for user in range(start, start + 10)], schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def test_a_load_that_meets_a_full_disk_says_how_far_it_came(directory: Path) -> None:
    disk = Disk()
    store = open_store(directory, files=disk, segment_size=1 << 14)
    store.apply([WHOLE])
    disk.allocate_error = errno.ENOSPC
    with pytest.raises(DiskFull) as caught:
        store.load("whole", load_batches(1000))
    taken = caught.value.report.accepted
    assert 0 < taken < 1000
    assert store.info()["views"]["whole"]["rows"] == taken
    disk.allocate_error = 0
    assert store.load("whole", load_batches(1000)).accepted == 1000
    crash(store)
    with open_store(directory) as again:
        assert again.info()["views"]["whole"] == {
            **again.info()["views"]["whole"],
            "rows": taken + 1000,
            "entities": 1000,
        }


def test_a_load_from_a_broken_source_keeps_what_came_before(store: Store) -> None:
    good = load_batches(200)

    def batches() -> Iterator[pa.RecordBatch]:
        yield from good
        raise pa.ArrowInvalid("the source broke")

    with pytest.raises(DataError, match="the source broke") as caught:
        store.load("whole", pa.RecordBatchReader.from_batches(good.schema, batches()))
    assert caught.value.report.accepted == 200
    assert store.info()["views"]["whole"]["rows"] == 200


@pytest.mark.parametrize("capacity", [8 << 20, 64 << 20, 512 << 20])
def test_a_store_may_be_opened_with_another_capacity(directory: Path, store: Store, capacity: int) -> None:
    """And so with other shards than its snapshot was taken of."""
    fill(store)
    store.delete("latest", [{"user_id": 2}])
    before = answers(store)
    store.close()
    with open_store(directory, capacity_bytes=capacity) as again:
        assert answers(again) == before
        fill(again, range(30, 32))


def test_a_store_that_outgrew_its_capacity_says_so(directory: Path, store: Store) -> None:
    store.load("whole", load_batches(20_000))
    store.close()
    with pytest.raises(ArenaFull, match="larger capacity_bytes"):
        open_store(directory, capacity_bytes=1 << 20)
    with open_store(directory) as again:
        assert again.info()["views"]["whole"]["rows"] == 20_000
