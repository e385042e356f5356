"""Histories for tests: rows of two views, a model of lists, a place in memory, and the checks that a history must pass.

The checks run on what is patched at the time, so that test_history_controls.py can show that each of them fails for a
history with a bug.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastfeat.errors import DiskFull, HistoryCorrupt, StorageError
from fastfeat.files import Files
from fastfeat.history import Covered, History, rowfile
from fastfeat.places import Place, open_place

from .faulty_files import ROOT, Crashed, FaultyFiles

if TYPE_CHECKING:
    from typing_extensions import Buffer

US = pa.timestamp("us", "UTC")
TIMES = [("event_timestamp", US), ("created_timestamp", US), ("_sequence", pa.uint64())]
USER = pa.schema([("user_id", pa.int64()), *TIMES, ("score", pa.float64()), ("note", pa.string())])
ACCOUNT = pa.schema([("country", pa.string()), ("number", pa.uint64()), *TIMES, ("vector", pa.list_(pa.float32(), 2))])
KEYS = {"user": ["user_id"], "account": ["country", "number"]}
SCHEMAS = {"user": USER, "account": ACCOUNT}

NOTHING_COVERED = Covered(0, 0)

Key = tuple[Any, ...]
Row = dict[str, Any]


def hash_of(key: Key) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def hashes_of(view: str, rows: Iterable[Row]) -> npt.NDArray[np.uint64]:
    return np.array([hash_of(key_of(view, row)) for row in rows], np.uint64)


def key_of(view: str, row: Row) -> Key:
    return tuple(row[name] for name in KEYS[view])


def row_of(view: str, key: Key, event_us: int, created_us: int) -> Row:
    """A row whose fields say which it is; the model gives it its sequence."""
    row = {**dict(zip(KEYS[view], key, strict=True)), "event_timestamp": event_us, "created_timestamp": created_us}
    if view == "user":
        return row | {"score": event_us * 0.25, "note": f"{key} at {event_us}"}
    return row | {"vector": [float(event_us % 1000), float(created_us % 1000)]}


def table_of(view: str, rows: Sequence[Row]) -> pa.Table:
    schema = SCHEMAS[view]
    return pa.table([pa.array([row[each.name] for row in rows], each.type) for each in schema], schema=schema)


def as_rows(table: pa.Table) -> list[Row]:
    """Plain rows, times in us, by sequence."""
    for index, name in enumerate(table.schema.names):
        if name.endswith("_timestamp"):
            table = table.set_column(index, name, table.column(name).cast(pa.int64()))
    return sorted(table.to_pylist(), key=lambda row: int(row["_sequence"]))


@dataclass
class Model:
    """What a history holds, as lists."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {"user": [], "account": []})
    deleted: dict[str, dict[Key, int]] = field(default_factory=lambda: {"user": {}, "account": {}})
    covered: Covered = NOTHING_COVERED

    def copy(self) -> Model:
        rows = {view: list(rows) for view, rows in self.rows.items()}
        return Model(rows, {view: dict(keys) for view, keys in self.deleted.items()}, self.covered)

    def add(self, rows: dict[str, list[Row]], deletes: dict[str, dict[Key, int]]) -> tuple[Any, ...]:
        """Take rows and deletes; the arguments of History.add for the same."""
        sequence = self.covered.sequence
        for view, some in rows.items():
            for row in some:
                self.rows[view].append(row | {"_sequence": sequence})
                sequence += 1
        for view, keys in deletes.items():
            for key, deleted_us in keys.items():
                self.deleted[view][key] = max(deleted_us, self.deleted[view].get(key, deleted_us))
        self.covered = Covered(sequence, self.covered.position + 100)
        fresh = {view: self.rows[view][len(self.rows[view]) - len(some) :] for view, some in rows.items()}
        tables = {view: table_of(view, some) for view, some in fresh.items()}
        hashes = {view: hashes_of(view, some) for view, some in fresh.items()}
        return tables, hashes, {view: deletes_of(view, keys) for view, keys in deletes.items()}, self.covered

    def erase(self) -> None:
        for view, keys in self.deleted.items():
            self.rows[view] = [
                row for row in self.rows[view] if row["created_timestamp"] >= keys.get(key_of(view, row), -(1 << 62))
            ]

    def erased(self) -> Model:
        model = self.copy()
        model.erase()
        return model


def deletes_of(view: str, keys: dict[Key, int]) -> pa.Table:
    fields = [SCHEMAS[view].field(name) for name in KEYS[view]]
    columns = [pa.array([key[i] for key in keys], each.type) for i, each in enumerate(fields)]
    return pa.table([*columns, pa.array(list(keys.values()), pa.int64())], [*KEYS[view], "deleted_us"])


def ask(history: History, view: str, keys: Sequence[Key], columns: Sequence[str] | None = None) -> pa.Table:
    fields = [SCHEMAS[view].field(name) for name in KEYS[view]]
    table = pa.table([pa.array([key[i] for key in keys], each.type) for i, each in enumerate(fields)], KEYS[view])
    return history.rows(view, table, np.array([hash_of(key) for key in keys], np.uint64), columns)


def held(history: History) -> Model:
    """All that a history holds."""
    model = Model(covered=history.covered)
    for view in SCHEMAS:
        model.rows[view] = sorted((row for t in history.scan(view) for row in as_rows(t)), key=lambda r: r["_sequence"])
        deletes = history.deletes(view)
        if deletes.num_rows:
            keys = zip(*(deletes.column(name).to_pylist() for name in KEYS[view]), strict=True)
            model.deleted[view] = dict(zip(keys, deletes.column("deleted_us").to_pylist(), strict=True))
    return model


def same(history: History, model: Model) -> None:
    """The history is sound and holds what the model holds, scanned and asked for."""
    assert held(history) == model
    assert history.check() == []
    for view, rows in model.rows.items():
        keys = sorted({key_of(view, row) for row in rows})
        for some in (keys, *([key] for key in keys[:3])):
            if some:
                wanted = [row for row in rows if key_of(view, row) in some]
                assert as_rows(ask(history, view, some)) == wanted


class MemoryPlace(Place):
    """Files in a dict; each write and removal is counted, and `fault` may raise at it, before or after it is done."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.where = "memory"
        self.files = files if files is not None else {}
        self.opened: list[str] = []
        self.before: Callable[[str, str], None] = lambda verb, name: None
        self.after: Callable[[str, str], None] = lambda verb, name: None

    def write(self, name: str, data: Buffer) -> None:
        self.before("write", name)
        self.files[name] = bytes(data)
        self.after("write", name)

    def read(self, name: str) -> memoryview:
        if name not in self.files:
            raise FileNotFoundError(name)
        return memoryview(self.files[name])

    def open(self, name: str) -> pa.NativeFile:
        self.opened.append(name)
        return pa.BufferReader(self.read(name))

    def list(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.files if name.startswith(prefix))

    def size(self, name: str) -> int:
        return len(self.read(name))

    def remove(self, name: str) -> None:
        self.before("remove", name)
        self.files.pop(name, None)
        self.after("remove", name)

    def sub(self, name: str) -> Place:
        raise NotImplementedError


# --- the checks


def some_rows(view: str, start: int, count: int, entities: int = 5) -> list[Row]:
    keys: list[Key] = [(n,) if view == "user" else ("NL" if n % 2 else "DE", n) for n in range(entities)]
    return [row_of(view, keys[n % entities], 1_000 - n % 7, 2_000 + n) for n in range(start, start + count)]


def written(history: History, adds: int = 3) -> Model:
    """Give the history a few adds of both views, with deletes."""
    model = Model()
    for turn in range(adds):
        rows = {"user": some_rows("user", turn * 10, 10), "account": some_rows("account", turn * 6, 6)}
        history.add(*model.add(rows, {"user": {(turn,): 2_000 + turn * 10}}))
    return model


def check_crashes(seeds: int, also_recovering: bool = False) -> int:
    """Power fails before any change of the disk: what was durable is there, what was not is as a whole or not at all.

    With also_recovering it fails again, at some moment of the opening that follows. Returns how many disks were tried.
    """
    tried = 0
    for crash_at in itertools.count(1):
        disk = FaultyFiles(crash_at=crash_at)
        told: list[Model] = []
        try:
            life_on(disk, told)
        except Crashed:
            pass
        else:
            return tried
        for seed in range(seeds):
            image = disk.image(seed)
            if also_recovering:
                image.crash_at = seed % 7 + 1
                with suppress(Crashed):
                    History.open(place_on(image))
                image = image.image(seed)
            check_recovered(History.open(place_on(image)), told)
            tried += 1
    raise AssertionError("unreachable")


def check_failing_calls(code: int) -> int:
    """Each call to the disk fails once: a typed error or none, and the disk holds what was told. Returns the calls."""
    for number in itertools.count(1):
        disk = FaultyFiles(fail_at=(number, code))
        told: list[Model] = []
        with suppress(StorageError):
            life_on(disk, told)
        if disk.calls < number:
            return number
        for recovered in (disk.image(number), FaultyFiles.holding(disk.contents())):
            check_recovered(History.open(place_on(recovered)), told)
    raise AssertionError("unreachable")


def place_on(disk: Files) -> Place:
    return open_place(disk, ROOT + "/history")


def life_on(disk: Files, told: list[Model]) -> None:
    """Add, delete, compact; each state is told before it is begun, and those before it forgotten once it is durable."""
    model = Model()
    told.append(model.copy())
    history = History.open(place_on(disk))
    for turn in range(2):
        arguments = model.add({"user": some_rows("user", turn * 4, 4, entities=2)}, {"user": {(turn,): 2_003}})
        told.append(model.copy())
        history.add(*arguments)
        del told[:-1]
    history.compact(all_files=True)
    model.erase()
    told[:] = [model.copy()]
    arguments = model.add({"user": some_rows("user", 8, 2, entities=1)}, {})
    told.append(model.copy())
    history.add(*arguments)


def check_recovered(history: History, told: list[Model]) -> None:
    now = held(history)
    assert history.check() == []
    assert any(is_between(now, state) for state in told), f"{now} is none of {told}"
    names = set(history._place.list())
    assert {name for name in names if not name.startswith("catalog-")} == history._catalog.names()
    assert len(names - history._catalog.names()) <= 2
    history.add({}, {}, {}, now.covered)
    history.compact(all_files=True)
    assert held(history) == now.erased()


def is_between(now: Model, state: Model) -> bool:
    """Holds all of the state but rows that its deletes take."""
    if (now.covered, now.deleted) != (state.covered, state.deleted):
        return False
    least = state.erased()
    for view in SCHEMAS:
        if not all(row in state.rows[view] for row in now.rows[view]):
            return False
        if not all(row in now.rows[view] for row in least.rows[view]):
            return False
    return True


def check_pruning(keys: Sequence[Key], view: str) -> None:
    """Each key is found, whichever row group it is in, also where it fills more than one."""
    model = Model()
    place = MemoryPlace()
    history = History.open(place)
    for turn in range(2):
        # The files' times differ, so that the n-th row groups of two files do not follow on the ones before them.
        rows = [row_of(view, key, (1 + 9 * turn) * n, n) for key in keys for n in range(1 + len(repr(key)) % 9)]
        history.add(*model.add({view: rows}, {}))
    same(history, model)
    history.compact(all_files=True)
    same(history, model)
    for key in keys:
        wanted = [row for row in model.rows[view] if key_of(view, row) == key]
        assert as_rows(ask(history, view, [key])) == wanted


def check_erasure() -> None:
    """A compaction takes what was created before the delete and no more, and no file has a byte of it any more."""
    place = MemoryPlace()
    history = History.open(place)
    model = Model()
    rows = [row_of("user", (key,), 50, created) for key in (1, 2) for created in (99, 100, 101)]
    for row in rows:
        row["note"] = f"marker-{row['user_id']}-{row['created_timestamp']}"
    history.add(*model.add({"user": rows}, {}))
    history.add(*model.add({}, {"user": {(1,): 100}}))
    same(history, model)
    report = history.compact(all_files=True)
    model.erase()
    assert report.rows_erased == 1
    assert len(model.rows["user"]) == 5
    same(history, model)
    assert not any(b"marker-1-99" in data for data in place.files.values())
    assert all(
        any(b"marker-" + left in data for data in place.files.values()) for left in (b"1-100", b"1-101", b"2-99")
    )


def check_latest_delete() -> None:
    """Of several deletes of a key the latest counts, and it takes also rows that come after it."""
    history = History.open(MemoryPlace())
    model = Model()
    for deleted_us in (50, 70, 60):
        history.add(*model.add({}, {"user": {(1,): deleted_us, (2,): 10}}))
    same(history, model)
    assert history.deletes("user").to_pylist() == [
        {"user_id": 1, "deleted_us": 70},
        {"user_id": 2, "deleted_us": 10},
    ]
    history.add(*model.add({"user": [row_of("user", (1,), 0, created) for created in (69, 70)]}, {}))
    history.compact(all_files=True)
    same(history, model.erased())
    assert history.compact(all_files=True).buckets == 0
    history.add(*model.add({}, {"user": {(1,): 80}}))
    assert history.compact(all_files=True).rows_erased == 1
    assert history._catalog.files == ()
    same(history, model.erased())


def check_readers() -> None:
    """A reader that began before a compaction reads on; the files go with the last such reader."""
    place = MemoryPlace()
    history = History.open(place)
    model = written(history)
    scan = history.scan("user")
    tables = [next(scan)]
    before = set(place.files)
    history.compact(all_files=True)
    tables += scan
    assert sorted((row for t in tables for row in as_rows(t)), key=lambda r: r["_sequence"]) == model.rows["user"]
    assert history._catalog.names() == {name for name in place.files if not name.startswith("catalog-")}
    assert len(before - set(place.files)) > 3


def flips(data: bytes) -> Iterator[bytes]:
    """The data with one bit turned, in each byte another."""
    for at in range(len(data)):
        turned = bytearray(data)
        turned[at] ^= 1 << (at * 5 % 8)
        yield bytes(turned)


def damaged(data: bytes) -> Iterator[bytes]:
    yield from flips(data)
    yield from (data[:size] for size in range(0, len(data), max(1, len(data) // 200)))


def check_damage() -> int:
    """Whatever bit of a file is turned, or wherever it ends: HistoryCorrupt or the right rows, and check says it."""
    place = MemoryPlace()
    history = History.open(place)
    model = Model()
    history.add(*model.add({"user": some_rows("user", 0, 8, entities=1)}, {"user": {(0,): 3}}))
    found = 0
    names = [f"catalog-{history._catalog.number}.json", *history._catalog.names()]
    for name in names:
        for data in damaged(place.files[name]):
            found += 1
            try:
                other = History.open(MemoryPlace({**place.files, name: data}), read_only=True)
                if found % 5 == 0:
                    assert other.check() or name.startswith("catalog-"), f"{name}: a turned bit is not seen"
                assert as_rows(ask(other, "user", [(0,)])) == model.rows["user"]
                assert other.deletes("user").equals(deletes_of("user", model.deleted["user"]))
                assert other.covered == model.covered
            except HistoryCorrupt:
                continue
    return found


def check_failures() -> int:
    """Whichever write or removal fails, before or after it was done: nothing is lost or there twice, and it goes on."""
    for turn in range(200):
        place = MemoryPlace()
        history = History.open(place)
        model = Model()
        history.add(*model.add({"user": some_rows("user", 0, 4, entities=2)}, {"user": {(0,): 2_001}}))
        changes = 0

        def fail(verb: str, name: str, turn: int = turn) -> None:
            nonlocal changes
            changes += 1
            if changes == turn // 2 + 1:
                raise DiskFull(f"cannot {verb} {name}")

        if turn % 2:
            place.after = fail
        else:
            place.before = fail
        arguments = (grown := model.copy()).add({"user": some_rows("user", 4, 4, entities=2)}, {"user": {(1,): 2_005}})
        try:
            history.add(*arguments)
        except DiskFull:
            same(history, model)
            same(History.open(MemoryPlace(dict(place.files))), model if history.covered == held_by(place) else grown)
            history.add(*arguments)
        same(history, grown)
        try:
            history.compact(all_files=True)
        except DiskFull:
            history.compact(all_files=True)
        same(history, grown.erased())
        same(History.open(MemoryPlace(dict(place.files))), grown.erased())
        place.before = place.after = lambda verb, name: None
        history.add(*grown.add({}, {}))
        assert {name for name in place.files if not name.startswith("catalog-")} == history._catalog.names()
        if changes <= turn // 2:
            return turn
    raise AssertionError("the scenario has more operations than were tried")


def held_by(place: MemoryPlace) -> Covered:
    return History.open(MemoryPlace(dict(place.files)), read_only=True).covered


def small_row_groups() -> dict[str, int]:
    """Names and values to patch in rowfile, so that few rows fill many row groups."""
    assert rowfile.GROUP_ROWS_MIN > 4
    return {"GROUP_ROWS_MIN": 4, "GROUP_ROWS_MAX": 4}
