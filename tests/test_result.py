"""Result: every form gives the same values, exactly, and says null where there is none."""

from __future__ import annotations

import struct
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat import DataError, Status, UnknownFeature
from fastfeat._core.matrix import matrix_fill
from fastfeat.dtypes import DType
from fastfeat.result import Column, Result

VALID = np.array([1, 0, 1], np.uint8)
MOMENT = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def packed(cells: list[bytes]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    offsets = np.cumsum([0, *map(len, cells)]).astype(np.uint32)
    return np.frombuffer(b"".join(cells), np.uint8), offsets


def text_list(*texts: bytes) -> bytes:
    return struct.pack(f"<I{len(texts)}I", len(texts), *map(len, texts)) + b"".join(texts)


def numbers(dtype: str, *values: object) -> Column:
    return VALID, np.array(values, dtype), None


def variable(*cells: bytes) -> Column:
    data, offsets = packed(list(cells))
    return VALID, data, offsets


# type -> its column of three entities, the second of which is null, and the Python values
CASES: dict[str, tuple[Column, list[Any]]] = {
    "bool": (numbers("uint8", 1, 0, 0), [True, None, False]),
    "int8": (numbers("int8", -128, 0, 127), [-128, None, 127]),
    "int64": (numbers("int64", -(2**63), 0, 2**63 - 1), [-(2**63), None, 2**63 - 1]),
    "uint64": (numbers("uint64", 2**64 - 1, 0, 1), [2**64 - 1, None, 1]),
    "float32": (numbers("float32", 0.5, 0, -1.5), [0.5, None, -1.5]),
    "float64": (numbers("float64", 0.1, 0, 1e300), [0.1, None, 1e300]),
    "timestamp": (numbers("int64", -1, 0, 0), [MOMENT, None, datetime(1970, 1, 1, tzinfo=UTC)]),
    "string": (variable("né".encode(), b"", b""), ["né", None, ""]),
    "bytes": (variable(b"\xff\x00", b"", b""), [b"\xff\x00", None, b""]),
    "vector<float32, 2>": (
        (VALID, np.array([[1, 2], [0, 0], [3, 4]], np.float32), None),
        [[1.0, 2.0], None, [3.0, 4.0]],
    ),
    "list<int32>": (variable(struct.pack("<2i", 1, -2), b"", b""), [[1, -2], None, []]),
    "list<bool>": (variable(b"\x01\x00\x01", b"", b"\x01"), [[True, False, True], None, [True]]),
    "list<timestamp>": (variable(struct.pack("<q", -1), b"", b""), [[MOMENT], None, []]),
    "list<string>": (variable(text_list(b"a", "é".encode()), b"", text_list()), [["a", "é"], None, []]),
    "list<bytes>": (variable(text_list(b"\xff", b""), b"", text_list(b"x")), [[b"\xff", b""], None, [b"x"]]),
}


def result_of(types: list[str], columns: list[Column] | None = None) -> Result:
    statuses = np.array([[0, 0, 0], [0, 2, 4]], np.uint8)
    times = np.array([[10, 20, 30], [10, 0, 0]], np.int64)
    names = [f"{'ab'[i % 2]}:f{i}" for i in range(len(types))]
    view_of = [i % 2 for i in range(len(types))]
    columns = [CASES[name][0] for name in types] if columns is None else columns
    return Result(names, [DType.parse(name) for name in types], ["a", "b"], view_of, statuses, times, columns)


@pytest.mark.parametrize("name", CASES)
def test_python_values_of_every_type(name: str) -> None:
    assert result_of([name]).to_dict() == {"a:f0": CASES[name][1]}


@pytest.mark.parametrize("name", CASES)
def test_arrow_has_the_declared_type_and_the_same_values(name: str) -> None:
    table = result_of([name]).to_arrow()
    table.validate(full=True)
    assert table.schema.field("a:f0").type.equals(DType.parse(name).arrow())
    assert table.column("a:f0").to_pylist() == CASES[name][1]


def test_every_value_present_needs_no_bitmap() -> None:
    column = (np.ones(3, np.uint8), np.array([1.0, 2.0, 3.0]), None)
    chunk = result_of(["float64"], [column]).to_arrow().column(0).chunk(0)
    assert chunk.buffers()[0] is None
    assert chunk.to_numpy(zero_copy_only=True).ctypes.data == column[1].ctypes.data


def test_arrow_copies_what_lies_at_an_odd_address() -> None:
    raw = np.frombuffer(b"x" + struct.pack("<3d", 1.5, 0, 2.5), np.uint8)[1:].view(np.float64)
    array = result_of(["float64"], [(VALID, raw, None)]).to_arrow().column(0).chunk(0)
    assert array.buffers()[1].address % 8 == 0
    assert array.to_pylist() == [1.5, None, 2.5]


def test_float_bits_pass_unchanged() -> None:
    bits = np.array([0x7FF0000000000001, 0x8000000000000000, 0xFFF8000000000123], np.uint64)
    column = (np.ones(3, np.uint8), bits.view(np.float64), None)
    result = result_of(["float64"], [column])
    assert result.to_numpy().view(np.uint64).ravel().tolist() == bits.tolist()
    assert result.to_arrow().column(0).to_numpy().view(np.uint64).tolist() == bits.tolist()


def test_matrix_spreads_vectors_and_marks_absent_values_with_nan() -> None:
    matrix = result_of(["vector<float32, 2>", "bool", "timestamp"]).to_numpy()
    assert matrix.dtype == np.float64
    expected = [[1.0, 2.0, 1.0, -1.0], [np.nan] * 4, [3.0, 4.0, 0.0, 0.0]]
    np.testing.assert_array_equal(matrix, expected)


def test_float32_matrix_turns_what_is_too_large_into_infinity() -> None:
    matrix = result_of(["float64"]).to_numpy("float32")
    assert matrix.dtype == np.float32
    assert matrix[2, 0] == np.inf


def test_matrix_refuses_a_feature_without_a_float_form_by_name() -> None:
    with pytest.raises(DataError, match="'b:f1' is string and has no float form"):
        result_of(["float64", "string"]).to_numpy()


def test_matrix_refuses_a_dtype_that_cannot_hold_a_missing_value() -> None:
    with pytest.raises(DataError, match="int64"):
        result_of(["int64"]).to_numpy("int64")


def extremes(dtype: str, count: int) -> np.ndarray[Any, Any]:
    """Numbers of a type, the greatest, the least and those between at random bits."""
    bits = np.random.default_rng(7).integers(0, 256, count * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)
    limits = np.finfo(dtype) if bits.dtype.kind == "f" else np.iinfo(dtype)
    bits[:2] = limits.min, limits.max
    return np.where(np.isnan(bits), 0, bits)


@pytest.mark.parametrize("target", ["float64", "float32"])
@pytest.mark.parametrize(
    "dtype",
    [
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32"),
        *("longlong", "ulonglong"),  # of the same bits as int64, and not the same type; such as of array.array("q")
    ],
)
@pytest.mark.parametrize("count", [2, 300])
def test_a_matrix_is_the_cast_of_every_column(dtype: str, target: str, count: int) -> None:
    one, pair = extremes(dtype, count), extremes(dtype, 2 * count).reshape(count, 2)
    valid = (np.arange(count) % 3 != 1).astype(np.uint8)
    wide = np.zeros(8 * count + 1, np.uint8)[1:].view("float64")  # as it lies in a reply: at any address
    wide[:] = extremes("float64", count)
    out = np.empty((count, 4), target)
    matrix_fill(out, [(valid, one, None), (valid, pair, None), (valid, wide, None)], (1, 2, 1))
    with np.errstate(over="ignore"):
        expected = np.column_stack([one.astype(target), pair.astype(target), wide.astype(target)])
    expected[valid == 0] = np.nan
    assert out.tobytes() == expected.tobytes()


def test_a_column_that_does_not_fill_a_matrix_is_refused() -> None:
    out, valid = np.empty((3, 1)), np.ones(3, np.uint8)
    for data in (np.zeros(2), np.zeros(3, complex), np.zeros(3, object)):
        with pytest.raises(TypeError, match="a column of"):
            matrix_fill(out, [(valid, data, None)], (1,))


def test_statuses_and_event_times_are_per_view() -> None:
    result = result_of(["int8", "int8"])
    assert {view: codes.tolist() for view, codes in result.statuses.items()} == {"a": [0, 0, 0], "b": [0, 2, 4]}
    assert {view: times.tolist() for view, times in result.event_times.items()} == {"a": [10, 20, 30], "b": [10, 0, 0]}


def test_status_of_a_value_is_null_only_where_its_row_is_there() -> None:
    result = result_of(["int8", "int8"])
    assert result.status("a:f0").tolist() == [Status.PRESENT, Status.NULL, Status.PRESENT]
    assert result.status("b:f1").tolist() == [Status.PRESENT, Status.NOT_FOUND, Status.DELETED]
    assert result.status("a:f0").dtype == np.uint8
    with pytest.raises(UnknownFeature, match=r"'a:g'.*a:f0, b:f1"):
        result.status("a:g")


@pytest.mark.parametrize("name", CASES)
def test_polars_has_the_same_values(name: str) -> None:
    frame = result_of([name]).to_polars()
    assert frame.get_column("a:f0").to_list() == CASES[name][1]


def test_pandas_keeps_integers_with_nulls_exact() -> None:
    frame = result_of(["int64", "string"]).to_pandas()
    assert frame["a:f0"].dtype == "int64[pyarrow]"
    assert frame["a:f0"].iloc[2] == 2**63 - 1
    assert frame["b:f1"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("name", CASES)
def test_no_entities_give_empty_columns(name: str) -> None:
    valid, data, offsets = CASES[name][0]
    column = (valid[:0], data[:0], None if offsets is None else offsets[:1])
    empty = np.empty((1, 0), np.uint8)
    result = Result(["a:f0"], [DType.parse(name)], ["a"], [0], empty, empty.astype(np.int64), [column])
    assert len(result) == 0
    assert result.to_dict() == {"a:f0": []}
    assert result.to_arrow().num_rows == 0
    assert "0 entities" in repr(result)


def test_repr_shows_statuses_and_the_first_values() -> None:
    lines = repr(result_of(["int8", "string"])).splitlines()
    assert lines == [
        "Result: 3 entities x 2 features",
        "  a: 3 PRESENT",
        "  b: 1 PRESENT, 1 NOT_FOUND, 1 DELETED",
        "  a:f0  int8  [-128, None, 127]",
        "  b:f1  string  ['né', None, '']",
    ]


def test_repr_is_bounded() -> None:
    result = result_of(["int8"] * 100)
    assert repr(result).endswith("and 80 more features")


def test_arrow_refuses_texts_beyond_its_offsets() -> None:
    column = (np.ones(1, np.uint8), np.empty(0, np.uint8), np.array([0, 2**31], np.uint32))
    with pytest.raises(DataError, match="2 GiB; ask for fewer"):
        result_of(["string"], [column]).to_arrow()


def test_importing_results_needs_numpy_only() -> None:
    code = (
        "import sys, fastfeat; fastfeat.Result, fastfeat.Status, fastfeat.DataError\n"
        "print([m for m in ('pyarrow', 'pandas', 'polars', 'uvloop', 'msgpack') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_public_names_all_load() -> None:
    import fastfeat

    for name in fastfeat.MODULE_OF:
        assert getattr(fastfeat, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fastfeat.nothing  # noqa: B018


def test_arrow_table_is_what_pyarrow_calls_a_table() -> None:
    assert isinstance(result_of(["int8"]).to_arrow(), pa.Table)
