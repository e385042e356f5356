"""The oracle of windows itself, on the cases that the contract spells out and against Python's own exact functions."""

from __future__ import annotations

import math
import statistics
import struct
from collections.abc import Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat import Aggregation, Entity, FeatureView, Field, WindowView
from fastfeat.status import Status

from .model import Model
from .strategies import START_US, event_worlds, row_values
from .window_model import aggregate, is_inside, rounded_root

USER = Entity("user", {"user_id": "int64"})
KEY = (7,)
FIELDS = [Field("id", "string", nullable=False), Field("x", "float64"), Field("name", "string")]
NAN, INF, TINY, HUGE = math.nan, math.inf, 5e-324, 1.7976931348623157e308
PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]


def us(count: int) -> timedelta:
    return timedelta(microseconds=count)


def over(function: Any, **options: Any) -> Aggregation:
    column = options.pop("column", "x")
    return Aggregation(column, function, **{"window": us(10), "name": "f", **options})


def bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def of(function: Any, values: Sequence[Any], **options: Any) -> Any:
    return aggregate(over(function, **options), values)


@pytest.mark.parametrize(
    ("closed", "inside"),
    [("left", [88, 97]), ("right", [89, 98]), ("both", [88, 98]), ("neither", [89, 97])],
)
def test_each_end_belongs_to_the_window_as_closed_says(closed: Any, inside: list[int]) -> None:
    each = over("count", delay=us(2), closed=closed)  # at T = 100: 88 to 98
    found = [event_us for event_us in range(80, 110) if is_inside(each, event_us, 100)]
    assert [found[0], found[-1], len(found)] == [*inside, inside[1] - inside[0] + 1]


@pytest.mark.parametrize(
    ("function", "values", "expected"),
    [
        ("sum", [1e308, 1e308, -1e308], 1e308),  # no overflow on the way
        ("sum", [1.0, 1e100, 1.0, -1e100], 2.0),
        ("sum", [0.1] * 10, 1.0),
        ("sum", [-0.0, -0.0], 0.0),
        ("sum", [HUGE, HUGE], INF),
        ("sum", [-HUGE, -HUGE], -INF),
        ("sum", [2**53, 1, 1], 2.0**53 + 2),
        ("sum", [True, False, True], 2.0),
        ("sum", [INF, 1.0], INF),
        ("sum", [INF, -INF], NAN),
        ("sum", [INF, PAYLOAD], NAN),
        ("mean", [HUGE, HUGE], HUGE),  # the sum alone would be infinite
        ("mean", [1, 2], 1.5),
        ("mean", [-INF, 3.0], -INF),
        ("mean", [TINY, -TINY], 0.0),
        ("var", [1.0], None),
        ("var", [NAN], None),
        ("var", [1.0, INF], NAN),
        ("var", [1e9 + 1, 1e9 + 2, 1e9 + 3], 1.0),
        ("var", [HUGE, -HUGE], INF),
        ("var", [3.0, 3.0], 0.0),
        ("std", [HUGE / 4, -HUGE / 4], HUGE / 4 * math.sqrt(2)),  # though the variance is infinite
        ("std", [0.0, 2 * TINY], TINY),  # 1.41 of them, though the variance is no double
        ("std", [1, 3], math.sqrt(2)),
        ("min", [0.0, -0.0], -0.0),
        ("max", [-0.0, 0.0], 0.0),
        ("min", [1.0, PAYLOAD], NAN),
        ("max", [INF, PAYLOAD], NAN),
        ("first", [PAYLOAD, 1.0], PAYLOAD),
        ("last", [1.0, PAYLOAD], PAYLOAD),
        ("count", [NAN, 1.0], 2),
        ("count_distinct", [0.0, -0.0, NAN, PAYLOAD, 1.0], 3),
        ("count_distinct", ["a", "b", "a"], 2),
    ],
)
def test_a_function_of_these_values(function: Any, values: Sequence[Any], expected: Any) -> None:
    assert bits(of(function, values)) == bits(expected)


@pytest.mark.parametrize(
    ("q", "values", "expected"),
    [
        (0.5, [3.0, 1.0, 2.0], 2.0),
        (0.5, [4, 1], 2.5),
        (0.95, [1.0, 2.0, 3.0], 1.0 + 1.9 - 0.0),
        (1.0, [2.0, INF], INF),
        (0.0, [2.0, INF], 2.0),
        (0.5, [2.0, INF], INF),
        (0.5, [-INF, INF], NAN),
        (0.5, [INF, INF], INF),
        (0.5, [0.0, -0.0], -0.0),
        (0.0, [0.0, -0.0], -0.0),
        (0.5, [1.0, PAYLOAD], NAN),
        (0.25, [7.0], 7.0),
    ],
)
def test_a_quantile_is_linear_between_neighbours(q: float, values: Sequence[Any], expected: float) -> None:
    got = of("quantile", values, q=q)
    assert got == pytest.approx(expected, rel=1e-15, nan_ok=True)
    assert math.copysign(1, got) == math.copysign(1, expected) or math.isnan(expected)


def test_lists_are_the_last_and_the_largest() -> None:
    assert of("last_n", [1, 2, 3], n=2) == [2, 3]
    assert of("last_n", [1], n=2) == [1]
    assert of("top_k", [1, 3, 3, 2], n=3) == [3, 3, 2]
    assert list(map(bits, of("top_k", [0.0, PAYLOAD, -0.0, INF], n=9))) == list(map(bits, [NAN, INF, 0.0, -0.0]))


@pytest.mark.parametrize("function", ["sum", "mean", "min", "max", "first", "last", "std", "var"])
def test_of_no_value_there_is_none(function: Any) -> None:
    assert of(function, []) is None
    assert of("quantile", [], q=0.5) is None
    assert [of("count", []), of("count_distinct", []), of("last_n", [], n=3), of("top_k", [], n=3)] == [0, 0, [], []]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_sum_is_that_of_fsum(values: list[float]) -> None:
    try:
        expected = math.fsum(values) + 0.0  # of nothing but -0.0 it keeps the sign
    except OverflowError:
        return  # of a partial sum; ours has none
    assert bits(of("sum", values)) == bits(expected)


@given(st.lists(st.fractions() | st.integers().map(Fraction), min_size=2))
def test_a_variance_is_that_of_statistics(values: list[Fraction]) -> None:
    assert of("var", values) == float(statistics.variance(values))


@given(st.floats(min_value=0, allow_infinity=False))
def test_the_root_of_a_double_is_that_of_the_processor(value: float) -> None:
    assert rounded_root(Fraction(value)) == math.sqrt(value)


@given(st.fractions(min_value=0))
def test_no_double_is_nearer_to_the_root(value: Fraction) -> None:
    root = Fraction(rounded_root(value))
    below, above = (Fraction(math.nextafter(float(root), end)) for end in (-INF, INF))
    assert ((below + root) / 2) ** 2 <= value or below < 0
    assert value <= ((root + above) / 2) ** 2


# Rows that count -----------------------------------------------------------------------------------------------------


def events(**options: Any) -> FeatureView:
    return FeatureView("events", USER, FIELDS, kind="event", **options)


def model_of(view: FeatureView, *features: Aggregation) -> Model:
    model = Model()
    model.apply(view)
    model.apply(WindowView("w", view, features))
    return model


def load(model: Model, *rows: tuple[int, int, str, float | None], now: int = 1_000) -> None:
    model.load("events", [(KEY, at, known, {"id": i, "x": x, "name": i}) for at, known, i, x in rows], now)


def f_at(model: Model, t: int, k: int | None = None) -> Any:
    answer = model.read("w", KEY, t, k, 1_000)
    assert answer.values is not None
    return answer.values["f"]


def test_two_events_at_one_time_are_two_and_the_one_scored_is_not_in_its_window() -> None:
    model = model_of(events(), over("count", column=None))
    load(model, (10, 10, "a", 1.0), (10, 10, "a", 1.0), (11, 11, "b", None))
    assert [f_at(model, t) for t in (10, 11, 12, 20, 21, 22)] == [0, 2, 3, 3, 1, 0]
    assert [f_at(model, 12, k) for k in (9, 10, 11)] == [0, 2, 3]


def test_conditions_are_all_to_be_met_and_a_null_meets_none() -> None:
    rows = [(10, 10, "a", 1.0), (11, 11, "b", None), (12, 12, "a", 3.0), (13, 13, "b", NAN)]
    for where, expected in (
        ([("x", "!=", 1.0)], 2),
        ([("x", "not in", [1.0])], 2),
        ([("x", "<", 3.5)], 2),
        ([("x", ">=", 1), ("id", "==", "a")], 2),
        ([("id", "in", ["b", "c"])], 2),
    ):
        model = model_of(events(), over("count", column=None, where=where))
        load(model, *rows)
        assert f_at(model, 15) == expected, where


def test_of_rows_with_one_event_id_the_first_created_counts_in_any_order_of_arrival() -> None:
    rows = [(10, 12, "a", 2.0), (11, 11, "a", 1.0), (10, 12, "b", 4.0), (10, 12, "b", 8.0)]
    for given_rows in (rows, [rows[1], rows[0], *rows[2:]]):
        model = model_of(events(event_id="id"), over("sum"))
        load(model, *given_rows)
        assert f_at(model, 15) == 5.0
        assert f_at(model, 15, 11) == 1.0
        assert model.read("events", KEY, 10, None, 0).values == {"id": "b", "x": 4.0, "name": "b"}


def test_what_a_delete_took_counts_for_nothing_and_its_event_may_be_sent_again() -> None:
    model = model_of(events(event_id="id"), over("sum"))
    load(model, (10, 10, "a", 1.0))
    model.delete("events", [KEY], 20)
    answer = model.read("w", KEY, 15, None, 0)
    assert (answer.status, answer.event_us, answer.values) == (Status.DELETED, 0, {"f": None})
    load(model, (10, 30, "a", 2.0), (10, 31, "a", 4.0))
    assert f_at(model, 15) == 2.0


def test_status_and_time_are_those_of_the_last_event_however_old() -> None:
    model = model_of(events(ttl=us(5)), over("count", column=None))
    assert (model.read("w", KEY, 10, None, 0).status, f_at(model, 10)) == (Status.NOT_FOUND, 0)
    load(model, (10, 10, "a", 1.0))
    answer = model.read("w", KEY, 900, None, 0)
    assert (answer.status, answer.event_us, answer.values) == (Status.PRESENT, 10, {"f": 0})
    assert model.read("events", KEY, 900, None, 0).status == Status.EXPIRED


def test_only_a_window_that_may_reach_a_dropped_row_may_be_refused() -> None:
    model = model_of(events(keep=us(100)), over("count", column=None))
    load(model, (10, 10, "a", 1.0), (20, 20, "b", 1.0), (1_000, 1_000, "c", 1.0), now=1_000)  # 20 is kept
    assert [model.read("w", KEY, t, None, 0).may_refuse for t in (10, 19, 20, 21, 1_000)] == [True] * 3 + [False] * 2


@given(st.data())
def test_strategies_make_windows_that_the_oracle_answers_in_the_types_that_are_said(data: st.DataObject) -> None:
    world = data.draw(event_worlds())
    events, windows = world.views[0], world.windows
    model = Model()
    model.apply(events)
    for view in windows:
        model.apply(view)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), row_values(events)), max_size=12))
    key = world.keys(events)[0]
    model.load("events", [(key, START_US + at, START_US + known, values) for at, known, values in rows], START_US)
    for view in windows:
        values = model.read(view.name, key, START_US + 15, START_US + 10, START_US).values
        assert values is not None
        for f in view.schema:
            assert values[f.name] is None or pa.array([values[f.name]], f.dtype.arrow()).type == f.dtype.arrow()
