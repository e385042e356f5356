"""History: every row is found again, exact, until a compaction takes what was deleted; and nothing else ever is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat.errors import HistoryCorrupt, ReadOnly
from fastfeat.files import Files
from fastfeat.history import Covered, History, rowfile
from fastfeat.history.cache import Cache
from fastfeat.history.catalog import Catalog, catalog_name, encode_catalog
from fastfeat.history.history import BUCKETS, bucket_of
from fastfeat.history.merging import MERGE_AT, files_to_merge
from fastfeat.places import Place, open_place

from .histories import (
    USER,
    MemoryPlace,
    Model,
    as_rows,
    ask,
    check_erasure,
    check_latest_delete,
    check_pruning,
    check_readers,
    hash_of,
    held,
    row_of,
    same,
    small_row_groups,
    some_rows,
    table_of,
    written,
)
from .object_store import object_store


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in small_row_groups().items():
        monkeypatch.setattr(rowfile, name, value)


@pytest.fixture(scope="module")
def bucket_url() -> Iterator[str]:
    with object_store() as store:
        yield store.make_bucket("history")


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "directory":
        return open_place(Files(), str(tmp_path / "history"))
    return open_place(Files(), request.getfixturevalue("bucket_url"))


# --- what is added is found


def test_rows_come_back_from_a_directory_and_from_s3(place: Place) -> None:
    history = History.open(place)
    model = written(history, 2)
    same(history, model)
    assert ask(history, "user", [(99,)]).num_rows == 0
    history.compact(all_files=True)
    same(History.open(place), model.erased())
    for name in place.list():
        place.remove(name)


def test_every_type_comes_back_bit_for_bit() -> None:
    times = pa.array([1, 2, 3], pa.int64()).cast(pa.timestamp("us", "UTC"))
    nan = np.frombuffer(np.array([0x7FF8_0000_0000_0123, 1 << 63, 0x7FF0 << 48], np.uint64).tobytes(), np.float64)
    table = pa.table(
        {
            "id": pa.array([-(1 << 63), 0, (1 << 63) - 1]),
            "event_timestamp": times,
            "created_timestamp": times,
            "_sequence": pa.array([0, 1, 2], pa.uint64()),
            "number": nan,
            "small": pa.array([-128, None, 127], pa.int8()),
            "wide": pa.array([0, None, (1 << 64) - 1], pa.uint64()),
            "is_new": pa.array([True, None, False]),
            "raw": pa.array([b"", None, b"\xff\x00"]),
            "when": pa.array([-1, None, 0], pa.timestamp("us", "UTC")),
            "vector": pa.array([[1.5, -0.0], None, [0.0, 2.0]], pa.list_(pa.float32(), 2)),
            "tags": pa.array([[], None, ["a", None, "ü"]], pa.list_(pa.string())),
        }
    )
    history = History.open(MemoryPlace())
    history.add({"all": table}, {"all": np.zeros(3, np.uint64)}, {}, Covered(3, 1))
    found = history.rows("all", table.select(["id"]), np.zeros(3, np.uint64))
    assert found.drop("number").equals(table.drop("number"))  # a NaN equals nothing
    assert found.column("number").to_numpy().tobytes() == nan.tobytes()
    some = history.rows("all", table.select(["id"]), np.zeros(3, np.uint64), ["tags", "vector"])
    assert some.equals(table.select(["id", "event_timestamp", "created_timestamp", "_sequence", "tags", "vector"]))


def test_nothing_found_has_the_columns_of_what_was_asked() -> None:
    history = History.open(MemoryPlace())
    assert ask(history, "user", [(1,)]).schema.names == ["user_id", "event_timestamp", "created_timestamp", "_sequence"]
    assert list(history.scan("user")) == []
    assert history.deletes("user").schema.names == ["deleted_us"]
    written(history)
    assert ask(history, "user", [(99,)]).schema.equals(USER)
    assert ask(history, "user", [(99,)], ["score"]).schema.names[3:] == ["_sequence", "score"]
    assert ask(history, "user", []).num_rows == 0


# --- few bytes are read


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    ("view", "keys"),
    [
        ("user", [(n,) for n in (-(1 << 63), -1, 0, 1, 2, 3, 250, 1 << 40, (1 << 63) - 1)]),
        ("account", [("", n) for n in (0, 1, 1 << 63, (1 << 64) - 1)] + [("é", 5), ("z", 0), ("\U0001f600", 7)]),
        # Parquet keeps no least and greatest of texts over 4,096 bytes.
        ("account", [("x" * size + end, 1) for size in (0, 63, 64, 65, 4_000, 4_097) for end in ("", "a", "b")]),
    ],
    ids=["int", "composite", "long"],
)
def test_no_key_is_pruned_away(view: str, keys: list[tuple[Any, ...]]) -> None:
    check_pruning(keys, view)


def test_one_entity_costs_one_row_group_of_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in small_row_groups():
        monkeypatch.setattr(rowfile, name, 32)
    place = MemoryPlace()
    history = History.open(place)
    count = 3_000
    keys = np.repeat(np.arange(count // 10), 10)
    for turn in range(3):
        rows = [row_of("user", (int(key),), n, n) | {"_sequence": turn * count + n} for n, key in enumerate(keys)]
        table = table_of("user", rows)
        history.add({"user": table}, {"user": np.zeros(count, np.uint64)}, {}, Covered((turn + 1) * count, 0))
    request = pa.table({"user_id": [150]}), np.zeros(1, np.uint64)
    place.opened.clear()
    found = history.rows("user", *request)
    assert found.num_rows == 30
    assert len(place.opened) in range(6, 10)  # three footers, and in each file the row group; or two, where it is split
    place.opened.clear()
    assert history.rows("user", *request).equals(found)
    assert place.opened == []
    history.rows("user", pa.table({"user_id": [1]}), np.zeros(1, np.uint64))
    assert len(place.opened) in range(3, 7)  # the footers are known by now


def test_the_cache_keeps_what_was_used_last_and_no_more_than_it_may() -> None:
    cache: Cache[str] = Cache(10)
    made: list[str] = []

    def get(key: str, size: int = 4) -> str:
        return cache.get(key, lambda: made.append(key) or key, lambda _: size)  # type: ignore[func-returns-value]

    for key in "abacab":
        assert get(key) == key
    assert made == ["a", "b", "c", "b"]
    assert cache.size == 8
    assert get("huge", 11) == "huge"
    assert cache.size == 8


def test_wide_rows_make_row_groups_of_few_rows_and_narrow_ones_of_many() -> None:
    times = {name: np.zeros(100_000, np.int64) for name in ("event_timestamp", "created_timestamp", "_sequence")}
    narrow = pa.table({"id": np.arange(100_000), **times})
    assert rowfile.group_rows(narrow) * 4 * 8 == rowfile.GROUP_SIZE_AIM
    wide = pa.table({"id": np.arange(1_000), **{f"f{n}": np.zeros(1_000) for n in range(500)}})
    assert rowfile.group_rows(wide) * 501 * 8 == pytest.approx(rowfile.GROUP_SIZE_AIM, rel=0.05)


# --- what is refused


def test_sequences_outside_of_what_a_call_covers_are_refused() -> None:
    history = History.open(MemoryPlace())
    model = written(history)
    table = table_of("user", [row_of("user", (1,), 1, 1) | {"_sequence": model.covered.sequence}])
    for covered in (model.covered, Covered(0, 0), Covered(model.covered.sequence + 1, 0)):
        with pytest.raises(ValueError, match=r"covers|go back"):
            history.add({"user": table}, {"user": np.zeros(1, np.uint64)}, {}, covered)
    same(history, model)


def test_a_history_opened_read_only_changes_nothing() -> None:
    place = MemoryPlace()
    assert History.open(place, read_only=True).covered == Covered(0, 0)
    assert place.files == {}
    model = written(History.open(place))
    place.files["user/00/999.parquet"] = b"left by a crash"
    files = dict(place.files)
    history = History.open(place, read_only=True)
    same(history, model)
    with pytest.raises(ReadOnly, match="opened read-only"):
        history.add({}, {}, {}, model.covered)
    with pytest.raises(ReadOnly):
        history.compact()
    assert place.files == files


# --- catalogs


def test_two_catalogs_are_kept_and_strangers_are_let_be() -> None:
    place = MemoryPlace({"README": b"", "user/notes.parquet": b"", "user/00/999.parquet": b"left by a crash"})
    place.files[catalog_name(0)] = encode_catalog(Catalog())
    history = History.open(place)
    model = written(history)
    names = set(place.files) - history._catalog.names()
    assert {"README", "user/notes.parquet"} < names
    assert len(names) == 4
    same(History.open(place), model)
    assert set(place.files) - history._catalog.names() == names


def test_a_damaged_catalog_is_no_reason_to_go_back_to_an_older_state() -> None:
    place = MemoryPlace()
    history = History.open(place)
    written(history)
    newest, older = (f"catalog-{n}.json" for n in (history._catalog.number, history._catalog.number - 2))
    damaged = place.files | {newest: place.files[newest].replace(b"user", b"used", 1)}
    for read_only in (True, False):
        with pytest.raises(HistoryCorrupt, match=rf"{newest} is damaged.*{older} is sound and covers.*backup"):
            History.open(MemoryPlace(dict(damaged)), read_only=read_only)
    renamed = {older: place.files[newest]}
    with pytest.raises(HistoryCorrupt, match="says that it is number"):
        History.open(MemoryPlace(place.files | renamed | {newest: b""} | {"catalog-99.json": place.files[newest]}))


def test_files_without_a_catalog_are_no_empty_history() -> None:
    place = MemoryPlace()
    written(History.open(place))
    data = {name: bytes_ for name, bytes_ in place.files.items() if not name.startswith("catalog-")}
    with pytest.raises(HistoryCorrupt, match="no catalog"):
        History.open(MemoryPlace(dict(data)))


def test_a_missing_file_is_said_at_once() -> None:
    place = MemoryPlace()
    written(history := History.open(place))
    gone = min(history._catalog.names())
    files = {name: data for name, data in place.files.items() if name != gone}
    with pytest.raises(HistoryCorrupt, match=gone):
        History.open(MemoryPlace(files))
    del place.files[gone]
    assert any(gone in fault for fault in history.check())


def test_check_sees_what_checksums_do_not() -> None:
    place = MemoryPlace()
    history = History.open(place)
    written(history)
    catalog = history._catalog
    number = catalog.number + 1
    file = catalog.files[0]
    for change, fault in (
        ({"rows": file.rows + 1}, "rows, the catalog says"),
        ({"event_times": (0, 1)}, "times or sequences"),
        ({"size": file.size + 1}, "the catalog says"),
    ):
        values = {name: getattr(file, name) for name in file.__slots__} | change
        wrong = Catalog(number, catalog.covered, (type(file)(**values), *catalog.files[1:]), catalog.deletes)
        files = place.files | {catalog_name(number): encode_catalog(wrong)}
        assert any(fault in each for each in History.open(MemoryPlace(files)).check())
    twice = Catalog(number, Covered(3, 0), (*catalog.files, catalog.files[0]), catalog.deletes)
    faults = History.open(MemoryPlace(place.files | {catalog_name(number): encode_catalog(twice)})).check()
    assert any("more than once" in fault for fault in faults)
    assert any("not below 3" in fault for fault in faults)


# --- compaction


def test_a_bucket_of_many_files_is_merged_and_others_are_not() -> None:
    history = History.open(MemoryPlace())
    model = Model()
    for turn in range(MERGE_AT):
        assert history.compact().buckets == 0
        few = [row_of("user", (2,), 1, 1)] if turn else []
        history.add(*model.add({"user": [row_of("user", (1,), turn, turn), *few]}, {}))
    one, two = (int(bucket_of(np.array([hash_of((key,))], np.uint64))[0]) for key in (1, 2))
    assert one != two
    report = history.compact("user")
    assert (report.buckets, report.files_before, report.files_after) == (1, MERGE_AT, 1)
    assert len(history._catalog.files_of("user", two)) == MERGE_AT - 1
    same(history, model)
    assert history.compact("account", all_files=True).buckets == 0
    assert history.compact(all_files=True).buckets == 1
    same(history, model)


def test_a_row_is_written_again_only_as_often_as_the_history_doubles() -> None:
    history = History.open(MemoryPlace())
    model = Model()
    history.add(*model.add({"user": [row_of("user", (1,), 0, n) for n in range(100)]}, {}))
    file = history._catalog.files[0]
    files, written_rows, rows = [file], 0, 100
    for turn in range(400):
        values = {name: getattr(file, name) for name in file.__slots__}
        files.append(type(file)(**values | {"rows": 100, "name": str(turn)}))
        rows += 100
        if sources := files_to_merge(files, 0, all_files=False):
            merged = sum(each.rows for each in sources)
            written_rows += merged
            files = [each for each in files if each not in sources]
            files.append(type(file)(**values | {"rows": merged, "name": f"merged {turn}"}))
        assert len(files) < MERGE_AT
    assert written_rows < 5 * rows


def test_a_delete_erases_what_was_created_before_it_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowfile, "COMPRESSION", "none")
    check_erasure()


def test_the_latest_delete_of_a_key_counts_and_takes_also_rows_that_come_after_it() -> None:
    check_latest_delete()


def test_readers_keep_the_files_of_the_catalog_that_they_began_with() -> None:
    check_readers()


def test_a_compaction_beside_adds_and_readers_loses_nothing() -> None:
    history = History.open(MemoryPlace())
    model = written(history)
    stop = threading.Event()
    faults: list[BaseException] = []

    def repeat(work: Any) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            faults.append(error)

    def read() -> None:
        covered = history.covered.sequence
        found = as_rows(ask(history, "user", [(key,) for key in range(5)]))
        sequences = {row["_sequence"] for row in found}
        assert {row["_sequence"] for row in done if row["_sequence"] < covered} <= sequences

    model.deleted["user"].clear()
    history = History.open(MemoryPlace())
    model = Model()
    done = model.rows["user"]
    works = (read, read, lambda: history.compact(all_files=True), lambda: list(history.scan("user")))
    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        for turn in range(15):
            history.add(*model.add({"user": some_rows("user", turn * 10, 10)}, {}))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []
    history.compact(all_files=True)
    same(history, model)
    assert len(history._place.list()) == len(history._catalog.names()) + 2


# --- any series


KEYS = {"user": st.tuples(st.integers(0, 3)), "account": st.tuples(st.sampled_from(["", "a"]), st.integers(0, 2))}
TIMES = st.integers(0, 9)


def rows_of(view: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.builds(lambda key, event, made: row_of(view, key, event, made), KEYS[view], TIMES, TIMES))


ADDS = st.tuples(
    st.fixed_dictionaries({}, optional={view: rows_of(view) for view in KEYS}),
    st.fixed_dictionaries({}, optional={view: st.dictionaries(keys, TIMES, max_size=3) for view, keys in KEYS.items()}),
)


@pytest.mark.usefixtures("small_groups")
def test_any_series_of_adds_compactions_and_openings_equals_a_list() -> None:
    @given(st.lists(ADDS | st.sampled_from(["compact", "open"]), max_size=12))
    def run(steps: list[Any]) -> None:
        history = History.open(MemoryPlace())
        model = Model()
        for step in steps:
            if step == "open":
                history = History.open(history._place)
            elif step == "compact":
                history.compact(all_files=True)
                model.erase()
            else:
                history.add(*model.add(*step))
        same(history, model)

    run()


# --- other readers


def test_the_files_are_plain_parquet_for_others(tmp_path: Path) -> None:
    history = History.open(open_place(Files(), str(tmp_path)))
    model = written(history)
    frame = polars.scan_parquet(tmp_path / "user" / "[0-9]*" / "*.parquet").sort("_sequence").collect()
    assert frame["note"].to_list() == [row["note"] for row in model.rows["user"]]
    assert len({path.parent.name for path in tmp_path.glob("user/[0-9]*/*.parquet")}) <= BUCKETS
    assert held(history) == model
