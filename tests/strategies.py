"""What the tests feed the store with: values of every type, keys, views and clustered times.

Times cluster on purpose: equal ones, neighbours one microsecond apart, the edges of ttl, keep and windows: there
answers turn. Events have few ids, and numbers of every magnitude, so that a sum in the wrong order or precision shows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fastfeat.aggregation import FUNCTIONS, MOMENTS, OPERATORS, SCALARS, Aggregation, Condition
from fastfeat.dtypes import KEY_TYPES, LIST_ELEMENTS, SCALAR_WIDTH, VECTOR_ELEMENTS, DType
from fastfeat.durations import duration_us
from fastfeat.schema import EVENT_ID_TYPES, Entity, FeatureView, Field, WindowView
from fastfeat.times import TIME_MAX_US, TIME_MIN_US

Readable = FeatureView | WindowView
START_US = 1_700_000_000_000_000  # the driven clock's first moment
INTEGERS = {name: np.iinfo(name) for name in SCALAR_WIDTH if "int" in name}

# Quiet NaNs with payloads; a signalling one may lose its mark in any conversion, by IEEE 754.
NANS_64 = [struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in (0x7FF8000000000001, 0xFFF800DEADBEEF00)]
NANS_32 = [float(np.array(bits, "<u4").view("<f4")) for bits in (0x7FC00001, 0xFFC0BEEF)]
FLOATS = [-0.0, -0.0, 0.0, 1.5, float("inf"), float("-inf")]
TEXTS = ["", "a", "\x00", "b\x00c", "é", "\U0001f600 \U0010ffff", "x" * 300]
BYTES = [b"", b"\x00", b"\xff\xfe", b"abc" * 100]


def integers(name: str) -> SearchStrategy[int]:
    low, high = int(INTEGERS[name].min), int(INTEGERS[name].max)
    return st.sampled_from([low, high, 0, 1]) | st.integers(low, high)


@cache
def scalar_values(name: str) -> SearchStrategy[Any]:
    """Values of a type without an element, as plain Python: timestamps as int microseconds."""
    if name in INTEGERS:
        return integers(name)
    return {
        "bool": st.booleans(),
        "float32": st.sampled_from(FLOATS + NANS_32) | st.floats(width=32, allow_nan=False),
        "float64": st.sampled_from(FLOATS + NANS_64 + [2.0**53 + 2]) | st.floats(allow_nan=False),
        "timestamp": st.sampled_from([TIME_MIN_US, TIME_MAX_US, 0, -1, START_US]),
        "string": st.sampled_from(TEXTS) | st.text(max_size=3),
        "bytes": st.sampled_from(BYTES) | st.binary(max_size=3),
    }[name]


@cache
def values(dtype: DType) -> SearchStrategy[Any]:
    if dtype.element is None:
        return scalar_values(dtype.name)
    if dtype.size > 8:
        return scalar_values(dtype.element).map(lambda value: [value] * dtype.size)
    sizes = (dtype.size, dtype.size) if dtype.name == "vector" else (0, 3)
    return st.lists(scalar_values(dtype.element), min_size=sizes[0], max_size=sizes[1])


@cache
def dtypes() -> SearchStrategy[DType]:
    plain = st.sampled_from(["float64", "float32", "string", *SCALAR_WIDTH, "bytes"])
    vector = st.builds("vector<{}, {}>".format, st.sampled_from(sorted(VECTOR_ELEMENTS)), st.integers(1, 3))
    variable = st.builds("list<{}>".format, st.sampled_from(sorted(LIST_ELEMENTS)))
    return st.one_of(plain, plain, vector, variable).map(DType.parse)


def key_values(type_name: str) -> SearchStrategy[int | str]:
    if type_name == "string":
        return st.sampled_from(TEXTS)
    low, high = int(INTEGERS[type_name].min), int(INTEGERS[type_name].max)
    return st.sampled_from([low, high, 0, 1, 7])


@st.composite
def entities(draw: st.DrawFn, name: str) -> Entity:
    types = draw(st.lists(st.sampled_from(sorted(KEY_TYPES)), min_size=1, max_size=3))
    return Entity(name, {f"{name}_{i}": type_name for i, type_name in enumerate(types)})


# Rows so wide that a block of the core holds only a few: a dozen rows of a key fill several blocks and a directory.
WIDE = Field("wide", "vector<float64, 600>")

SPANS = [timedelta(0), timedelta(microseconds=1), timedelta(microseconds=10), timedelta(seconds=1)]


@st.composite
def views(draw: st.DrawFn, name: str, entity: Entity) -> FeatureView:
    drawn = draw(st.lists(st.tuples(dtypes(), st.booleans()), min_size=1, max_size=5))
    fields = [Field(f"f{i}", dtype, nullable=nullable) for i, (dtype, nullable) in enumerate(drawn)]
    return FeatureView(
        name,
        entity,
        [*fields, WIDE] if draw(st.integers(0, 2)) == 2 else fields,
        ttl=draw(st.none() | st.sampled_from(SPANS)),
        keep=draw(st.sampled_from(["all", "all", "latest", 1, 2, 3, *SPANS])),
        delay=draw(st.sampled_from([timedelta(0), timedelta(microseconds=3)])),
    )


@dataclass(frozen=True)
class World:
    """The views of one run, and the few keys that all its rows and reads share."""

    views: Sequence[FeatureView]
    key_pools: Mapping[str, Sequence[int | str]]  # join key -> values
    windows: Sequence[WindowView] = ()

    def keys(self, view: Readable) -> list[tuple[int | str, ...]]:
        """Three or four at most, so that rows meet; of eight every third, so that each part differs somewhere."""
        every = list(product(*(self.key_pools[name] for name in view.entity.join_keys)))
        return every[:: 3 if len(every) > 4 else 1]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """One or two views, of one entity or of two."""
    first = draw(entities("user"))
    chosen = [draw(views("one", first))]
    if draw(st.booleans()):
        chosen.append(draw(views("two", first if draw(st.booleans()) else draw(entities("shop")))))
    types = {name: type_name for view in chosen for name, type_name in view.entity.join_keys.items()}
    pools = {
        name: draw(st.lists(key_values(type_name), min_size=1, max_size=2, unique=True))
        for name, type_name in types.items()
    }
    return World(chosen, pools)


# --- events and windows

# Cancelling, overlapping by a few bits, at both ends of what a double holds.
MAGNITUDES = [
    1.0,
    -1.0,
    0.1,
    3.0,
    1e16,
    -1e16,
    2.0**-60,
    1e308,
    -1e308,
    1.7976931348623157e308,
    5e-324,
    -5e-324,
    2.5e-308,
]
MAGNITUDES_32 = [
    1.0,
    -1.0,
    float(np.float32(0.1)),
    3.0,
    2.0**24,
    -(2.0**24),
    2.0**-30,
    2.0**127,
    -(2.0**127),
    2.0**-149,
]
WINDOW_SPANS = [timedelta(microseconds=us) for us in (1, 2, 10, 1_000_000)]
DELAYS = [timedelta(microseconds=us) for us in (0, 0, 1, 10)]
KEEPS = ["all", "all", *(timedelta(microseconds=us) for us in (20, 1_000_010))]


@st.composite
def event_views(draw: st.DrawFn, name: str, entity: Entity) -> FeatureView:
    """Numbers mostly, and with luck an event id."""
    numbers = st.sampled_from(["float64", "float64", "float32", "int64", "uint64", "int8", "bool", "timestamp"])
    kinds = draw(st.lists(numbers.map(DType.parse) | dtypes(), min_size=1, max_size=4))
    fields = [Field(f"f{i}", dtype, nullable=draw(st.booleans())) for i, dtype in enumerate(kinds)]
    has_id = draw(st.booleans())
    if has_id:
        fields.insert(0, Field("id", draw(st.sampled_from(sorted(EVENT_ID_TYPES))), nullable=False))
    return FeatureView(
        name,
        entity,
        [*fields, WIDE] if draw(st.integers(0, 3)) == 3 else fields,
        ttl=draw(st.none() | st.sampled_from(SPANS)),
        # An id is known while its row is in memory: what is dropped and sent again would be another row.
        keep="all" if has_id else draw(st.sampled_from(KEEPS)),
        kind="event",
        event_id="id" if has_id else None,
    )


def fitting(view: FeatureView, function: str) -> list[Field | None]:
    """The columns that a function takes."""
    fields = [field for field in view.schema if field is not WIDE]
    if function in MOMENTS:
        return [field for field in fields if field.dtype.is_scalar_number and field.dtype.name != "timestamp"]
    if function in SCALARS:
        return [field for field in fields if field.dtype.is_scalar_number]
    if function in ("last_n", "count_distinct"):
        return [field for field in fields if field.dtype.element is None]
    return [None, *fields] if function == "count" else [*fields]


@st.composite
def aggregations(draw: st.DrawFn, view: FeatureView, name: str) -> Aggregation:
    function: Any = draw(st.sampled_from([each for each in FUNCTIONS if fitting(view, each)]))
    column = draw(st.sampled_from(fitting(view, function)))
    spans = [span for span in WINDOW_SPANS if not isinstance(view.keep, timedelta) or span <= view.keep]
    window = draw(st.sampled_from(spans))
    room = view.keep - window if isinstance(view.keep, timedelta) else timedelta(days=1)
    return Aggregation(
        None if column is None else column.name,
        function,
        window,
        name=name,
        delay=draw(st.sampled_from([delay for delay in DELAYS if delay <= room])),
        closed=draw(st.sampled_from(["left", "left", "right", "both", "neither"])),
        where=draw(st.lists(conditions(view), max_size=2)) if comparable(view) and draw(st.integers(0, 2)) == 2 else (),
        q=draw(st.sampled_from([0.0, 0.25, 0.5, 0.95, 1.0])) if function == "quantile" else None,
        n=draw(st.sampled_from([1, 2, 5, 1024])) if function in ("last_n", "top_k") else None,
    )


def comparable(view: FeatureView) -> list[Field]:
    """The columns that a condition may name."""
    return [field for field in view.schema if field.dtype.element is None]


@st.composite
def conditions(draw: st.DrawFn, view: FeatureView) -> Condition:
    """One that compares: with a value of the column, or a number next to it or out of its range."""
    field, operator = draw(st.sampled_from(comparable(view))), draw(st.sampled_from(OPERATORS))
    value = event_cells(field.dtype).filter(lambda value: value == value)
    if field.dtype.is_scalar_number and field.dtype.name != "bool":
        value |= st.sampled_from([0, 1, -1, 0.5, 2**53 + 1, 2.0**53, 2**63, -(2**63) - 1, 2**70, float("inf"), -0.0])
    return (field.name, operator, draw(st.lists(value, min_size=1, max_size=3) if operator.endswith("in") else value))


@st.composite
def window_views(draw: st.DrawFn, name: str, source: FeatureView) -> WindowView:
    count = draw(st.integers(1, 5))
    return WindowView(name, source, [draw(aggregations(source, f"w{i}")) for i in range(count)])


@cache
def event_cells(dtype: DType) -> SearchStrategy[Any]:
    """Values of an event: numbers of a few magnitudes mostly, so that few answers are just infinite or no number."""
    pool = {"float64": MAGNITUDES, "float32": MAGNITUDES_32}.get(dtype.name)
    if pool is not None:
        return st.integers(0, 9).flatmap(lambda n: st.sampled_from(pool) if n else values(dtype))
    if dtype.name in INTEGERS:
        return st.sampled_from([0, 1, 2, 100]) | values(dtype)
    return values(dtype)


def event_id_values(type_name: str) -> SearchStrategy[Any]:
    """Few, so that they meet."""
    few: dict[str, list[Any]] = {"string": TEXTS[:4], "bytes": BYTES[:3]}
    return st.sampled_from(few.get(type_name, [0, 1, 2, 127]))


def event_row_values(view: FeatureView) -> SearchStrategy[dict[str, Any]]:
    """One value per field of an event view."""
    by_name = {
        field.name: event_id_values(str(field.dtype))
        if field.name == view.event_id
        else st.none() | event_cells(field.dtype)
        if field.nullable
        else event_cells(field.dtype)
        for field in view.schema
    }
    return st.fixed_dictionaries(by_name)


@st.composite
def event_worlds(draw: st.DrawFn) -> World:
    """An event view, one or two window views over it, and with luck a state of the same entity."""
    entity = draw(entities("user"))
    events = draw(event_views("events", entity))
    windows = [draw(window_views(f"windows{i}", events)) for i in range(draw(st.integers(1, 2)))]
    views = [events, draw(views_of_state(entity))] if draw(st.integers(0, 3)) == 3 else [events]
    pools = {
        name: draw(st.lists(key_values(type_name), min_size=1, max_size=2, unique=True))
        for name, type_name in entity.join_keys.items()
    }
    return World(views, pools, windows)


def views_of_state(entity: Entity) -> SearchStrategy[FeatureView]:
    return views("state", entity)


def edges_us(view: Readable) -> list[int]:
    """Distances in time at which answers of the view may turn."""
    spans = [0, 1, 10, 1_000_000]
    if isinstance(view, WindowView):
        return sorted({*spans, *(us for each in view.features for us in (each.delay_us, each.reach_us))})
    if view.ttl_us is not None:
        spans += [view.ttl_us, view.ttl_us + 1]
    if isinstance(view.keep, timedelta):
        spans += [duration_us(view.keep), duration_us(view.keep) + 1]
    return sorted(set(spans))


def times_near(moments: Sequence[int], spans: Sequence[int]) -> SearchStrategy[int]:
    """Times at, and just before and after, the spans around the moments."""
    signed = [0, 0, *sorted({0, *spans, *(-span for span in spans)}, key=abs)]
    return st.builds(int.__add__, st.sampled_from(list(moments)), st.sampled_from(signed))


@cache
def cells(dtype: DType, nullable: bool) -> SearchStrategy[Any]:
    return st.none() | values(dtype) if nullable else values(dtype)


def row_values(view: FeatureView) -> SearchStrategy[dict[str, Any]]:
    """One value per field of the view, None only where the field is nullable."""
    if view.kind == "event":
        return event_row_values(view)
    return st.fixed_dictionaries({f.name: cells(f.dtype, f.nullable) for f in view.schema})


# How a table may lie in memory: its rows from the middle of buffers (so that offsets and bit positions count), in
# several chunks, one of them empty, or as a reader of batches.
SHAPES = ["plain", "sliced", "chunked", "reader"]


def shaped(table: pa.Table, shape: str) -> Any:
    """The same rows in another shape."""
    if shape == "sliced":
        return pa.concat_tables([table, table, table]).combine_chunks().slice(len(table), len(table))
    if shape == "chunked":
        return pa.concat_tables([table.slice(0, 1), table.slice(0, 0), table.slice(1)])
    return table.to_reader(max_chunksize=3) if shape == "reader" else table


def row_dicts(
    view: FeatureView, rows: Sequence[tuple[tuple[int | str, ...], int, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Rows (key, event_us, values) as `Store.push` takes them."""
    names = tuple(view.entity.join_keys)
    return [
        {**dict(zip(names, key, strict=True)), "event_timestamp": event_us, **fields} for key, event_us, fields in rows
    ]


def row_table(
    view: FeatureView,
    rows: Sequence[tuple[tuple[int | str, ...], int, Mapping[str, Any]]],
    created_us: Sequence[int] | None = None,
) -> pa.Table:
    """Rows (key, event_us, values) as an Arrow table, with a column `created` where created times are given."""
    stamp = pa.timestamp("us", "UTC")
    columns: dict[str, Any] = {
        name: pa.array([key[i] for key, _, _ in rows], DType(type_name).arrow())
        for i, (name, type_name) in enumerate(view.entity.join_keys.items())
    }
    columns["event_timestamp"] = pa.array([event_us for _, event_us, _ in rows], stamp)
    if created_us is not None:
        columns["created"] = pa.array(created_us, stamp)
    for f in view.schema:
        columns[f.name] = pa.array([fields[f.name] for _, _, fields in rows], f.dtype.arrow())
    return pa.table(columns)
