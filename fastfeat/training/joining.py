"""Joining: the rows of some keys in a private table, and the labels of these keys answered from it.

    features --compiled--> a ViewJoin per stored view: its fields that are needed, its items of a Plan
    Asked + rows (Arrow) --Worker--> private table --Plan.columns_at--> a column per feature, in the order asked

Promise:  an answer is what get_online_features gives at the label's time: by the same plan and the same kernel.
Memory:   a private table takes a few times its rows' Arrow bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from .._core.arena import Arena
from .._core.plan import Plan
from .._core.table import Clock
from ..applied import NOTHING, Definitions, check_features, merged, needed, service_of
from ..computed import request_fields
from ..definitions import Definition
from ..dtypes import DType
from ..durable import whole_table
from ..errors import DataError
from ..ondemand import OnDemandFeatureView
from ..result import arrow_array
from ..rows import batch_of_rows, entity_columns, heads_of, rows_schema
from ..schema import Feature, FeatureService, FeatureView, View, parse_features
from .computing import with_computed
from .labels import Asked, Known, asked_of, check_columns

CAPACITY_MIN: Final = 64 << 20  # reserved, not used
CAPACITY_FACTOR: Final = 8  # of the rows' Arrow bytes: blocks have room to spare and rows are padded

Features = str | FeatureService | Sequence[str | Feature | View]


@dataclass(frozen=True)
class ViewJoin:
    """What a request needs of one stored view.

    view:     with the fields that are needed, and no others.
    features: of it and of windows over it; places: where each stands in the request.
    """

    definitions: Definitions
    view: FeatureView
    features: tuple[Feature, ...]
    places: tuple[int, ...]

    @property
    def keys(self) -> Mapping[str, str]:
        return self.view.entity.join_keys


@dataclass(frozen=True)
class Request:
    """Features to join: one ViewJoin per stored view, and what the labels must have.

    stored: the features to join, those asked first; functions: that compute others of them, in order.
    """

    definitions: Definitions
    features: tuple[Feature, ...]
    stored: tuple[Feature, ...]
    functions: tuple[OnDemandFeatureView, ...]
    joins: tuple[ViewJoin, ...]

    @property
    def keys(self) -> dict[str, str]:
        return {name: kind for join in self.joins for name, kind in join.keys.items()}

    @property
    def fields(self) -> list[pa.Field]:
        """The columns that are added to the labels."""
        return [pa.field(str(each), self.dtype(each).arrow()) for each in self.features]

    @property
    def request_fields(self) -> list[str]:
        """The columns of the labels that functions read."""
        return [field.name for field in request_fields(self.functions)]

    def dtype(self, feature: Feature) -> DType:
        view = self.definitions.readable[feature.view]
        return next(field.dtype for field in view.schema if field.name == feature.field)


def request_of(features: Features, definitions: Definitions) -> Request:
    """Raises UnknownView, UnknownFeature, SchemaError."""
    wanted: Sequence[Feature]
    if isinstance(features, str) and ":" not in features:
        wanted = service_of(features, definitions.services).features
    elif isinstance(features, FeatureService):
        wanted = features.features
    else:
        wanted = parse_features(features, "the training set")
    check_features(wanted, definitions.readable, "the training set")
    stored, functions = needed(wanted, definitions.readable)
    by_view: dict[str, list[int]] = {}
    for place, feature in enumerate(stored):
        by_view.setdefault(definitions.stored(feature.view).name, []).append(place)
    joins = [
        ViewJoin(definitions, trimmed(definitions, name, [stored[i] for i in places]), pick(stored, places), (*places,))
        for name, places in by_view.items()
    ]
    return Request(definitions, tuple(wanted), tuple(stored), tuple(functions), tuple(joins))


def pick(features: Sequence[Feature], places: Iterable[int]) -> tuple[Feature, ...]:
    return tuple(features[i] for i in places)


def trimmed(definitions: Definitions, name: str, features: Sequence[Feature]) -> FeatureView:
    """The stored view with the fields only that these features are made of."""
    view = definitions.views[name]
    needed = {view.event_id}
    for feature in features:
        window = definitions.windows.get(feature.view)
        if window is None:
            needed.add(feature.field)
            continue
        each = next(each for each in window.features if each.name == feature.field)
        needed |= {each.column, *(column for column, _, _ in each.where)}
    fields = [field for field in view.schema if field.name in needed]
    return replace(view, schema=fields or view.schema[:1])


def check_labels(schema: pa.Schema, request: Request, event_time: str) -> None:
    """Raises DataError: a column is missing, or a feature's name is taken."""
    check_columns(schema, [*request.keys, event_time, *request.request_fields])
    for feature in request.features:
        if str(feature) in schema.names:
            raise DataError(f"labels: there is a column {str(feature)!r} already, as the feature is called; rename it")


# --- one bucket


def answered(join: ViewJoin, asked: Asked, rows: pa.Table, heads: pa.Table | None = None) -> list[Any]:
    """A column per feature of the join for what is asked, from these rows (as at rest: rows.py) of these keys.

    heads: what the keys remember of deletes.
    """
    clock = Clock(None)
    arena = Arena(CAPACITY_MIN + CAPACITY_FACTOR * rows.nbytes)
    table = whole_table(arena, clock, join.view, join.view.ttl_us, join.view.event_id)
    if heads is not None and heads.num_rows:
        table.prepare_heads(entity_columns(join.view, heads), heads_of(heads)).commit()
    for batch in rows.combine_chunks().to_batches():
        table.prepare(batch_of_rows(table, join.view, batch)).commit()
    plan = Plan(clock, join.definitions.plan_items(join.features, {join.view.name: table}))
    return feature_arrays(plan, plan.columns_at(asked.entities(join.keys), asked.event_us, asked.known_us))


def feature_arrays(plan: Plan, answer: Any) -> list[Any]:
    """An Arrow array per feature of the plan: null where nothing lives."""
    _, _, columns = answer
    return [arrow_array(dtype, column) for dtype, column in zip(plan.dtypes, columns, strict=True)]


def join_bucket(
    labels: pa.Table,
    rows: Mapping[str, pa.Table],
    definitions: Iterable[Definition],
    features: Features,
    known: Known = "as_served",
    *,
    event_time: str = "event_timestamp",
) -> pa.Table:
    """The labels, in their order, with a column per feature, from all rows that their keys have in each view.

    rows: view name -> a table with join keys, event_timestamp, created_timestamp, _sequence and at least the fields
    that are needed, in any order (as the history's files have them); a view without any may be left out.
    Raises UnknownView, UnknownFeature, SchemaError, DataError.
    """
    check_known(known)
    request = request_of(features, merged(NOTHING, list(definitions)))
    check_labels(labels.schema, request, event_time)
    asked = asked_of(labels, request.keys, event_time, known)
    columns: list[Any] = [None] * len(request.stored)
    for join in request.joins:
        schema = rows_schema(join.view)
        given = rows.get(join.view.name)
        some = schema.empty_table() if given is None else given.select(schema.names).cast(schema)
        for place, column in zip(join.places, answered(join, asked, some), strict=True):
            columns[place] = column
    return with_columns(labels, request, asked, columns)


def with_columns(labels: pa.Table, request: Request, asked: Asked, columns: Sequence[Any]) -> pa.Table:
    """The labels with a column per feature. columns: of the features that are stored."""
    if request.functions:
        stored = {
            str(each): (request.dtype(each), column) for each, column in zip(request.stored, columns, strict=True)
        }
        columns = with_computed(list(map(str, request.features)), request.functions, labels, asked.event_us, stored)
    for field, column in zip(request.fields, columns, strict=True):
        labels = labels.append_column(field, column)
    return labels


def check_known(known: str) -> None:
    if known not in ("as_served", "as_corrected"):
        raise DataError(f"known is {known!r}; give 'as_served' or 'as_corrected'")
