"""The oracle itself, on the cases that the contract spells out."""

from __future__ import annotations

import struct
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat.dtypes import DType
from fastfeat.schema import Entity, FeatureView, Field
from fastfeat.status import Status

from .model import Model, Row, kept_rows, matrix_cells, value_bits
from .strategies import row_table, row_values, worlds

USER = Entity("user", {"user_id": "int64"})
KEY = (7,)


def model_of(**options: Any) -> Model:
    model = Model()
    model.apply(FeatureView("v", USER, [Field("x", "int64")], **options))
    return model


def x_at(model: Model, t: int, k: int | None = None, now: int = 1_000) -> int | Status:
    """The value of x, or the status where there is none."""
    answer = model.read("v", KEY, t, k, now)
    return answer.values["x"] if answer.values is not None else answer.status


def load(model: Model, *rows: tuple[int, int, int], now: int = 1_000) -> None:
    model.load("v", [(KEY, event, created, {"x": x}) for event, created, x in rows], now)


def test_the_last_row_by_event_then_created_then_arrival_answers() -> None:
    model = model_of()
    load(model, (20, 20, 2), (10, 10, 1), (20, 25, 3), (20, 25, 4))
    assert [x_at(model, t) for t in (9, 10, 19, 20, 99)] == [Status.NOT_FOUND, 1, 1, 4, 4]
    assert [x_at(model, 99, k) for k in (9, 10, 20, 24, 25)] == [Status.NOT_FOUND, 1, 2, 2, 4]


def test_ttl_is_inclusive() -> None:
    model = model_of(ttl=timedelta(microseconds=5))
    load(model, (10, 10, 1))
    assert [x_at(model, t) for t in (15, 16)] == [1, Status.EXPIRED]
    assert model.read("v", KEY, 16, None, 0).event_us == 10


def test_a_row_from_the_future_waits_for_its_time() -> None:
    model = model_of()
    load(model, (10, 10, 1), (50, 10, 2), now=20)
    assert [model.read("v", KEY, None, None, now).event_us for now in (49, 50)] == [10, 50]


def test_a_delete_hides_what_was_created_before_it_whenever_it_arrives() -> None:
    model = model_of()
    load(model, (10, 10, 1))
    w = model.delete("v", [KEY], now_us=100)
    assert [x_at(model, t) for t in (5, 10, 200)] == [Status.DELETED] * 3
    load(model, (20, w - 1, 2))
    assert x_at(model, 200) == Status.DELETED
    load(model, (20, w, 3))
    assert [x_at(model, t) for t in (19, 20)] == [Status.DELETED, 3]
    model.delete("v", [(8,)], now_us=100)
    assert model.read("v", (8,), 0, 0, 0).status == Status.DELETED


def test_created_times_of_pushes_and_deletes_strictly_increase() -> None:
    model = model_of()
    assert model.push("v", [(KEY, 1, {"x": 1})], 10) == 10
    assert model.delete("v", [KEY], 10) == 11
    assert model.push("v", [(KEY, 1, {"x": 1})], 5) == 12
    assert model.push("v", [(KEY, 1, {"x": 1})], 50) == 50


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("all", [1, 2, 3, 4, 9]),
        ("latest", [4, 9]),
        (2, [3, 4, 9]),
        (timedelta(microseconds=2), [2, 3, 4, 9]),  # 5 - 2 = 3: rows >= 3, and the one that held before
        (timedelta(0), [4, 9]),
    ],
)
def test_a_keep_rule_holds_the_future_and_the_youngest_past(keep: Any, kept: list[int]) -> None:
    rows = [Row(event, event, event, {}) for event in (9, 3, 1, 4, 2)]
    assert [row.event_us for row in kept_rows(rows, keep, now_us=5)] == kept


def test_only_a_read_that_could_need_a_dropped_row_may_be_refused() -> None:
    model = model_of(keep="latest")
    load(model, (10, 10, 1), (20, 20, 2))
    assert [model.read("v", KEY, t, None, 0).may_refuse for t in (5, 10, 19, 20)] == [True, True, True, False]
    assert model.read("v", (8,), 5, None, 0).may_refuse is False
    model.delete("v", [KEY], 30)
    assert model.read("v", KEY, 10, None, 0).may_refuse is False  # what was dropped is deleted anyway


def test_what_a_rule_let_go_of_stays_let_go_of() -> None:
    model = model_of(keep="latest")
    load(model, (10, 10, 1), (20, 20, 2), now=15)  # 20 is the future: 10 is kept
    assert model.read("v", KEY, 10, None, 15).may_refuse is False
    load(model, (20, 21, 3), now=25)
    assert model.read("v", KEY, 10, None, 25).may_refuse is True


def test_bits_tell_apart_what_equality_does_not() -> None:
    double, other = DType("float64"), struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
    assert value_bits(double, 0.0) != value_bits(double, -0.0)
    assert value_bits(double, float("nan")) == value_bits(double, float("nan")) != value_bits(double, other)
    assert value_bits(DType("bool"), True) != value_bits(DType("bool"), 1)
    assert value_bits(DType.parse("list<float32>"), [0.0]) != value_bits(DType.parse("list<float32>"), [-0.0])


def test_a_matrix_spreads_vectors_and_has_nan_for_nothing() -> None:
    vector = DType.parse("vector<float32, 2>")
    assert matrix_cells(vector, [1.5, 2.5]) == [1.5, 2.5]
    assert all(cell != cell for cell in matrix_cells(vector, None))
    assert matrix_cells(DType("uint64"), 2**64 - 1) == [2.0**64]


@given(st.data())
def test_strategies_make_rows_that_arrow_holds_bit_for_bit(data: st.DataObject) -> None:
    world = data.draw(worlds())
    view = world.views[0]
    rows = [(key, 5, data.draw(row_values(view))) for key in world.keys(view)]
    table = row_table(view, rows, [6] * len(rows))
    for f in view.schema:
        column = table[f.name].cast("int64") if f.dtype.name == "timestamp" else table[f.name]
        expected = [value_bits(f.dtype, values[f.name]) for _, _, values in rows]
        if f.dtype.element != "timestamp":
            assert [value_bits(f.dtype, value) for value in column.to_pylist()] == expected
