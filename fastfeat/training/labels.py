"""Labels: examples of any Arrow-capable source, in chunks, and what is asked about each: its keys and its time.

    source --sources.py--> batches --> chunk (pa.Table) --casts.py--> Asked (keys, T, K)

Promise:  the labels' own columns stay as they came, in their order. Only what is asked is cast: keys to their declared
          types, times to microseconds (one without a zone is UTC, a finer one is floored, so never later).
Errors:   DataError: a column is missing or there twice, or of a type that does not fit; a key or time is null or out
          of range. Unlike a load's, a label's fault is never passed over: a training set has a row for every label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .._core.request import keys_batch
from ..casts import Faults, cast_for
from ..dtypes import DType
from ..errors import DataError
from ..sources import bounded, open_source

if TYPE_CHECKING:
    from .._core.table import RowBatch

Known = Literal["as_served", "as_corrected"]
EVERYTHING: Final = 2**63 - 1  # as a known time: all rows count
TIMES: Final = (":event_us", ":known_us")  # no join key has a colon


class Asked:
    """What n labels ask: `rows` has their join keys, then the T and the K of each (int64 us)."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    def of(self, names: Iterable[str]) -> Asked:
        """With these of the join keys, in this order."""
        return Asked(self.rows.select([*names, *TIMES]))

    def take(self, places: NDArray[Any]) -> Asked:
        """The labels at these places."""
        return Asked(self.rows.take(pa.array(places)))

    def slice(self, start: int, size: int) -> Asked:
        """`size` labels from `start` on, or what there is of them."""
        return Asked(self.rows.slice(start, size))

    def keys(self, kinds: Mapping[str, str]) -> RowBatch:
        """These join keys, encoded as a Plan takes them."""
        return keys_batch(tuple(kinds), tuple(kinds.values()), self.rows.select(list(kinds)))

    @property
    def event_us(self) -> NDArray[np.int64]:
        times: NDArray[np.int64] = self.rows.column(TIMES[0]).to_numpy()
        return times

    @property
    def known_us(self) -> NDArray[np.int64]:
        times: NDArray[np.int64] = self.rows.column(TIMES[1]).to_numpy()
        return times


class Labels:
    """The labels of a source.

    keys: the join keys that the features need, with their types. event_time: the column that says when a label was.
    """

    def __init__(self, source: object, keys: Mapping[str, str], event_time: str) -> None:
        self._parts = open_source(source)
        self.schema: pa.Schema = self._parts[0].schema
        self.rows: int | None = getattr(source, "num_rows", None)
        if any(part.is_csv for part in self._parts):
            raise DataError(
                f"labels: {self._parts[0].name} is text, and a label's columns have types; read it with"
                " pyarrow.csv.read_csv and give the table"
            )
        for part in self._parts[1:]:
            if not part.schema.equals(self.schema):
                raise DataError(
                    f"labels: {part.name} has other columns than {self._parts[0].name}; give them one schema"
                )
        check_columns(self.schema, [*keys, event_time])
        for name, kind in keys.items():
            key_cast(self.schema.field(name).type, name, kind)
        time_cast(self.schema.field(event_time).type, event_time)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All labels, in batches of at most 65,536."""
        for part in self._parts:
            try:
                for batch in part.read(self.schema.names, lambda reason: None):
                    yield from bounded(batch)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"labels: {part.name}: {error}") from error

    def chunks(self, rows_max: int, size_max: int, size_beside: int) -> Iterator[pa.Table]:
        """All labels, in tables of about so many rows and bytes at most; `size_beside`: of each beside its columns."""
        held: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in self.batches():
            batch_size = batch.nbytes + size_beside * batch.num_rows
            if held and (rows + batch.num_rows > rows_max or size + batch_size > size_max):
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
            held.append(batch)
            rows += batch.num_rows
            size += batch_size
        if held:
            yield pa.Table.from_batches(held)


def check_columns(schema: pa.Schema, wanted: list[str]) -> None:
    for name in dict.fromkeys(wanted):
        count = schema.names.count(name)
        if count != 1:
            raise DataError(
                f"labels: column {name!r} is there {count} times; a label needs its join keys and its time"
                f" (event_time=), each once; there are {', '.join(schema.names) or 'none'}"
            )


def key_cast(source: pa.DataType, name: str, kind: str) -> Any:
    if pa.types.is_floating(source):
        raise DataError(
            f"labels: join key {name!r} is {source}; floats do not compare by value: cast the column to {kind}"
        )
    cast = cast_for(source, DType(kind), f"labels: join key {name!r}")
    if kind in ("string", "int64", "uint64"):
        return cast
    return lambda column, faults: cast(column, faults).cast(pa.int64())


def time_cast(source: pa.DataType, name: str) -> Any:
    cast = cast_for(source, DType("timestamp"), f"labels: column {name!r}")
    return lambda column, faults: cast(column, faults).view(pa.int64())


def cast_whole(column: Any, cast: Any, what: str) -> Any:
    """A chunked column cast, as one array. Raises DataError for the first fault."""
    arrays = []
    for chunk in column.chunks:
        faults = Faults(len(chunk))
        array = cast(chunk, faults)
        faults.add_nulls(f"{what} is null", array)
        if faults.reasons:
            reasons = "; ".join(f"{reason} ({count} labels)" for reason, count in faults.reasons.items())
            raise DataError(f"labels: {reasons}; leave such labels out or mend them")
        arrays.append(array)
    if len(arrays) == 1:
        return arrays[0]
    return pa.concat_arrays(arrays) if arrays else cast(pa.array([], column.type), Faults(0))


def asked_of(labels: pa.Table, keys: Mapping[str, str], event_time: str, known: Known) -> Asked:
    """What these labels ask. Raises DataError."""
    schema = labels.schema
    columns = {
        name: cast_whole(labels.column(name), key_cast(schema.field(name).type, name, kind), f"join key {name!r}")
        for name, kind in keys.items()
    }
    times = cast_whole(
        labels.column(event_time), time_cast(schema.field(event_time).type, event_time), f"column {event_time!r}"
    )
    known_us = times if known == "as_served" else pa.array(np.full(len(times), EVERYTHING, np.int64))
    return Asked(pa.RecordBatch.from_arrays([*columns.values(), times, known_us], names=[*columns, *TIMES]))
