"""Store: definitions, writes and reads through the in-process face."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat import (
    ArenaFull,
    BeforeHistory,
    DataError,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    IncompatibleSchema,
    SchemaError,
    Status,
    StorageError,
    Store,
    UnknownFeature,
    UnknownView,
)
from fastfeat.dtypes import SCALAR_WIDTH, DType

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
USER = Entity("user", {"user_id": "int64"})
PROFILE = FeatureView("profile", USER, [Field("age", "int32"), Field("score", "float64")])
NAMES = FeatureView("names", USER, [Field("name", "string")], ttl=timedelta(seconds=10))
SCORING = FeatureService("scoring", [PROFILE["score"], PROFILE["age"]])


class DrivenClock:
    def __init__(self) -> None:
        self.us = NOW

    def __call__(self) -> int:
        return self.us


@pytest.fixture
def clock() -> DrivenClock:
    return DrivenClock()


@pytest.fixture
def store(clock: DrivenClock) -> Iterator[Store]:
    with Store(64 << 20, clock=clock) as store:
        store.apply([SCORING, PROFILE, NAMES])
        yield store


def profile(user: int, age: int | None, score: float | None, at: Any = NOW) -> dict[str, Any]:
    return {"user_id": user, "event_timestamp": at, "age": age, "score": score}


def table(*rows: tuple[int, int, float, int]) -> pa.Table:
    user, age, score, at = zip(*rows, strict=True)
    return pa.table({"user_id": user, "age": age, "score": score, "event_timestamp": pa.array(at, pa.int64())})


# --- reads and writes


def test_a_pushed_row_is_read_in_every_form(store: Store) -> None:
    store.push("profile", profile(7, 30, 0.5))
    result = store.get_online_features("scoring", [{"user_id": 7}, {"user_id": 8}])
    assert result.to_dict() == {"profile:score": [0.5, None], "profile:age": [30, None]}
    assert result.statuses["profile"].tolist() == [Status.PRESENT, Status.NOT_FOUND]
    assert result.event_times["profile"].tolist() == [NOW, 0]
    assert store.get_feature_vector("scoring", {"user_id": 7}).tolist() == [0.5, 30.0]
    matrix = store.get_feature_vectors("scoring", {"user_id": np.array([8, 7])})
    np.testing.assert_array_equal(matrix, [[np.nan, np.nan], [0.5, 30.0]])


def test_features_may_be_a_service_its_name_or_a_list(store: Store) -> None:
    store.push(PROFILE, [profile(7, 30, 0.5)])
    row = {"user_id": 7}
    for features in ("scoring", SCORING, ["profile:score", "profile:age"], ("profile:score", PROFILE["age"])):
        assert store.get_feature_vector(features, row).tolist() == [0.5, 30.0]
        assert store.get_feature_vectors(features, [row]).tolist() == [[0.5, 30.0]]
        assert store.get_online_features(features, [row]).to_numpy().tolist() == [[0.5, 30.0]]
    assert store.get_feature_vector([PROFILE], row).tolist() == [30.0, 0.5]


def test_the_same_list_is_compiled_once_until_apply(store: Store) -> None:
    plan = store.plan(["profile:age"])
    assert store.plan(["profile:age"]) is plan
    assert store.plan(("profile:age",)) is plan
    store.apply(PROFILE)
    assert store.plan(["profile:age"]) is not plan


def test_the_callers_buffers_are_filled(store: Store) -> None:
    store.push("profile", profile(7, 30, 0.5))
    vector, single = np.empty(2), np.empty((1, 2), np.float32)
    assert store.get_feature_vector("scoring", {"user_id": 7}, out=vector) is vector
    assert store.get_feature_vectors("scoring", [{"user_id": 7}], out=single) is single
    assert (vector.tolist(), single.tolist()) == ([0.5, 30.0], [[0.5, 30.0]])
    with pytest.raises(DataError, match="out must be"):
        store.get_feature_vector("scoring", {"user_id": 7}, out=np.empty(3))


def test_reads_go_back_in_both_times(store: Store, clock: DrivenClock) -> None:
    first = store.push("profile", profile(7, 30, 0.5, NOW - 10 * SECOND))
    clock.us += SECOND
    second = store.push("profile", profile(7, 31, 0.6, NOW - 10 * SECOND))
    assert (first, second) == (NOW, NOW + SECOND)
    moment = datetime.fromtimestamp(NOW // SECOND - 10, UTC)

    def age(**times: Any) -> float:
        result = store.get_online_features(["profile:age"], [{"user_id": 7}], **times).to_numpy()[0, 0]
        vector = store.get_feature_vector(["profile:age"], {"user_id": 7}, **times)[0]
        matrix = store.get_feature_vectors(["profile:age"], [{"user_id": 7}], **times)[0, 0]
        np.testing.assert_array_equal([vector, matrix], [result, result])
        return float(result)

    assert age() == 31
    assert age(as_of=moment) == 31
    assert age(as_of=moment, known_at=first) == 30
    assert age(known_at=first) == 30
    assert np.isnan(age(as_of=moment - timedelta(microseconds=1)))


@pytest.mark.parametrize("name", ["as_of", "known_at"])
@pytest.mark.parametrize("value", [datetime(2020, 1, 1), 1.5, "now", True, 2**62])
def test_a_moment_that_is_none_is_refused_by_every_read(store: Store, name: str, value: object) -> None:
    times: dict[str, Any] = {name: value}
    reads: list[Callable[..., object]] = [store.get_online_features, store.get_feature_vectors]
    for read in reads:
        with pytest.raises(DataError, match=name):
            read("scoring", [{"user_id": 7}], **times)
    with pytest.raises(DataError, match=name):
        store.get_feature_vector("scoring", {"user_id": 7}, **times)


def test_ttl_is_inclusive(store: Store, clock: DrivenClock) -> None:
    store.push("names", {"user_id": 7, "event_timestamp": NOW, "name": "Ada"})
    clock.us = NOW + 10 * SECOND
    assert store.get_online_features([NAMES], [{"user_id": 7}]).to_dict() == {"names:name": ["Ada"]}
    clock.us += 1
    assert store.get_online_features([NAMES], [{"user_id": 7}]).status("names:name").tolist() == [Status.EXPIRED]


def test_created_times_of_pushes_and_deletes_only_grow(store: Store, clock: DrivenClock) -> None:
    times = [store.push("profile", profile(1, 1, 1.0)) for _ in range(3)]
    clock.us -= 5 * SECOND
    times.append(store.delete("profile", [{"user_id": 1}]))
    times.append(store.push("profile", table((1, 1, 1.0, NOW))))
    assert times == [NOW, NOW + 1, NOW + 2, NOW + 3, NOW + 4]


def test_a_deleted_entity_comes_back_with_newer_rows(store: Store) -> None:
    store.push("profile", [profile(1, 1, 1.0), profile(2, 2, 2.0)])
    store.delete("profile", [{"user_id": 1}])
    result = store.get_online_features(["profile:age"], {"user_id": [1, 2]})
    assert result.statuses["profile"].tolist() == [Status.DELETED, Status.PRESENT]
    store.push("profile", profile(1, 3, 1.0))
    assert store.get_feature_vector(["profile:age"], {"user_id": 1}).tolist() == [3.0]


# --- load


def test_a_load_reports_what_it_took(store: Store) -> None:
    source = table((1, 10, 0.1, NOW), (2, 2**31, 0.2, NOW), (3, 30, 0.3, NOW)).append_column(
        "extra", pa.array([1, 2, 3])
    )
    report = store.load("profile", source)
    assert (report.accepted, report.rejected, report.ignored_columns) == (2, 1, ("extra",))
    matrix = store.get_feature_vectors(["profile:age"], {"user_id": [1, 2, 3]})
    np.testing.assert_array_equal(matrix, [[10], [np.nan], [30]])


def test_a_loaded_row_is_known_at_its_created_time_or_after_the_delay(store: Store) -> None:
    late = FeatureView("late", USER, PROFILE.schema, delay=timedelta(seconds=1))
    store.apply(late)
    store.load(late, table((1, 10, 0.1, NOW - 5 * SECOND)))
    store.load(PROFILE, table((1, 10, 0.1, NOW)).append_column("known", pa.array([NOW - SECOND])), created_time="known")
    features = ["late:age", "profile:age"]
    assert store.get_feature_vector(features, {"user_id": 1}, known_at=NOW - SECOND).tolist() == [10, 10]
    nothing = store.get_feature_vector(features, {"user_id": 1}, known_at=NOW - 4 * SECOND - 1)
    np.testing.assert_array_equal(nothing, [np.nan, np.nan])


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_any_number_of_threads_loads_the_same_rows(store: Store, threads: int | None) -> None:
    n = 20_000
    source = pa.table(
        {"user_id": np.arange(n), "age": np.arange(n, dtype=np.int32), "score": np.arange(n) / 2, "at": [NOW] * n}
    )
    assert store.load("profile", source, event_time="at", threads=threads).accepted == n
    matrix = store.get_feature_vectors("scoring", {"user_id": np.arange(n)})
    np.testing.assert_array_equal(matrix, np.stack([np.arange(n) / 2, np.arange(n)], axis=1))


TYPES = [*SCALAR_WIDTH, "string", "bytes", "vector<float32, 3>", "list<int16>", "list<string>"]


def value(name: str, i: int) -> Any:
    """Of that type, another for every i below 64; a null now and then."""
    if not (i + len(name)) % 7:
        return None
    element = name.removeprefix("vector<").removeprefix("list<").split(",")[0].removesuffix(">")
    if element != name:
        return [value_of(element, i + each) for each in range(3 if name[0] == "v" else i % 4)]
    return value_of(name, i)


def value_of(name: str, i: int) -> Any:
    if name in ("string", "bytes"):
        return f"{i}" * (i % 3) if name == "string" else b"%d" % i
    return bool(i % 3) if name == "bool" else i / 4 if "float" in name else i % 64


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_take_every_type_from_wherever_it_lies(threads: int) -> None:
    """Rows of keys in no order, some more than once and some of them side by side, in a slice: as the same pushed."""
    n, first = 9_000, 77
    keys = np.random.default_rng(5).integers(0, 2 * n, n)
    keys[1_000:1_200] = keys[1_000]
    view = FeatureView("all", USER, [Field(f"f{i}", name) for i, name in enumerate(TYPES)])
    rows = [
        {"user_id": int(key), "event_timestamp": NOW + i, **{f"f{f}": value(t, i) for f, t in enumerate(TYPES)}}
        for i, key in enumerate(keys)
    ]
    types = pa.schema(
        [("user_id", pa.int64()), ("event_timestamp", pa.int64())]
        + [(f"f{i}", DType.parse(name).arrow()) for i, name in enumerate(TYPES)]
    )
    source = pa.Table.from_batches([pa.RecordBatch.from_pylist(rows, types).slice(first)])
    with Store(64 << 20) as store, Store(64 << 20) as other:
        for each in (store, other):
            each.apply(view)
        assert store.load("all", source, threads=threads).accepted == n - first
        other.push("all", rows[first:])
        for as_of in (None, NOW + n // 2):
            one, two = (
                each.get_online_features([view], {"user_id": sorted(set(keys.tolist()))}, as_of=as_of)
                for each in (store, other)
            )
            assert one.to_arrow().equals(two.to_arrow())
            assert one.statuses["all"].tolist() == two.statuses["all"].tolist()


def test_as_many_threads_as_cores_that_it_may_use() -> None:
    code = "import os; from fastfeat.cores import usable_cores; print(usable_cores())"
    core = str(min(os.sched_getaffinity(0)))
    said = subprocess.run(["taskset", "-c", core, sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert int(said.stdout) == 1


def test_progress_is_shown_on_stderr(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.load("profile", table((1, 10, 0.1, NOW)), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "profile" in err
    assert "1 rows" in err


def test_a_load_that_fills_the_arena_keeps_the_batches_before(clock: DrivenClock) -> None:
    with Store(4 << 20, clock=clock) as store:
        store.apply(NAMES)
        wide = pa.table({"user_id": [1, 2], "name": ["a" * 100, "b" * (5 << 20)], "event_timestamp": [NOW, NOW]})
        with pytest.raises(ArenaFull, match=r"'names'.*raise capacity_bytes") as caught:
            store.load("names", pa.RecordBatchReader.from_batches(wide.schema, wide.to_batches(max_chunksize=1)))
        assert caught.value.report.accepted == 1
        result = store.get_online_features([NAMES], {"user_id": [1, 2]})
        assert result.statuses["names"].tolist() == [Status.PRESENT, Status.NOT_FOUND]
        store.push("names", {"user_id": 2, "event_timestamp": NOW, "name": "b"})
        assert store.get_online_features([NAMES], [{"user_id": 2}]).to_dict() == {"names:name": ["b"]}


def test_a_source_of_wrong_columns_changes_nothing(store: Store) -> None:
    with pytest.raises(DataError, match="no column 'age'") as caught:
        store.load("profile", pa.table({"user_id": [1], "score": [0.1], "event_timestamp": [NOW]}))
    assert caught.value.report.accepted == 0
    assert store.info()["views"]["profile"]["rows"] == 0


# --- push: nothing is half applied

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "missing field": ({"user_id": 1, "event_timestamp": NOW, "age": 1}, "'score' missing"),
    "unknown field": ({**profile(1, 1, 1.0), "extra": 1}, "unknown name 'extra'"),
    "missing key": ({"event_timestamp": NOW, "age": 1, "score": 1.0}, "'user_id' missing"),
    "null key": ({**profile(1, 1, 1.0), "user_id": None}, "user_id"),
    "float key": ({**profile(1, 1, 1.0), "user_id": 1.0}, "user_id"),
    "wrong type": (profile(1, 1, "x"), "score"),  # type: ignore[arg-type]
    "out of range": (profile(1, 2**31, 1.0), "age"),
    "naive time": (profile(1, 1, 1.0, datetime(2020, 1, 1)), "zone"),
    "not a dict": (7, "row 1"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_one_bad_row_refuses_the_push(store: Store, name: str) -> None:
    row, words = BAD_ROWS[name]
    with pytest.raises(DataError, match=words):
        store.push("profile", [profile(5, 1, 1.0), row])
    assert store.info()["views"]["profile"]["rows"] == 0


@pytest.mark.parametrize("rows", ["x", 7, None, b"x"])
def test_what_is_no_rows_is_refused(store: Store, rows: Any) -> None:
    with pytest.raises(DataError, match=f"not {type(rows).__name__}"):
        store.push("profile", rows)


def test_an_arrow_push_is_all_or_nothing(store: Store) -> None:
    created = store.push("profile", table((1, 10, 0.1, NOW), (2, 20, 0.2, NOW)))
    assert created == NOW
    with pytest.raises(DataError, match="nothing was pushed"):
        store.push("profile", table((3, 30, 0.3, NOW), (4, 2**31, 0.4, NOW)))
    assert store.info()["views"]["profile"]["rows"] == 2
    assert np.isnan(store.get_feature_vector("scoring", {"user_id": 1}, known_at=created - 1)).all()


def test_a_push_of_nothing_is_no_error(store: Store) -> None:
    assert store.push("profile", []) < store.push("profile", table((1, 1, 1.0, NOW)).slice(1))


# --- names


def test_unknown_names_say_what_there_is(store: Store) -> None:
    row = {"user_id": 1}
    with pytest.raises(UnknownView, match=r"no feature service 'other' is applied \(there are scoring\)"):
        store.get_feature_vector("other", row)
    with pytest.raises(UnknownView, match=r"asked for in a list, \['view:field'\]"):
        store.get_feature_vector("profile:age", row)
    with pytest.raises(UnknownView, match=r"no feature view 'other' is applied \(there are profile, names\)"):
        store.get_feature_vector(["other:age"], row)
    with pytest.raises(UnknownFeature, match="profile:size, and the view has no such field; it has age, score"):
        store.get_feature_vector(["profile:size"], row)
    for write in (store.load, store.push, store.delete):
        with pytest.raises(UnknownView, match="no feature view 'other'"):
            write("other", [row])


@pytest.mark.parametrize("features", [7, None, [], [7], [{}], ["age"], ["a:b", "a:b"]])
def test_what_is_no_list_of_features_is_refused(store: Store, features: Any) -> None:
    with pytest.raises(SchemaError):
        store.get_online_features(features, [{"user_id": 1}])


def test_a_view_given_as_an_object_must_be_the_applied_one(store: Store) -> None:
    other = FeatureView("profile", USER, [Field("age", "int64")])
    with pytest.raises(IncompatibleSchema, match="differs from that applied in fields"):
        store.push(other, profile(1, 1, 1.0))
    store.push(FeatureView("profile", USER, PROFILE.schema, description="same rows"), profile(1, 1, 1.0))


# --- apply


def test_applying_again_keeps_the_rows(store: Store) -> None:
    store.push("profile", profile(7, 30, 0.5))
    store.apply([PROFILE, NAMES, SCORING, USER])
    assert store.get_feature_vector("scoring", {"user_id": 7}).tolist() == [0.5, 30.0]


def test_a_ttl_may_change_under_rows(store: Store, clock: DrivenClock) -> None:
    store.push("names", {"user_id": 7, "event_timestamp": NOW, "name": "Ada"})
    clock.us += 60 * SECOND
    plan = store.plan(["names:name"])
    store.apply(FeatureView("names", USER, NAMES.schema, ttl=None, description="for ever", tags={"a": "b"}))
    assert store.get_online_features(["names:name"], [{"user_id": 7}]).to_dict() == {"names:name": ["Ada"]}
    assert plan.columns([{"user_id": 7}], None, None)[0].tolist() == [[Status.PRESENT]]
    assert store.info()["views"]["names"]["description"] == "for ever"


CHANGES: dict[str, tuple[FeatureView, str]] = {
    "type": (FeatureView("profile", USER, [Field("age", "int64"), Field("score", "float64")]), "int32.*int64"),
    "order": (FeatureView("profile", USER, PROFILE.schema[::-1]), "fields"),
    "fewer": (FeatureView("profile", USER, PROFILE.schema[:1]), "score.*only in the one applied"),
    "more": (FeatureView("profile", USER, [*PROFILE.schema, Field("x", "bool")]), "'x'.*only in the one given"),
    "nullable": (FeatureView("profile", USER, [Field("age", "int32", False), PROFILE.schema[1]]), "nullable"),
    "keep": (FeatureView("profile", USER, PROFILE.schema, keep=3), "keep: 'all' applied, 3 given"),
    "keys": (FeatureView("profile", Entity("u", {"id": "int64"}), PROFILE.schema), "join_keys.*user_id.*id"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_rows_cannot_follow_is_refused(store: Store, name: str) -> None:
    view, words = CHANGES[name]
    with pytest.raises(IncompatibleSchema, match=rf"'profile' .*{words}.*another name"):
        store.apply(view)


def test_the_order_of_join_keys_is_part_of_a_view(store: Store) -> None:
    pair = {"a": "int64", "b": "int64"}
    store.apply(FeatureView("pairs", Entity("pair", pair), [Field("x", "bool")]))
    turned = Entity("turned", dict(reversed(pair.items())))
    with pytest.raises(IncompatibleSchema, match="join_keys"):
        store.apply(FeatureView("pairs", turned, [Field("x", "bool")]))


def test_an_apply_with_one_fault_applies_nothing(store: Store) -> None:
    fine = FeatureView("fine", USER, [Field("x", "bool")])
    ttl = FeatureView("names", USER, NAMES.schema, ttl=None)
    for fault in (FeatureService("bad", ["nowhere:x"]), FeatureService("bad", ["fine:y"]), CHANGES["type"][0]):
        with pytest.raises(SchemaError):
            store.apply([fine, ttl, fault])
        info = store.info()
        assert set(info["views"]) == {"profile", "names"}
        assert info["views"]["names"]["ttl_us"] == 10 * SECOND
        assert set(info["services"]) == {"scoring"}


def test_an_apply_beyond_the_arena_applies_nothing() -> None:
    with Store(1 << 20) as store:
        views = [FeatureView(f"v{i}", USER, [Field("x", "bool")]) for i in range(1000)]
        with pytest.raises(ArenaFull):
            store.apply(views)
        assert store.info()["views"] == {}


def test_a_name_defined_twice_in_one_call_must_be_the_same(store: Store) -> None:
    again = FeatureView("fresh", USER, [Field("x", "bool")])
    store.apply([again, again])
    with pytest.raises(SchemaError, match="'new' is defined twice in one call"):
        store.apply([FeatureView("new", USER, [Field("x", "bool")]), FeatureView("new", USER, [Field("x", "int8")])])


def test_an_entity_means_one_thing(store: Store) -> None:
    with pytest.raises(IncompatibleSchema, match="entity 'user' has join keys"):
        store.apply(Entity("user", {"user_id": "string"}))


def test_views_of_one_service_agree_about_join_keys(store: Store) -> None:
    texts = FeatureView("texts", Entity("u2", {"user_id": "string"}), [Field("x", "bool")])
    with pytest.raises(SchemaError, match="'user_id' is int64 in view 'profile' and string in view 'texts'"):
        store.apply([texts, FeatureService("both", ["profile:age", "texts:x"])])


def test_only_definitions_are_applied(store: Store) -> None:
    with pytest.raises(SchemaError, match="not str"):
        store.apply(["profile"])  # type: ignore[list-item]


def test_a_service_may_be_defined_anew(store: Store) -> None:
    store.push("profile", profile(7, 30, 0.5))
    store.apply(FeatureService("scoring", ["profile:age"]))
    assert store.get_feature_vector("scoring", {"user_id": 7}).tolist() == [30.0]


# --- retention, info, the end


@pytest.mark.parametrize(("keep", "rows"), [("latest", 1), (2, 2), (timedelta(seconds=1), 3), ("all", 5)])
def test_a_view_keeps_what_it_declares(store: Store, keep: Any, rows: int) -> None:
    view = FeatureView("kept", USER, [Field("x", "int64")], keep=keep)
    store.apply(view)
    for i in range(5):
        store.push(view, {"user_id": 1, "event_timestamp": NOW - (4 - i) * SECOND, "x": i})
    assert store.info()["views"]["kept"]["rows"] == rows
    assert store.get_feature_vector(["kept:x"], {"user_id": 1}).tolist() == [4.0]
    if keep == "latest":
        with pytest.raises(BeforeHistory, match="'kept'"):
            store.get_feature_vector(["kept:x"], {"user_id": 1}, as_of=NOW - SECOND)


def test_info_counts_rows_and_entities(store: Store) -> None:
    store.push("profile", [profile(1, 1, 1.0), profile(1, 2, 2.0), profile(2, 3, 3.0)])
    info = store.info()
    assert (info["views"]["profile"]["rows"], info["views"]["profile"]["entities"]) == (3, 2)
    assert info["services"] == {"scoring": ["profile:score", "profile:age"]}
    assert 0 < info["arena"]["used"] <= info["arena"]["capacity"] == 64 << 20
    assert repr(store).startswith("Store(views: profile, names; ")


def test_a_closed_store_says_so(store: Store) -> None:
    store.push("profile", profile(7, 30, 0.5))
    plan = store.plan("scoring")
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.apply(PROFILE),
        lambda: store.push("profile", profile(7, 30, 0.5)),
        lambda: store.load("profile", table((1, 1, 1.0, NOW))),
        lambda: store.delete("profile", [{"user_id": 7}]),
        lambda: store.get_feature_vector("scoring", {"user_id": 7}),
        lambda: store.get_online_features(["profile:age"], [{"user_id": 7}]),
        store.info,
    ]
    for call in calls:
        with pytest.raises(StorageError, match="the store is closed"):
            call()
    assert repr(store) == "Store(closed)"
    assert plan.vector({"user_id": 7}, None, None, None).tolist() == [0.5, 30.0]


def test_the_default_capacity_is_reserved_and_not_used() -> None:
    with Store() as store:
        arena = store.info()["arena"]
        assert arena["capacity"] > 64 << 20
        assert arena["used"] < 1 << 20


def test_readers_go_on_while_definitions_and_rows_change() -> None:
    rounds, seen, faults = 200, [0.0], []
    with Store(64 << 20) as store:
        store.apply([PROFILE, SCORING])
        store.push("profile", profile(1, 0, 0.0))

        def read() -> None:
            try:
                while seen[-1] < rounds:
                    score, age = store.get_feature_vector("scoring", {"user_id": 1})
                    assert score == age >= seen[-1]
                    seen.append(score)
            except Exception as error:
                faults.append(error)
                seen.append(rounds)

        reader = threading.Thread(target=read)
        reader.start()
        for i in range(1, rounds + 1):
            store.push("profile", profile(1, i, float(i), NOW + i))
            store.apply([PROFILE, FeatureService(f"s{i % 3}", [PROFILE])])
        reader.join(30)
        assert not reader.is_alive()
    assert faults == []
    assert seen[-1] == rounds


def test_a_read_of_a_hundred_waits_for_no_busy_thread() -> None:
    """One that let go of the GIL would wait for each interval that the busy thread has it."""
    names = [f"f{i}" for i in range(50)]
    wide = FeatureView("wide", USER, [Field(name, "float64") for name in names])
    keys, stamps = np.arange(100), pa.array(np.full(100, NOW), pa.timestamp("us", "UTC"))
    store = Store(64 << 20)
    store.apply([wide, FeatureService("all", [wide])])
    store.load("wide", pa.table({"user_id": keys, "event_timestamp": stamps, **dict.fromkeys(names, np.ones(100))}))
    matrix = np.empty((100, 50))
    before, is_over = sys.getswitchinterval(), threading.Event()

    def spin() -> None:
        while not is_over.is_set():
            pass

    busy = threading.Thread(target=spin)
    sys.setswitchinterval(0.05)
    try:
        busy.start()
        time.sleep(0.1)
        began = time.monotonic()
        for _ in range(4_000):  # so many that the other thread is awake for some of them
            store.get_feature_vectors("all", {"user_id": keys}, out=matrix)
        took = time.monotonic() - began
    finally:
        is_over.set()
        sys.setswitchinterval(before)
        busy.join()
        store.close()
    assert took < 1.0  # 20 waits
