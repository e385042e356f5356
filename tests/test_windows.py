"""Windows, case by case: a test for every rule of docs/SEMANTICS.md, "Windows", small enough to be done by hand."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasketches import tdigest_double

from fastfeat import (
    Aggregation,
    BeforeHistory,
    DataError,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Status,
    Store,
    UnknownFeature,
    WindowView,
)

from .model import Model, check_equal, value_bits
from .window_model import aggregate

START = 1_700_000_000_000_000
SECOND = 1_000_000
USER = Entity("user", {"user_id": "int64"})
FIELDS = [
    Field("id", "string", nullable=False),
    Field("x", "float64"),
    Field("n", "int64"),
    Field("big", "uint64"),
    Field("single", "float32"),
    Field("yes", "bool"),
    Field("at", "timestamp"),
    Field("name", "string"),
    Field("raw", "bytes"),
    Field("pair", "vector<float32, 2>"),
    Field("tags", "list<string>"),
]
EVENTS = FeatureView("events", USER, FIELDS, kind="event")
NAN, INF, TINY, HUGE = math.nan, math.inf, 5e-324, 1.7976931348623157e308
PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0xFFF8DEADBEEF0001))[0]
Row = tuple[float, dict[str, Any]]  # seconds after START, values


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def over(function: Any, column: str | None = "x", **options: Any) -> Aggregation:
    return Aggregation(column, function, **{"window": seconds(10), "name": "f", **options})


class Answers:
    """A store of one event view, and what windows over it say."""

    def __init__(self, events: FeatureView = EVENTS) -> None:
        self.now = START + 3_600 * SECOND
        self.events = events
        self.store = Store(64 << 20, clock=lambda: self.now)
        self.store.apply(events)

    def push(self, *rows: Row, user: int = 7) -> None:
        """Rows that leave the fields out that they do not say."""
        self.store.push("events", [self.row(at, values, user) for at, values in rows])

    def row(self, at: float, values: dict[str, Any], user: int = 7) -> dict[str, Any]:
        empty = {field.name: "" if field.name == "id" else None for field in FIELDS}
        return {**empty, "user_id": user, "event_timestamp": START + round(at * SECOND), **values}

    def load(self, *rows: tuple[float, float, dict[str, Any]]) -> Any:
        """Rows (event, created, values)."""
        dicts = [{**self.row(at, values), "created": START + round(known * SECOND)} for at, known, values in rows]
        types = {field.name: field.dtype.arrow() for field in FIELDS}
        stamp = pa.timestamp("us", "UTC")
        columns = {"user_id": pa.int64(), "event_timestamp": stamp, "created": stamp, **types}
        table = pa.table({name: pa.array([each[name] for each in dicts], kind) for name, kind in columns.items()})
        return self.store.load("events", table, created_time="created")

    def window(self, each: Aggregation, at: float | None = None, **options: Any) -> Any:
        """What one window says at this second."""
        self.store.apply(WindowView("w", self.events, [each]))
        return self.result(["w:f"], at, **options).to_dict()["w:f"][0]

    def result(self, features: Any, at: float | None = None, user: int = 7, known: float | None = None) -> Any:
        when = {"as_of": at, "known_at": known}
        times: dict[str, Any] = {
            name: START + round(value * SECOND) for name, value in when.items() if value is not None
        }
        return self.store.get_online_features(features, [{"user_id": user}], **times)


@pytest.fixture
def answers() -> Iterator[Answers]:
    made = Answers()
    yield made
    made.store.close()


def bits(value: Any) -> Any:
    if isinstance(value, list):
        return [bits(each) for each in value]
    return struct.pack("<d", value) if isinstance(value, float) else value


# --- which rows ------------------------------------------------------------------------------------------------------


def test_the_event_being_scored_is_not_in_its_window(answers: Answers) -> None:
    answers.push((20, {}))
    at = [9.999999, 10, 20, 20.000001, 30, 30.000001]
    assert [answers.window(over("count", None), t) for t in at] == [0, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("closed", "expected"),
    [("left", [0, 1, 1, 1, 0]), ("right", [1, 1, 1, 0, 0]), ("both", [1, 1, 1, 1, 0]), ("neither", [0, 1, 1, 0, 0])],
)
def test_closed_says_which_ends_belong_to_the_window(answers: Answers, closed: Any, expected: list[int]) -> None:
    answers.push((20, {}))
    at = [20, 20.000001, 29.999999, 30, 30.000001]
    assert [answers.window(over("count", None, closed=closed), t) for t in at] == expected


def test_a_delay_moves_the_whole_window_back(answers: Answers) -> None:
    answers.push((20, {}))
    at = [23, 23.000001, 33, 33.000001]
    assert [answers.window(over("count", None, delay=seconds(3)), t) for t in at] == [0, 1, 1, 0]


def test_two_events_at_one_time_are_two_events(answers: Answers) -> None:
    answers.push((20, {"x": 1.0}), (20, {"x": 1.0}))
    assert answers.window(over("sum"), 21) == 2.0


def test_a_row_counts_from_when_it_was_known(answers: Answers) -> None:
    answers.load((20, 20, {"x": 1.0}), (21, 40, {"x": 2.0}))
    assert [answers.window(over("sum"), 25, known=known) for known in (19, 20, 39, 40)] == [None, 1.0, 1.0, 3.0]
    assert answers.window(over("sum"), 25) == 3.0


def test_a_late_event_is_in_its_window_at_once(answers: Answers) -> None:
    answers.push((25, {"x": 2.0}))
    answers.push((20, {"x": 1.0}))
    assert answers.window(over("sum"), 26) == 3.0


def test_an_event_of_the_future_is_in_the_windows_of_its_future(answers: Answers) -> None:
    answers.push((4_000, {"x": 2.0}))
    assert (answers.window(over("count")), answers.window(over("count"), 4_001)) == (0, 1)
    answers.now = START + 4_001 * SECOND
    assert answers.window(over("count")) == 1


def test_a_null_does_not_count_but_its_row_does(answers: Answers) -> None:
    answers.push((20, {"x": 1.0}), (21, {"x": None}))
    assert (answers.window(over("count"), 25), answers.window(over("count", None), 25)) == (1, 2)
    assert answers.window(over("last"), 25) == 1.0


def test_a_ttl_cuts_no_window() -> None:
    answers = Answers(FeatureView("events", USER, FIELDS, kind="event", ttl=seconds(1)))
    answers.push((20, {"x": 1.0}))
    assert answers.window(over("sum"), 30) == 1.0
    assert answers.result(["events:x"], 30).status("events:x").tolist() == [Status.EXPIRED]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (("x", "==", 1), 1),
        (("x", "!=", 1), 4),
        (("x", "<", 2.5), 4),
        (("x", "<=", -0.0), 2),
        (("x", ">", INF), 0),
        (("x", ">=", 2**1023), 1),
        (("x", "<", 2**1024), 4),
        (("x", ">", 2**1024), 1),
        (("x", ">", -(2**1024)), 5),
        (("x", "==", 2**53 + 1), 0),
        (("x", "!=", 2**53 + 1), 5),
        (("x", "in", [1, 2.0]), 2),
        (("x", "not in", [0, 1]), 2),
        (("n", "==", 2**53 + 1), 1),
        (("n", "<", 2.0**53 + 2), 2),
        (("n", "<=", 2.0**53), 1),
        (("n", ">", 2.0**53 + 0.5), 1),
        (("n", "<", INF), 2),
        (("n", "in", [INF, 0.5, 2**70, 2.0**53]), 1),
        (("n", "not in", [INF, 0.5, 2**70]), 2),
        (("n", "<", 2**70), 2),
        (("n", ">", -(2.0**70)), 2),
        (("n", "==", 0.5), 0),
        (("n", "!=", 0.5), 2),
        (("big", ">=", 2**63), 1),
        (("big", ">", -1), 1),
        (("single", "==", 0.1), 0),
        (("single", "<", 0.1000001), 1),
        (("yes", "==", True), 1),
        (("yes", "<", True), 1),
        (("at", ">=", START), 1),
        (("name", "==", ""), 1),
        (("name", ">", "a"), 2),
        (("name", "<", "b"), 1),
        (("name", "in", ["b", "é"]), 2),
        (("name", "not in", ["b"]), 2),
        (("raw", "==", b"\x00"), 1),
        (("raw", "<", b"\x00\x01"), 2),
        ([("x", ">", 0), ("name", "==", "b")], 1),
        ([("x", "<", INF), ("name", "==", "é")], 0),
    ],
)
def test_a_row_counts_where_it_meets_every_condition(answers: Answers, where: Any, expected: int) -> None:
    answers.push(
        (20, {"x": 1.0, "n": 2**53, "big": 2**64 - 1, "single": 0.1, "yes": True, "at": START, "name": "b"}),
        (21, {"x": 0.0, "n": 2**53 + 1, "yes": False, "name": "", "raw": b"\x00"}),
        (22, {"x": -0.0, "at": START - 1, "raw": b""}),
        (23, {"x": INF, "name": "é"}),
        (24, {"x": 2.0}),
        (25, {}),
    )
    assert answers.window(over("count", None, where=where), 26) == expected


def test_no_number_is_equal_to_nothing_and_a_null_meets_nothing(answers: Answers) -> None:
    answers.push((20, {"x": NAN}), (21, {}))
    for where, expected in (
        (("x", "==", 1), 0),
        (("x", "<", INF), 0),
        (("x", ">=", -INF), 0),
        (("x", "!=", 1), 1),
        (("x", "not in", [1]), 1),
    ):
        assert answers.window(over("count", None, where=where), 25) == expected, where


# --- what is made of them --------------------------------------------------------------------------------------------

OF_X: list[tuple[str, dict[str, Any], Sequence[Any], Any]] = [
    ("sum", {}, [0.1] * 10, 1.0),
    ("sum", {}, [1.0, 1e100, 1.0, -1e100], 2.0),
    ("sum", {}, [HUGE, HUGE, -HUGE], HUGE),
    ("sum", {}, [HUGE, HUGE], INF),
    ("sum", {}, [-HUGE, -HUGE], -INF),
    ("sum", {}, [TINY, -1.0, 1.0], TINY),
    ("sum", {}, [-0.0, -0.0], 0.0),
    ("sum", {}, [1.0, INF], INF),
    ("sum", {}, [INF, -INF], NAN),
    ("sum", {}, [INF, PAYLOAD], NAN),
    ("mean", {}, [HUGE, HUGE], HUGE),
    ("mean", {}, [TINY, 0.0, 0.0], 0.0),
    ("mean", {}, [TINY, TINY, 0.0], TINY),
    ("mean", {}, [-INF, 1.0], -INF),
    ("mean", {}, [1.0, 2.0], 1.5),
    ("var", {}, [1.0], None),
    ("var", {}, [PAYLOAD], None),
    ("var", {}, [1.0, INF], NAN),
    ("var", {}, [1e9 + 1, 1e9 + 2, 1e9 + 3], 1.0),
    ("var", {}, [HUGE, -HUGE], INF),
    ("var", {}, [0.1, 0.1, 0.1], 0.0),
    ("std", {}, [1.0, 3.0], math.sqrt(2)),
    ("std", {}, [HUGE / 4, -HUGE / 4], HUGE / 4 * math.sqrt(2)),
    ("std", {}, [0.0, 2 * TINY], TINY),
    ("std", {}, [1.0], None),
    ("min", {}, [0.0, -0.0], -0.0),
    ("max", {}, [-0.0, 0.0, -0.0], 0.0),
    ("min", {}, [1.0, PAYLOAD], NAN),
    ("max", {}, [INF, PAYLOAD], NAN),
    ("min", {}, [INF, 1.0, -INF], -INF),
    ("first", {}, [PAYLOAD, 1.0], PAYLOAD),
    ("last", {}, [1.0, PAYLOAD], PAYLOAD),
    ("count_distinct", {}, [0.0, -0.0, NAN, PAYLOAD, 1.0], 3),
    ("quantile", {"q": 0.5}, [3.0, 1.0, 2.0], 2.0),
    ("quantile", {"q": 0.5}, [4.0, 1.0], 2.5),
    ("quantile", {"q": 0.95}, [float(i) for i in range(21)], 19.0),
    ("quantile", {"q": 0.0}, [2.0, 1.0], 1.0),
    ("quantile", {"q": 1.0}, [2.0, INF], INF),
    ("quantile", {"q": 0.0}, [2.0, INF], 2.0),
    ("quantile", {"q": 0.5}, [-INF, INF], NAN),
    ("quantile", {"q": 0.5}, [INF, INF], INF),
    ("quantile", {"q": 0.5}, [0.0, -0.0], -0.0),
    ("quantile", {"q": 0.5}, [PAYLOAD, 1.0], NAN),
    ("last_n", {"n": 2}, [1.0, 2.0, PAYLOAD], [2.0, PAYLOAD]),
    ("last_n", {"n": 5}, [1.0, 2.0], [1.0, 2.0]),
    ("top_k", {"n": 3}, [1.0, 3.0, 3.0, 2.0], [3.0, 3.0, 2.0]),
    ("top_k", {"n": 9}, [0.0, PAYLOAD, -0.0, INF], [NAN, INF, 0.0, -0.0]),
]


@pytest.mark.parametrize(("function", "options", "values", "expected"), OF_X)
def test_a_function_of_these_values_to_the_last_bit(
    answers: Answers, function: str, options: dict[str, Any], values: Sequence[Any], expected: Any
) -> None:
    rows: list[Row] = [(20 + 0.1 * i, {"x": value}) for i, value in enumerate(values)]
    answers.push(*rows)
    assert bits(answers.window(over(function, **options), 25)) == bits(expected)


OF_OTHERS: list[tuple[str, str, dict[str, Any], Sequence[Any], Any]] = [
    ("sum", "n", {}, [2**53, 1, 1], 2.0**53 + 2),
    ("sum", "n", {}, [2**63 - 1, 2**63 - 1, -(2**63)], 2.0**63),
    ("sum", "big", {}, [2**64 - 1, 1], 2.0**64),
    ("mean", "n", {}, [2**62, 2**62], 2.0**62),
    ("var", "n", {}, [2**62, 2**62 + 2], 2.0),
    ("sum", "yes", {}, [True, False, True], 2.0),
    ("mean", "yes", {}, [True, False], 0.5),
    ("sum", "single", {}, [0.5, 0.25], 0.75),
    ("max", "n", {}, [-1, 2**53 + 1], 2**53 + 1),
    ("min", "big", {}, [2**64 - 1, 2**63], 2**63),
    ("max", "yes", {}, [False, True], True),
    ("min", "at", {}, [START + 1, START], START),
    ("quantile", "n", {"q": 0.5}, [2**53 + 1, 0], 2.0**52),
    ("first", "name", {}, ["b", "a"], "b"),
    ("last", "raw", {}, [b"", b"\x00\xff"], b"\x00\xff"),
    ("last", "pair", {}, [[1.0, 2.0], [3.0, -0.0]], [3.0, -0.0]),
    ("first", "tags", {}, [["a", ""], []], ["a", ""]),
    ("count", "tags", {}, [[], ["a"]], 2),
    ("count_distinct", "name", {}, ["a", "", "a", "é"], 3),
    ("count_distinct", "raw", {}, [b"", b"\x00", b"\x00\x00"], 3),
    ("count_distinct", "yes", {}, [True, True], 1),
    ("count_distinct", "big", {}, [2**64 - 1, 2**53, 2**53 + 1], 3),
    ("last_n", "name", {"n": 2}, ["a", "", "c"], ["", "c"]),
    ("last_n", "yes", {"n": 3}, [True, False], [True, False]),
    ("top_k", "n", {"n": 2}, [-5, 2**53 + 1, 2**53], [2**53 + 1, 2**53]),
    ("top_k", "big", {"n": 1}, [1, 2**64 - 1], [2**64 - 1]),
]


@pytest.mark.parametrize(("function", "column", "options", "values", "expected"), OF_OTHERS)
def test_a_function_of_a_column_of_another_type(
    answers: Answers, function: str, column: str, options: dict[str, Any], values: Sequence[Any], expected: Any
) -> None:
    rows: list[Row] = [(20 + 0.1 * i, {column: value}) for i, value in enumerate(values)]
    answers.push(*rows)
    got = answers.window(over(function, column, **options), 25)
    if column == "at":
        got = round(got.timestamp() * SECOND)
    assert bits(got) == bits(expected)


def test_first_and_last_go_by_row_order_not_by_arrival(answers: Answers) -> None:
    answers.load((22, 30, {"n": 3}), (20, 31, {"n": 2}), (20, 30, {"n": 1}), (22, 30, {"n": 4}))
    assert (answers.window(over("first", "n"), 25), answers.window(over("last", "n"), 25)) == (1, 4)
    assert answers.window(over("last_n", "n", n=9), 25) == [1, 2, 3, 4]


@pytest.mark.parametrize("function", ["sum", "mean", "min", "max", "first", "last", "std", "var", "quantile"])
def test_of_no_value_there_is_none(answers: Answers, function: str) -> None:
    answers.push((20, {}))
    each = over(function, q=0.5 if function == "quantile" else None)
    answers.store.apply(WindowView("w", EVENTS, [each]))
    result = answers.result(["w:f"], 25)
    assert result.to_dict() == {"w:f": [None]}
    assert result.status("w:f").tolist() == [Status.NULL]
    assert math.isnan(answers.store.get_feature_vector(["w:f"], {"user_id": 7})[0])


def test_of_no_value_counts_are_nought_and_lists_empty(answers: Answers) -> None:
    features = [
        over("count", None, name="rows"),
        over("count", name="values"),
        over("count_distinct", "name", name="names"),
        over("last_n", "name", n=3, name="last"),
        over("top_k", n=3, name="top"),
    ]
    answers.store.apply(WindowView("w", EVENTS, features))
    answers.push((20, {}))
    answers.store.delete("events", [{"user_id": 8}])
    for user, at, status in ((7, 90, Status.PRESENT), (404, 90, Status.NOT_FOUND), (8, 90, Status.DELETED)):
        result = answers.result([f"w:{each.name}" for each in features], at, user=user)
        assert [column[0] for column in result.to_dict().values()] == [0, 0, 0, [], []]
        assert result.statuses["w"].tolist() == [status]
        assert result.status("w:rows").tolist() == [status]
        times = result.event_times["w"].tolist()
        assert times == [START + 20 * SECOND if status == Status.PRESENT else 0]
        vector = answers.store.get_feature_vector(["w:rows", "w:names"], {"user_id": user}, as_of=START + 90 * SECOND)
        assert vector.tolist() == [0.0, 0.0]


# --- of many events --------------------------------------------------------------------------------------------------

QUANTILE_EXACT_MAX = 65_536
SKETCH_K = 200


@pytest.mark.parametrize("count", [QUANTILE_EXACT_MAX, QUANTILE_EXACT_MAX + 1])
def test_a_quantile_is_exact_up_to_65536_values_and_a_t_digest_of_more(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    with Store(64 << 20) as store:
        view = FeatureView("events", USER, [Field("x", "float64")], kind="event")
        store.apply(WindowView("w", view, [over("quantile", q=0.95, window=seconds(100))]))
        times = START + np.arange(count)
        for part in np.split(np.random.default_rng(1).permutation(count), [1_000, 40_000]):
            stamps = pa.array(times[part], pa.timestamp("us", "UTC"))
            keys = pa.array(np.full(len(part), 7))
            store.load("events", pa.table({"user_id": keys, "event_timestamp": stamps, "x": values[part]}))
        [got] = store.get_feature_vector(["w:f"], {"user_id": 7}, as_of=START + count)
    if count > QUANTILE_EXACT_MAX:
        sketch = tdigest_double(SKETCH_K)
        for value in values.tolist():
            sketch.update(value)
        assert got == sketch.get_quantile(0.95) != np.quantile(values, 0.95)
    else:
        assert got == window_value_of("quantile", values.tolist(), q=0.95)


def test_a_quantile_of_more_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketches", None)
    count = QUANTILE_EXACT_MAX + 1
    with Store(64 << 20) as store:
        view = FeatureView("events", USER, [Field("x", "float64")], kind="event")
        store.apply(WindowView("w", view, [over("quantile", q=0.5, window=seconds(100))]))
        times = pa.array(START + np.arange(count), pa.timestamp("us", "UTC"))
        rows = pa.table({"user_id": np.full(count, 7), "event_timestamp": times, "x": np.ones(count)})
        store.load("events", rows)
        with pytest.raises(DataError, match=r"65,537 values .* pip install 'fastfeat\[sketches\]'"):
            store.get_feature_vector(["w:f"], {"user_id": 7}, as_of=START + count)


def window_value_of(function: Any, values: Sequence[Any], **options: Any) -> Any:
    return aggregate(over(function, **options), values)


EVERY = ("count", "sum", "mean", "min", "max", "first", "last", "std", "var", "count_distinct", "quantile")


@pytest.mark.parametrize("column", ["x", "n", "single", "big"])
def test_thousands_of_events_of_one_entity_that_come_in_any_order(answers: Answers, column: str) -> None:
    """Long enough for blocks in a directory with sums of their own; numbers of every magnitude, few of them none."""
    rng = np.random.default_rng(5)
    count = 3_000
    at = np.sort(rng.integers(0, 1_000, count)) / 2  # several events at one time
    known = 600 + rng.integers(0, 3, count)
    drawn = {
        "x": rng.normal(size=count) * 2.0 ** rng.integers(-300, 300, count),
        "n": rng.integers(-(2**63), 2**63 - 1, count),
        "single": rng.normal(size=count).astype("f4") * np.float32(2) ** rng.integers(-60, 60, count).astype("f4"),
        "big": rng.integers(0, 2**64 - 1, count, dtype=np.uint64),
    }[column]
    cells = [None if rng.random() < 0.1 else value for value in drawn.tolist()]
    if column in ("x", "single"):
        cells[100], cells[1_500], cells[1_501] = NAN, INF, -INF
    features: list[Aggregation] = []
    for window in (0.5, 20, 300):
        for function in EVERY:
            q = 0.9 if function == "quantile" else None
            name = f"{function}_{len(features)}"
            features.append(over(function, column, q=q, window=seconds(window), closed="both", name=name))
        features.append(over("last_n", column, n=20, window=seconds(window), name=f"last_{len(features)}"))
    view = WindowView("w", EVENTS, features)
    answers.store.apply(view)
    model = Model()
    model.apply(EVENTS)
    model.apply(view)
    rows = [(float(at[i]), float(known[i]), {column: cells[i]}) for i in range(count)]
    for part in np.split(rng.permutation(count), [1, 1_000, 1_010, 2_500]):
        answers.load(*[rows[i] for i in part])
        us = [(START + round(rows[i][0] * SECOND), START + round(rows[i][1] * SECOND)) for i in part]
        empty = {field.name: "" if field.name == "id" else None for field in FIELDS}
        model.load("events", [((7,), *us[j], {**empty, **rows[i][2]}) for j, i in enumerate(part)], answers.now)
    for t, k in ((0, None), (250, None), (250.5, 601), (400, 600), (499.5, None), (530, 601), (900, None)):
        result = answers.result([f"w:{each.name}" for each in features], t, known=k).to_dict()
        known_us = None if k is None else START + k * SECOND
        expected = model.read("w", (7,), START + round(t * SECOND), known_us, answers.now).values
        assert expected is not None
        for each, f in zip(features, view.schema, strict=True):
            got = value_bits(f.dtype, result[f"w:{each.name}"][0])
            check_equal(got, value_bits(f.dtype, expected[each.name]), f"{each.name} at {t}, {k}")


# --- event ids -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ids() -> Iterator[Answers]:
    made = Answers(FeatureView("events", USER, FIELDS, kind="event", event_id="id"))
    yield made
    made.store.close()


def test_an_event_that_is_sent_again_counts_once(ids: Answers) -> None:
    ids.push((20, {"id": "a", "x": 1.0}), (20, {"id": "b", "x": 2.0}), (21, {"id": "a", "x": 4.0}))
    ids.push((20, {"id": "b", "x": 8.0}))
    assert ids.window(over("sum"), 25) == 3.0
    assert ids.store.info()["views"]["events"]["rows"] == 2


def test_the_row_created_first_counts_though_it_arrives_last(ids: Answers) -> None:
    for at, created, x in ((22, 42, 2.0), (20, 43, 4.0), (21, 41, 1.0), (23, 44, 8.0)):
        ids.load((at, created, {"id": "a", "x": x}))
    assert ids.window(over("sum"), 25) == 1.0
    assert ids.window(over("sum"), 25, known=41) == 1.0
    assert ids.result(["events:x"], 25).to_dict() == {"events:x": [1.0]}
    assert ids.result(["events:x"], 20.5).statuses["events"].tolist() == [Status.NOT_FOUND]


def test_an_event_id_is_of_one_entity(ids: Answers) -> None:
    ids.push((20, {"id": "a", "x": 1.0}))
    ids.push((20, {"id": "a", "x": 2.0}), user=8)
    assert [ids.window(over("sum"), 25, user=user) for user in (7, 8)] == [1.0, 2.0]


def test_an_event_that_was_deleted_may_be_sent_again(ids: Answers) -> None:
    ids.push((20, {"id": "a", "x": 1.0}))
    ids.store.delete("events", [{"user_id": 7}])
    ids.push((20, {"id": "a", "x": 2.0}), (20, {"id": "a", "x": 4.0}))
    assert ids.window(over("sum"), 25) == 2.0


def test_a_thousand_events_sent_twice_in_any_order_are_a_thousand(ids: Answers) -> None:
    order = [(i * 617) % 1_000 for i in range(1_000)]
    rows = [(20 + i / 1_000, 30 + i, {"id": f"event {i}", "n": i}) for i in order]
    again = [(at, created + 5_000, {**values, "n": -1}) for at, created, values in rows]
    for part in range(0, 1_000, 250):
        ids.load(*again[part : part + 250])
    for part in range(0, 1_000, 100):
        ids.load(*rows[part : part + 100])
    assert ids.window(over("sum", "n"), 25) == sum(range(1_000))
    assert ids.window(over("count", None), 25) == 1_000


# --- windows as views ------------------------------------------------------------------------------------------------


def test_windows_and_points_are_read_in_one_service(answers: Answers) -> None:
    profile = FeatureView("profile", USER, [Field("age", "int32")])
    windows = [WindowView(name, EVENTS, [over("sum", window=seconds(w))]) for name, w in (("short", 2), ("long", 10))]
    service = FeatureService("all", [profile, *windows, EVENTS["x"]])
    answers.store.apply([profile, *windows, service])
    answers.push((20, {"x": 1.0}), (24, {"x": 2.0}))
    answers.store.push("profile", {"user_id": 7, "age": 30, "event_timestamp": START})
    answers.now = START + 25 * SECOND
    assert answers.result("all").to_dict() == {
        "profile:age": [30],
        "short:f": [2.0],
        "long:f": [3.0],
        "events:x": [2.0],
    }
    assert answers.store.get_feature_vector("all", {"user_id": 7}).tolist() == [30.0, 2.0, 3.0, 2.0]
    matrix = answers.store.get_feature_vectors("all", {"user_id": [7, 8, 7]})
    assert matrix[0].tolist() == matrix[2].tolist() == [30.0, 2.0, 3.0, 2.0]
    assert all(map(math.isnan, matrix[1]))


def test_a_window_that_is_added_later_needs_no_backfill(answers: Answers) -> None:
    answers.push((20, {"x": 1.0}))
    answers.store.apply(WindowView("later", EVENTS, [over("sum")]))
    assert answers.result(["later:f"], 25).to_dict() == {"later:f": [1.0]}
    answers.store.apply(WindowView("later", EVENTS, [over("count", None, name="g")]))
    assert answers.result(["later:g"], 25).to_dict() == {"later:g": [1]}
    with pytest.raises(UnknownFeature):
        answers.result(["later:f"], 25)


def test_a_window_view_has_no_rows_of_its_own(answers: Answers) -> None:
    answers.store.apply(WindowView("w", EVENTS, [over("sum")]))
    for write in (
        lambda: answers.store.push("w", {"user_id": 7, "event_timestamp": START}),
        lambda: answers.store.load("w", pa.table({"user_id": [7]})),
        lambda: answers.store.delete("w", [{"user_id": 7}]),
    ):
        with pytest.raises(DataError, match=r"'w' is a window view: .* write to 'events'"):
            write()


def test_a_list_of_a_window_has_no_float_form(answers: Answers) -> None:
    answers.store.apply(WindowView("w", EVENTS, [over("last_n", n=2)]))
    with pytest.raises(DataError, match="w:f"):
        answers.store.get_feature_vector(["w:f"], {"user_id": 7})


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_window_that_may_reach_what_was_dropped_is_refused() -> None:
    answers = Answers(FeatureView("events", USER, FIELDS, kind="event", keep=seconds(100)))
    for at in (0, 10, 3_500, 3_550, 3_600):
        answers.push((at, {"x": 1.0}))
    assert answers.window(over("count", None, window=seconds(100))) == 2
    assert answers.window(over("count", None, window=seconds(100), closed="both"), 3_600) == 3
    assert answers.window(over("count", None), 3_000) == 0
    assert answers.window(over("count", None), 15) == 1  # 10 was the last before what is kept, and is kept, too
    for at in (5, 10):
        with pytest.raises(BeforeHistory, match="user_id=7"):
            answers.window(over("count", None), at)


def test_a_durable_store_answers_what_memory_dropped(tmp_path: Any) -> None:
    answers = Answers(FeatureView("events", USER, FIELDS, kind="event", keep=seconds(100), event_id="id"))
    answers.store.close()
    for _ in range(2):
        answers.store = Store.open(tmp_path, capacity_bytes=64 << 20, clock=lambda: answers.now)
        answers.store.apply(answers.events)
        for i, at in enumerate((0, 10, 3_500, 3_550, 3_600)):
            answers.push((at, {"x": 1.0, "id": str(i)}))
        assert answers.window(over("sum", window=seconds(20)), 11) == 2.0
        assert answers.window(over("sum", window=seconds(100))) == 2.0
        answers.store.compact()
        assert answers.window(over("sum", window=seconds(20)), 11) == 2.0
        answers.store.close()


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_one_entity_at_many_moments_is_each_of_them_alone(answers: Answers, order: str) -> None:
    """More ranges than places are remembered of, blocks in a directory, moments on and between the events."""
    rng = np.random.default_rng(6)
    times = np.sort(rng.integers(0, 3_000, 2_600))
    answers.push(*[(float(at) / 10, {"x": float(i)}) for i, at in enumerate(times)])
    windows = [
        over("sum", window=seconds(w), delay=seconds(d), name=f"f{w}_{d}") for w in range(1, 40, 4) for d in (0, 9)
    ]
    answers.store.apply(WindowView("w", EVENTS, windows))
    moments = START + rng.integers(-5, 3_400, 400) * SECOND // 10 + rng.integers(-1, 2, 400)
    moments.sort()
    moments = {"forward": moments, "backward": moments[::-1].copy(), "shuffled": rng.permutation(moments)}[order]
    features = [f"w:{each.name}" for each in windows]
    everything = np.full(len(moments), np.iinfo(np.int64).max)
    keys = {"user_id": np.full(len(moments), 7)}
    statuses, event_times, columns = answers.store.plan(features).columns_at(keys, moments, everything)
    for i, moment in enumerate(moments.tolist()):
        alone = answers.store.get_online_features(features, {"user_id": [7]}, as_of=moment)
        assert statuses[0, i] == alone.statuses["w"][0]
        assert event_times[0, i] == alone.event_times["w"][0]
        found = [data[i] if valid[i] else None for valid, data, _ in columns]
        assert found == [values[0] for values in alone.to_dict().values()]


@pytest.mark.parametrize("odd", [0.0, NAN, -INF, 3e38, 1e-40])
@pytest.mark.parametrize("count", [5, 60, 1_500])
def test_many_reads_of_entities_with_late_events_are_each_of_them_alone(count: int, odd: float) -> None:
    """Each read knows what was created by then; one column has nulls, one a value that sums badly with the others."""
    answers, rng = Answers(), np.random.default_rng(count)
    for batch in range(4):
        answers.now = START + (1_000 + batch) * SECOND
        for user in (7, 8, 9)[batch // 2 :]:
            rows = [
                (float(at), {"x": None if i % 5 == batch else i / 4, "n": -i if user == 7 else i, "big": 2**63 + i})
                for i, at in enumerate(rng.integers(0, 500, count // 4 + user))
            ]
            answers.push((250.0, {"single": odd if user == 7 else 1.5}), *rows, user=user)
    answers.now = START + 3_600 * SECOND
    windows = [
        over(function, column, window=seconds(width), name=f"{function}_{column}_{width}")
        for width in (3, 40, 600)
        for function, column in (("sum", "x"), ("count", "x"), ("mean", "n"), ("sum", "big"), ("sum", "single"))
    ]
    answers.store.apply(WindowView("w", EVENTS, [*windows, over("count", None, name="rows")]))
    features = ["w:rows", *(f"w:{each.name}" for each in windows)]
    users = np.repeat([7, 8, 9], [160, 160, 9])  # of which the last is asked too seldom to be summed row by row
    moments = START + rng.integers(-20, 700, len(users)) * SECOND
    moments[:160].sort()
    batches = rng.integers(-1, 4, len(users))
    batches[100:220] = 1  # all of user 7's events, and some of 8's
    known = START + 1_000 * SECOND + batches * SECOND + SECOND // 2
    statuses, event_times, columns = answers.store.plan(features).columns_at({"user_id": users}, moments, known)
    for i, (user, moment, known_at) in enumerate(zip(users.tolist(), moments.tolist(), known.tolist(), strict=True)):
        alone = answers.store.get_online_features(features, {"user_id": [user]}, as_of=moment, known_at=known_at)
        assert (statuses[0, i], event_times[0, i]) == (alone.statuses["w"][0], alone.event_times["w"][0])
        found = [repr(data[i].item()) if valid[i] else "None" for valid, data, _ in columns]
        assert found == [repr(values[0]) for values in alone.to_dict().values()]


def test_events_that_come_one_by_one_count_at_once(answers: Answers) -> None:
    """In order into the room of the newest block, past many tiles and several blocks."""
    answers.store.apply(WindowView("w", EVENTS, [over("sum", name="sum"), over("count", name="count")]))
    for i in range(1, 2_200):
        answers.push((i / 1_000, {"x": i / 8}))
        if i % 7 == 0 or i < 40:
            found = answers.store.get_feature_vector(["w:sum", "w:count"], {"user_id": 7}, as_of=START + 9 * SECOND)
            assert found.tolist() == [i * (i + 1) / 16, i]
