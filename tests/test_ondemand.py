"""On-demand features: what a definition is, what a function may return, and that answers are alike everywhere."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfeat._core.plan as native
from fastfeat import (
    DataError,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
    Receipt,
    SchemaError,
    Status,
    Store,
    UnknownFeature,
    UnknownView,
    on_demand_feature_view,
)
from fastfeat.computed import Inputs
from fastfeat.definitions import Definition, definitions_from_list, definitions_to_list
from fastfeat.dtypes import DType
from fastfeat.request_fields import column_of, plain_values, values_of_wire, wire_values
from fastfeat.result import python_values
from fastfeat.times import TIME_MAX_US, TIME_MIN_US

NOW_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
USER = Entity("user", {"user_id": "int64"})
PROFILE = FeatureView(
    "profile",
    entity=USER,
    schema=[Field("age", "int32"), Field("limit", "float64"), Field("country", "string")],
    ttl=timedelta(days=1),
)


@on_demand_feature_view(
    request=[Field("transaction_time", "timestamp")],
    schema=[Field("is_night_time_transaction", "bool")],
    description="Between 22 and 6 o'clock, UTC.",
)
def transaction_checks(inputs: Any) -> Any:
    hour = inputs["transaction_time"] // 3_600_000_000 % 24
    return {"is_night_time_transaction": (hour >= 22) | (hour < 6)}


@on_demand_feature_view(
    inputs=[PROFILE["limit"], "profile:age"],
    request=[Field("amount", "float64")],
    schema=[Field("share", "float64"), Field("years", "int32")],
)
def spending(inputs: Any) -> Any:
    return {
        "share": inputs["amount"] / inputs["limit"],
        "years": np.ma.masked_array(inputs["age"], ~inputs.valid["age"]),
    }


@on_demand_feature_view(
    inputs=[spending, PROFILE["country"], transaction_checks],
    schema=[Field("text", "string"), Field("score", "float32")],
)
def summary(inputs: Any) -> Any:
    night = inputs["is_night_time_transaction"]
    text = [None if c is None else f"{c}{y}" for c, y in zip(inputs["country"], inputs["years"], strict=True)]
    return {"text": text, "score": np.where(night, 2.0, 1.0) * inputs["share"]}


SERVICE = FeatureService("scoring", [summary, PROFILE["age"], transaction_checks, spending])
DEFINITIONS: list[Definition] = [SERVICE, summary, spending, transaction_checks, PROFILE]


def fill(store: Store) -> None:
    store.apply(DEFINITIONS)
    rows: list[dict[str, Any]] = [
        {"user_id": i, "age": 20 + i, "limit": 100.0, "country": "DE", "event_timestamp": NOW_US} for i in range(3)
    ]
    rows.append({"user_id": 3, "age": None, "limit": None, "country": None, "event_timestamp": NOW_US})
    store.push("profile", rows)


@pytest.fixture
def store() -> Store:
    store = Store(capacity_bytes=32 << 20, clock=lambda: NOW_US)
    fill(store)
    return store


def moment(hour: int) -> datetime:
    return datetime(2013, 7, 4, hour, 30, tzinfo=UTC)


ROWS: list[dict[str, Any]] = [
    {"user_id": i, "amount": 10.0 * i, "transaction_time": moment(5 * i % 24)} for i in range(5)
]


def one(
    function: Callable[[Any], Any], schema: list[Field], request: list[Field] | None = None, **rows: Any
) -> dict[str, list[Any]]:
    """What a view of this function over request fields answers."""
    view = on_demand_feature_view(request=request or [Field("x", "float64")], schema=schema)(function)
    store = Store(capacity_bytes=8 << 20, clock=lambda: NOW_US)
    store.apply(view)
    return store.get_online_features([str(each) for each in view], rows or {"x": [1.0, 2.0]}).to_dict()


# Answers --------------------------------------------------------------------------------------------------------------


def test_night_is_told_from_the_requests_own_timestamp(store: Store) -> None:
    rows = [{"transaction_time": moment(hour)} for hour in range(24)]
    result = store.get_online_features(["transaction_checks:is_night_time_transaction"], rows)
    expected = [hour >= 22 or hour < 6 for hour in range(24)]
    assert result.to_dict() == {"transaction_checks:is_night_time_transaction": expected}
    assert result.statuses["transaction_checks"].tolist() == [Status.PRESENT] * 24


def test_stored_and_computed_features_answer_together_in_the_order_asked(store: Store) -> None:
    result = store.get_online_features("scoring", ROWS)
    assert result.names == tuple(map(str, SERVICE.features))
    expected = {
        "summary:text": ["DE20", "DE21", "DE22", None, None],
        "summary:score": [0.0, float(np.float32(0.2)), float(np.float32(0.2)), math.nan, math.nan],
        "profile:age": [20, 21, 22, None, None],
        "transaction_checks:is_night_time_transaction": [True, True, False, False, False],
        "spending:share": [0.0, 0.1, 0.2, math.nan, math.nan],
        "spending:years": [20, 21, 22, None, None],
    }
    assert str(result.to_dict()) == str(expected)
    assert result.statuses["profile"].tolist() == [Status.PRESENT] * 4 + [Status.NOT_FOUND]
    assert result.event_times["spending"].tolist() == [0] * 5
    assert result.status("spending:years").tolist() == [Status.PRESENT] * 3 + [Status.NULL] * 2


def test_vectors_and_matrices_hold_what_the_columns_hold(store: Store) -> None:
    features = ["spending:share", "profile:age", "transaction_checks:is_night_time_transaction", "spending:years"]
    expected = store.get_online_features(features, ROWS).to_numpy()
    assert np.array_equal(store.get_feature_vectors(features, ROWS), expected, equal_nan=True)
    for dtype in ("float64", "float32"):
        out = np.empty((5, 4), dtype)
        assert store.get_feature_vectors(features, ROWS, out=out) is out
        assert np.array_equal(out, expected.astype(dtype), equal_nan=True)
    vector = np.empty(4)
    assert store.get_feature_vector(features, ROWS[1], out=vector) is vector
    assert np.array_equal(vector, expected[1])
    assert np.array_equal(store.get_feature_vector(features, ROWS[4]), expected[4], equal_nan=True)
    with pytest.raises(DataError, match="out must be a float64 array of shape"):
        store.get_feature_vectors(features, ROWS, out=np.empty((5, 3)))
    with pytest.raises(DataError, match="'summary:text' is string, which a float matrix"):
        store.get_feature_vectors(["summary:text"], ROWS)


def test_columns_and_rows_ask_alike(store: Store) -> None:
    times: list[Any] = [row["transaction_time"] for row in ROWS]
    without_zone = [time.replace(tzinfo=None) for time in times]
    by_row = store.get_online_features("scoring", ROWS)
    for columns in (
        {"transaction_time": times, "amount": [row["amount"] for row in ROWS]},
        {"transaction_time": np.array(without_zone, "datetime64[s]"), "amount": np.arange(5.0) * 10},
        {"transaction_time": np.array(without_zone, "datetime64[us]").view(np.int64), "amount": np.arange(5) * 10},
        {"transaction_time": pa.array(times), "amount": pa.array(np.arange(5.0) * 10)},
        {"transaction_time": pa.chunked_array([times[:2], times[2:]]), "amount": np.arange(5, dtype="float32") * 10},
    ):
        got = store.get_online_features("scoring", {"user_id": np.arange(5), **columns})
        assert str(got.to_dict()) == str(by_row.to_dict())


def test_the_moment_of_the_read_is_an_input_that_nobody_gives(store: Store) -> None:
    @on_demand_feature_view(
        request=[Field("event_timestamp", "timestamp"), Field("since", "timestamp")],
        schema=[Field("age_us", "int64")],
    )
    def waiting(inputs: Any) -> Any:
        return {"age_us": inputs["event_timestamp"] - inputs["since"]}

    store.apply(waiting)
    rows = {"since": [NOW_US - 5, NOW_US]}
    assert store.get_online_features(["waiting:age_us"], rows).to_dict() == {"waiting:age_us": [5, 0]}
    then = store.get_online_features(["waiting:age_us"], rows, as_of=NOW_US + 7)
    assert then.to_dict() == {"waiting:age_us": [12, 7]}


def test_the_same_plan_answers_entities_at_times_of_their_own(store: Store) -> None:
    store.push("profile", {"user_id": 0, "age": 9, "limit": 50.0, "country": "FR", "event_timestamp": NOW_US - HOUR_US})
    plan = store.plan("scoring")
    at = np.array([NOW_US, NOW_US - HOUR_US, NOW_US - 2 * HOUR_US])
    rows: dict[str, list[Any]] = {"user_id": [0, 0, 0], "amount": [1.0, 1.0, 1.0], "transaction_time": [NOW_US] * 3}
    known = np.full(3, np.iinfo(np.int64).max)
    statuses, _, columns = plan.columns_at(rows, at, known)
    assert statuses[0].tolist() == [Status.PRESENT, Status.PRESENT, Status.NOT_FOUND]
    for i in range(3):
        one_row = {name: values[i : i + 1] for name, values in rows.items()}
        _, _, alone = plan.columns(one_row, int(at[i]), None)
        for whole, single in zip(columns, alone, strict=True):
            assert whole[0][i] == single[0][0]
            if whole[2] is None:
                assert whole[1][i : i + 1].tobytes() == single[1].tobytes()
    with pytest.raises(DataError, match="as_of has 2 times for 3 entities"):
        plan.columns_at(rows, at[:2], known)


def test_a_read_leaves_nothing_to_the_garbage_collector(store: Store) -> None:
    def read() -> None:
        store.get_online_features("scoring", ROWS)
        store.get_feature_vector(["spending:share", "spending:years"], ROWS[1])

    read()  # and make the plans
    gc.collect()
    gc.disable()
    try:
        read()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_matrix_of_other_types_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="not float64 or float32; read columns"):
        store.get_feature_vectors(["spending:share"], ROWS, out=np.empty((5, 1), "int32"))


def test_no_entities_are_an_answer_and_no_call(store: Store) -> None:
    result = store.get_online_features("scoring", {"user_id": [], "amount": [], "transaction_time": []})
    assert len(result) == 0
    assert result.to_dict()["summary:text"] == []


def test_a_plan_without_functions_is_the_native_one(store: Store) -> None:
    assert type(store.plan(["profile:age"])) is native.Plan
    assert type(store.plan(["profile:age", "spending:share"])) is not native.Plan


# Types ----------------------------------------------------------------------------------------------------------------

VALUES: dict[str, tuple[list[Any], str]] = {
    "bool": ([True, None, False], "bool"),
    "int8": ([-128, None, 127], "int8"),
    "int64": ([-(2**63), None, 2**63 - 1], "int64"),
    "uint64": ([0, None, 2**64 - 1], "uint64"),
    "float32": ([0.5, None, -0.0], "float32"),
    "float64": ([0.1, None, math.inf], "float64"),
    "timestamp": ([moment(1), None, moment(2)], "int64"),
    "string": (["a", None, "\u00e9\u4e2d"], "object"),
    "bytes": ([b"\x00a", None, b""], "object"),
    "vector<float32, 2>": ([[1.0, 2.5], None, [0.0, -1.0]], "float32"),
    "vector<int16, 3>": ([[1, 2, 3], None, [4, 5, 6]], "int16"),
    "list<int64>": ([[1, 2], None, []], "object"),
    "list<string>": ([["a", ""], None, []], "object"),
    "list<timestamp>": ([[moment(3)], None, []], "object"),
}


@pytest.mark.parametrize("dtype", VALUES)
def test_every_type_goes_in_and_comes_out_as_it_was(dtype: str) -> None:
    values, kind = VALUES[dtype]

    @on_demand_feature_view(request=[Field("x", dtype)], schema=[Field("y", dtype), Field("is_there", "bool")])
    def echo(inputs: Any) -> Any:
        x, is_there = inputs["x"], inputs.valid["x"]
        if x.dtype == object:
            return {"y": x, "is_there": is_there}
        mask = ~is_there if x.ndim == 1 else np.repeat(~is_there, x.shape[1]).reshape(x.shape)
        return {"y": np.ma.masked_array(x, mask), "is_there": is_there}

    store = Store(capacity_bytes=8 << 20, clock=lambda: NOW_US)
    store.apply(echo)
    for rows in (
        {"x": values},
        [{"x": value} for value in values],
        {"x": pa.array(values, Field("x", dtype).dtype.arrow())},
    ):
        got = store.get_online_features(["echo:y", "echo:is_there"], rows)
        assert got.to_dict() == {"echo:y": values, "echo:is_there": [True, False, True]}
    column = column_of(Field("x", dtype).dtype, values, "x")
    array = Inputs(echo.names, {"x": (Field("x", dtype).dtype, column)})["x"]
    assert array.dtype == kind
    assert not array.flags.writeable
    inputs = Inputs(echo.names, {"x": (Field("x", dtype).dtype, column)})
    assert inputs["x"] is inputs["x"]


FITTING: list[tuple[str, Any, list[Any]]] = [
    ("int8", np.array([1, -2], "int64"), [1, -2]),
    ("uint8", np.array([1, 2], "int16"), [1, 2]),
    ("float64", np.array([1, 2], "int32"), [1.0, 2.0]),
    ("float64", np.array([0.5, 2], "float32"), [0.5, 2.0]),
    ("float32", np.array([0.1, math.inf], "float64"), [float(np.float32(0.1)), math.inf]),
    ("float32", np.array([2**24 + 1, 0]), [float(2**24), 0.0]),
    (
        "timestamp",
        np.array([1_500, -1_500], "datetime64[ns]"),
        [EPOCH + timedelta(microseconds=us) for us in (1, -2)],
    ),
    ("timestamp", np.array(["1970-01-02", "NaT"], "datetime64[D]"), [datetime(1970, 1, 2, tzinfo=UTC), None]),
    ("int64", np.ma.masked_array([1, 2], [True, False]), [None, 2]),
    ("int64", [1, None], [1, None]),
    ("string", np.array(["a", "b"]), ["a", "b"]),
    ("string", np.ma.masked_array(np.array(["a", "b"], object), [False, True]), ["a", None]),
    ("vector<float64, 2>", np.array([[1, 2], [3, 4]]), [[1.0, 2.0], [3.0, 4.0]]),
    ("vector<float64, 2>", np.ma.masked_array([[1.0, 2], [3, 4]], [[False, True], [False, False]]), [None, [3.0, 4.0]]),
    ("list<int64>", np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
]


@pytest.mark.parametrize(("dtype", "given_values", "expected"), FITTING)
def test_what_fits_the_declared_type_is_taken(dtype: str, given_values: Any, expected: list[Any]) -> None:
    column = column_of(Field("y", dtype).dtype, given_values, "feature 'v:y'")
    assert list(python_values(Field("y", dtype).dtype, column, 2)) == expected


UNFIT: list[tuple[str, Any, str]] = [
    ("int8", np.array([1, 128]), "entity 1: 128 is outside -128 to 127"),
    ("uint64", np.array([-1, 0]), "entity 0: -1 is outside 0 to"),
    ("int64", np.array([1, 2**64 - 1], "uint64"), "entity 1: 18446744073709551615 is outside"),
    ("int32", np.array([1.0, 2.0]), "an array of float64 is declared int32; convert it"),
    ("int32", np.array([True, False]), "an array of bool is declared int32"),
    ("bool", np.array([0, 1]), "an array of int64 is declared bool"),
    ("float64", np.array([0, 2**53 + 1]), "entity 1: 9007199254740993 is outside"),
    ("float64", np.array([True, False]), "an array of bool is declared float64"),
    ("float32", np.array([1e39, 0]), "entity 0: 1e\\+39 is too large for float32"),
    ("timestamp", np.array([0, 2**62]), "entity 1: 4611686018427387904 is outside"),
    ("timestamp", np.array([0, 18_446_744_073_710], "datetime64[s]"), "entity 1: 18446744073710 of datetime64\\[s\\]"),
    ("timestamp", np.array([2**64 // 10 + 1], "datetime64[10us]"), "entity 0: 1844674407370955162 of datetime64"),
    ("timestamp", np.array([2**63 - 10], "datetime64[100000ns]"), "entity 0: 9223372036854775798 of datetime64"),
    ("timestamp", np.array([[0], [600_000]], "datetime64[Y]")[:, 0], "entity 1: 600000 of datetime64\\[Y\\]"),
    ("timestamp", np.zeros(2, "datetime64"), "an array of datetime64 is declared timestamp"),
    ("timestamp", np.array([0.0, 1.0]), "an array of float64 is declared timestamp"),
    ("timestamp", [datetime(2020, 1, 1), None], "entity 0: datetime 2020-01-01 00:00:00 has no zone"),
    ("string", [1, "a"], "entity 0: 1 is int, not string"),
    ("string", "ab", "str is not a column"),
    ("int64", 5, "int is not a column"),
    ("int64", np.array(5), "shape \\(\\) is not a column"),
    ("int64", np.array([[1], [2]]), "shape \\(2, 1\\) is not a column"),
    ("int64", np.array([[1], [2]], object), "an array of 2 dimensions"),
    ("vector<float64, 2>", np.array([1.0, 2.0]), "shape \\(2,\\) is not a column"),
    ("vector<float64, 2>", np.ones((2, 3)), "shape \\(2, 3\\) is not a column"),
    ("vector<int8, 2>", np.array([[1, 2], [300, 4]]), "entity 1: 300 is outside -128 to 127"),
    ("vector<float64, 2>", [[1.0], None], "entity 0: the vector has 1 elements, not 2"),
    ("list<int64>", [[1, None], []], "entity 0: element 1 is None"),
    ("int64", pa.array(["a", "b"]), "is declared int64 and the column is string"),
    ("int8", pa.array([1, 300]), "entity 1: feature 'v:y' is not a whole number that int8 holds"),
]


@pytest.mark.parametrize(("dtype", "given_values", "says"), UNFIT)
def test_what_does_not_fit_is_refused_by_name(dtype: str, given_values: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        column_of(Field("y", dtype).dtype, given_values, "feature 'v:y'")
    assert "feature 'v:y'" in str(caught.value)


def test_a_masked_array_of_no_vectors_is_a_column() -> None:
    dtype = Field("y", "vector<float64, 2>").dtype
    valid, data, _ = column_of(dtype, np.ma.masked_array(np.ones((0, 2))), "feature 'v:y'")
    assert (valid.shape, data.shape) == ((0,), (0, 2))


NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    **{f"int{bits}": st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "timestamp": st.integers(TIME_MIN_US, TIME_MAX_US),
}


@given(data=st.data(), name=st.sampled_from(sorted(NUMBERS)))
def test_lists_arrays_and_arrow_are_one_column(data: st.DataObject, name: str) -> None:
    dtype = DType(name)
    values = data.draw(st.lists(NUMBERS[name], max_size=5))
    missing = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    with_nulls = [None if is_null else value for value, is_null in zip(values, missing, strict=True)]
    array = np.array(values, dtype.numpy)
    arrow = pa.array(with_nulls, pa.int64() if name == "timestamp" else dtype.arrow())
    forms: list[Any] = [
        with_nulls,
        np.array([*with_nulls, None], object)[:-1],
        np.ma.masked_array(array, missing),
        np.ma.masked_array(array[::-1], missing[::-1])[::-1],
        arrow,
        pa.chunked_array([arrow.slice(0, len(values) // 2), arrow.slice(len(values) // 2)], arrow.type),
    ]
    if not any(missing):
        forms += [array, array[::-1].copy()[::-1], array.astype(array.dtype.newbyteorder(">"))]
    if name == "timestamp":
        stamps = np.where(missing, np.datetime64("NaT", "us"), array.astype("datetime64[us]"))
        forms += [stamps.astype("datetime64[us]"), arrow.cast(dtype.arrow())]
    valid, stored, _ = column_of(dtype, with_nulls, "x")
    for form in forms:
        column = column_of(dtype, form, "x")
        assert column[0].tobytes() == valid.tobytes()
        assert column[1].dtype == stored.dtype
        assert np.where(np.isnan(stored), 0, stored).tobytes() == np.where(np.isnan(column[1]), 0, column[1]).tobytes()
        assert column[2] is None
        sent = wire_values(dtype, column, 0, len(values))
        back = column_of(dtype, values_of_wire(dtype, sent, "x"), "x")
        assert (back[0].tobytes(), back[1].tobytes()) == (column[0].tobytes(), column[1].tobytes())
        assert column_of(dtype, plain_values(dtype, column), "x")[0].tobytes() == valid.tobytes()


def test_a_value_that_changes_the_list_it_is_in_changes_no_column() -> None:
    values: list[Any] = []

    class Growing:
        def __index__(self) -> int:
            values.extend([7] * 1000)
            return 1

    values.append(Growing())
    valid, stored, _ = column_of(DType("int64"), values, "x")
    assert (valid.tolist(), stored.tolist(), len(values)) == ([1], [1], 1001)


def test_an_answer_does_not_change_with_the_callers_arrays() -> None:
    @on_demand_feature_view(request=[Field("x", "float64")], schema=[Field("y", "float64")])
    def same(inputs: Any) -> Any:
        return {"y": inputs["x"]}

    store = Store(capacity_bytes=8 << 20, clock=lambda: NOW_US)
    store.apply(same)
    x = np.arange(3.0)
    result = store.get_online_features(["same:y"], {"x": x})
    x[:] = -1
    assert result.to_dict() == {"same:y": [0.0, 1.0, 2.0]}


def test_integers_of_cs_other_64_bits_are_integers() -> None:
    @on_demand_feature_view(
        request=[Field("x", "int64")], schema=[Field("y", "int64"), Field("z", "uint64"), Field("t", "timestamp")]
    )
    def same(inputs: Any) -> Any:
        x = inputs["x"].astype("longlong")
        return {"y": x, "z": x.astype("ulonglong"), "t": x}

    store = Store(capacity_bytes=8 << 20, clock=lambda: NOW_US)
    store.apply(same)
    matrix = store.get_feature_vectors(["same:y", "same:z", "same:t"], {"x": np.array([1, 2], "longlong")})
    assert matrix.tolist() == [[1.0] * 3, [2.0] * 3]


# Faults of a call -----------------------------------------------------------------------------------------------------


def test_what_a_function_raises_names_the_view_and_is_the_cause() -> None:
    def broken(inputs: Any) -> Any:
        return {"y": inputs["x"] + inputs["z"]}

    with pytest.raises(
        DataError, match=r"view 'broken': its function failed .*for y: KeyError: \"no input 'z'; there are x\""
    ) as caught:
        one(broken, [Field("y", "float64")])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_function_that_would_end_the_process_is_an_error_of_its_view() -> None:
    def leaves(inputs: Any) -> Any:
        raise SystemExit(3)

    with pytest.raises(DataError, match=r"view 'leaves': its function failed .*SystemExit: 3"):
        one(leaves, [Field("y", "float64")])


def test_a_function_can_not_change_what_it_reads() -> None:
    def changes(inputs: Any) -> Any:
        inputs["x"][0] = 7.0
        return {"y": inputs["x"]}

    with pytest.raises(DataError, match="read-only"):
        one(changes, [Field("y", "float64")])


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (dict, "feature 'f:y': the function returns no 'y'"),
        (lambda: {"y": [1.0, 2.0], "z": [1, 2]}, "view 'f': its function returns 'z', which its schema does not have"),
        (lambda: [1.0, 2.0], "view 'f': its function returns list, not a dict of y"),
        (lambda: None, "returns NoneType"),
        (lambda: {"y": [1.0]}, "feature 'f:y': the function returns 1 values for 2 entities"),
        (lambda: {"y": np.float64(1.0)}, "feature 'f:y': float64 is not a column"),
        (lambda: {"y": ["a", "b"]}, "feature 'f:y': entity 0: 'a' is str, not float64"),
        (lambda: {"y": [None, 1.0]}, "feature 'f:y': entity 0: the function returns a null"),
    ],
)
def test_what_a_function_returns_is_held_to_its_schema(function: Callable[[], Any], says: str) -> None:
    view = OnDemandFeatureView(
        "f",
        request=[Field("x", "float64")],
        schema=[Field("y", "float64", nullable=False)],
        source="def f(inputs):\n    return {}\n",
    )
    object.__setattr__(view, "_function", lambda inputs: function())
    store = Store(capacity_bytes=8 << 20)
    store.apply(view)
    with pytest.raises(DataError, match=says):
        store.get_online_features(["f:y"], {"x": [1.0, 2.0]})


REQUESTS: list[tuple[Any, str]] = [
    ([{"user_id": 1, "amount": 1.0}], "entity 0: request field 'transaction_time' missing; .*give "),
    ({"user_id": [1], "transaction_time": [0]}, "request field 'amount' missing"),
    (
        [{"user_id": 1, "amount": "1", "transaction_time": 0}],
        "request field 'amount': entity 0: '1' is str, not float64",
    ),
    ([{"user_id": 1, "amount": 1, "transaction_time": 0.5}], "request field 'transaction_time': entity 0: a time is"),
    ({"user_id": [1, 2], "amount": [1.0], "transaction_time": [0]}, "request field '.*' has 1 values for 2 entities"),
    ({"user_id": [1], "amount": [1.0, 2.0], "transaction_time": [0]}, "has 1 values, .* has 2; give columns of equal"),
    ({"user_id": [1], "amount": 1.0, "transaction_time": [0]}, "request field 'amount': float is not a column"),
    ([{"amount": 1.0, "transaction_time": 0}], "join key 'user_id' missing"),
    ([5], "entity 0 is int, not a dict"),
    (5, "entity_rows is int; give a list of dicts"),
]


@pytest.mark.parametrize(("rows", "says"), REQUESTS)
def test_what_a_request_lacks_is_said(store: Store, rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        store.get_online_features("scoring", rows)


def test_a_request_field_may_be_null_where_its_declaration_allows() -> None:
    def f(inputs: Any) -> Any:
        return {"y": inputs["x"], "z": inputs.valid["x"]}

    schema, x = [Field("y", "float64"), Field("z", "bool")], [None, math.nan, 1.0]
    answer = one(f, schema, x=x)
    assert answer["f:z"] == [False, True, True]
    assert [math.isnan(value) for value in answer["f:y"]] == [True, True, False]
    with pytest.raises(DataError, match="request field 'x': entity 0 is null; it is declared with nullable=False"):
        one(f, schema, [Field("x", "float64", nullable=False)], x=x)


def test_rows_are_not_pushed_to_a_computed_view(store: Store) -> None:
    with pytest.raises(DataError, match="'spending' is an on-demand feature view"):
        store.push("spending", {"user_id": 1})


# Definitions ----------------------------------------------------------------------------------------------------------

OUTSIDE = 3


def test_the_source_is_the_definition(tmp_path: Path) -> None:
    assert transaction_checks.source == (
        "def transaction_checks(inputs: Any) -> Any:\n"
        '    hour = inputs["transaction_time"] // 3_600_000_000 % 24\n'
        '    return {"is_night_time_transaction": (hour >= 22) | (hour < 6)}\n'
    )
    assert transaction_checks.hash == hashlib.sha256(transaction_checks.source.encode()).hexdigest()
    assert transaction_checks.name == "transaction_checks"
    assert spending.inputs == (Feature("profile", "limit"), Feature("profile", "age"))
    again = definitions_from_list(definitions_to_list([USER, PROFILE, transaction_checks, spending, summary, SERVICE]))
    assert again == [USER, PROFILE, transaction_checks, spending, summary, SERVICE]
    assert {hash(each) for each in again} == {hash(each) for each in (USER, *DEFINITIONS)}
    changed = definitions_to_list([transaction_checks])
    changed[0]["source"] = changed[0]["source"].replace("22", "23")
    with pytest.raises(SchemaError, match="the text was changed at rest"):
        definitions_from_list(changed)


def test_info_tells_source_and_hash(store: Store) -> None:
    found = store.info()["on_demand"]["spending"]
    assert (found["source"], found["hash"]) == (spending.source, spending.hash)
    assert found["inputs"] == ["profile:limit", "profile:age"]
    assert [field["name"] for field in found["request"]] == ["amount"]


def closure() -> Callable[[Any], Any]:
    inside = 5

    def f(inputs: Any) -> Any:
        return {"y": inputs["x"] + inside}

    return f


def uses_a_global(inputs: Any) -> Any:
    return {"y": inputs["x"] + OUTSIDE}


def uses_a_global_deep_inside(inputs: Any) -> Any:
    return {"y": [(lambda v: v + OUTSIDE)(value) for value in inputs["x"]]}


def uses_a_global_in_a_class(inputs: Any) -> Any:
    class Factor:
        value = OUTSIDE

    return {"y": inputs["x"] * Factor.value}


def uses_a_global_of_the_same_name_in_a_class(inputs: Any) -> Any:
    class Factor:
        OUTSIDE = OUTSIDE

    return {"y": inputs["x"] * Factor.OUTSIDE}


def uses_what_a_class_deleted(inputs: Any) -> Any:
    class Factor:
        OUTSIDE = 1
        del OUTSIDE
        value = OUTSIDE  # type: ignore[misc]  # noqa: F821

    return {"y": inputs["x"] * Factor.value}  # type: ignore[has-type]


def imports(inputs: Any) -> Any:
    import math

    return {"y": math.pi + inputs["x"]}


def changes_a_global(inputs: Any) -> Any:
    global OUTSIDE
    OUTSIDE = 1
    return {"y": inputs["x"]}


def takes_two(inputs: Any, more: Any) -> Any:
    return {"y": inputs["x"]}


def takes_any(*inputs: Any) -> Any:
    return {"y": inputs[0]["x"]}


def has_a_default(inputs: Any = None) -> Any:
    return {"y": inputs["x"]}


def yields(inputs: Any) -> Any:
    yield {"y": inputs["x"]}


async def waits(inputs: Any) -> Any:
    return {"y": inputs["x"]}


FUNCTIONS: list[tuple[Any, str]] = [
    (closure(), "uses 'inside', which is defined outside of it"),
    (uses_a_global, "uses 'OUTSIDE', which is defined outside of it"),
    (uses_a_global_deep_inside, "uses 'OUTSIDE'"),
    (uses_a_global_in_a_class, "uses 'OUTSIDE'"),
    (uses_a_global_of_the_same_name_in_a_class, "uses 'OUTSIDE'"),
    (uses_what_a_class_deleted, "uses 'OUTSIDE'"),
    (imports, "imports 'math'; it has np, and nothing else"),
    (changes_a_global, "changes the global 'OUTSIDE'"),
    (takes_two, r"takes one argument, the inputs: def takes_two\(inputs\)"),
    (takes_any, "takes one argument"),
    (has_a_default, "its argument has a default"),
    (yields, "yields; it returns a dict"),
    (waits, "is no plain function"),
    (lambda inputs: {"y": inputs["x"]}, "is no plain function|can't be read"),
    (len, "made of a function, not of builtin"),
    (eval("lambda inputs: 1"), "can't be read|is no plain function"),  # the second: from Python 3.13 on, python -c
]


@pytest.mark.parametrize(("function", "says"), FUNCTIONS)
def test_a_function_that_its_text_does_not_hold_is_refused(function: Any, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        on_demand_feature_view(request=[Field("x", "float64")], schema=[Field("y", "float64")])(function)


EDITED = """
import fastfeat

view = fastfeat.on_demand_feature_view(
    request=[fastfeat.Field("x", "float64")], schema=[fastfeat.Field("y", "float64")]
)


def double(inputs):
    return {"y": inputs["x"] * 2}
"""


def defined_in(path: Path, text: str) -> dict[str, Any]:
    path.write_text(text)
    names: dict[str, Any] = {"__name__": path.stem, "__annotations__": {}}  # as a module's
    exec(compile(text, str(path), "exec"), names)
    return names


@pytest.mark.parametrize("instead", ["* 3", "+ 2", "* 2.0", "* (2 if inputs else 3)", "[lambda: 2]"])
def test_a_function_whose_file_was_edited_since_is_refused(tmp_path: Path, instead: str) -> None:
    """What Python gives as its text is then that of another function."""
    path = tmp_path / "edited.py"
    names = defined_in(path, EDITED)
    assert names["view"](names["double"]).source.endswith("* 2}\n")
    path.write_text(EDITED.replace("* 2", instead) + "# so that its size differs")
    with pytest.raises(SchemaError, match="'double': its source is not what it was made from"):
        names["view"](names["double"])


def test_a_builtin_of_another_meaning_is_refused(tmp_path: Path) -> None:
    text = "from math import exp as abs\n" + EDITED
    names = defined_in(tmp_path / "method.py", text.replace('inputs["x"] * 2', 'inputs["x"].abs'))
    assert names["view"](names["double"])
    names = defined_in(tmp_path / "shadowed.py", text.replace('inputs["x"] * 2', 'abs(inputs["x"])'))
    with pytest.raises(SchemaError, match=r"abs is <built-in function exp>; here it is Python's own"):
        names["view"](names["double"])


@pytest.mark.parametrize(
    "head",
    [
        "",
        "import numpy as np\n",
        "from __future__ import annotations\n",
        "import time as x\nfrom math import exp as y\n",
        "if True:\n    import numpy as np\n",
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        'return {"y": np.where(inputs["x"] > 0, [(lambda a: a + 1)(each) for each in inputs["x"]], -0.0)}',
        'x = y = inputs["x"]; return {"y": x.astype("float64") + y.sum()}',
        'def inner(a: float, *, b: "int" = 2) -> float: return a * b\n    return {"y": inner(inputs["x"])}',
        'class Inner: k = 2\n    return {"y": inputs["x"] * Inner.k}',
        'class Inner: k: int = len("ab"); m = k * np.pi\n    return {"y": inputs["x"] * Inner.m}',
        'try: return {"y": 1 / inputs["x"]}\n    except ZeroDivisionError: return {"y": f"{inputs!r:>9} {{}}"}',
    ],
)
@pytest.mark.parametrize("signature", ["double(inputs)", "double(inputs: dict[str, object]) -> dict[str, object]"])
def test_what_surrounds_a_function_makes_no_difference(tmp_path: Path, head: str, body: str, signature: str) -> None:
    text = EDITED.replace('return {"y": inputs["x"] * 2}', body).replace("double(inputs)", signature)
    names = defined_in(tmp_path / "surrounded.py", head + text)
    assert names["view"](names["double"]).source.endswith(body + "\n")


def test_numpy_of_a_function_around_is_numpy() -> None:
    def made(library: Any) -> Any:
        np = library

        def double(inputs: Any) -> Any:
            return {"y": np.abs(inputs["x"])}

        return double

    view = on_demand_feature_view(request=[Field("x", "float64")], schema=[Field("y", "float64")])
    assert view(made(np)).name == "double"
    with pytest.raises(SchemaError, match="np is <module 'math'"):
        view(made(math))


def test_indents_docstrings_and_annotations_make_no_difference() -> None:
    view = on_demand_feature_view(request=[Field("x", "float64")], schema=[Field("y", "float64")])

    if True:

        @view
        def scaled(inputs: Any) -> Any:
            """Scaled, or not.

            By one rule for all.
            """

            def one(value: Any, kinds: Any = frozenset({1, 2})) -> Any:
                return value if 2 in {1, 2, 3} and -0.0 in kinds else value * 2

            return {"y": one(inputs["x"])}

    assert scaled.source.startswith("def scaled(inputs: Any)")


def test_np_means_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "np", math)
    with pytest.raises(SchemaError, match="here it is NumPy"):
        on_demand_feature_view(request=[Field("x", "float64")], schema=[Field("y", "float64")])(uses_a_global)


X, Y = [Field("x", "float64")], [Field("y", "float64")]
SOURCE = "def f(inputs):\n    return {'y': inputs['x']}\n"
VIEWS: dict[str, tuple[Callable[[], Any], str]] = {
    "no schema": (lambda: OnDemandFeatureView("f", request=X, source=SOURCE), "needs a schema"),
    "only the moment of the read": (
        lambda: OnDemandFeatureView("f", (), [Field("event_timestamp", "timestamp")], Y, SOURCE),
        "needs inputs or request fields that come with each entity",
    ),
    "nothing to compute from": (lambda: OnDemandFeatureView("f", schema=Y, source=SOURCE), "needs inputs or request"),
    "no source": (lambda: OnDemandFeatureView("f", request=X, schema=Y), "needs the source"),
    "no Python": (lambda: OnDemandFeatureView("f", request=X, schema=Y, source="def f("), "is not Python"),
    "a NUL": (lambda: OnDemandFeatureView("f", request=X, schema=Y, source="def f(x):\0"), "is not Python"),
    "no function": (lambda: OnDemandFeatureView("f", request=X, schema=Y, source="x = 1"), "not one plain function"),
    "two functions": (lambda: OnDemandFeatureView("f", request=X, schema=Y, source=SOURCE * 2), "not one plain"),
    "decorated": (
        lambda: OnDemandFeatureView("f", request=X, schema=Y, source="@print\n" + SOURCE),
        "other decorators would not be stored",
    ),
    "too long": (lambda: OnDemandFeatureView("f", request=X, schema=Y, source="#" * 70_000), "at most 65536"),
    "a bad name": (lambda: OnDemandFeatureView("a:b", request=X, schema=Y, source=SOURCE), "not an identifier"),
    "a field twice": (lambda: OnDemandFeatureView("f", request=X * 2, schema=Y, source=SOURCE), "'x' twice"),
    "no list": (lambda: OnDemandFeatureView("f", request=X[0], schema=Y, source=SOURCE), "is a list of Field"),  # type: ignore[arg-type]
    "no fields": (lambda: OnDemandFeatureView("f", request=["x"], schema=Y, source=SOURCE), "is a list of Field"),  # type: ignore[list-item]
    "an input's name": (
        lambda: OnDemandFeatureView("f", ["v:x"], X, Y, SOURCE),
        "request field 'x' has the name of an input",
    ),
    "itself": (lambda: OnDemandFeatureView("f", ["f:y"], X, Y, SOURCE), "a feature of its own among its inputs"),
    "an input twice": (lambda: OnDemandFeatureView("f", ["v:a", "v:a"], X, Y, SOURCE), "twice"),
    "the moment computed": (
        lambda: OnDemandFeatureView("f", (), X, [Field("event_timestamp", "timestamp")], SOURCE),
        "reserved for the moment of a read",
    ),
    "the moment stored": (
        lambda: FeatureView("v", entity=USER, schema=[Field("event_timestamp", "timestamp")]),
        "reserved for the row's own times",
    ),
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_wrong_view_is_refused_when_it_is_defined(case: str) -> None:
    make, says = VIEWS[case]
    with pytest.raises(SchemaError, match=says):
        make()


def view(name: str, *inputs: str, **request: str) -> OnDemandFeatureView:
    fields = [Field(field, dtype) for field, dtype in request.items()]
    return OnDemandFeatureView(name, inputs, fields, Y, SOURCE)


APPLIED: dict[str, tuple[list[Any], type[Exception], str]] = {
    "an unknown view": ([view("a", "nothing:x")], UnknownView, "on-demand feature view 'a' names nothing:x"),
    "an unknown feature": ([view("a", "profile:x")], UnknownFeature, "names profile:x, and the view has no such"),
    "a circle": (
        [view("a", "c:y"), view("b", "a:y"), view("c", "b:y")],
        SchemaError,
        "wait for each other: a -> c -> b -> a",
    ),
    "a view's name": ([view("profile", x="float64")], SchemaError, "is a feature view and an on-demand feature view"),
    "a key's name": ([view("a", "profile:age", user_id="int64")], SchemaError, "a join key of view 'profile'"),
    "two types": (
        [view("a", amount="float64"), view("b", amount="int64"), FeatureService("s", ["a:y", "b:y"])],
        SchemaError,
        "service 's': request field 'amount' is float64 in on-demand view 'a' and int64 in 'b'",
    ),
    "twice": ([view("a", x="float64"), view("a", x="int64")], SchemaError, "'a' is defined twice"),
}


@pytest.mark.parametrize("case", APPLIED)
def test_what_does_not_fit_together_is_refused_when_it_is_applied(case: str) -> None:
    items, error, says = APPLIED[case]
    store = Store(capacity_bytes=8 << 20)
    store.apply(PROFILE)
    with pytest.raises(error, match=says):
        store.apply(items)
    assert store.info()["on_demand"] == {}


def test_inputs_of_one_name_are_told_apart_by_their_views() -> None:
    other = replace(PROFILE, name="other")

    @on_demand_feature_view(inputs=["profile:limit", "other:limit", "other:age"], schema=[Field("y", "float64")])
    def difference(inputs: Any) -> Any:
        names = sorted(inputs)
        assert names == ["age", "other:limit", "profile:limit"]
        assert "limit" not in inputs
        assert len(inputs.valid) == 3
        return {"y": inputs["profile:limit"] - inputs["other:limit"] + inputs["age"]}

    store = Store(capacity_bytes=8 << 20, clock=lambda: NOW_US)
    store.apply([PROFILE, other, difference])
    for name, limit in (("profile", 5.0), ("other", 3.0)):
        row = {"user_id": 1, "age": 1, "limit": limit, "country": "", "event_timestamp": NOW_US}
        store.push(name, row)
    assert store.get_online_features(["difference:y"], [{"user_id": 1}]).to_dict() == {"difference:y": [3.0]}


# At rest --------------------------------------------------------------------------------------------------------------


def test_a_directory_remembers_functions_and_replays_under_those_of_then(tmp_path: Path) -> None:
    def opened() -> Store:
        return Store.open(tmp_path / "data", capacity_bytes=32 << 20, clock=lambda: NOW_US)

    with opened() as store:
        fill(store)
        before = store.get_online_features("scoring", ROWS)
        assert before.receipt is not None
        receipt = Receipt.from_json(before.receipt.to_json())
        assert receipt == before.receipt
        assert receipt.entities["amount"] == [0.0, 10.0, 20.0, 30.0, 40.0]
        assert receipt.entities["transaction_time"][0] == int(moment(0).timestamp()) * 1_000_000
    with opened() as store:
        assert store.info()["on_demand"]["summary"]["hash"] == summary.hash
        assert str(store.get_online_features("scoring", ROWS).to_dict()) == str(before.to_dict())
        source = transaction_checks.source.replace("22", "0")
        store.apply(
            OnDemandFeatureView("transaction_checks", (), transaction_checks.request, transaction_checks.schema, source)
        )
        after = store.get_online_features("scoring", ROWS)
        assert after.to_dict()["transaction_checks:is_night_time_transaction"] == [True] * 5
        again = store.replay(receipt)
        assert str(again.to_dict()) == str(before.to_dict())
        assert [each.tolist() for each in again.statuses.values()] == [
            each.tolist() for each in before.statuses.values()
        ]
    with opened() as store:
        assert str(store.replay(receipt).to_dict()) == str(before.to_dict())


def test_rows_that_left_memory_are_computed_on_too(tmp_path: Path) -> None:
    latest = replace(PROFILE, keep="latest", ttl=None)
    with Store.open(tmp_path / "data", capacity_bytes=32 << 20, clock=lambda: NOW_US) as store:
        store.apply([latest, spending])
        for hours in (2, 1):
            at = NOW_US - hours * HOUR_US
            row = {"user_id": 1, "age": hours, "limit": 10.0 * hours, "country": "", "event_timestamp": at}
            store.push("profile", row)
        rows = [{"user_id": 1, "amount": 5.0}]
        then = NOW_US - 2 * HOUR_US
        for receipt in (True, False):
            result = store.get_online_features(["spending:share"], rows, as_of=then, receipt=receipt)
            assert result.to_dict() == {"spending:share": [0.25]}
        assert store.get_feature_vector(["spending:share"], rows[0], as_of=then).tolist() == [0.25]
        assert store.get_feature_vectors(["spending:share"], rows, as_of=then).tolist() == [[0.25]]


def test_bytes_and_lists_of_a_request_are_in_its_receipt(tmp_path: Path) -> None:
    dtypes = ["bytes", "list<bytes>", "vector<float32, 2>", "list<timestamp>", "float64"]
    values = [b"\x00\xff", [b"a", b""], [0.5, -1.0], [moment(1)], -0.0]

    @on_demand_feature_view(
        request=[Field(f"x{i}", dtype) for i, dtype in enumerate(dtypes)], schema=[Field("y", "string")]
    )
    def text(inputs: Any) -> Any:
        return {"y": ["|".join(repr(np.asarray(inputs[name][i]).tolist()) for name in sorted(inputs)) for i in (0,)]}

    with Store.open(tmp_path / "data", capacity_bytes=32 << 20, clock=lambda: NOW_US) as store:
        store.apply(text)
        result = store.get_online_features(["text:y"], [{f"x{i}": value for i, value in enumerate(values)}])
        assert result.receipt is not None
        receipt = Receipt.from_json(result.receipt.to_json())
        assert receipt == result.receipt == Receipt.from_dict(result.receipt.to_dict())
        assert store.replay(receipt).to_dict() == result.to_dict()


def test_a_receipt_of_what_json_has_no_word_for_is_json_all_the_same() -> None:
    held = [float("nan"), float("inf"), float("-inf"), [1.5, float("nan")], b"\xff"]
    receipt = Receipt(("f:y",), 1, {"x": held}, NOW_US, None, 7)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = receipt.to_json()
    json.loads(text, parse_constant=refuse)
    assert repr(Receipt.from_json(text)) == repr(receipt)


# A batch is its rows --------------------------------------------------------------------------------------------------

REQUEST_ROW = st.fixed_dictionaries(
    {
        "user_id": st.integers(0, 5),
        "amount": st.none() | st.floats(-1e30, 1e30) | st.integers(-(2**53), 2**53),
        "transaction_time": st.none() | st.integers(-(2**55), 2**57),
    }
)


@settings(deadline=None)
@given(rows=st.lists(REQUEST_ROW, min_size=1, max_size=8))
def test_a_batch_answers_as_its_rows_do(rows: list[dict[str, Any]]) -> None:
    store = Store(capacity_bytes=32 << 20, clock=lambda: NOW_US)
    fill(store)
    whole = store.get_online_features("scoring", rows)
    matrix = store.get_feature_vectors(["summary:score", "spending:years"], rows)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert str(store.get_online_features("scoring", columns).to_dict()) == str(whole.to_dict())
    for i, row in enumerate(rows):
        alone = store.get_online_features("scoring", [row])
        assert str({name: values[i : i + 1] for name, values in whole.to_dict().items()}) == str(alone.to_dict())
        assert matrix[i].tobytes() == store.get_feature_vector(["summary:score", "spending:years"], row).tobytes()
