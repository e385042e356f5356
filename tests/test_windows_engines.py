"""Windows say what DuckDB's RANGE windows and Polars' rolling ones say, on real flights and at every edge.

    departures by airport, many in one minute --Store.get_historical_features--> a row per departure
                                              --DuckDB, Polars----------------> the same

Every departure is also a label, so each window ends at an event: what belongs to it is decided by `closed` alone. Sums
and what is made of them compare within 1e-9, since the engines round on the way; all else exactly.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from fastfeat_flights import data
from numpy.typing import NDArray

from fastfeat import Aggregation, Entity, FeatureView, Field, Store, WindowView

AIRPORT = Entity("airport", {"origin": "string"})
DEPARTURES = FeatureView(
    "departures",
    AIRPORT,
    [Field("minutes", "float64"), Field("carrier", "string"), Field("dest", "string"), Field("flight", "int32")],
    kind="event",
)
WINDOWS = {"1h": timedelta(hours=1), "3h": timedelta(hours=3), "1d": timedelta(days=1)}
CLOSED = ("left", "right", "both", "neither")
TOLERANCE = 1e-9
DEPARTURES_MAX = 10_000  # of a quick run: eleven days; FASTFEAT_HYPOTHESIS=long takes the whole year


@pytest.fixture(scope="module")
def events() -> pa.Table:
    """Departures in row order, `place` their place in it; delays of a tenth are made nulls."""
    table = data.departures(data.flights()).select(["origin", "departed", "delay_minutes", "carrier", "dest", "flight"])
    if os.environ.get("FASTFEAT_HYPOTHESIS") != "long":
        table = table.slice(0, DEPARTURES_MAX)
    table = table.rename_columns(["origin", "event_timestamp", "minutes", "carrier", "dest", "flight"])
    minutes = pa.array(table["minutes"].to_numpy(), mask=np.arange(len(table)) % 10 == 0)
    return table.set_column(2, "minutes", minutes).append_column("place", pa.array(range(len(table))))


@pytest.fixture(scope="module")
def store(events: pa.Table) -> Store:
    """The departures, loaded in another order but for those of one minute."""
    store = Store(2 << 30)
    store.apply(DEPARTURES)
    hours = np.random.default_rng(7).permutation(24)[
        events["event_timestamp"].to_numpy().astype("M8[h]").astype(int) % 24
    ]
    report = store.load("departures", events.take(pa.array(np.argsort(hours, kind="stable"))).drop_columns(["place"]))
    assert report.accepted == len(events)
    return store


def ours(store: Store, events: pa.Table, features: list[Aggregation]) -> pa.Table:
    store.apply(WindowView("w", DEPARTURES, features))
    names = [f"w:{each.name}" for each in features]
    labels = events.select(["origin", "event_timestamp"])
    return store.get_historical_features(labels, names, known="as_corrected").read_all().select(names)


def check(mine: pa.Table, theirs: pa.Table, name: str, *, is_near: bool = False) -> None:
    """Equal nulls, and equal values, or near ones."""
    left, right = mine[f"w:{name}"].combine_chunks(), theirs[name].combine_chunks()
    assert left.is_null().equals(right.is_null()), name
    if not is_near:
        assert left.to_pylist() == right.to_pylist(), name
        return
    a, b = (numbers(column) for column in (left, right))
    scale = np.maximum(np.abs(b), 1.0)  # a variance of nothing but equal values is what rounding made of 0
    worst = np.nanmax(np.abs(a - b) / scale)
    assert worst <= TOLERANCE, (name, worst)


def numbers(column: Any) -> NDArray[np.float64]:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


# --- DuckDB ----------------------------------------------------------------------------------------------------------


def frame(window: timedelta, closed: str, delay: timedelta = timedelta(0)) -> str:
    """The RANGE frame of a window: bounds of RANGE are inside, so an open end is a microsecond further in."""
    oldest = window + delay - timedelta(microseconds=closed in ("right", "neither"))
    newest = delay + timedelta(microseconds=closed in ("left", "neither"))
    first, last = (
        f"INTERVAL {round(each / timedelta(microseconds=1))} MICROSECOND PRECEDING" for each in (oldest, newest)
    )
    return f"(PARTITION BY origin ORDER BY event_timestamp RANGE BETWEEN {first} AND {last})"


def by_duckdb(events: pa.Table, columns: dict[str, str]) -> pa.Table:
    """Name -> expression over the departures, in their order."""
    assert len(events)  # by its name in the query
    listed = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET threads = 2")
        return connection.sql(f"SELECT {listed}, place FROM events ORDER BY place").to_arrow_table()


@pytest.mark.parametrize("closed", CLOSED)
def test_counts_sums_and_extremes_are_those_of_duckdb_at_every_edge(
    store: Store, events: pa.Table, closed: Any
) -> None:
    expressions = {
        "count": "count(minutes)",
        "sum": "sum(minutes)",
        "mean": "avg(minutes)",
        "min": "min(minutes)",
        "max": "max(minutes)",
        "var": "var_samp(minutes)",
        "std": "stddev_samp(minutes)",
    }
    delays = {"now": timedelta(0), "late": timedelta(minutes=30)}
    features, columns = [], {}
    for span, window in WINDOWS.items():
        for when, delay in delays.items():
            for function, expression in expressions.items():
                name = f"{function}_{span}_{when}"
                kind: Any = function
                features.append(Aggregation("minutes", kind, window, name=name, closed=closed, delay=delay))
                columns[name] = f"{expression} OVER {frame(window, closed, delay)}"
    mine, theirs = ours(store, events, features), by_duckdb(events, columns)
    for name in columns:
        check(mine, theirs, name, is_near=not name.startswith(("count", "min", "max")))


def test_the_comparison_sees_an_end_that_is_taken_for_another(store: Store, events: pa.Table) -> None:
    hour = WINDOWS["1h"]
    mine = ours(store, events, [Aggregation("minutes", "count", hour, name="n")])
    for closed in CLOSED[1:]:
        with pytest.raises(AssertionError, match="n"):
            check(mine, by_duckdb(events, {"n": f"count(minutes) OVER {frame(hour, closed)}"}), "n")


def test_order_lists_quantiles_and_filters_are_those_of_duckdb(store: Store, events: pa.Table) -> None:
    hour, long = (f"OVER {frame(WINDOWS[span], 'left')}" for span in ("1h", "3h"))
    w: dict[str, timedelta] = {"1h": WINDOWS["1h"], "3h": WINDOWS["3h"]}
    pairs: list[tuple[Aggregation, str, bool]] = [
        (Aggregation("carrier", "first", w["1h"], name="first"), f"arg_min(carrier, place) {hour}", False),
        (Aggregation("carrier", "last", w["1h"], name="last"), f"arg_max(carrier, place) {hour}", False),
        (Aggregation("minutes", "last", w["1h"], name="last_known"), f"arg_max(minutes, place) {hour}", False),
        (Aggregation("dest", "count_distinct", w["3h"], name="places"), f"count(DISTINCT dest) {long}", False),
        (Aggregation("minutes", "quantile", w["3h"], q=0.5, name="q50"), f"quantile_cont(minutes, 0.5) {long}", True),
        (Aggregation("minutes", "quantile", w["3h"], q=0.95, name="q95"), f"quantile_cont(minutes, 0.95) {long}", True),
        (Aggregation("minutes", "top_k", w["1h"], n=3, name="top"), f"coalesce(max(minutes, 3) {hour}, [])", False),
        (
            Aggregation("flight", "last_n", w["1h"], n=4, name="latest"),
            f"coalesce(list_reverse(arg_max(flight, place, 4) {hour}), [])",
            False,
        ),
        (
            Aggregation("minutes", "sum", w["3h"], where=("carrier", "==", "UA"), name="united"),
            f"sum(minutes) FILTER (carrier = 'UA') {long}",
            True,
        ),
        (
            Aggregation(
                None, "count", w["3h"], where=[("minutes", ">=", 15), ("dest", "not in", ["ORD", "ATL"])], name="n"
            ),
            f"count(*) FILTER (minutes >= 15 AND dest NOT IN ('ORD', 'ATL')) {long}",
            False,
        ),
    ]
    mine = ours(store, events, [each for each, _, _ in pairs])
    theirs = by_duckdb(events, {each.name: expression for each, expression, _ in pairs})
    for each, _, is_near in pairs:
        check(mine, theirs, each.name, is_near=is_near)


# --- Polars ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", CLOSED)
def test_rolling_windows_are_those_of_polars(store: Store, events: pa.Table, closed: Any) -> None:
    given: Any = pl.from_arrow(events)
    x = pl.col("minutes").drop_nulls()
    made: dict[str, tuple[str, dict[str, Any], Any]] = {
        "count": ("count", {}, pl.col("minutes").count().cast(pl.Int64)),
        "sum": ("sum", {}, x.sum()),
        "mean": ("mean", {}, x.mean()),
        "min": ("min", {}, x.min()),
        "max": ("max", {}, x.max()),
        "var": ("var", {}, x.var()),
        "std": ("std", {}, x.std()),
        "first": ("first", {}, x.first()),
        "last": ("last", {}, x.last()),
        "distinct": ("count_distinct", {}, x.n_unique().cast(pl.Int64)),
        "q25": ("quantile", {"q": 0.25}, x.quantile(0.25, "linear")),
        "latest": ("last_n", {"n": 3}, x.tail(3)),
        "top": ("top_k", {"n": 3}, x.top_k(3).sort(descending=True)),
    }
    features = [
        Aggregation("minutes", function, timedelta(hours=2), name=name, closed=closed, **options)  # type: ignore[arg-type]
        for name, (function, options, _) in made.items()
    ]
    theirs_closed = "none" if closed == "neither" else closed
    ordered = given.sort("origin", "place")
    rolled = ordered.rolling("event_timestamp", period="2h", closed=theirs_closed, group_by="origin")
    whole = rolled.agg([expression.alias(name) for name, (_, _, expression) in made.items()])
    theirs = pl.concat([ordered.select("place"), whole], how="horizontal").sort("place")
    assert theirs["event_timestamp"].equals(given["event_timestamp"])
    theirs = theirs.with_columns(sum=pl.when(pl.col("count") > 0).then(pl.col("sum")))  # of nothing it says 0
    mine, other = ours(store, events, features), theirs.to_arrow()
    for name in made:
        check(mine, other, name, is_near=name in ("sum", "mean", "var", "std", "q25"))


def test_a_point_read_is_the_join_asof_of_polars(store: Store, events: pa.Table) -> None:
    """Labels lie a minute apart from departures, and at them."""
    right: Any = pl.from_arrow(events)
    left = right.select("origin", pl.col("event_timestamp") - pl.duration(minutes=1))
    left = pl.concat([right.select("origin", "event_timestamp"), left]).sort("event_timestamp")
    asked = right.select("origin", "event_timestamp", "flight", "carrier").sort("event_timestamp", maintain_order=True)
    theirs = left.join_asof(asked, on="event_timestamp", by="origin", strategy="backward")
    names = ["departures:flight", "departures:carrier"]
    mine = store.get_historical_features(left.to_arrow(), names, known="as_corrected").read_all()
    for name in names:
        assert mine[name].to_pylist() == theirs[name.split(":")[1]].to_list()
