"""Store and oracle go through the same operations and must give the same answers, bit for bit.

    Hypothesis --operation--> StoreMachine --> Store and Model --read--> compare status, times, values

The checker has its own controls: stores with one seeded bug each, which it must catch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fastfeat import BeforeHistory, DataError, FeatureService, FeatureView, Field, Status, Store, connect
from fastfeat.dtypes import DType
from fastfeat.schema import WindowView
from fastfeat.times import TIME_MAX_US, TIME_MIN_US

from .model import Answer, Entity, Key, Model, check_equal, matrix_cells, value_bits
from .serving import serving
from .strategies import (
    SHAPES,
    SPANS,
    START_US,
    Readable,
    World,
    edges_us,
    row_dicts,
    row_table,
    row_values,
    shaped,
    times_near,
    worlds,
)
from .test_client import Awaited

CAPACITY = 8 << 20
FeatureName = tuple[Readable, int]  # a view and the position of one of its fields


class StoreMachine(RuleBasedStateMachine):
    """One store and one oracle under the same operations, on a clock that only the rules move."""

    make_store: ClassVar[Callable[..., Any]] = Store
    focus: ClassVar[Mapping[str, Any]] = {}  # of every view's definition: what a control must meet often

    def __init__(self) -> None:
        super().__init__()
        self.now_us = START_US
        self.store = self.make_store(capacity_bytes=CAPACITY, clock=lambda: self.now_us)
        self.model = Model()

    @initialize(world=worlds())
    def apply(self, world: World) -> None:
        views = {view.name: replace(view, **self.focus) for view in world.views}
        windows = [replace(each, source=views[each.source.name]) for each in world.windows]
        self.world = replace(world, views=list(views.values()), windows=windows)
        self.served = self.readable
        self.store.apply([*self.served, FeatureService("every", self.served)])
        for view in self.readable:
            self.model.apply(view)

    @property
    def readable(self) -> list[Readable]:
        return [*self.world.views, *self.world.windows]

    # --- writes

    @rule(data=st.data())
    def push_dicts(self, data: st.DataObject) -> None:
        view, rows = self.draw_rows(data)
        dicts = row_dicts(view, rows)
        self.push(view, rows, dicts[0] if len(dicts) == 1 and data.draw(st.booleans(), "alone") else dicts)

    @rule(data=st.data())
    def push_arrow(self, data: st.DataObject) -> None:
        view, rows = self.draw_rows(data)
        self.push(view, rows, shaped(row_table(view, rows), data.draw(st.sampled_from(SHAPES), "shape")))

    def push(self, view: FeatureView, rows: Sequence[tuple[Key, int, Mapping[str, Any]]], given: Any) -> None:
        created_us = self.store.push(view.name, given)
        assert created_us == self.model.push(view.name, rows, self.now_us)

    @rule(data=st.data(), is_declared=st.booleans())
    def load(self, data: st.DataObject, is_declared: bool) -> None:
        view, rows = self.draw_rows(data, rows_max=8)
        created = [data.draw(self.created_times(view), "created") for _ in rows] if is_declared else None
        if view.event_id is not None:
            # Else a later delete could take the first row of an event and not, as created later still, the second.
            created = [min(us, self.now_us - 1) for us in created or [at for _, at, _ in rows]]
        source = shaped(row_table(view, rows, created), data.draw(st.sampled_from(SHAPES), "shape"))
        report = self.store.load(view.name, source, created_time="created" if created else None)
        assert (report.accepted, report.rejected, report.reasons, report.times_floored) == (len(rows), 0, {}, 0)
        declared: list[int | None] = [None] * len(rows) if created is None else [*created]
        self.model.load(
            view.name,
            [(key, at, us, values) for (key, at, values), us in zip(rows, declared, strict=True)],
            self.now_us,
        )

    @rule(data=st.data())
    def push_with_one_bad_row(self, data: st.DataObject) -> None:
        view, rows = self.draw_rows(data)
        dicts = row_dicts(view, rows)
        bad = dicts[data.draw(st.integers(0, len(dicts) - 1), "bad")]
        name = view.schema[0].name
        change = data.draw(st.sampled_from(["missing", "unknown", "type", "time"]), "change")
        if change == "missing":
            del bad[name]
        else:
            given: dict[str, tuple[str, object]] = {
                "unknown": ("surprise", 1),
                "type": (name, object()),
                "time": ("event_timestamp", 1.5),
            }
            bad.update([given[change]])
        with pytest.raises(DataError):
            self.store.push(view.name, dicts)
        # A refused push may have used up a created time or not: go on where that makes no difference.
        self.now_us = max(self.now_us, (self.model.created_last_us or 0) + 1) + 1

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        view = self.draw_view(data)
        keys = data.draw(st.lists(st.sampled_from(self.world.keys(view)), min_size=1, max_size=2), "keys")
        self.store.delete(view.name, [dict(zip(view.entity.join_keys, key, strict=True)) for key in keys])
        self.model.delete(view.name, keys, self.now_us)

    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        spans = sorted({span for view in self.world.views for span in edges_us(view)} - {0})
        self.now_us += data.draw(st.sampled_from(spans), "span")

    @rule(data=st.data(), ttl=st.none() | st.sampled_from(SPANS))
    def change_ttl(self, data: st.DataObject, ttl: timedelta | None) -> None:
        view = replace(self.draw_view(data), **{"ttl": ttl, **self.focus})
        self.world = replace(self.world, views=[view if view.name == each.name else each for each in self.world.views])
        self.store.apply([view])
        self.model.apply(view)

    # --- reads

    @rule(data=st.data())
    def read_online(self, data: st.DataObject) -> None:
        features = self.draw_features(data)
        is_service = data.draw(st.booleans(), "service")
        if is_service:
            features = [(view, i) for view in self.served for i in range(len(view.schema))]
        entity_rows, as_of, known_at = self.draw_question(data, features)
        asked = "every" if is_service else names(features)
        given = data.draw(st.sampled_from([entity_rows, columns_of(entity_rows)]), "form")
        result = self.read_and_compare(features, asked, entity_rows, given, as_of, known_at)
        if result is not None:
            self.compare_arrow(features, result)

    def read_and_compare(
        self,
        features: list[FeatureName],
        asked: Any,
        entity_rows: list[dict[str, Any]],
        given: Any,
        as_of: int | None,
        known_at: int | None,
    ) -> Any:
        """The store's result, found right; None where it refused, as it may."""
        answers = self.answers(features, entity_rows, as_of, known_at)
        try:
            result = self.store.get_online_features(asked, given, as_of=as_of, known_at=known_at)
        except BeforeHistory:
            assert may_refuse(answers)
            return None
        assert len(result) == len(entity_rows)
        assert list(result.names) == names(features)
        for name, of_view in answers.items():
            statuses = [Status(status) for status in result.statuses[name]]
            check_equal(statuses, [answer.status for answer in of_view], f"statuses of {name}")
            times = result.event_times[name].tolist()
            check_equal(times, [answer.event_us for answer in of_view], f"event times of {name}")
        as_dict = result.to_dict()
        for (view, i), name in zip(features, names(features), strict=True):
            f = view.schema[i]
            expected = [value_bits(f.dtype, value_of(answer, f.name)) for answer in answers[view.name]]
            check_equal([value_bits(f.dtype, value) for value in as_dict[name]], expected, name)
        return result

    def compare_arrow(self, features: list[FeatureName], result: Any) -> None:
        """The Arrow form holds the same values, in the types that dtypes.py says."""
        as_dict, as_arrow = result.to_dict(), result.to_arrow()
        for (view, i), name in zip(features, names(features), strict=True):
            dtype = view.schema[i].dtype
            assert as_arrow[name].type == dtype.arrow()
            in_arrow = [value_bits(dtype, value) for value in arrow_values(as_arrow[name], dtype)]
            check_equal(in_arrow, [value_bits(dtype, value) for value in as_dict[name]], f"{name} in Arrow")

    @rule(data=st.data())
    def read_matrix(self, data: st.DataObject) -> None:
        features = [(v, i) for v, i in self.draw_features(data) if v.schema[i].dtype.matrix_columns]
        if not features:
            return
        entity_rows, as_of, known_at = self.draw_question(data, features)
        answers = self.answers(features, entity_rows, as_of, known_at)
        expected = np.array([expected_cells(features, answers, i) for i in range(len(entity_rows))])
        out = np.full(expected.shape, 7.0) if data.draw(st.booleans(), "out") else None
        when: dict[str, Any] = {"as_of": as_of, "known_at": known_at}
        try:
            if len(entity_rows) == 1 and data.draw(st.booleans(), "vector"):
                inner = None if out is None else out[0]
                matrix = self.store.get_feature_vector(names(features), entity_rows[0], out=inner, **when)[np.newaxis]
            else:
                matrix = self.store.get_feature_vectors(names(features), entity_rows, out=out, **when)
        except BeforeHistory:
            assert may_refuse(answers)
            return
        assert_same_cells(matrix, expected, expected_presence(features, answers, len(entity_rows)))
        if out is not None:
            assert np.shares_memory(matrix, out)

    @rule(data=st.data())
    def sweep(self, data: st.DataObject) -> None:
        view = data.draw(st.sampled_from(self.readable), "view")
        self.sweep_view(view, start=data.draw(st.integers(0, 3), "start"))

    def teardown(self) -> None:
        for view in self.readable if hasattr(self, "world") else ():
            self.sweep_view(view, start=0)
        self.store.close()

    def sweep_view(self, view: Readable, start: int) -> None:
        """Read every key where answers turn, one key per read so that no refusal hides another's answer."""
        features: list[FeatureName] = [(view, i) for i in range(len(view.schema))]
        rows = self.rows_of(view)
        turns = {row.event_us + span for row in rows for span in (-1, 0, *edges_us(view)[-2:])}
        turns = {us for us in turns if TIME_MIN_US <= us <= TIME_MAX_US}
        created = {row.created_us + span for row in rows for span in (-1, 0)} - {TIME_MIN_US - 1}
        for known_at in [None, *thinned(created, 3, start)]:
            for as_of in [None, *thinned(turns, 12, start)]:
                for key in self.world.keys(view):
                    entity_rows = [dict(zip(view.entity.join_keys, key, strict=True))]
                    self.read_and_compare(features, names(features), entity_rows, entity_rows, as_of, known_at)

    def answers(
        self, features: list[FeatureName], entity_rows: list[dict[str, Any]], as_of: int | None, known_at: int | None
    ) -> dict[str, list[Answer]]:
        """View -> the right answer for each entity."""
        return {
            view.name: [
                self.model.read(view.name, tuple(row[k] for k in view.entity.join_keys), as_of, known_at, self.now_us)
                for row in entity_rows
            ]
            for view, _ in features
        }

    # --- what to do it with

    def draw_view(self, data: st.DataObject) -> FeatureView:
        return data.draw(st.sampled_from(list(self.world.views)), "view")

    def entities_of(self, view: Readable) -> Mapping[Key, Entity]:
        return self.model.entities[view.source.name if isinstance(view, WindowView) else view.name]

    def rows_of(self, view: Readable) -> list[Any]:
        return [row for entity in self.entities_of(view).values() for row in entity.rows]

    def event_times(self, view: Readable) -> st.SearchStrategy[int]:
        near = times_near([self.now_us, *self.near_times(view)], edges_us(view))
        return st.integers(0, 19).flatmap(lambda n: near if n else st.sampled_from([TIME_MIN_US, TIME_MAX_US - 10]))

    def near_times(self, view: Readable) -> set[int]:
        """Event times of rows, but for the ends of time, next to which there may be none."""
        return {row.event_us for row in self.rows_of(view)} - {TIME_MIN_US, TIME_MAX_US - 10}

    def created_times(self, view: Readable) -> st.SearchStrategy[int]:
        known = self.entities_of(view).values()
        deletes = {entity.deleted_before_us for entity in known if entity.deleted_before_us is not None}
        created = {row.created_us for row in self.rows_of(view) if abs(row.created_us - START_US) < 10**12}
        return times_near([self.now_us, *created, *deletes], [1, 10])

    def draw_rows(
        self, data: st.DataObject, rows_max: int = 4
    ) -> tuple[FeatureView, list[tuple[Key, int, Mapping[str, Any]]]]:
        view = self.draw_view(data)
        row = st.tuples(st.sampled_from(self.world.keys(view)), self.event_times(view), row_values(view))
        return view, data.draw(st.lists(row, min_size=1, max_size=rows_max), "rows")

    def draw_features(self, data: st.DataObject) -> list[FeatureName]:
        every = [(view.name, i) for view in self.readable for i in range(len(view.schema))]
        by_name: dict[str, Readable] = {view.name: view for view in self.readable}
        chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=4, unique=True), "features")
        return [(by_name[name], i) for name, i in chosen]

    def draw_question(
        self, data: st.DataObject, features: list[FeatureName]
    ) -> tuple[list[dict[str, Any]], int | None, int | None]:
        """Entity rows, as_of and known_at."""
        needed = {name: self.world.key_pools[name] for view, _ in features for name in view.entity.join_keys}
        row = st.fixed_dictionaries({name: st.sampled_from(list(pool)) for name, pool in needed.items()})
        view = features[0][0]
        # Many are read in groups whose cache misses overlap.
        times = data.draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 40]), "times")
        return (
            data.draw(st.lists(row, min_size=1, max_size=4), "entity_rows") * times,
            data.draw(st.none() | self.event_times(view), "as_of"),
            data.draw(st.none() | self.created_times(view), "known_at"),
        )


def names(features: Sequence[FeatureName]) -> list[str]:
    return [f"{view.name}:{view.schema[i].name}" for view, i in features]


def thinned(moments: set[int], count: int, start: int) -> list[int]:
    """At most about `count` of the moments, spread over them."""
    ordered = sorted(moments)
    return ordered[start :: max(1, len(ordered) // count)]


def columns_of(entity_rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in entity_rows] for name in entity_rows[0]}


def may_refuse(answers: Mapping[str, list[Answer]]) -> bool:
    return any(answer.may_refuse for of_view in answers.values() for answer in of_view)


def value_of(answer: Answer, name: str) -> Any:
    return None if answer.values is None else answer.values[name]


def arrow_values(column: pa.ChunkedArray, dtype: DType) -> list[Any]:
    """The column as Python values, times as the int microseconds that Arrow holds."""
    if dtype.name == "timestamp":
        return list(column.cast(pa.int64()).to_pylist())
    if dtype.element == "timestamp":
        return list(column.cast(pa.list_(pa.int64())).to_pylist())
    return list(column.to_pylist())


def expected_cells(features: list[FeatureName], answers: Mapping[str, list[Answer]], entity: int) -> list[float]:
    fields = [(view.schema[i], answers[view.name][entity]) for view, i in features]
    return [cell for f, answer in fields for cell in matrix_cells(f.dtype, value_of(answer, f.name))]


def expected_presence(features: list[FeatureName], answers: Mapping[str, list[Answer]], count: int) -> Any:
    """True where a cell holds a value, whose bits must match; elsewhere any NaN will do."""
    return np.array(
        [
            [
                value_of(answers[view.name][entity], view.schema[i].name) is not None
                for view, i in features
                for _ in range(view.schema[i].dtype.matrix_columns)
            ]
            for entity in range(count)
        ]
    )


def assert_same_cells(matrix: Any, expected: Any, is_present: Any) -> None:
    assert matrix.shape == expected.shape
    assert matrix.dtype == np.float64
    bits, expected_bits = np.ascontiguousarray(matrix).view(np.uint64), expected.view(np.uint64)
    check_equal(bits[is_present].tolist(), expected_bits[is_present].tolist(), "bits of the matrix")
    assert np.isnan(matrix[~is_present]).all()


TestStore = StoreMachine.TestCase


# --- the checker's own controls: stores that each get one thing wrong


class TtlExclusive(Store):
    """A value dies a microsecond before its time."""

    def apply(self, definitions: Any) -> Any:
        return super().apply([shorter_ttl(definition) for definition in definitions])


def shorter_ttl(definition: Any) -> Any:
    if isinstance(definition, FeatureView) and definition.ttl:
        return replace(definition, ttl=definition.ttl - timedelta(microseconds=1))
    return definition


class KeepsLess(Store):
    """keep=n holds n - 1 rows."""

    def apply(self, definitions: Any) -> Any:
        return super().apply([with_keep_less(definition) for definition in definitions])


def with_keep_less(definition: Any) -> Any:
    keep = getattr(definition, "keep", None)
    return replace(definition, keep=keep - 1) if isinstance(keep, int) and keep > 1 else definition


class CreatedIgnored(Store):
    """known_at is not looked at."""

    def answer(self, features: Any, entity_rows: Any, as_of: Any, known_at: Any, **options: Any) -> Any:
        return super().answer(features, entity_rows, as_of, None, **options)


class AsOfExclusive(Store):
    """A point read is < T."""

    def answer(self, features: Any, entity_rows: Any, as_of: Any, known_at: Any, **options: Any) -> Any:
        as_of = None if as_of is None else as_of - 1
        return super().answer(features, entity_rows, as_of, known_at, **options)


class FutureVisible(Store):
    """Rows from the future are seen now."""

    def answer(self, features: Any, entity_rows: Any, as_of: Any, known_at: Any, **options: Any) -> Any:
        as_of = START_US + 10**12 if as_of is None else as_of
        return super().answer(features, entity_rows, as_of, known_at, **options)


class DropForgotten(Store):
    """What retention dropped is a quiet null."""

    def answer(self, features: Any, entity_rows: Any, as_of: Any, known_at: Any, **options: Any) -> Any:
        try:
            return super().answer(features, entity_rows, as_of, known_at, **options)
        except BeforeHistory:
            return super().answer(features, entity_rows, TIME_MIN_US, known_at, **options)


class DeleteForgetsWatermark(Store):
    """Rows loaded after a delete but created before it come back."""

    deleted_us = TIME_MIN_US

    def delete(self, view: Any, entity_rows: Any) -> Any:
        answer = super().delete(view, entity_rows)
        self.deleted_us = START_US + 10**12
        return answer

    def load(self, view: Any, source: Any, **options: Any) -> Any:
        source = table_of(source)
        created = [
            max(us, self.deleted_us)
            for us in column_us(source, "created" if "created" in source.column_names else "event_timestamp")
        ]
        return super().load(view, with_column_us(source, "created", created), **(options | {"created_time": "created"}))


class LateRowLast(Store):
    """A late row is appended at the end, as if it were the newest."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last_us = TIME_MIN_US

    def load(self, view: Any, source: Any, **options: Any) -> Any:
        times, source = [], table_of(source)
        for us in column_us(source, "event_timestamp"):
            self.last_us = max(self.last_us, us)
            times.append(self.last_us)
        return super().load(view, with_column_us(source, "event_timestamp", times), **options)


class TiesReversed(Store):
    """Of rows with equal times the first to arrive wins."""

    def load(self, view: Any, source: Any, **options: Any) -> Any:
        source = table_of(source)
        return super().load(view, source.take(list(reversed(range(len(source))))), **options)


class NullIsZero(Store):
    """A null number is stored as nought."""

    def push(self, view: Any, rows: Any) -> Any:
        return super().push(view, changed(rows, lambda value: 0 if value is None else value))


class ZeroLosesSign(Store):
    """-0.0 is stored as 0.0."""

    def push(self, view: Any, rows: Any) -> Any:
        return super().push(view, changed(rows, lambda value: value + 0.0 if isinstance(value, float) else value))


def changed(rows: Any, change: Callable[[Any], Any]) -> Any:
    """The rows, if they are dicts, with every value changed."""
    if isinstance(rows, dict):
        return {name: change(value) for name, value in rows.items()}
    return [changed(row, change) for row in rows] if isinstance(rows, list) else rows


class HalfApplied(Store):
    """The rows before a bad one stay."""

    def push(self, view: Any, rows: Any) -> Any:
        try:
            return super().push(view, rows)
        except DataError:
            for row in rows:
                super().push(view, [row])
            raise


class MatrixOnlyNow(Store):
    """The matrix face forgets as_of."""

    def get_feature_vectors(
        self, features: Any, entity_rows: Any, *, as_of: Any = None, known_at: Any = None, out: Any = None
    ) -> Any:
        return super().get_feature_vectors(features, entity_rows, known_at=known_at, out=out)


SEEDED_BUGS: dict[type[Store], dict[str, Any]] = {
    TtlExclusive: {"ttl": timedelta(microseconds=10)},
    KeepsLess: {"keep": 2},
    CreatedIgnored: {},
    AsOfExclusive: {},
    FutureVisible: {},
    DropForgotten: {"keep": "latest"},
    DeleteForgetsWatermark: {},
    LateRowLast: {},
    TiesReversed: {"delay": timedelta(0)},
    NullIsZero: {"schema": [Field("f0", "int64"), Field("f1", "float64")]},
    ZeroLosesSign: {"schema": [Field("f0", "float64"), Field("f1", "float32")]},
    HalfApplied: {},
    MatrixOnlyNow: {"schema": [Field("f0", "int64"), Field("f1", "float64")]},
}


@pytest.mark.parametrize("store", SEEDED_BUGS)
def test_the_checker_catches(store: type[Store]) -> None:
    class Control(StoreMachine):
        make_store = store
        focus = SEEDED_BUGS[store]

    bounded = settings(
        max_examples=400,
        stateful_step_count=30,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, BeforeHistory, DataError, pytest.fail.Exception)):
        run_state_machine_as_test(Control, settings=bounded)


def table_of(source: Any) -> pa.Table:
    """The rows as a table again, whatever shape they came in."""
    return source if isinstance(source, pa.Table) else source.read_all()


def column_us(table: pa.Table, name: str) -> list[int]:
    return list(table[name].cast(pa.int64()).to_pylist())


def with_column_us(table: pa.Table, name: str, times: list[int]) -> pa.Table:
    column = pa.array(times, pa.timestamp("us", "UTC"))
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


# --- the same machine over a connection


class Remote:
    """A store that is written and read through a client of its own server."""

    def __init__(self, connecting: Callable[[str], Any], **options: Any) -> None:
        self.closing = ExitStack()
        store = self.closing.enter_context(Store(**options))
        server = self.closing.enter_context(serving(store))
        self.client = self.closing.enter_context(connecting(server.url))
        self.apply, self.close = store.apply, self.closing.close

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


class ClientMachine(StoreMachine):
    make_store = staticmethod(partial(Remote, connect))


class AsyncClientMachine(StoreMachine):
    make_store = staticmethod(partial(Remote, Awaited))


@pytest.mark.parametrize("machine", [ClientMachine, AsyncClientMachine])
def test_a_client_is_the_store(machine: type[StoreMachine]) -> None:
    """A tenth of the store's own campaign: what is behind the connection is the same code."""
    profile = settings()
    run_state_machine_as_test(machine, settings=settings(profile, max_examples=profile.max_examples // 10))
