"""On-demand features in training sets: what a read at the label's time computes, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastfeat import (
    Aggregation,
    DataError,
    FeatureService,
    FeatureView,
    Field,
    Store,
    WindowView,
    on_demand_feature_view,
)
from fastfeat.result import arrow_array
from fastfeat.training import computing, join_bucket

from .test_ondemand import DEFINITIONS, HOUR_US, NOW_US, PROFILE, USER, moment, spending, summary, transaction_checks

PAYMENTS = FeatureView("payments", USER, [Field("amount", "float64")], kind="event")
WINDOWS = WindowView(
    "windows",
    PAYMENTS,
    [
        Aggregation("amount", "mean", timedelta(hours=2), name="mean_2h"),
        Aggregation("amount", "last_n", timedelta(hours=2), n=3, name="last_3"),
    ],
)


@on_demand_feature_view(
    inputs=[WINDOWS],
    request=[Field("amount", "float64"), Field("event_timestamp", "timestamp")],
    schema=[Field("surprise", "float64"), Field("asked_us", "timestamp"), Field("longest", "list<float64>")],
)
def against_the_mean(inputs: Any) -> Any:
    return {
        "surprise": (inputs["amount"] - inputs["mean_2h"]) / inputs["mean_2h"],
        "asked_us": inputs["event_timestamp"],
        "longest": inputs["last_3"],
    }


SERVICE = FeatureService("training", [against_the_mean, summary, PROFILE["age"], transaction_checks, spending, WINDOWS])
NIGHT = ["transaction_checks:is_night_time_transaction"]


def fill(store: Store) -> None:
    store.apply([*DEFINITIONS, PAYMENTS, WINDOWS, against_the_mean, SERVICE])
    for hours in (5, 3, 1):
        at = NOW_US - hours * HOUR_US
        store.push(
            "profile",
            [
                {"user_id": i, "age": hours, "limit": 10.0 * i, "country": f"c{hours}", "event_timestamp": at}
                for i in range(3)
            ],
        )
        store.push("payments", [{"user_id": i % 3, "amount": i / 7, "event_timestamp": at + i} for i in range(9)])


@pytest.fixture(params=["memory", "durable"], scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Written at a time of its own per row: what was known at a label's time is a part of it."""
    times = iter(range(NOW_US - 6 * HOUR_US, NOW_US, HOUR_US // 4))
    options: dict[str, Any] = {"capacity_bytes": 32 << 20, "clock": lambda: next(times, NOW_US)}
    if request.param == "memory":
        with Store(**options) as store:
            fill(store)
            yield store
    else:
        with Store.open(tmp_path_factory.mktemp("store") / "data", **options) as store:
            fill(store)
            yield store


def labels_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([row["user_id"] for row in rows], pa.int32()),
            "label": pa.array(range(len(rows)), pa.int64()),
            "event_timestamp": pa.array([row["event_timestamp"] for row in rows], pa.timestamp("us", "UTC")),
            "amount": pa.array([row["amount"] for row in rows], pa.float64()),
            "transaction_time": pa.array([row["transaction_time"] for row in rows], pa.timestamp("ms")),
        }
    )


def reads(store: Store, rows: list[dict[str, Any]], known: str) -> list[pa.Table]:
    """What each label's row is answered at its time."""
    return [
        store.get_online_features(
            "training",
            [{**row, "transaction_time": row["transaction_time"] * 1000}],
            as_of=row["event_timestamp"],
            known_at=row["event_timestamp"] if known == "as_served" else None,
        ).to_arrow()
        for row in rows
    ]


LABEL = st.fixed_dictionaries(
    {
        "user_id": st.integers(0, 3),
        "event_timestamp": st.integers(NOW_US - 6 * HOUR_US, NOW_US),
        "amount": st.none() | st.floats(-1e30, 1e30),
        "transaction_time": st.integers(0, 2**45),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(LABEL, max_size=8), known=st.sampled_from(["as_served", "as_corrected"]), batch=st.integers(1, 9))
def test_a_training_set_computes_what_reads_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], known: Any, batch: int
) -> None:
    monkeypatch.setattr(computing, "BATCH_ROWS_MAX", batch)
    labels = labels_of(rows)
    got = store.get_historical_features(labels, "training", known=known).read_all()
    assert got.select(labels.schema.names).equals(labels)
    names = [str(each) for each in SERVICE.features]
    assert got.schema.names == [*labels.schema.names, *names]
    for i, expected in enumerate(reads(store, rows, known)):
        mine = got.slice(i, 1).select(names).combine_chunks()
        assert mine.schema.equals(expected.schema)
        assert str(mine.to_pydict()) == str(expected.to_pydict())
        for name in names:
            if pa.types.is_floating(expected.column(name).type):
                assert mine.column(name).to_numpy().tobytes() == expected.column(name).to_numpy().tobytes()


def test_labels_alone_are_enough_where_all_is_computed_from_them(store: Store) -> None:
    labels = labels_of(
        [{"user_id": 0, "event_timestamp": NOW_US, "amount": None, "transaction_time": h * 3_600_000} for h in (1, 12)]
    ).drop_columns(["user_id", "amount"])
    assert store.get_historical_features(labels, NIGHT).read_all().column(NIGHT[0]).to_pylist() == [True, False]
    empty = store.get_historical_features(labels.slice(0, 0), NIGHT).read_all()
    assert (empty.num_rows, empty.schema.names[-1]) == (0, NIGHT[0])


def test_what_labels_lack_is_said_before_anything_is_read(store: Store) -> None:
    labels = labels_of([{"user_id": 0, "event_timestamp": NOW_US, "amount": 1.0, "transaction_time": 0}])
    with pytest.raises(DataError, match="column 'transaction_time' is there 0 times"):
        store.get_historical_features(labels.drop_columns(["transaction_time"]), "training")
    text = labels.set_column(3, "amount", pa.array(["much"]))
    with pytest.raises(DataError, match="request field 'amount' is declared float64 and the column is string"):
        store.get_historical_features(text, "training").read_all()


def test_a_bucket_computes_without_a_store() -> None:
    labels = labels_of([{"user_id": 1, "event_timestamp": NOW_US, "amount": 5.0, "transaction_time": 0}])
    stamp = pa.array([NOW_US - 1], pa.timestamp("us", "UTC"))
    rows = pa.table(
        {
            "user_id": pa.array([1], pa.int64()),
            "event_timestamp": stamp,
            "created_timestamp": stamp,
            "_sequence": pa.array([0], pa.uint64()),
            "age": pa.array([30], pa.int32()),
            "limit": [10.0],
            "country": ["DE"],
        }
    )
    joined = join_bucket(labels, {"profile": rows}, DEFINITIONS, ["summary:text", "spending:share"])
    assert joined.column("spending:share").to_pylist() == [0.5]
    assert joined.column("summary:text").to_pylist() == ["DE30"]


def test_the_columns_of_a_set_are_those_of_an_answer(tmp_path: Path) -> None:
    """The same arrays go to functions and come back as Arrow, whichever way they were read."""
    with Store(capacity_bytes=8 << 20, clock=lambda: NOW_US) as store:
        fill(store)
        rows = {"user_id": [0, 1, 2, 9], "amount": [1.0, None, 3.0, 4.0], "transaction_time": [moment(3)] * 4}
        plan = store.plan("training")
        at, known = np.full(4, NOW_US), np.full(4, 2**63 - 1)
        whole = plan.columns_at(rows, at, known)
        online = plan.columns(rows, NOW_US, None)
        for dtype, a, b in zip(plan.dtypes, whole[2], online[2], strict=True):
            assert arrow_array(dtype, a).equals(arrow_array(dtype, b)) or str(a) == str(b)
