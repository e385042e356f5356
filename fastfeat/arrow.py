"""Arrow in: rows of any source, normalized to the one form that the core appends.

    source --sources.py--> batches --casts.py--> declared types --Faults--> rows to take, rows refused with a reason

What concerns a column (it is missing, twice there, or of a type that can't become the declared one) refuses the source
as a whole before any row is taken. What concerns a row refuses that row, counted in the report under its reason.
Columns that the view does not know are left out and named in the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .casts import Cast, Faults, cast_for, parse_for, within
from .dtypes import DType
from .errors import DataError
from .report import LoadReport
from .schema import FeatureView
from .sources import Part, bounded, open_source
from .times import TIME_MAX_US, TIME_MIN_US

# The core's own limits: it refuses a whole batch for one such row, so they are refused one by one here.
KEY_SIZE_MAX = 4096
HEAP_SIZE_MAX = 1 << 24


def read_batches(
    view: FeatureView,
    source: object,
    report: LoadReport,
    *,
    event_time: str = "event_timestamp",
    created_time: str | int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Normalized batches for Table.append_arrow, streamed; `report` is filled along the way.

    A batch counts as accepted when the next one is asked for. created_time: a column, or the one time (us) of all rows,
    or None for event_time + view.delay. Raises DataError, for a column's fault before the first batch.
    """
    parts = open_source(source)
    normalizers = [Normalizer(view, part, event_time, created_time) for part in parts]
    report.ignored_columns = tuple(dict.fromkeys(name for each in normalizers for name in each.ignored))
    for part, normalizer in zip(parts, normalizers, strict=True):
        for batch in read_part(part, normalizer, report):
            if batch.num_rows:
                yield batch
                report.accepted += batch.num_rows


def read_whole(view: FeatureView, source: object, created_us: int) -> pa.RecordBatch | None:
    """A push as one normalized batch, None where it has no rows. Raises DataError for a single bad row or column."""
    report = LoadReport(view.name)
    batches = list(read_batches(view, source, report, created_time=created_us))
    if report.ignored_columns:
        raise DataError(f"view {view.name!r} has no {', '.join(map(repr, report.ignored_columns))}; leave it out")
    if report.rejected:
        reasons = "; ".join(f"{reason} ({rows} rows)" for reason, rows in report.reasons.items())
        raise DataError(f"view {view.name!r}: nothing was pushed, {report.rejected} rows can't be taken: {reasons}")
    if not batches:
        return None
    whole = pa.Table.from_batches(batches).combine_chunks().to_batches()
    if len(whole) > 1:
        raise DataError(f"view {view.name!r}: a push is one batch of at most 2 GiB of text; push fewer rows at once")
    return whole[0]


def read_part(part: Part, normalizer: Normalizer, report: LoadReport) -> Iterator[pa.RecordBatch]:
    columns = normalizer.columns
    try:
        for batch in part.read(columns, report.reject):
            yield from (normalizer.normalize(piece, report) for piece in bounded(batch.select(columns)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part.name}: {error}") from error


class Normalizer:
    """The casts of one schema to a view, resolved once, and the order in which the core wants the columns."""

    def __init__(self, view: FeatureView, part: Part, event_time: str, created_time: str | int | None) -> None:
        self.view = view
        self.part = part
        self.created_time = created_time
        self.keys = [(name, DType(kind)) for name, kind in view.entity.join_keys.items()]
        self.columns = [name for name, _ in self.keys] + [event_time]
        self.columns += [created_time] if isinstance(created_time, str) else []
        self.columns += [each.name for each in view.schema]
        self.columns = list(dict.fromkeys(self.columns))  # a field may be the event time as well
        self.check_columns()
        self.ignored = [name for name in part.schema.names if name not in self.columns]
        self.key_casts = [self.key_cast(name, kind) for name, kind in self.keys]
        self.event_time = event_time
        self.event_cast = self.time_cast(event_time)
        self.created_cast = self.time_cast(created_time) if isinstance(created_time, str) else None
        self.field_casts = [self.cast(each.name, each.dtype, f"field {each.name!r}") for each in view.schema]
        self.names = [name for name, _ in self.keys] + ["event_timestamp", "created_timestamp"]
        self.names += [each.name for each in view.schema]

    @property
    def where(self) -> str:
        return f"view {self.view.name!r}: {self.part.name}"

    def check_columns(self) -> None:
        names = self.part.schema.names
        missing = [name for name in self.columns if name not in names]
        if missing:
            raise DataError(
                f"{self.where}: no column {', '.join(map(repr, missing))}; it has {', '.join(names) or 'none'}."
                " A row needs its keys, its event time (event_time=) and every field (a column of nulls for none)"
            )
        twice = [name for name in self.columns if names.count(name) > 1]
        if twice:
            raise DataError(f"{self.where}: column {twice[0]!r} is there {names.count(twice[0])} times; rename one")

    def cast(self, name: str, target: DType, what: str) -> Cast:
        try:
            return parse_for(target, what) if self.part.is_csv else cast_for(self.type_of(name), target, what)
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from None

    def type_of(self, name: str) -> pa.DataType:
        return self.part.schema.field(name).type

    def key_cast(self, name: str, kind: DType) -> Cast:
        if not self.part.is_csv and pa.types.is_floating(self.type_of(name)):
            raise DataError(
                f"{self.where}: join key {name!r} is {self.type_of(name)}; floats do not compare by value: cast the"
                f" column to {kind}"
            )
        cast = self.cast(name, kind, f"join key {name!r}")
        if kind.name in ("string", "int64", "uint64"):
            return cast
        return lambda column, faults: cast(column, faults).cast(pa.int64())

    def time_cast(self, name: str) -> Cast:
        what = f"column {name!r}"
        cast = self.cast(name, DType("timestamp"), what)
        return lambda column, faults: cast(column, faults).view(pa.int64())

    def normalize(self, batch: Any, report: LoadReport) -> pa.RecordBatch:
        """The batch's good rows in the core's form; the others are counted in the report."""
        faults = Faults(batch.num_rows)
        arrays = self.key_columns(batch, faults)
        arrays += self.time_columns(batch, faults)
        arrays += self.field_columns(batch, faults)
        taken = pa.RecordBatch.from_arrays(arrays, names=self.names)
        for reason, rows in faults.reasons.items():
            report.reject(reason, rows)
        report.times_floored += faults.times_floored
        return taken.filter(pa.array(~faults.bad)) if faults.reasons else taken

    def key_columns(self, batch: Any, faults: Faults) -> list[Any]:
        columns = []
        for (name, _), cast in zip(self.keys, self.key_casts, strict=True):
            column = cast(batch.column(name), faults)
            faults.add_nulls(f"join key {name!r} is null", column)
            columns.append(column)
        if any(kind.name == "string" for _, kind in self.keys):
            sizes = sum(key_sizes(column) for column in columns)
            faults.add(f"the key takes over {KEY_SIZE_MAX} B", sizes > KEY_SIZE_MAX)
        return columns

    def time_columns(self, batch: Any, faults: Faults) -> list[Any]:
        event_times = self.event_cast(batch.column(self.event_time), faults)
        faults.add_nulls(f"column {self.event_time!r} is null", event_times)
        if self.created_cast is not None:
            created_times = self.created_cast(batch.column(self.created_time), faults)
            faults.add_nulls(f"column {self.created_time!r} is null", created_times)
        elif isinstance(self.created_time, int):
            created_times = pa.array(np.full(batch.num_rows, self.created_time, np.int64))
        elif self.view.delay_us:
            created_times = self.delayed(event_times, faults)
        else:
            created_times = event_times
        return [event_times, created_times]

    def delayed(self, event_times: Any, faults: Faults) -> Any:
        # Wrapping is no danger: event times out of range are faults already, and one more reason changes nothing.
        created_times = pc.add(event_times, self.view.delay_us)
        return within(created_times, TIME_MIN_US, TIME_MAX_US, "event time + delay is outside years 1 to 9999", faults)

    def field_columns(self, batch: Any, faults: Faults) -> list[Any]:
        columns = []
        for each, cast in zip(self.view.schema, self.field_casts, strict=True):
            column = cast(batch.column(each.name), faults)
            if not each.nullable:
                faults.add_nulls(f"field {each.name!r} is null and declared nullable=False", column)
            columns.append(column)
        variable = [c for c, each in zip(columns, self.view.schema, strict=True) if each.dtype.is_variable]
        if sum(column.nbytes for column in variable) > HEAP_SIZE_MAX:
            sizes = sum(cell_sizes(column) for column in variable)
            faults.add(f"the row's variable values take over {HEAP_SIZE_MAX} B", sizes > HEAP_SIZE_MAX)
        return columns


def key_sizes(column: Any) -> Any:
    """Bytes that each value takes in its row's key."""
    if not pa.types.is_string(column.type):
        return np.full(len(column), 8, np.int64)
    return pc.binary_length(column).fill_null(0).to_numpy().astype(np.int64) + 4


def cell_sizes(column: Any) -> Any:
    """Bytes that each value of a variable column takes in its row's heap."""
    if not pa.types.is_list(column.type):
        return pc.binary_length(column).fill_null(0).to_numpy().astype(np.int64)
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    element = column.type.value_type
    if not (pa.types.is_string(element) or pa.types.is_binary(element)):
        return lengths * max(element.bit_width // 8, 1)
    texts = pc.binary_length(column.flatten()).fill_null(0).to_numpy().astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(texts)])
    stops = np.cumsum(lengths)
    return 4 + 4 * lengths + ends[stops] - ends[stops - lengths]
