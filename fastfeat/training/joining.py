"""Joining: the rows of some keys in a private table, and the labels of these keys answered from it.

    features --compiled--> a ViewJoin per stored view: its fields that are needed, its items of a Plan
    Asked + rows (Arrow) --Worker--> private table --Plan.columns_at--> a column per feature, in the order asked

Promise:  an answer is what get_online_features gives at the label's time: by the same plan and the same kernel.
Memory:   a private table takes a few times its rows' Arrow bytes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .._core.arena import Arena
from .._core.ordering import Ordering, scatter
from .._core.plan import Plan
from .._core.request import keys_batch
from .._core.table import Clock
from ..applied import NOTHING, Definitions, check_features, merged, needed, service_of
from ..computed import request_fields
from ..definitions import Definition
from ..dtypes import DType
from ..durable import whole_table
from ..errors import DataError
from ..ondemand import OnDemandFeatureView
from ..result import arrow_array
from ..rows import SEQUENCE, rows_schema
from ..schema import Feature, FeatureService, FeatureView, View, parse_features
from .computing import with_computed
from .labels import Asked, Known, asked_of, check_columns

CAPACITY_MIN: Final = 64 << 20  # reserved, not used
CAPACITY_FACTOR: Final = 8  # of the rows' Arrow bytes: blocks have room to spare and rows are padded

PARTITION_SIZE: Final = 1 << 20  # of rows and labels as Arrow: with the blocks made of them about a second cache
PARTITION_BITS_MAX: Final = 12
EVENT: Final = "event_timestamp"
CREATED: Final = "created_timestamp"
THREADS: Final = 2

if TYPE_CHECKING:
    from .._core.table import RowBatch

Stamps = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64] | None]
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

    @property
    def dtypes(self) -> list[DType]:
        """Of the features."""
        return [dtype_of(self.definitions, feature) for feature in self.features]


def dtype_of(definitions: Definitions, feature: Feature) -> DType:
    return next(field.dtype for field in definitions.readable[feature.view].schema if field.name == feature.field)


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
        return dtype_of(self.definitions, feature)


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


class Worker:
    """A private table and its plan, for one partition after the other in the same memory. For one thread at a time.

    Why the same memory: the first touch of a page costs more than all that is done with its rows.
    """

    def __init__(self, join: ViewJoin, seed: bytes) -> None:
        self._join = join
        self._seed = seed
        self._clock = Clock(None)
        self._begin(CAPACITY_MIN)

    def _begin(self, capacity: int) -> None:
        join = self._join
        arena = Arena(capacity, self._seed)
        self._table = whole_table(arena, self._clock, join.view, join.view.ttl_us, join.view.event_id)
        self._plan = Plan(self._clock, join.definitions.plan_items(join.features, {join.view.name: self._table}))

    def take(
        self, keys: RowBatch, fields: pa.RecordBatch, stamps: NDArray[np.int64], begins: NDArray[np.int64]
    ) -> None:
        """Have these rows and no others: as Table.append_ordered takes them."""
        self._clear(fields.nbytes + stamps.nbytes)
        self._table.append_ordered(keys, fields, stamps, begins)

    def take_events(self, keys: pa.RecordBatch, fields: pa.RecordBatch, stamps: NDArray[np.int64]) -> None:
        """Have these rows, of which those that were sent again don't count, and no others."""
        self._clear(keys.nbytes + fields.nbytes + stamps.nbytes)
        names = [*keys.schema.names, EVENT, CREATED, *fields.schema.names]
        columns = [*keys.columns, pa.array(stamps[0]), pa.array(stamps[1]), *fields.columns]
        batch = self._table.borrowed_batch(pa.RecordBatch.from_arrays(columns, names=names))
        batch.set_sequences(stamps[2].view(np.uint64))
        self._table.prepare(batch).commit()

    def _clear(self, size: int) -> None:
        """Make room for rows of that many bytes of Arrow."""
        capacity = CAPACITY_MIN + CAPACITY_FACTOR * size
        if capacity > self._table.arena.capacity:
            # Twice, which is reserved and not used: or each partition a little larger than the last would begin anew.
            self._begin(2 * capacity)
        else:
            self._table.clear()

    def answer(self, keys: RowBatch, event_us: NDArray[np.int64], known_us: NDArray[np.int64]) -> Any:
        """As Plan.columns_at."""
        return self._plan.columns_at(keys, event_us, known_us)


class Workers:
    """The workers of one join: as many as there are threads that need one at once."""

    def __init__(self, join: ViewJoin) -> None:
        self.join = join
        self.seed = os.urandom(16)
        self._free: list[Worker] = []

    @contextmanager
    def one(self) -> Iterator[Worker]:
        try:  # Why not look first: between a look and the pop another thread may take the last one.
            worker = self._free.pop()
        except IndexError:
            worker = Worker(self.join, self.seed)
        yield worker
        self._free.append(worker)


class Columns:
    """A column per feature for n labels, filled part by part in any order, by any number of threads."""

    def __init__(self, dtypes: Sequence[DType], count: int) -> None:
        self._dtypes = dtypes
        self._valid = [np.ones(count, np.uint8) for _ in dtypes]
        self._data = [None if dtype.is_variable else fixed_data(dtype, count) for dtype in dtypes]
        self._parts: list[tuple[NDArray[np.uint32], list[Any]]] = []

    def put(self, places: NDArray[np.uint32], answer: Any) -> None:
        """Take what a Plan answered for the labels at these places."""
        variable = []
        for dtype, valid, data, column in zip(self._dtypes, self._valid, self._data, answer[2], strict=True):
            if data is None:
                variable.append(arrow_array(dtype, column))
            else:
                put_validity(column[0], places, valid)
                scatter(column[1], places, data)
        if variable:
            self._parts.append((places, variable))

    def arrays(self) -> list[Any]:
        """An Arrow array per feature, once every label has its values: null where nothing lives."""
        variable = in_order(self._parts)
        if not self._parts:  # there are no labels
            variable = (pa.array([], dtype.arrow()) for dtype in self._dtypes if dtype.is_variable)
        return [
            next(variable) if data is None else arrow_array(dtype, (valid, data, None))
            for dtype, valid, data in zip(self._dtypes, self._valid, self._data, strict=True)
        ]


def put_validity(values: NDArray[np.uint8], places: NDArray[np.uint32], to: NDArray[np.uint8]) -> None:
    """to[places] = values, where `to` is ones: a few zeros are written alone, as each write is a cache miss."""
    zeros = np.flatnonzero(values == 0)
    if 4 * len(zeros) > len(places):
        scatter(values, places, to)
    else:
        to[places[zeros]] = 0


def fixed_data(dtype: DType, count: int) -> NDArray[Any]:
    """Room for `count` values as a Plan gives them."""
    if dtype.element is not None:
        return np.empty((count, dtype.size), DType(dtype.element).numpy)
    return np.empty(count, "u1" if dtype.name == "bool" else dtype.numpy)


def in_order(parts: Sequence[tuple[NDArray[np.uint32], list[Any]]]) -> Iterator[Any]:
    """The columns of all parts, each label's values where it stands."""
    if not parts:
        return
    places = np.concatenate([places for places, _ in parts])
    inverse = np.empty(len(places), np.uint32)
    inverse[places] = np.arange(len(places), dtype=np.uint32)
    at = pa.array(inverse)
    for arrays in zip(*(arrays for _, arrays in parts), strict=True):
        yield pa.concat_arrays(arrays).take(at)


def fill(
    columns: Columns,
    workers: Workers,
    asked: Asked,
    places: NDArray[np.uint32] | None,
    rows: pa.Table,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Put the answers of what is asked, from all rows (as at rest: rows.py) that its keys have, into the columns.

    places: where each label stands; None: as they come. pool: threads that may help.
    """
    view = workers.join.view
    whole = one_batch(rows)
    keys = whole.select(list(view.entity.join_keys))
    fields = whole.select([field.name for field in view.schema])
    asked_keys = asked.rows.select(keys.schema.names)
    bits = partition_bits(whole.nbytes + asked.rows.nbytes)
    of_labels = ordering(keys_of(view, asked_keys), (asked.event_us, asked.known_us, None), workers.seed, bits, pool)
    of_rows = ordering(keys_of(view, keys), stamps_of(whole), workers.seed, bits, pool)

    def partition(p: int) -> None:
        at, _, times = of_labels.entities_of(p)
        if not len(at):
            return
        chosen, begins, stamps = of_rows.entities_of(p)
        with workers.one() as worker:
            rows_at = pa.array(chosen)
            if view.event_id is None:
                entities = keys_of(view, keys.take(pa.array(chosen[begins[:-1]])))
                worker.take(entities, fields.take(rows_at), stamps, begins)
            else:
                worker.take_events(keys.take(rows_at), fields.take(rows_at), stamps)
            answer = worker.answer(keys_of(view, asked_keys.take(pa.array(at))), times[0], times[1])
            columns.put(at if places is None else places[at], answer)

    run = map if pool is None else pool.map
    deque(run(partition, range(1 << bits)), 0)


def fill_from_table(columns: Columns, view: FeatureView, plan: Plan, asked: Asked, pool: ThreadPoolExecutor) -> None:
    """As fill, from a store's own table. A partition at a time, so that a writer soon has its memory again."""
    keys = asked.rows.select(list(view.entity.join_keys))
    bits = partition_bits(asked.rows.nbytes)
    stamps = (asked.event_us, asked.known_us, None)
    of_labels = ordering(keys_of(view, keys), stamps, os.urandom(16), bits, pool)

    def partition(p: int) -> None:
        at, _, times = of_labels.entities_of(p)
        if len(at):
            columns.put(at, plan.columns_at(keys_of(view, keys.take(pa.array(at))), times[0], times[1]))

    deque(pool.map(partition, range(1 << bits)), 0)


def partition_bits(size: int) -> int:
    return min(max(size // PARTITION_SIZE, 1).bit_length() - 1, PARTITION_BITS_MAX)


def ordering(keys: RowBatch, stamps: Stamps, seed: bytes, bits: int, pool: ThreadPoolExecutor | None) -> Ordering:
    """Rows by partition."""
    parts = 1 if pool is None else THREADS
    out = Ordering(keys, *stamps, seed, bits, parts)
    run = map if pool is None else pool.map
    deque(run(out.count, range(parts)), 0)
    out.settle()
    deque(run(out.place, range(parts)), 0)
    return out


def keys_of(view: FeatureView, rows: pa.RecordBatch) -> RowBatch:
    """The join keys, which are all that the rows have, encoded."""
    kinds = view.entity.join_keys
    return keys_batch(tuple(kinds), tuple(kinds.values()), rows)


def stamps_of(rows: pa.RecordBatch) -> Stamps:
    """Event time, created time and sequence, if any, of rows at rest."""
    event_times, created_times = (rows.column(name).view(pa.int64()).to_numpy() for name in (EVENT, CREATED))
    return event_times, created_times, rows.column(SEQUENCE).to_numpy() if SEQUENCE in rows.schema.names else None


def one_batch(table: pa.Table) -> pa.RecordBatch:
    """The table in one piece. Raises DataError: more than 2 GiB of text."""
    batches = table.combine_chunks().to_batches()
    if len(batches) > 1:
        raise DataError("the rows of a bucket hold more than 2 GiB of text; give fewer at once")
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


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

    rows: view name -> a table with join keys, event_timestamp, created_timestamp (else event time + the view's delay),
    _sequence (else the order of the rows) and at least the fields that are needed, as the history's files have them;
    in any order; a view without rows may be left out.
    Raises UnknownView, UnknownFeature, SchemaError, DataError.
    """
    check_known(known)
    request = request_of(features, merged(NOTHING, list(definitions)))
    check_labels(labels.schema, request, event_time)
    asked = asked_of(labels, request.keys, event_time, known)
    columns: list[Any] = [None] * len(request.stored)
    with ThreadPoolExecutor(THREADS) as pool:
        for join in request.joins:
            given = rows.get(join.view.name)
            some = rows_schema(join.view).empty_table() if given is None else at_rest(join.view, given)
            filled = Columns(join.dtypes, len(asked))
            fill(filled, Workers(join), asked, None, some, pool)
            for place, column in zip(join.places, filled.arrays(), strict=True):
                columns[place] = column
    return with_columns(labels, request, asked, columns)


def at_rest(view: FeatureView, rows: pa.Table) -> pa.Table:
    """Rows in the types of rows.py, in any order; without `_sequence` where they have none. Raises DataError."""
    schema = rows_schema(view)
    if CREATED not in rows.schema.names and EVENT in rows.schema.names:
        rows = rows.append_column(CREATED, delayed(rows.column(EVENT), view.delay_us))
    if SEQUENCE not in rows.schema.names:
        schema = schema.remove(schema.get_field_index(SEQUENCE))
    try:
        return rows.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException) as error:
        raise DataError(f"view {view.name!r}: its rows are not as the history has them: {error}") from None


def delayed(event_times: Any, delay_us: int) -> Any:
    return pc.add(event_times, pa.scalar(delay_us, pa.duration("us"))) if delay_us else event_times


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
