"""Definitions: what is well said is taken, and every fault is named with its remedy when it is made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from fastfeat import (
    Aggregation,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    Field,
    IncompatibleSchema,
    SchemaError,
    UnknownFeature,
    WindowView,
)
from fastfeat.applied import NOTHING, merged
from fastfeat.definitions import Definition, definition_dict, definitions_from_list, definitions_to_list
from fastfeat.dtypes import KIND, SCALAR_WIDTH, DType
from fastfeat.schema import parse_features

USER = Entity("user", {"user_id": "int64"})
AGE = Field("age", "int32")
PROFILE = FeatureView("profile", USER, [AGE, Field("country", "string")])

HOUR = timedelta(hours=1)
EVENTS = FeatureView(
    "payments",
    USER,
    [
        Field("id", "string", nullable=False),
        Field("amount", "float64"),
        Field("shop", "string"),
        Field("raw", "bytes"),
        Field("at", "timestamp"),
        Field("is_new", "bool"),
        Field("embedding", "vector<float32, 2>"),
    ],
    kind="event",
    event_id="id",
)


def event_view(**options: Any) -> FeatureView:
    return replace(EVENTS, **options)


def windows_of(*features: Aggregation, **options: Any) -> WindowView:
    return WindowView(**{"name": "spending", "source": EVENTS, "features": features, **options})


def feature(function: str, column: str | None = "amount", **options: Any) -> Aggregation:
    return Aggregation(column, function, **{"window": HOUR, **options})  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "name is no identifier": (lambda: Entity("a b", {"k": "int64"}), "'a b' is not an identifier; use letters"),
    "name is reserved": (lambda: Field("event_timestamp", "int64"), "reserved for the row's own times"),
    "name is too long": (lambda: Field("x" * 129, "int64"), "at most 128"),
    "entity without keys": (lambda: Entity("e", {}), "needs join_keys such as"),
    "entity with too many keys": (lambda: Entity("e", {f"k{i}": "int64" for i in range(9)}), "9 join keys, at most 8"),
    "float key": (lambda: Entity("e", {"k": "float64"}), "floats do not compare by value"),
    "unknown type": (lambda: Field("x", "int"), "field 'x': unknown type 'int'; write one of bool, int8"),
    "type of no text": (lambda: Field("x", 7), "not int"),  # type: ignore[arg-type]
    "vector of texts": (lambda: Field("x", "vector<string, 2>"), "a vector holds numbers"),
    "vector too long": (lambda: Field("x", "vector<float32, 16385>"), "1 to 16384 elements, not 16385"),
    "list of vectors": (lambda: Field("x", "list<float128>"), "a list holds"),
    "no entity": (lambda: FeatureView("v", "user", [AGE]), "needs an Entity, not str"),  # type: ignore[arg-type]
    "no fields": (lambda: FeatureView("v", USER, []), "needs a schema of one or more Field"),
    "field twice": (lambda: FeatureView("v", USER, [AGE, AGE]), "declares field 'age' twice"),
    "field is key": (lambda: FeatureView("v", USER, [Field("user_id", "int64")]), "is a join key of entity 'user'"),
    "too many fields": (
        lambda: FeatureView("v", USER, [Field(f"f{i}", "bool") for i in range(4097)]),
        "4097 fields, at most 4096",
    ),
    "row too wide": (
        lambda: FeatureView("v", USER, [Field(f"f{i}", "vector<float64, 16384>") for i in range(9)]),
        "a row is wider than 1048576 B; split",
    ),
    "ttl is no duration": (lambda: FeatureView("v", USER, [AGE], ttl=5), "ttl must be a"),  # type: ignore[arg-type]
    "ttl is negative": (lambda: FeatureView("v", USER, [AGE], ttl=timedelta(-1)), "must not be negative"),
    "delay is negative": (lambda: FeatureView("v", USER, [AGE], delay=timedelta(-1)), "delay must not be negative"),
    "keep is nothing": (lambda: FeatureView("v", USER, [AGE], keep=0), "keep=0 is not 'all', 'latest'"),
    "keep is true": (lambda: FeatureView("v", USER, [AGE], keep=True), "keep=True is not"),
    "kind": (lambda: FeatureView("v", USER, [AGE], kind="log"), "is 'state' or 'event'"),  # type: ignore[arg-type]
    "event view that keeps versions": (lambda: event_view(keep=3), "an event view keeps 'all' or a timedelta"),
    "event view that keeps the latest": (lambda: event_view(keep="latest"), "would take rows out of windows"),
    "event id of a state": (lambda: event_view(kind="state"), "event_id='id' is for kind='event'"),
    "event id that is no field": (lambda: event_view(event_id="x"), "event_id='x' is no field; there are id, amount"),
    "event id that may be null": (lambda: event_view(event_id="shop"), "not string that may be null"),
    "event id that is a float": (lambda: event_view(event_id="amount"), "must be a string, bytes or an integer"),
    "unknown function": (lambda: feature("median"), "'median' is unknown; it is one of count, sum"),
    "function of no column": (lambda: feature("sum", None), "'sum' needs a column; only count goes without"),
    "window of no length": (lambda: feature("sum", window=timedelta(0)), "window must be longer than nothing"),
    "window that is a number": (lambda: feature("sum", window=3600), "window must be a datetime.timedelta, not int"),
    "negative window": (lambda: feature("sum", window=-HOUR), "window must not be negative"),
    "negative window delay": (lambda: feature("sum", delay=-HOUR), "delay must not be negative"),
    "unknown end": (lambda: feature("sum", closed="open"), "closed='open' is not one of left, right, both, neither"),
    "quantile of nothing": (lambda: feature("quantile"), "q= belongs to quantile, which needs it"),
    "q of a sum": (lambda: feature("sum", q=0.5), "q= belongs to quantile"),
    "q above one": (lambda: feature("quantile", q=1.5, name="x"), "q=1.5 is not between 0 and 1"),
    "q of no name": (lambda: feature("quantile", q=0.999), "is no whole percent; give the feature a name="),
    "last of how many": (lambda: feature("last_n"), "n= belongs to last_n and top_k, which need it"),
    "n of a mean": (lambda: feature("mean", n=3), "n= belongs to last_n and top_k"),
    "too many": (lambda: feature("top_k", n=1025), "n=1025 is not an integer from 1 to 1024"),
    "none at all": (lambda: feature("top_k", n=0), "n=0 is not an integer from 1"),
    "condition of two parts": (lambda: feature("sum", where=[("shop", "==")]), "is not (column, operator, value)"),
    "condition that is a text": (lambda: feature("sum", where="shop == 'a'"), "where is a list of"),
    "unknown operator": (lambda: feature("sum", where=("shop", "~", "a")), "operator '~' is not one of ==, !="),
    "in of one text": (lambda: feature("sum", where=("shop", "in", "a")), "needs a list of 1 to 64 values"),
    "in of nothing": (lambda: feature("sum", where=("shop", "in", [])), "needs a list of 1 to 64 values"),
    "in of too many": (lambda: feature("sum", where=("amount", "in", [*range(65)])), "needs a list of 1 to 64 values"),
    "compares with NaN": (lambda: feature("sum", where=("amount", "==", float("nan"))), "not nan"),
    "compares with half a character": (lambda: feature("sum", where=("shop", "==", "\ud800")), "no text that UTF-8"),
    "compares with null": (lambda: feature("sum", where=("amount", "==", None)), "a value is a number, a string"),
    "windows over a state": (lambda: windows_of(feature("count"), source=PROFILE), "a FeatureView with kind='event'"),
    "windows of nothing": (lambda: windows_of(), "needs features: one or more Aggregation"),
    "feature twice": (lambda: windows_of(feature("sum"), feature("sum")), "two features or a join key 'amount_sum_1h'"),
    "feature is key": (lambda: windows_of(feature("sum", name="user_id")), "or a join key 'user_id'"),
    "sum of texts": (lambda: windows_of(feature("sum", "shop")), "sum is of numbers, not of string"),
    "sum of times": (lambda: windows_of(feature("sum", "at")), "sum is of numbers, not of timestamp"),
    "least of texts": (lambda: windows_of(feature("min", "shop")), "min is of numbers and timestamps, not of string"),
    "top of texts": (lambda: windows_of(feature("top_k", "shop", n=2)), "top_k is of numbers and timestamps"),
    "list of vectors in a window": (lambda: windows_of(feature("last_n", "embedding", n=2)), "a list of single values"),
    "distinct vectors": (
        lambda: windows_of(feature("count_distinct", "embedding")),
        "count_distinct is of single values",
    ),
    "text against number": (lambda: windows_of(feature("sum", where=("shop", "==", 1))), "does not compare with a"),
    "number against text": (lambda: windows_of(feature("sum", where=("amount", "<", "1"))), "does not compare with a"),
    "number against bool": (lambda: windows_of(feature("sum", where=("amount", "<", True))), "does not compare with a"),
    "bool against number": (lambda: windows_of(feature("sum", where=("is_new", "==", 1))), "does not compare with a"),
    "one of a vector": (lambda: windows_of(feature("sum", where=("embedding", "==", 1))), "does not compare with a"),
    "window longer than memory": (
        lambda: windows_of(feature("sum", delay=HOUR), source=event_view(keep=HOUR)),
        "reaches back 2:00:00, and event view 'payments' keeps 1:00:00 in memory; keep at least as much",
    ),
    "service of nothing": (lambda: FeatureService("s", []), "needs a list of features such as"),
    "service with no feature": (lambda: FeatureService("s", ["age"]), "'age' is not a FeatureView, view['field'] or"),
    "service with one twice": (lambda: FeatureService("s", [PROFILE, "profile:age"]), "names profile:age twice"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_remedy(name: str) -> None:
    make, words = FAULTS[name]
    with pytest.raises(SchemaError, match=re.escape(words)):
        make()


def test_a_feature_that_a_view_lacks_is_named_beside_those_it_has() -> None:
    with pytest.raises(UnknownFeature, match="'profile' has no field 'size'; it has age, country"):
        PROFILE["size"]


def test_a_service_lists_features_in_order_however_they_are_given() -> None:
    wanted = [Feature("profile", "country"), Feature("x", "y"), Feature("profile", "age")]
    given: list[Any] = [PROFILE["country"], "x:y", Feature("profile", "age")]
    assert list(FeatureService("s", given).features) == wanted
    assert parse_features(PROFILE, "here") == (Feature("profile", "age"), Feature("profile", "country"))


def test_equal_definitions_are_equal_and_hash_alike() -> None:
    again = FeatureView("profile", Entity("user", {"user_id": "int64"}), [AGE, Field("country", "string")])
    assert again == PROFILE
    assert hash(again) == hash(PROFILE)
    assert hash(FeatureService("s", [again])) == hash(FeatureService("s", [PROFILE]))


def test_a_definition_is_plain_values() -> None:
    view = FeatureView("v", USER, [AGE], ttl=timedelta(seconds=1), keep=timedelta(days=1), tags={"team": "risk"})
    assert definition_dict(view) == {
        "name": "v",
        "entity": "user",
        "join_keys": {"user_id": "int64"},
        "fields": [{"name": "age", "dtype": "int32", "nullable": True}],
        "ttl_us": 1_000_000,
        "keep": {"duration_us": 86_400_000_000},
        "delay_us": 0,
        "kind": "state",
        "event_id": None,
        "description": "",
        "owner": "",
        "tags": {"team": "risk"},
    }


TYPES = [*SCALAR_WIDTH, "string", "bytes", "vector<float32, 3>", "list<timestamp>", "list<string>"]


@pytest.mark.parametrize("name", TYPES)
def test_a_type_reads_what_it_writes(name: str) -> None:
    dtype = DType.parse(name)
    assert str(dtype) == name
    assert DType.parse(dtype) is dtype


def test_types_have_their_canonical_arrow_and_numpy_forms() -> None:
    forms = {name: (DType.parse(name).arrow(), DType.parse(name).numpy) for name in TYPES}
    assert forms["timestamp"] == (pa.timestamp("us", "UTC"), "int64")
    assert forms["bytes"] == (pa.binary(), "object")
    assert forms["uint16"] == (pa.uint16(), "uint16")
    assert forms["vector<float32, 3>"] == (pa.list_(pa.float32(), 3), "float32")
    assert forms["list<timestamp>"] == (pa.list_(pa.timestamp("us", "UTC")), "int64")


def test_type_numbers_are_never_used_twice() -> None:
    assert len(set(KIND.values())) == len(KIND)
    assert (DType("bool").kind, DType.parse("vector<int8, 2>").element_kind) == (0, 1)


def test_definitions_at_rest_make_the_same_definitions_again() -> None:
    user = Entity("user", {"user_id": "int32", "realm": "string"}, description="who", owner="team")
    fields = [Field("a", "vector<float32, 3>", nullable=False, description="x"), Field("b", "list<string>")]
    views = [
        FeatureView("v", user, fields, ttl=timedelta(days=3, microseconds=1), keep=timedelta(hours=1), owner="o"),
        FeatureView("w", user, fields, keep=3, delay=timedelta(seconds=5), description="d", tags={"k": "v"}),
        FeatureView("x", user, fields, keep="latest"),
    ]
    service = FeatureService("s", [views[0], views[1]["b"]], description="d", owner="o")
    given: list[Definition] = [user, *views, service]
    assert definitions_from_list(json.loads(json.dumps(definitions_to_list(given)))) == given


# Windows --------------------------------------------------------------------------------------------------------------


def test_a_window_feature_is_named_for_what_it_is() -> None:
    made = [
        feature("sum"),
        feature("count", None, window=timedelta(minutes=5)),
        feature("quantile", q=0.95, window=timedelta(days=7)),
        feature("last_n", "shop", n=3, window=timedelta(hours=24)),
        feature("top_k", n=10, window=timedelta(seconds=90)),
        feature("mean", window=timedelta(microseconds=1500)),
        feature("mean", name="average"),
    ]
    assert [each.name for each in made] == [
        "amount_sum_1h",
        "count_5m",
        "amount_q95_7d",
        "shop_last3_1d",
        "amount_top10_90s",
        "amount_mean_1500us",
        "average",
    ]


def test_a_window_feature_has_the_type_of_its_function() -> None:
    columns = ["amount", "shop", "at", "is_new"]
    functions = {
        "count": ["int64"] * 4,
        "count_distinct": ["int64"] * 4,
        "first": ["float64", "string", "timestamp", "bool"],
        "last_n": ["list<float64>", "list<string>", "list<timestamp>", "list<bool>"],
    }
    for function, expected in functions.items():
        n = 2 if function == "last_n" else None
        view = windows_of(*(feature(function, column, n=n) for column in columns))
        assert [str(f.dtype) for f in view.schema] == expected
    assert str(windows_of(feature("max", "at")).schema[0].dtype) == "timestamp"
    assert str(windows_of(feature("sum", "is_new")).schema[0].dtype) == "float64"
    assert str(windows_of(feature("last", "embedding")).schema[0].dtype) == "vector<float32, 2>"
    assert all(f.nullable for f in windows_of(feature("count"), feature("sum")).schema)


def test_an_unknown_column_is_named_beside_those_there_are() -> None:
    for wrong in (feature("sum", "size"), feature("sum", where=("size", "<", 1))):
        with pytest.raises(UnknownFeature, match="is of column 'size', and event view 'payments' has id, amount, shop"):
            windows_of(wrong)


def test_one_condition_may_stand_alone_and_a_moment_is_microseconds() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    alone = feature("sum", where=("at", ">=", since))
    assert alone == feature("sum", where=[("at", ">=", 1_767_225_600_000_000)])
    assert feature("sum", where=("shop", "in", ["a", "b"])).where == (("shop", "in", ("a", "b")),)


def test_window_definitions_at_rest_make_the_same_definitions_again() -> None:
    hard: list[Any] = [("raw", "in", [b"\x00\xff", b""]), ("amount", "<", float("inf")), ("is_new", "==", True)]
    features = [
        feature("sum", where=hard, delay=HOUR, closed="both", description="d"),
        feature("quantile", q=0.1, window=timedelta(days=30, microseconds=1)),
        feature("last_n", "shop", n=1024, closed="neither"),
        feature("count", None, where=[("shop", "not in", ["a", "\U0001f600"]), ("at", "!=", -(2**62))]),
    ]
    windows = windows_of(*features, description="x", owner="o", tags={"k": "v"})
    service = FeatureService("s", [windows, EVENTS["amount"]])
    given: list[Definition] = [USER, EVENTS, windows, service]
    again = definitions_from_list(json.loads(json.dumps(definitions_to_list(given))))
    assert again == given
    assert [type(each) for each in again] == [type(each) for each in given]


def test_applying_a_window_view_brings_its_event_view_and_entity() -> None:
    now = merged(NOTHING, [windows_of(feature("sum"))])
    assert (list(now.entities), list(now.views), list(now.windows)) == (["user"], ["payments"], ["spending"])
    assert now.stored("spending") == EVENTS == now.stored("payments")


def test_a_window_view_may_be_applied_again_with_other_features() -> None:
    now = merged(merged(NOTHING, [windows_of(feature("sum"))]), [windows_of(feature("mean"), description="new")])
    assert [each.name for each in now.windows["spending"].features] == ["amount_mean_1h"]
    service = FeatureService("s", ["spending:amount_mean_1h"])
    now = merged(now, [service])
    with pytest.raises(UnknownFeature, match="'s' names spending:amount_mean_1h, and the view has no such field"):
        merged(now, [windows_of(feature("sum"))])


def test_windows_follow_what_may_change_in_their_event_view() -> None:
    older = merged(NOTHING, [windows_of(feature("sum"))])
    changed = event_view(ttl=HOUR, description="new")
    assert merged(older, [changed]).windows["spending"].source == changed
    assert merged(older, [windows_of(feature("mean"))]).views["payments"] == EVENTS


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"keep": timedelta(days=1)}, "keep"),
        ({"event_id": None}, "event_id"),
        ({"kind": "state", "event_id": None}, "kind"),
        ({"schema": EVENTS.schema[:2]}, "fields"),
    ],
)
def test_rows_of_an_event_view_stay_what_they_are(change: dict[str, Any], part: str) -> None:
    now = merged(NOTHING, [EVENTS])
    with pytest.raises(IncompatibleSchema, match=f"feature view 'payments' differs from that applied in {part}"):
        merged(now, [event_view(**change)])
    if "kind" not in change:
        with pytest.raises(IncompatibleSchema, match=f"differs from that applied in {part}"):
            merged(now, [windows_of(feature("count"), source=event_view(**change))])


def test_a_name_is_of_one_view_of_either_kind() -> None:
    clash = replace(PROFILE, name="spending")
    for first, second in ((clash, windows_of(feature("sum"))), (windows_of(feature("sum")), clash)):
        with pytest.raises(SchemaError, match=r"'spending' is a feature view and a window view; .* rename one"):
            merged(merged(NOTHING, [first]), [second])
    with pytest.raises(SchemaError, match="window view 'spending' is defined twice in one call, and not alike"):
        merged(NOTHING, [windows_of(feature("sum")), windows_of(feature("mean"))])
