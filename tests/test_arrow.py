"""Arrow in: every accepted form gives the same rows; what does not fit is refused with a reason, row or column."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from fastfeat import DataError, Entity, FeatureView, Field, LoadReport
from fastfeat import arrow as normal_form
from fastfeat.arrow import read_batches, read_whole
from fastfeat.dtypes import DType
from fastfeat.sources import BATCH_ROWS_MAX, BATCH_SIZE_AIM
from fastfeat.times import TIME_MAX_US, TIME_MIN_US

USER = Entity("user", {"user_id": "int64"})
UTC_US = pa.timestamp("us", "UTC")


def view_of(dtype: str = "float64", nullable: bool = True, **options: Any) -> FeatureView:
    return FeatureView("v", options.pop("entity", USER), [Field("x", dtype, nullable)], **options)


def table_of(values: Any, type_: Any = None, **columns: Any) -> pa.Table:
    column = pa.array(values, type_) if not isinstance(values, (pa.Array, pa.ChunkedArray)) else values
    n = len(column)
    times = pa.array([1_000_000 + i for i in range(n)], UTC_US)
    return pa.table({"user_id": pa.array(range(n), pa.int64()), "event_timestamp": times, "x": column, **columns})


def read(view: FeatureView, source: object, **options: Any) -> tuple[pa.Table, LoadReport]:
    report = LoadReport(view.name)
    batches = list(read_batches(view, source, report, **options))
    for batch in batches:
        batch.validate(full=True)
    if not batches:
        return pa.table({"x": pa.array([], pa.null())}), report
    return pa.Table.from_batches(batches), report


def values_of(dtype: str, values: Any, type_: Any = None) -> tuple[list[Any], LoadReport]:
    table, report = read(view_of(dtype), table_of(values, type_))
    return table.column("x").to_pylist(), report


# --- the normal form


def test_columns_come_in_the_order_the_core_wants() -> None:
    entity = Entity("trip", {"city": "string", "zone": "uint64", "slot": "int8"})
    view = FeatureView("v", entity, [Field("b", "int32"), Field("a", "string")])
    columns = {"a": ["t"], "slot": pa.array([1], pa.int8()), "zone": pa.array([2], pa.int64()), "city": ["x"]}
    source = pa.table({**columns, "b": pa.array([3], pa.int32()), "event_timestamp": pa.array([7], pa.int64())})
    table, report = read(view, source)
    assert table.schema.names == ["city", "zone", "slot", "event_timestamp", "created_timestamp", "b", "a"]
    types = [pa.string(), pa.uint64(), pa.int64(), pa.int64(), pa.int64(), pa.int32(), pa.string()]
    assert table.schema.types == types
    assert table.to_pylist()[0] == {
        "city": "x", "zone": 2, "slot": 1, "event_timestamp": 7, "created_timestamp": 7, "b": 3, "a": "t",
    }  # fmt: skip
    assert (report.accepted, report.rejected) == (1, 0)


def test_canonical_columns_are_not_copied() -> None:
    source = table_of(np.arange(10.0))
    batch = next(read_batches(view_of(), source, LoadReport("v")))
    for name in ("user_id", "event_timestamp", "x"):
        assert batch.column(name).buffers()[1].address == source.column(name).chunk(0).buffers()[1].address


def test_float_bits_pass_unchanged() -> None:
    bits = [0x7FF0000000000001, 0x8000000000000000, 0xFFF8000000000123, 0x7FF0000000000000]
    table, report = read(view_of(), table_of(np.array(bits, np.uint64).view(np.float64)))
    assert table.column("x").to_numpy().view(np.uint64).tolist() == bits
    assert report.accepted == 4


def test_batches_are_bounded_in_rows_and_bytes() -> None:
    many = list(read_batches(view_of(), table_of(np.zeros(BATCH_ROWS_MAX + 5)), LoadReport("v")))
    assert [batch.num_rows for batch in many] == [BATCH_ROWS_MAX, 5]
    wide = pa.array([b"x" * (BATCH_SIZE_AIM // 32)] * 100)
    sizes = [batch.nbytes for batch in read_batches(view_of("bytes"), table_of(wide), LoadReport("v"))]
    assert len(sizes) > 1
    assert max(sizes) <= 1.1 * BATCH_SIZE_AIM


def test_a_sliced_source_gives_its_own_rows() -> None:
    table, _ = read(view_of("list<int32>"), table_of([[1], [2, 3], None, [4]], pa.list_(pa.int32())).slice(1, 3))
    assert table.column("x").to_pylist() == [[2, 3], None, [4]]
    table, _ = read(view_of("vector<float32, 1>"), table_of([[1], [2], None], pa.list_(pa.float64(), 1)).slice(1))
    assert table.column("x").to_pylist() == [[2.0], None]


def test_a_batch_counts_as_accepted_when_the_next_is_asked_for() -> None:
    report = LoadReport("v")
    batches = read_batches(view_of(), table_of(np.zeros(BATCH_ROWS_MAX + 5)), report)
    next(batches)
    assert report.accepted == 0
    next(batches)
    assert report.accepted == BATCH_ROWS_MAX


def test_columns_of_no_use_are_named() -> None:
    _, report = read(view_of(), table_of([1.0], other=["a"], more=["b"]))
    assert report.ignored_columns == ("other", "more")
    assert "columns not in the view: other, more" in str(report)


def test_the_limits_are_the_cores() -> None:
    columns = import_module("fastfeat._core.columns")
    assert columns.KEY_SIZE_MAX == normal_form.KEY_SIZE_MAX
    assert columns.HEAP_SIZE_MAX == normal_form.HEAP_SIZE_MAX


# --- casts: (declared, Arrow type, values) -> values taken

TAKEN: list[tuple[str, pa.DataType, list[Any], list[Any]]] = [
    ("int8", pa.int64(), [-128, 127, None], [-128, 127, None]),
    ("int64", pa.uint64(), [0, 2**63 - 1], [0, 2**63 - 1]),
    ("uint64", pa.int8(), [0, 127], [0, 127]),
    ("int32", pa.float64(), [3.0, None, -(2.0**31)], [3, None, -(2**31)]),
    ("float64", pa.int64(), [2**53, -(2**53), None], [2.0**53, -(2.0**53), None]),
    ("float64", pa.float32(), [0.5, None], [0.5, None]),
    ("float64", pa.float16(), [0.5], [0.5]),
    ("float32", pa.float64(), [0.1, float("inf"), None], [float(np.float32(0.1)), float("inf"), None]),
    ("float32", pa.int64(), [2**24 + 1], [2.0**24]),
    ("bool", pa.bool_(), [True, None, False], [True, None, False]),
    ("string", pa.large_string(), ["é", None, ""], ["é", None, ""]),
    ("string", pa.string_view(), ["é", None, "longer than twelve bytes"], ["é", None, "longer than twelve bytes"]),
    ("string", pa.dictionary(pa.int8(), pa.string()), ["a", None, "a"], ["a", None, "a"]),
    ("float64", pa.dictionary(pa.int32(), pa.float32()), [0.5, None], [0.5, None]),
    ("bytes", pa.large_binary(), [b"\xff", None], [b"\xff", None]),
    ("bytes", pa.binary(2), [b"ab", None], [b"ab", None]),
    ("bytes", pa.binary_view(), [b"ab", None], [b"ab", None]),
    ("float64", pa.null(), [None, None], [None, None]),
    ("list<string>", pa.null(), [None], [None]),
    ("vector<float32, 2>", pa.list_(pa.float32(), 2), [[1, 2], None], [[1, 2], None]),
    ("vector<float32, 2>", pa.list_(pa.float64()), [[1, 2], None, [3, 4]], [[1, 2], None, [3, 4]]),
    ("vector<int8, 1>", pa.large_list(pa.int64()), [[1], None], [[1], None]),
    ("list<int32>", pa.list_(pa.int64(), 2), [[1, 2], None], [[1, 2], None]),
    ("list<int32>", pa.large_list(pa.int32()), [[], [1], None], [[], [1], None]),
    ("list<string>", pa.list_(pa.large_string()), [["é", ""], [], None], [["é", ""], [], None]),
    ("list<bool>", pa.list_(pa.bool_()), [[True], None], [[True], None]),
    ("list<int64>", pa.list_(pa.null()), [[], None], [[], None]),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "type_", "values", "wanted"), TAKEN, ids=[f"{t[1]}-{t[0]}" for t in TAKEN])
def test_a_value_that_fits_is_taken(dtype: str, type_: pa.DataType, values: list[Any], wanted: list[Any]) -> None:
    table, report = read(view_of(dtype), table_of(values, type_))
    assert table.column("x").to_pylist() == wanted
    assert table.schema.field("x").type.equals(DType.parse(dtype).arrow())
    assert (report.accepted, report.rejected) == (len(values), 0)


def test_an_extension_type_counts_as_its_storage() -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(4, dtype=np.float32).reshape(2, 2))
    assert values_of("vector<float32, 2>", tensors)[0] == [[0, 1], [2, 3]]


def test_run_ends_count_as_their_values() -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([1.5, 2.5]))
    assert values_of("float64", runs)[0] == [1.5, 1.5, 2.5]


# (declared, Arrow type, values of which the second does not fit, words of the reason)
REJECTED: list[tuple[str, pa.DataType, list[Any], str]] = [
    ("int8", pa.int64(), [1, 128, None], "not a whole number that int8 holds"),
    ("int64", pa.uint64(), [1, 2**63], "int64"),
    ("uint8", pa.int64(), [1, -1], "uint8"),
    ("int32", pa.float64(), [1.0, 1.5, 2.0], "int32"),
    ("int64", pa.float64(), [1.0, float("nan")], "int64"),
    ("int64", pa.float64(), [1.0, 2.0**63], "int64"),
    ("uint64", pa.float64(), [1.0, 2.0**64], "uint64"),
    ("float64", pa.int64(), [1, 2**53 + 1], "beyond 2**53"),
    ("float32", pa.float64(), [1.0, 1e300], "too large for float32"),
    ("vector<float32, 2>", pa.list_(pa.float32()), [[1, 2], [1], None], "vector of another length"),
    ("vector<float32, 2>", pa.list_(pa.float32(), 2), [[1, 2], [None, 1], None], "holds a null inside"),
    ("vector<int8, 1>", pa.list_(pa.int64()), [[1], [300], None], "int8"),
    ("list<string>", pa.list_(pa.string()), [["a"], ["b", None], None], "holds a null inside"),
    ("list<int8>", pa.list_(pa.int64()), [[1, 2], [3, 300], []], "int8"),
    ("list<int64>", pa.list_(pa.null()), [[], [None]], "holds a null inside"),
]


@pytest.mark.parametrize(("dtype", "type_", "values", "words"), REJECTED)
def test_a_value_that_does_not_fit_refuses_its_row(dtype: str, type_: Any, values: list[Any], words: str) -> None:
    taken, report = values_of(dtype, values, type_)
    wanted = [value for i, value in enumerate(values) if i != 1]
    assert taken == wanted
    assert (report.accepted, report.rejected) == (len(wanted), 1)
    (reason,) = report.reasons
    assert words in reason
    assert "field 'x'" in reason


def test_text_that_is_no_utf8_refuses_its_row() -> None:
    for raw in ([b"ok", b"\xff\xfe", None], [b"ok", b"\xed\xa0\x80", None]):  # the second: an encoded surrogate
        taken, report = values_of("string", pa.array(raw, pa.binary()).view(pa.string()))
        assert taken == ["ok", None]
        assert report.reasons == {"field 'x' is not valid UTF-8": 1}


def test_text_inside_a_list_is_checked() -> None:
    texts = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    taken, report = values_of("list<string>", pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts))
    assert taken == [["ok"]]
    assert report.reasons == {"field 'x': an element is not valid UTF-8": 1}


def test_a_row_with_two_faults_is_counted_once() -> None:
    view = FeatureView("v", USER, [Field("x", "int8"), Field("y", "int8")])
    _, report = read(view, table_of([300, 1], pa.int64(), y=pa.array([300, 300], pa.int64())))
    assert report.rejected == 2
    assert sorted(report.reasons.values()) == [1, 1]


def test_a_null_in_a_field_that_holds_none_refuses_its_row() -> None:
    table, report = read(view_of(nullable=False), table_of([1.0, None]))
    assert table.column("x").to_pylist() == [1.0]
    assert report.reasons == {"field 'x' is null and declared nullable=False": 1}


def test_nan_is_a_value_and_no_null() -> None:
    _, report = read(view_of(nullable=False), table_of([float("nan")]))
    assert report.accepted == 1


REFUSED: list[tuple[str, pa.Array, str]] = [
    ("float64", pa.array([Decimal("1.5")]), "decimal.*scale it to an integer"),
    ("int64", pa.array(["1"]), "int64.*cast the column"),
    ("float64", pa.array([True]), "float64.*bool"),
    ("bool", pa.array([1]), "bool.*int64"),
    ("string", pa.array([1]), "string.*int64"),
    ("string", pa.array([b"x"]), "string.*binary"),
    ("bytes", pa.array(["x"]), "bytes.*string"),
    ("timestamp", pa.array([1.0]), "float does not hold microseconds"),
    ("timestamp", pa.array(["2013-01-01"]), "timestamp.*cast the column"),
    ("timestamp", pa.array([1], pa.time64("us")), "timestamp.*time64"),
    ("int64", pa.array([1], UTC_US), "int64.*timestamp"),
    ("float64", pa.array([[1.0]]), "float64.*list"),
    ("list<float64>", pa.array([1.0]), "list.*double"),
    ("vector<float32, 2>", pa.array([[1, 2, 3]], pa.list_(pa.float32(), 3)), "holds 3 elements"),
    ("list<int64>", pa.array([["a"]]), "an element is declared int64.*string"),
]


@pytest.mark.parametrize(("dtype", "column", "words"), REFUSED)
def test_a_column_that_cannot_become_its_type_refuses_the_source(dtype: str, column: pa.Array, words: str) -> None:
    with pytest.raises(DataError, match=rf"view 'v'.*field 'x'.*{words}"):
        read(view_of(dtype), table_of(column))


# --- keys


def test_a_null_or_unfit_key_refuses_its_row() -> None:
    view = view_of(entity=Entity("e", {"user_id": "int8"}))
    source = table_of([1.0, 2.0, 3.0]).set_column(0, "user_id", pa.array([1, None, 300], pa.int64()))
    table, report = read(view, source)
    assert table.column("user_id").to_pylist() == [1]
    assert table.schema.field("user_id").type == pa.int64()
    assert report.reasons == {
        "join key 'user_id' is null": 1,
        "join key 'user_id' is not a whole number that int8 holds": 1,
    }


@pytest.mark.parametrize("type_", [pa.float64(), pa.float32(), pa.bool_(), UTC_US])
def test_a_key_that_is_no_integer_or_string_refuses_the_source(type_: Any) -> None:
    source = table_of([1.0]).set_column(0, "user_id", pa.array([1]).cast(type_))
    with pytest.raises(DataError, match="join key 'user_id'"):
        read(view_of(), source)


def test_a_key_that_is_too_long_refuses_its_row() -> None:
    view = view_of(entity=Entity("e", {"name": "string"}))
    longest = "x" * (normal_form.KEY_SIZE_MAX - 4)
    table, report = read(view, table_of([1.0, 2.0]).append_column("name", pa.array([longest, longest + "x"])))
    assert table.num_rows == 1
    assert report.reasons == {"the key takes over 4096 B": 1}


def test_a_row_that_is_too_large_refuses_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normal_form, "HEAP_SIZE_MAX", 16)
    cases: list[tuple[str, list[Any]]] = [
        ("string", ["a" * 16, "a" * 17, None]),
        ("bytes", [b"a" * 16, b"a" * 17, None]),
        ("list<int32>", [[1] * 4, [1] * 5, None]),
        ("list<string>", [["a" * 8], ["a" * 9], None]),
        ("list<bool>", [[True] * 16, [True] * 17, None]),
    ]
    for dtype, values in cases:
        taken, report = values_of(dtype, values, DType.parse(dtype).arrow())
        assert taken == [values[0], None]
        assert report.reasons == {"the row's variable values take over 16 B": 1}


# --- times


def times_of(column: pa.Array, **options: Any) -> tuple[list[int], LoadReport]:
    n = len(column)
    source = pa.table({"user_id": pa.array(range(n)), "event_timestamp": column, "x": np.zeros(n)})
    table, report = read(view_of(), source, **options)
    return table.column("event_timestamp").to_pylist() if table.num_rows else [], report


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array([-1, 2], pa.timestamp("s")), [-1_000_000, 2_000_000]),
        (pa.array([-1, 2], pa.timestamp("ms", "UTC")), [-1_000, 2_000]),
        (pa.array([-1, 2], pa.timestamp("us", "Europe/Berlin")), [-1, 2]),
        (pa.array([-1, 2], pa.timestamp("us")), [-1, 2]),
        (pa.array([date(1970, 1, 2), date(1969, 12, 31)]), [86_400_000_000, -86_400_000_000]),
        (pa.array([date(1970, 1, 2)]).cast(pa.date64()), [86_400_000_000]),
        (pa.array([-1, 2], pa.int64()), [-1, 2]),
        (pa.array([5], pa.uint32()), [5]),
        (pa.array([TIME_MIN_US, TIME_MAX_US], pa.int64()), [TIME_MIN_US, TIME_MAX_US]),
    ],
)
def test_times_of_any_unit_are_microseconds(column: pa.Array, wanted: list[int]) -> None:
    assert times_of(column)[0] == wanted


def test_what_is_finer_than_a_microsecond_is_floored_and_counted() -> None:
    times, report = times_of(pa.array([-1, -1_000, 1_999, 2_000], pa.timestamp("ns")))
    assert times == [-1, -1, 1, 2]
    assert report.times_floored == 2
    assert "2 times were floored" in str(report)


def test_floored_times_of_refused_rows_are_not_counted() -> None:
    source = table_of([300, 1], pa.int64()).set_column(1, "event_timestamp", pa.array([1, 1], pa.timestamp("ns")))
    _, report = read(view_of("int8"), source)
    assert (report.accepted, report.times_floored) == (1, 1)


def test_floored_times_inside_a_list_count_once_per_row() -> None:
    column = pa.array([[1, 2], [1000]], pa.list_(pa.timestamp("ns")))
    taken, report = values_of("list<timestamp>", column)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert taken == [[epoch, epoch], [epoch + timedelta(microseconds=1)]]
    assert report.times_floored == 1


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, TIME_MAX_US + 1, TIME_MIN_US - 1, None], pa.int64()),
        pa.array([0, 2**62, -(2**62), None], pa.timestamp("s")),
        pa.array([0, 2**63 - 1, -(2**63), None], pa.timestamp("us")),
        pa.array([0, 2**31 - 1, -(2**31), None], pa.date32()),
    ],
)
def test_a_null_or_impossible_time_refuses_its_row(column: pa.Array) -> None:
    times, report = times_of(column)
    assert times == [0]
    assert report.reasons == {
        "column 'event_timestamp' is outside years 1 to 9999": 2,
        "column 'event_timestamp' is null": 1,
    }


@pytest.mark.parametrize("type_", [pa.float64(), pa.string(), pa.time32("s"), pa.duration("us"), pa.bool_()])
def test_an_event_time_that_is_no_time_refuses_the_source(type_: Any) -> None:
    with pytest.raises(DataError, match="'event_timestamp' is declared timestamp and the column is"):
        times_of(pa.nulls(1, type_))


def test_created_time_is_the_declared_column() -> None:
    source = table_of([1.0, 2.0, 3.0], known=pa.array([5, None, TIME_MAX_US + 1], pa.int64()))
    table, report = read(view_of(), source, created_time="known")
    assert table.column("created_timestamp").to_pylist() == [5]
    assert sorted(report.reasons) == ["column 'known' is null", "column 'known' is outside years 1 to 9999"]
    assert report.ignored_columns == ()


def test_created_time_is_else_the_event_time_and_the_views_delay() -> None:
    view = view_of(delay=timedelta(seconds=1))
    source = table_of([1.0, 2.0]).set_column(1, "event_timestamp", pa.array([5, TIME_MAX_US], pa.int64()))
    table, report = read(view, source)
    assert table.column("created_timestamp").to_pylist() == [1_000_005]
    assert report.reasons == {"event time + delay is outside years 1 to 9999": 1}


def test_the_event_time_may_have_another_name_and_be_a_field_as_well() -> None:
    view = FeatureView("v", USER, [Field("at", "timestamp")])
    source = pa.table({"user_id": [1], "at": pa.array([5], pa.timestamp("us"))})
    table, _ = read(view, source, event_time="at")
    assert table.column("event_timestamp").to_pylist() == [5]
    assert table.column("at").cast(pa.int64()).to_pylist() == [5]


# --- columns


def test_missing_columns_are_named_and_nothing_is_taken() -> None:
    with pytest.raises(DataError, match=r"no column 'event_timestamp', 'x'; it has user_id, y"):
        read(view_of(), pa.table({"user_id": [1], "y": [2.0]}))


def test_a_column_that_is_there_twice_is_refused() -> None:
    table = table_of([1.0]).append_column("x", pa.array([2.0]))
    with pytest.raises(DataError, match="column 'x' is there 2 times"):
        read(view_of(), table)


@pytest.mark.parametrize("source", [7, None, {"user_id": [1]}, [{"user_id": 1}]])
def test_what_holds_no_arrow_is_no_source(source: object) -> None:
    with pytest.raises(DataError, match=f"not {type(source).__name__}"):
        read(view_of(), source)


# --- sources in memory

MIXED = FeatureView("v", USER, [Field("x", "float64"), Field("s", "string"), Field("k", "int32")])


def mixed_table() -> pa.Table:
    strings = pa.array(["é", None, ""])
    return table_of([1.5, None, -0.0], s=strings, k=pa.array([1, None, 3], pa.int32()))


class StreamOnly:
    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


class ArrayOnly:
    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self.batch.__arrow_c_array__(requested_schema)


SOURCES: dict[str, Callable[[pa.Table], object]] = {
    "table": lambda table: table,
    "batch": lambda table: table.to_batches()[0],
    "reader": lambda table: table.to_reader(max_chunksize=2),
    "stream": StreamOnly,
    "array": lambda table: ArrayOnly(table.to_batches()[0]),
    "polars": pl.from_arrow,
    "polars categories": lambda table: pl.DataFrame(table).with_columns(pl.col("s").cast(pl.Categorical)),
    "pandas": lambda table: table.to_pandas(types_mapper=pd.ArrowDtype),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_in_memory_gives_the_same_rows(kind: str) -> None:
    table, report = read(MIXED, SOURCES[kind](mixed_table()))
    assert table.equals(read(MIXED, mixed_table())[0])
    assert (report.accepted, report.rejected) == (3, 0)


def test_an_empty_source_gives_no_batch() -> None:
    table, report = read(MIXED, mixed_table().slice(0, 0))
    assert table.num_rows == 0
    assert (report.accepted, report.rejected) == (0, 0)


# --- files


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "rows.parquet": pq.write_table,
    "file.arrow": write_file,
    "stream.arrow": write_stream,
    "rows.ipc": write_stream,
    "rows.feather": lambda table, path: pa.feather.write_feather(table, str(path), compression="lz4"),
    "rows.csv": lambda table, path: csv.write_csv(table, str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("as_path", [Path, str])
def test_every_file_gives_the_same_rows(tmp_path: Path, name: str, as_path: Callable[[Path], object]) -> None:
    WRITERS[name](mixed_table(), tmp_path / name)
    table, report = read(MIXED, as_path(tmp_path / name))
    assert table.equals(read(MIXED, mixed_table())[0])
    assert report.accepted == 3


def test_a_directory_is_read_in_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "_temporary").mkdir()
    pq.write_table(table_of([1.0]), tmp_path / "b.parquet")
    write_stream(table_of([2.0]), tmp_path / "a" / "z.arrow")
    csv.write_csv(table_of([3.0]), tmp_path / "c.csv")
    pq.write_table(table_of([9.0]), tmp_path / "_temporary" / "part.parquet")
    (tmp_path / "README").write_text("no data")
    table, _ = read(view_of(), tmp_path)
    assert table.column("x").to_pylist() == [2.0, 1.0, 3.0]


def test_files_of_a_directory_may_differ_in_types_that_fit(tmp_path: Path) -> None:
    pq.write_table(table_of([1], pa.int32()), tmp_path / "a.parquet")
    pq.write_table(table_of([2.0]), tmp_path / "b.parquet")
    assert read(view_of(), tmp_path)[0].column("x").to_pylist() == [1.0, 2.0]


def test_a_bad_file_of_a_directory_refuses_it_before_any_row(tmp_path: Path) -> None:
    pq.write_table(table_of([1.0]), tmp_path / "a.parquet")
    pq.write_table(table_of(["x"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: field 'x' is declared float64"):
        next(read_batches(view_of(), tmp_path, LoadReport("v")))


def test_paths_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("no.parquet", "there is no file"),
        ("x.txt", "is none of .parquet"),
        ("broken.parquet", "broken.parquet"),
        ("empty.csv", "empty.csv"),
        ("empty", "holds no .parquet"),
    ]:
        with pytest.raises(DataError, match=words):
            read(view_of(), tmp_path / name)


def test_a_file_that_breaks_off_says_which(tmp_path: Path) -> None:
    path = tmp_path / "cut.arrow"
    write_stream(table_of(np.random.default_rng(1).random(10_000)), path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"cut\.arrow"):
        read(view_of(), path)


# --- CSV


def read_csv(tmp_path: Path, text: str | bytes, view: FeatureView) -> tuple[list[dict[str, Any]], LoadReport]:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    table, report = read(view, path)
    return table.drop_columns(["created_timestamp"]).to_pylist() if table.num_rows else [], report


def csv_values(tmp_path: Path, dtype: str, *cells: str) -> tuple[list[Any], LoadReport]:
    lines = "".join(f"{i},{i},{cell}\n" for i, cell in enumerate(cells))
    rows, report = read_csv(tmp_path, f"user_id,event_timestamp,x\n{lines}", view_of(dtype))
    return [row["x"] for row in rows], report


@pytest.mark.parametrize(
    ("dtype", "cells", "wanted"),
    [
        ("string", ["007", "NA", "", '""', '"a,b"', "true"], ["007", "NA", None, "", "a,b", "true"]),
        ("int64", ["3", " 4 ", "5.0", "", "NA", str(2**63 - 1)], [3, 4, 5, None, None, 2**63 - 1]),
        ("float64", ["0.1", "1e3", "inf", "", "null"], [0.1, 1000.0, float("inf"), None, None]),
        ("bool", ["true", "FALSE", "1", "0", ""], [True, False, True, False, None]),
    ],
)
def test_csv_text_is_parsed_to_the_declared_type(tmp_path: Path, dtype: str, cells: Any, wanted: Any) -> None:
    values, report = csv_values(tmp_path, dtype, *cells)
    assert values == wanted
    assert report.rejected == 0


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [("int8", "300"), ("int64", "1.5"), ("int64", "x"), ("float64", "1,5"), ("bool", "maybe"), ("timestamp", "soon")],
)
def test_csv_text_that_is_no_such_value_refuses_its_row(tmp_path: Path, dtype: str, bad: str) -> None:
    values, report = csv_values(tmp_path, dtype, "1", f'"{bad}"', "1")
    assert len(values) == 2
    assert (report.accepted, report.rejected) == (2, 1)
    assert "field 'x' is no " in next(iter(report.reasons))


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["1970-01-01T00:00:01", "1970-01-02"], [1_000_000, 86_400_000_000]),
        (["1970-01-01 00:00:01Z", "1970-01-01T01:00:00.5+01:00"], [1_000_000, 500_000]),
        (["5", "-5"], [5, -5]),
        (["1970-01-01T00:00:01", "1970-01-01T00:00:01Z", "7"], [1_000_000, 1_000_000, 7]),
    ],
)
def test_csv_times_are_iso_texts_or_microseconds(tmp_path: Path, texts: list[str], wanted: list[int]) -> None:
    lines = "".join(f"1,{text},0\n" for text in texts)
    rows, report = read_csv(tmp_path, f"user_id,event_timestamp,x\n{lines}", view_of())
    assert [row["event_timestamp"] for row in rows] == wanted
    assert report.times_floored == 0


def test_csv_times_that_are_finer_are_floored_and_counted(tmp_path: Path) -> None:
    lines = "1,1969-12-31T23:59:59.9999999,0\n1,1970-01-01T00:00:00.000001000,0\n"
    rows, report = read_csv(tmp_path, f"user_id,event_timestamp,x\n{lines}", view_of())
    assert [row["event_timestamp"] for row in rows] == [-1, 1]
    assert report.times_floored == 1


def test_a_csv_line_of_another_width_refuses_itself(tmp_path: Path) -> None:
    rows, report = read_csv(tmp_path, "user_id,event_timestamp,x\n1,1,1\n2,2\n3,3,3,3\n4,4,4\n", view_of())
    assert [row["user_id"] for row in rows] == [1, 4]
    assert report.reasons == {"CSV line has another number of columns than the header": 2}


def test_csv_bytes_that_are_no_utf8_refuse_their_row(tmp_path: Path) -> None:
    rows, report = read_csv(tmp_path, b"user_id,event_timestamp,x\n1,1,\xff\n2,2,ok\n", view_of("string"))
    assert [row["x"] for row in rows] == ["ok"]
    assert report.reasons == {"field 'x' is not valid UTF-8": 1}


def test_csv_columns_of_no_use_cannot_spoil_the_file(tmp_path: Path) -> None:
    lines = "".join(f"{i},{i},0,{i}\n" for i in range(200_000)) + "1,1,0,text at last\n"
    rows, report = read_csv(tmp_path, f"user_id,event_timestamp,x,other\n{lines}", view_of())
    assert len(rows) == 200_001
    assert report.ignored_columns == ("other",)


def test_csv_holds_no_lists(tmp_path: Path) -> None:
    for dtype in ("list<int64>", "vector<float32, 2>", "bytes"):
        with pytest.raises(DataError, match="which a CSV file can't hold; use Parquet"):
            csv_values(tmp_path, dtype, "1")


# --- pushes


def test_a_push_is_one_batch_at_one_time() -> None:
    batch = read_whole(view_of(), pa.concat_tables([table_of([1.0, 2.0]), table_of([3.0])]), 77)
    assert batch is not None
    assert batch.num_rows == 3
    assert batch.column("created_timestamp").to_pylist() == [77] * 3
    assert read_whole(view_of(), table_of([1.0]).slice(1), 77) is None


def test_a_push_with_one_bad_row_or_unknown_column_is_refused() -> None:
    with pytest.raises(DataError, match=r"nothing was pushed, 1 rows can't be taken: field 'x' .* \(1 rows\)"):
        read_whole(view_of("int8"), table_of([1, 300], pa.int64()), 77)
    with pytest.raises(DataError, match="view 'v' has no 'y'; leave it out"):
        read_whole(view_of(), table_of([1.0], y=[1]), 77)


def test_a_report_reads_like_a_sentence() -> None:
    report = LoadReport("v", accepted=1234)
    report.reject("no key", 2)
    report.reject("too late", 10)
    report.reject("no key")
    lines = ["view 'v': 1,234 rows accepted, 13 rejected", "  10: too late", "  3: no key"]
    assert str(report).splitlines() == lines


def test_zones_are_moments_and_not_wall_clocks() -> None:
    moment = datetime(2020, 7, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    times, _ = times_of(pa.array([moment], pa.timestamp("us", "+02:00")))
    assert times == [1_593_597_600_000_000]
