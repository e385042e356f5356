"""Explanations: the rows that are said to have counted make the value that was answered."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat import (
    Aggregation,
    Entity,
    FeatureView,
    Field,
    Status,
    Store,
    UnknownFeature,
    WindowView,
    on_demand_feature_view,
)
from fastfeat.aggregation import CLOSED

NOW_US = 1_700_000_000_000_000
SECOND = 1_000_000
USER = Entity("user", {"user_id": "int64"})
PROFILE = FeatureView("profile", USER, [Field("age", "int64")], ttl=timedelta(seconds=50))
PAYMENTS = FeatureView("payments", USER, [Field("amount", "float64"), Field("shop", "string")], kind="event")
SPENDING = WindowView(
    "spending",
    PAYMENTS,
    [
        Aggregation("amount", "sum", timedelta(seconds=20), name="total"),
        Aggregation("amount", "sum", timedelta(seconds=20), name="at_a", where=[("shop", "==", "a")]),
        Aggregation("amount", "count", timedelta(seconds=20), name="number", closed="both"),
        *(
            Aggregation("amount", "sum", timedelta(seconds=9), name=ends, closed=ends, delay=timedelta(seconds=2))
            for ends in CLOSED
        ),
    ],
)


@on_demand_feature_view(
    inputs=[SPENDING["total"], PROFILE["age"]], request=[Field("limit", "float64")], schema=[Field("over", "bool")]
)
def checks(inputs):  # type: ignore[no-untyped-def]
    return {"over": inputs["total"] > inputs["limit"]}


def store_with(rows: list[tuple[int, float | None, str]]) -> Store:
    store = Store(64 << 20, clock=lambda: NOW_US)
    store.apply([SPENDING, PROFILE, checks])
    for seconds, amount, shop in rows:
        event_us = NOW_US + seconds * SECOND
        store.push("payments", {"user_id": 7, "event_timestamp": event_us, "amount": amount, "shop": shop})
    return store


def test_a_point_read_says_which_row_answered_and_what_became_of_the_others() -> None:
    store = store_with([])
    for seconds, age in ((-40, 1), (-10, 2), (30, 3)):
        store.push("profile", {"user_id": 7, "event_timestamp": NOW_US + seconds * SECOND, "age": age})
    found = store.explain("profile:age", {"user_id": 7})
    assert (found.value, found.status) == (2, Status.PRESENT)
    assert found.event_time == NOW_US - 10 * SECOND
    assert found.rows is not None
    assert found.rows["outcome"].to_pylist() == ["replaced by a later row", "counted", "later than the read"]
    assert "profile:age = 2 (PRESENT)" in str(found)
    late = store.explain("profile:age", {"user_id": 7}, as_of=NOW_US + 90 * SECOND)
    assert (late.value, late.status) == (None, Status.EXPIRED)
    assert late.rows is not None
    assert late.rows["outcome"].to_pylist()[-1] == "older than ttl"


def test_a_window_names_every_row_that_did_not_count_and_why() -> None:
    store = store_with([(-30, 1.0, "a"), (-20, 2.0, "a"), (-10, None, "a"), (-5, 4.0, "b"), (0, 8.0, "a")])
    found = store.explain("spending:at_a", {"user_id": 7})
    assert found.value == 2.0
    assert found.rows is not None
    assert found.rows["outcome"].to_pylist() == [
        "before the window",
        "counted",
        "null",
        "does not meet shop == 'a'",
        "after the window",
    ]
    assert found.definition["where"] == [["shop", "==", "a"]]
    both_ends = store.explain("spending:number", {"user_id": 7}).counted
    assert both_ends is not None
    assert both_ends["amount"].to_pylist() == [2.0, 4.0, 8.0]


@given(st.lists(st.tuples(st.integers(-25, 2), st.none() | st.floats(-100, 100), st.sampled_from("ab")), max_size=60))
def test_the_rows_that_counted_make_the_value(rows: list[tuple[int, float | None, str]]) -> None:
    store = store_with(rows)
    for name in ("total", "at_a", *CLOSED):
        found = store.explain(f"spending:{name}", {"user_id": 7})
        assert found.counted is not None
        counted = found.counted["amount"].to_pylist()
        assert found.value == (math.fsum(counted) if counted else None)
        assert sum(span.end - span.first for span in found.spans) >= len(counted)


@pytest.mark.parametrize("ends", CLOSED)
def test_the_rows_at_the_ends_of_a_window_count_as_it_says(ends: str) -> None:
    store = store_with([(-12, 1.0, "a"), (-11, 2.0, "a"), (-10, 4.0, "a"), (-2, 8.0, "a"), (-1, 16.0, "a")])
    found = store.explain(f"spending:{ends}", {"user_id": 7})
    assert found.counted is not None
    amounts = [2.0] * (ends in ("left", "both")) + [4.0] + [8.0] * (ends in ("right", "both"))
    assert found.counted["amount"].to_pylist() == amounts
    assert found.value == sum(amounts)


def test_a_sum_of_many_rows_names_its_tiles() -> None:
    store = store_with([])
    rows = [{"user_id": 7, "event_timestamp": NOW_US - 10 * SECOND + i, "amount": 1.5, "shop": "a"} for i in range(100)]
    store.push("payments", rows)
    (span,) = store.explain("spending:total", {"user_id": 7}).spans
    assert span.tiles == (0, 12)
    assert "rows 0 to 99 of a block" in str(span)
    assert "0 to 95 as the difference of two sums" in str(span)
    (span,) = store.explain("spending:at_a", {"user_id": 7}).spans
    assert span.tiles is None


def test_an_on_demand_feature_names_its_source_and_explains_its_inputs() -> None:
    store = store_with([(-1, 30.0, "a")])
    found = store.explain("checks:over", {"user_id": 7, "limit": 20.0})
    assert found.value is True
    assert "inputs['total']" in found.definition["source"].replace('"', "'")
    assert [each.feature for each in found.inputs] == ["spending:total", "profile:age"]
    assert found.inputs[0].value == 30.0


def test_rows_that_memory_dropped_are_explained_from_the_history(tmp_path: Path) -> None:
    view = FeatureView("profile", USER, [Field("age", "int64")], keep="latest")
    with Store.open(tmp_path / "store", clock=lambda: NOW_US) as store:
        store.apply(view)
        for age in range(3):
            store.push("profile", {"user_id": 7, "event_timestamp": NOW_US - (9 - age) * SECOND, "age": age})
        found = store.explain("profile:age", {"user_id": 7}, as_of=NOW_US - 8 * SECOND)
        assert (found.value, found.version) == (1, 1)
        assert found.rows is not None
        assert found.rows.num_rows == 3


def test_what_is_not_there_is_an_error_or_a_status() -> None:
    store = store_with([])
    assert store.explain("spending:number", {"user_id": 9}).status == Status.NOT_FOUND
    with pytest.raises(UnknownFeature, match="no such field"):
        store.explain("spending:nothing", {"user_id": 9})


def test_a_row_of_1970_has_a_time_too() -> None:
    store = store_with([])
    store.push("profile", {"user_id": 7, "event_timestamp": 0, "age": 1})
    explanation = store.explain("profile:age", {"user_id": 7}, as_of=1)
    assert (explanation.event_time, explanation.value) == (0, 1)
    assert store.explain("profile:age", {"user_id": 8}, as_of=1).event_time is None
