"""Training sets: to each label what an as-of read at its time answers, wherever the rows lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeat import (
    Aggregation,
    BeforeHistory,
    DataError,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    StorageError,
    Store,
    UnknownFeature,
    UnknownView,
    WindowView,
)
from fastfeat.aggregation import FUNCTIONS
from fastfeat.cli import app
from fastfeat.definitions import definitions_from_list
from fastfeat.dtypes import DType
from fastfeat.files import Files
from fastfeat.schema import View
from fastfeat.times import TIME_MAX_US, TIME_MIN_US
from fastfeat.training import join_bucket, joining, read_origin

from .model import check_equal, value_bits
from .strategies import (
    START_US,
    World,
    edges_us,
    event_worlds,
    key_values,
    row_table,
    row_values,
    times_near,
    worlds,
)

USER = Entity("user", {"user_id": "int64"})
SHOP = Entity("shop", {"city": "string", "shop_id": "uint32"})
BALANCE = FeatureView("balance", USER, [Field("amount", "float64"), Field("note", "string")])
RATING = FeatureView("rating", SHOP, [Field("stars", "int32")], ttl=timedelta(seconds=1))
STAMP = pa.timestamp("us", "UTC")

Bits = dict[str, list[Any]]


def bits_of(table: pa.Table, dtypes: dict[str, DType]) -> Bits:
    """The feature columns so that == means equal bit for bit."""
    return {name: [value_bits(dtype, value) for value in plain(table.column(name))] for name, dtype in dtypes.items()}


def plain(column: Any) -> list[Any]:
    """Python values; timestamps as int microseconds, which reach further than Python's datetime does in Arrow."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_list(column.type) and pa.types.is_timestamp(column.type.value_type):
        column = column.cast(pa.list_(pa.int64()))
    return list(column.to_pylist())


def as_of_reads(store: Store, names: Sequence[str], labels: pa.Table, known: str) -> pa.Table:
    """The same by one as-of read per label."""
    parts = []
    times = labels.column("event_timestamp").cast(pa.int64()).to_pylist()
    for row, time_us in zip(labels.drop_columns(["event_timestamp"]).to_pylist(), times, strict=True):
        known_at = time_us if known == "as_served" else None
        parts.append(store.get_online_features(names, [row], as_of=time_us, known_at=known_at).to_arrow())
    return pa.concat_tables(parts)


# --- worlds of Hypothesis' making


@dataclass(frozen=True)
class Scenario:
    world: World
    steps: Sequence[tuple[Any, ...]]
    labels: pa.Table


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    world = draw(worlds() | event_worlds())
    moments = draw(st.lists(st.integers(START_US - 50, START_US + 50), min_size=1, max_size=4))
    readable: list[FeatureView | WindowView] = [*world.views, *world.windows]
    spans = sorted({span for view in readable for span in edges_us(view)})
    times = times_near(moments, spans)
    steps: list[tuple[Any, ...]] = []
    for _ in range(draw(st.integers(0, 6))):
        view = draw(st.sampled_from(list(world.views)))
        kind = draw(st.sampled_from(["load", "load", "load", "push", "delete", "flush", "compact"]))
        key = st.sampled_from(world.keys(view))
        if kind == "load":
            rows = draw(st.lists(st.tuples(key, times, row_values(view)), min_size=1, max_size=6))
            created = [max(event, draw(times)) for _, event, _ in rows]
            if view.event_id is not None:
                # What a known event left out of memory is not there when a delete takes that event, and the history
                # has it: they differ where the row left out says that it was created after the delete that is to come.
                created = [min(each, START_US - 1) for each in created]
            steps.append((kind, view, rows, created))
        elif kind == "push":
            steps.append((kind, view, draw(st.lists(st.tuples(key, times, row_values(view)), min_size=1, max_size=3))))
        else:
            steps.append((kind, view, draw(key)))
    types = {name: kind for view in world.views for name, kind in view.entity.join_keys.items()}
    count = draw(st.integers(0, 12))
    columns: dict[str, Any] = {
        name: pa.array(
            [draw(st.sampled_from(list(world.key_pools[name])) | key_values(kind)) for _ in range(count)],
            DType(kind).arrow(),
        )
        for name, kind in types.items()
    }
    columns["event_timestamp"] = pa.array([draw(times) for _ in range(count)], STAMP)
    return Scenario(world, steps, pa.table(columns))


def played(store: Store, scenario: Scenario) -> None:
    store.apply([*scenario.world.views, *scenario.world.windows])
    for kind, view, *rest in scenario.steps:
        if kind == "load":
            rows, created = rest
            assert store.load(view, row_table(view, rows, created), created_time="created").rejected == 0
        elif kind == "push":
            names = list(view.entity.join_keys)
            for key, event_us, fields in rest[0]:
                store.push(view, {**dict(zip(names, key, strict=True)), "event_timestamp": event_us, **fields})
        elif kind == "delete":
            store.delete(view, [dict(zip(view.entity.join_keys, rest[0], strict=True))])
        elif store.is_durable:
            store.flush_history() if kind == "flush" else store.compact()


@contextmanager
def a_store(*, is_durable: bool) -> Iterator[Store]:
    ticks = iter(range(START_US, START_US + 10_000))

    def clock() -> int:
        return next(ticks)

    if not is_durable:
        with Store(64 << 20, clock) as store:
            yield store
        return
    with TemporaryDirectory() as folder, Store.open(folder, capacity_bytes=64 << 20, clock=clock, fsync="off") as store:
        yield store


def names_and_dtypes(views: Sequence[View]) -> dict[str, DType]:
    return {f"{view.name}:{field.name}": field.dtype for view in views for field in view.schema}


@pytest.mark.torture
@pytest.mark.parametrize("is_durable", [False, True], ids=["memory", "durable"])
@settings(deadline=None)
@given(scenario=scenarios(), known=st.sampled_from(["as_served", "as_corrected"]), size=st.sampled_from([1 << 30, 1]))
def test_a_training_set_is_the_as_of_reads_of_its_labels(
    is_durable: bool, scenario: Scenario, known: Any, size: int
) -> None:
    """size: of the memory allowed; with one byte each chunk and partition is as small as it can be."""
    dtypes = names_and_dtypes([*scenario.world.views, *scenario.world.windows])
    names = list(dtypes)
    with a_store(is_durable=is_durable) as store:
        played(store, scenario)
        try:
            wanted = as_of_reads(store, names, scenario.labels, known) if scenario.labels.num_rows else None
        except BeforeHistory:
            assert not is_durable
            with pytest.raises(BeforeHistory):
                store.get_historical_features(scenario.labels, names, known=known).read_all()
            return
        reader = store.get_historical_features(scenario.labels, names, known=known, memory_bytes=size)
        with mock.patch.object(joining, "PARTITION_SIZE", min(size, joining.PARTITION_SIZE)):
            got = reader.read_all()
    assert got.schema.names == [*scenario.labels.schema.names, *names]
    assert got.select(scenario.labels.schema.names).equals(scenario.labels)
    if wanted is not None:
        check_equal(bits_of(got, dtypes), bits_of(wanted, dtypes), "training set")


# --- what labels may be


@pytest.fixture
def store() -> Store:
    store = Store(64 << 20)
    store.apply([BALANCE, RATING, FeatureService("model", [RATING["stars"], BALANCE["amount"]])])
    balance = {"user_id": [1, 2, 1, 1], "amount": [10.0, 20.0, 11.0, 12.0], "note": ["a", "b", None, "d"]}
    store.load("balance", pa.table({**balance, "event_timestamp": [100, 100, 200, 300]}))
    rating = {"city": ["Ulm", "Ulm"], "shop_id": [7, 8], "stars": [5, 4]}
    store.load("rating", pa.table({**rating, "event_timestamp": [100, 2_000_000]}))
    return store


LABELS = pa.table(
    {
        "clicked": [True, False, True, None, False, True],
        "city": ["Ulm", "Ulm", "Bonn", "Ulm", "Ulm", "Ulm"],
        "user_id": pa.array([1, 2, 1, 1, 3, 1], pa.int32()),
        "shop_id": pa.array([7, 7, 7, 8, 8, 7], pa.int16()),
        "event_timestamp": pa.array([250, 99, 300, 2_000_000, 100, 250], pa.timestamp("us")),
    }
)
AMOUNTS = [11.0, None, 12.0, 12.0, None, 11.0]
STARS = [5, None, None, 4, None, 5]


def forms_of_labels(folder: Path) -> Iterator[tuple[str, Any]]:
    yield "table", LABELS
    yield "chunked table", pa.concat_tables([LABELS.slice(0, 2), LABELS.slice(2, 0), LABELS.slice(2)])
    yield "record batch", LABELS.combine_chunks().to_batches()[0]
    yield "reader", LABELS.to_reader(max_chunksize=4)
    yield "pandas", LABELS.to_pandas(types_mapper=pd.ArrowDtype)
    yield "polars", pl.from_arrow(LABELS)
    labels = LABELS
    assert labels is not None  # DuckDB finds it by its name
    yield "duckdb", duckdb.sql("SELECT * FROM labels")
    pq.write_table(LABELS, folder / "labels.parquet")
    yield "parquet", folder / "labels.parquet"
    ds.write_dataset([LABELS], folder / "many", format="parquet")
    yield "directory", str(folder / "many")


def test_labels_may_have_any_form_that_holds_arrow(store: Store, tmp_path: Path) -> None:
    for form, labels in forms_of_labels(tmp_path):
        got = store.get_historical_features(labels, "model").read_all()
        assert got.column("rating:stars").to_pylist() == STARS, form
        assert got.column("balance:amount").to_pylist() == AMOUNTS, form
        assert got.column("clicked").to_pylist() == LABELS.column("clicked").to_pylist(), form


def test_features_may_be_a_service_its_name_or_a_list(store: Store) -> None:
    for features in ("model", FeatureService("other", [RATING, BALANCE["amount"]]), ["rating:stars", "balance:amount"]):
        got = store.get_historical_features(LABELS, features).read_all()
        assert got.schema.names == [*LABELS.schema.names, "rating:stars", "balance:amount"]
        assert got.column("balance:amount").to_pylist() == AMOUNTS


def test_no_labels_are_an_empty_set_with_all_columns(store: Store) -> None:
    got = store.get_historical_features(LABELS.slice(0, 0), "model").read_all()
    assert (got.num_rows, got.schema.names[-1]) == (0, "balance:amount")


def test_as_corrected_counts_what_was_created_later(store: Store) -> None:
    late = pa.table({"user_id": [1], "event_timestamp": [240], "known": [900], "amount": [7.0], "note": ["late"]})
    store.load("balance", late, created_time="known")
    served = store.get_historical_features(LABELS, ["balance:amount"], known="as_served").read_all()
    corrected = store.get_historical_features(LABELS, ["balance:amount"], known="as_corrected").read_all()
    assert served.column("balance:amount").to_pylist() == AMOUNTS
    assert corrected.column("balance:amount").to_pylist() == [7.0, *AMOUNTS[1:5], 7.0]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (LABELS.drop_columns(["shop_id"]), "'shop_id' is there 0 times"),
        (LABELS.set_column(2, "user_id", pa.array([1, 2, None, 4, 5, 6])), "'user_id' is null (1 labels)"),
        (LABELS.set_column(2, "user_id", pa.array([1.0] * 6)), "floats do not compare by value"),
        (LABELS.set_column(3, "shop_id", pa.array([1, 2, 3, 4, 5, -1])), "not a whole number that uint32 holds"),
        (LABELS.set_column(4, "event_timestamp", pa.array([None] * 6, STAMP)), "'event_timestamp' is null (6 labels)"),
        (LABELS.append_column("balance:amount", pa.array([0.0] * 6)), "rename it"),
        (LABELS.append_column("city", LABELS.column("city")), "'city' is there 2 times"),
        ([{"user_id": 1}], "not list"),
    ],
)
def test_labels_that_cannot_be_asked_are_refused(store: Store, labels: Any, says: str) -> None:
    with pytest.raises(DataError, match=says.replace("(", r"\(").replace(")", r"\)")):
        store.get_historical_features(labels, "model").read_all()


@pytest.mark.parametrize("memory_bytes", [0, -1, True, "1 GiB", 1e9])
def test_memory_that_is_no_number_of_bytes_is_refused(store: Store, memory_bytes: Any) -> None:
    with pytest.raises(DataError, match="give how many bytes the training set may take"):
        store.get_historical_features(LABELS, "model", memory_bytes=memory_bytes)


def test_what_is_not_applied_is_refused_before_anything_is_read(store: Store) -> None:
    with pytest.raises(UnknownView):
        store.get_historical_features(LABELS, "nobody")
    with pytest.raises(UnknownFeature):
        store.get_historical_features(LABELS, ["balance:nothing"])
    with pytest.raises(DataError, match="known is 'later'"):
        store.get_historical_features(LABELS, "model", known="later")  # type: ignore[arg-type]


def test_a_memory_store_says_what_it_no_longer_has() -> None:
    store = Store(64 << 20)
    store.apply(FeatureView("latest", USER, [Field("amount", "float64")], keep="latest"))
    store.load("latest", pa.table({"user_id": [1, 1], "event_timestamp": [100, 200], "amount": [1.0, 2.0]}))
    labels = pa.table({"user_id": [1], "event_timestamp": [200]})
    assert store.get_historical_features(labels, ["latest:amount"]).read_all().column(2).to_pylist() == [2.0]
    with pytest.raises(BeforeHistory, match="user_id=1"):
        store.get_historical_features(
            pa.table({"user_id": [1], "event_timestamp": [150]}), ["latest:amount"]
        ).read_all()


# --- a durable store


def test_a_durable_set_is_of_one_position(tmp_path: Path) -> None:
    """What is written while it is read is in none of it, not even a row that says it was there before."""
    with Store.open(str(tmp_path), capacity_bytes=64 << 20) as store:
        store.apply(BALANCE)
        rows = {"user_id": [1, 2], "event_timestamp": [100, 100], "amount": [1.0, 2.0], "note": ["a", "b"]}
        store.load("balance", pa.table(rows))
        labels = pa.table({"user_id": [1, 2] * 40_000, "event_timestamp": [150] * 80_000})
        reader = store.get_historical_features(labels, ["balance:amount"], memory_bytes=1)
        first = reader.read_next_batch()
        store.load("balance", pa.table({**rows, "event_timestamp": [120, 120], "amount": [8.0, 9.0]}))
        store.flush_history()
        rest = reader.read_all()
        whole = pa.concat_tables([pa.Table.from_batches([first]), rest])
        assert whole.num_rows == labels.num_rows
        assert set(zip(whole.column(0).to_pylist(), whole.column(2).to_pylist(), strict=True)) == {(1, 1.0), (2, 2.0)}
        after = store.get_historical_features(labels, ["balance:amount"]).read_all()
        assert set(after.column(2).to_pylist()) == {8.0, 9.0}


@pytest.mark.parametrize("memory_bytes", [1, 1 << 30])
def test_buckets_of_many_keys_are_read_in_chunks_of_whole_keys(tmp_path: Path, memory_bytes: int) -> None:
    """Half of the keys deleted, late rows in a second file, newer ones in the tail, keys without rows."""
    keys = 400
    with Store.open(str(tmp_path), capacity_bytes=64 << 20) as store:
        store.apply(BALANCE)
        for late in (0, 10, 20):
            ids = list(range(keys)) * 2
            times = [100 + late + i // keys for i in range(len(ids))]
            rows = {"user_id": ids, "event_timestamp": times, "amount": [float(time) for time in times]}
            store.load("balance", pa.table({**rows, "note": ["x"] * len(ids)}))
            if late < 20:
                store.flush_history()
        store.delete("balance", {"user_id": list(range(0, keys, 2))})
        labels = {"user_id": list(range(keys + 50)) * 2, "event_timestamp": [105] * (keys + 50) + [121] * (keys + 50)}
        got = store.get_historical_features(pa.table(labels), ["balance:amount"], memory_bytes=memory_bytes).read_all()
    known = [key if key < keys and key % 2 else None for key in labels["user_id"]]
    asked = zip(known, labels["event_timestamp"], strict=True)
    wanted = [None if key is None else {105: 101.0, 121: 121.0}[time] for key, time in asked]
    assert got.column("balance:amount").to_pylist() == wanted


# --- the function of a bucket


def rows_at_rest(view: FeatureView, rows: dict[str, list[Any]]) -> pa.Table:
    count = len(rows["event_timestamp"])
    stamps = pa.array(rows["event_timestamp"], pa.int64()).cast(STAMP)
    fields = {field.name: pa.array(rows[field.name], field.dtype.arrow()) for field in view.schema}
    keys = {name: rows[name] for name in view.entity.join_keys}
    times = {"event_timestamp": stamps, "created_timestamp": stamps, "_sequence": pa.array(range(count), pa.uint64())}
    return pa.table({**keys, **times, **fields})


def test_a_bucket_is_joined_without_a_store() -> None:
    rows: dict[str, list[Any]] = {"user_id": [1, 2, 1], "event_timestamp": [200, 100, 100]}
    rows |= {"amount": [2.0, 3.0, 1.0], "note": ["x", "y", ""]}
    labels = LABELS.set_column(4, "event_timestamp", pa.array([199, 99, 200, 100, 100, 99]))
    got = join_bucket(
        labels, {"balance": rows_at_rest(BALANCE, rows)}, [BALANCE, RATING], ["balance:amount", "rating:stars"]
    )
    assert got.column("balance:amount").to_pylist() == [1.0, None, 2.0, 1.0, None, None]
    assert got.column("rating:stars").to_pylist() == [None] * 6
    assert got.select(labels.schema.names).equals(labels)


def test_an_event_sent_again_counts_once_for_every_chunk_of_labels(tmp_path: Path) -> None:
    """The memory of one chunk is that of the next: nothing of what was known in it may stay.

    20 events twice: the index of ids has room for as many again, so that it is not made anew by itself.
    """
    fields = [Field("id", "string", nullable=False), Field("x", "int64")]
    view = FeatureView("v", USER, fields, kind="event", event_id="id")
    windows = WindowView("w", view, [Aggregation("x", "sum", timedelta(seconds=1), name="sum")])
    users, numbers = [i % 3 for i in range(600)], list(range(60))
    times = pa.array([START_US + i for i in numbers], STAMP)
    rows = pa.table(
        {"user_id": users[:60], "event_timestamp": times, "id": [f"{i // 2}" for i in numbers], "x": numbers}
    )
    labels = pa.table({"user_id": users, "event_timestamp": pa.array([START_US + 70] * 600, STAMP)})
    with Store.open(tmp_path / "data", capacity_bytes=32 << 20) as store:
        store.apply(windows)
        store.load(view, rows)
        store.load(view, rows)
        store.flush_history()
        served = [store.get_feature_vector(["w:sum"], {"user_id": u}, as_of=START_US + 70)[0] for u in range(3)]
        assert sum(served) == sum(numbers)
        for size in (1, 1 << 30):
            parts = labels.to_reader(max_chunksize=100)
            joined = store.get_historical_features(parts, ["w:sum"], memory_bytes=size).read_all()
            assert joined.column("w:sum").to_pylist() == [served[i % 3] for i in range(600)]


# --- leakage


@given(data=st.data())
def test_a_row_that_moves_to_after_the_label_is_as_if_it_were_not_there(data: st.DataObject) -> None:
    view = FeatureView("v", USER, [Field("x", "int64")], kind="event")
    windows = WindowView(
        "w", view, [Aggregation("x", function, timedelta(microseconds=6), closed="both") for function in FUNCTIONS[:10]]
    )
    features = ["v:x", *(f"w:{each.name}" for each in windows.features)]
    time = st.integers(START_US - 5, START_US + 5)
    rows = data.draw(st.lists(st.tuples(time, time), min_size=1, max_size=6))
    gone = data.draw(st.integers(0, len(rows) - 1))
    at = data.draw(st.one_of(time, st.integers(TIME_MIN_US, TIME_MAX_US - 10)))
    later = data.draw(st.integers(at + 1, at + 10))
    label = pa.table({"user_id": [1], "event_timestamp": pa.array([at], STAMP)})

    def vector(*, moved: bool) -> list[Any]:
        store = Store(4 << 20)
        store.apply([view, windows])
        kept = [
            (i, later if i == gone else event, created) for i, (event, created) in enumerate(rows) if moved or i != gone
        ]
        if kept:
            events, created = ([row[column] for row in kept] for column in (1, 2))
            table = {"user_id": [1] * len(kept), "x": [row[0] for row in kept]}
            stamps = {"event_timestamp": pa.array(events, STAMP), "known": pa.array(created, STAMP)}
            assert store.load(view, pa.table({**table, **stamps}), created_time="known").rejected == 0
        served = store.get_historical_features(label, features, known="as_served")
        corrected = store.get_historical_features(label, features, known="as_corrected")
        return [each.read_all().select(features).to_pylist() for each in (served, corrected)]

    assert vector(moved=True) == vector(moved=False)


# --- saved sets and the command line


def test_a_saved_set_says_what_it_is_of(tmp_path: Path) -> None:
    rows = {"user_id": [1, 2], "event_timestamp": [100, 100], "amount": [1.0, 2.0], "note": ["a", "b"]}
    labels = pa.table({"user_id": [2, 1, 3], "event_timestamp": [150, 150, 150]})
    with Store.open(str(tmp_path / "data"), capacity_bytes=64 << 20, clock=lambda: START_US) as store:
        store.apply([BALANCE, RATING, FeatureService("model", [BALANCE["amount"]])])
        store.load("balance", pa.table(rows))
        origin = store.create_saved_dataset(tmp_path / "set.parquet", labels, "model", known="as_corrected")
        again = store.create_saved_dataset(tmp_path / "again.parquet", labels, ["balance:amount"])
        store.apply(replace(BALANCE, ttl=timedelta(hours=1)))
        changed = store.create_saved_dataset(tmp_path / "changed.parquet", labels, ["balance:amount"])
    assert origin == read_origin(tmp_path / "set.parquet")
    assert (origin.version, origin.position, origin.rows, origin.known) == (1, 2, 3, "as_corrected")
    assert (origin.features, origin.taken_us) == (("balance:amount",), START_US)
    assert [each["name"] for each in origin.definitions] == ["user", "balance"]
    assert definitions_from_list(origin.definitions) == [USER, BALANCE]
    assert again.definitions_sha256 == origin.definitions_sha256
    assert (changed.version, changed.definitions_sha256 == origin.definitions_sha256) == (2, False)
    saved = pq.read_table(tmp_path / "set.parquet")
    assert saved.column("balance:amount").to_pylist() == [2.0, 1.0, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.parquet",
        "changed.parquet",
        "data",
        "set.parquet",
    ]


def test_a_saved_set_is_synced_before_it_has_its_name_and_its_name_after(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("sync", "rename", "sync_directory"):
        real = getattr(Files, name)

        def noted(self: Files, *given: Any, name: str = name, real: Any = real) -> None:
            calls.append(name)
            real(self, *given)

        monkeypatch.setattr(Files, name, noted)
    store.create_saved_dataset(tmp_path / "set.parquet", LABELS, "model")
    assert calls == ["sync", "rename", "sync_directory"]


def test_a_set_that_fails_leaves_no_file(store: Store, tmp_path: Path) -> None:
    bad = LABELS.set_column(2, "user_id", pa.array([1, 2, None, 4, 5, 6]))
    with pytest.raises(DataError, match="is null"):
        store.create_saved_dataset(tmp_path / "set.parquet", bad, "model")
    with pytest.raises(StorageError, match="can't be written"):
        store.create_saved_dataset(tmp_path / "nowhere" / "set.parquet", LABELS, "model")
    assert list(tmp_path.iterdir()) == []
    pq.write_table(LABELS, tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="no saved training set"):
        read_origin(tmp_path / "plain.parquet")


DEFINITIONS = '''
"""Features of users."""

from fastfeat import Entity, FeatureService, FeatureView, Field

user = Entity("user", {"user_id": "int64"})
balance = FeatureView("balance", user, [Field("amount", "float64"), Field("note", "string")])
model = FeatureService("model", [balance])
'''


def test_the_command_line_trains_from_a_directory_and_from_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"user_id": [1, 2], "event_timestamp": [100, 100], "amount": [1.0, 2.0], "note": ["a", "b"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"user_id": [2, 3], "event_timestamp": [150, 150]}), tmp_path / "labels.parquet")
    (tmp_path / "training_features.py").write_text(DEFINITIONS, encoding="utf-8")
    with Store.open(str(tmp_path / "data"), capacity_bytes=64 << 20) as store:
        store.apply([BALANCE, FeatureService("model", [BALANCE])])
        store.load("balance", pa.table(rows))
    asked = ["train", str(tmp_path / "labels.parquet"), "model", "-o", str(tmp_path / "set.parquet")]
    definitions = ["--definitions", str(tmp_path / "training_features.py")]
    for source in (
        ["--store", str(tmp_path / "data")],
        [*definitions, "--rows", f"balance={tmp_path / 'rows.parquet'}"],
    ):
        assert app.run([*asked, *source, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["rows"], said["features"]) == (2, ["balance:amount", "balance:note"])
        assert said["definitions_sha256"] == read_origin(tmp_path / "set.parquet").definitions_sha256
        assert pq.read_table(tmp_path / "set.parquet").column("balance:note").to_pylist() == ["b", None]
    assert app.run([*asked, "--store", str(tmp_path / "data"), "--known", "as_corrected"]) == 0
    assert "as_corrected" in capsys.readouterr().out
    for wrong in ([], [*definitions, "--rows", "balance"], ["--store", "x", *definitions]):
        assert app.run([*asked, *wrong]) == 2
    assert app.run([*asked, "--store", str(tmp_path / "nothing")]) == 1
