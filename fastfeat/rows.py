"""Rows at rest: the Arrow form of a view's rows and heads, as snapshots and the history keep them.

    Table --export--> rows  | join keys | event_timestamp | created_timestamp | _sequence | fields ...
                      heads | join keys | deleted_us | has_dropped | dropped_min_event | ...
          <--batches--

Join keys are int64, uint64 or utf8; times timestamp[us, UTC]; `_sequence` (uint64) is a row's place in the log of the
whole store; fields have their canonical types (dtypes.py). Equal rows are equal bytes on the way back in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ._core.request import hash_keys
from .dtypes import DType
from .result import arrow_array
from .schema import FeatureView

if TYPE_CHECKING:
    from ._core.exports import Exported
    from ._core.table import RowBatch, Table

SEQUENCE = "_sequence"
TIME = pa.timestamp("us", tz="UTC")
NEVER = -(2**63)
HEAD_COLUMNS = (
    "deleted_us",
    "has_dropped",
    "dropped_min_event",
    "dropped_min_created",
    "dropped_max_created",
    "dropped_last_event",
    "dropped_last_created",
)
KEY_ARROW = {"string": pa.string(), "uint64": pa.uint64()}


def key_type(kind: str) -> pa.DataType:
    return KEY_ARROW.get(kind, pa.int64())


def key_fields(view: FeatureView) -> list[pa.Field]:
    return [pa.field(name, key_type(kind), nullable=False) for name, kind in view.entity.join_keys.items()]


def rows_schema(view: FeatureView) -> pa.Schema:
    """The columns of a view's rows at rest."""
    times = [pa.field(name, TIME, nullable=False) for name in ("event_timestamp", "created_timestamp")]
    fields = [pa.field(each.name, each.dtype.arrow(), nullable=each.nullable) for each in view.schema]
    return pa.schema([*key_fields(view), *times, pa.field(SEQUENCE, pa.uint64(), nullable=False), *fields])


def heads_schema(view: FeatureView) -> pa.Schema:
    """The columns of what entities remember of rows that are gone; a delete that never was is null."""
    kinds = [pa.int64(), pa.bool_(), *[pa.int64()] * 5]
    return pa.schema([*key_fields(view), *[pa.field(n, k) for n, k in zip(HEAD_COLUMNS, kinds, strict=True)]])


def rows_batch(view: FeatureView, exported: Exported) -> pa.RecordBatch:
    """The rows of an export, entity by entity, each entity's in order."""
    keys, _, stamps, columns = exported
    entity_of = pa.array(stamps[:, 3])
    arrays = [array.take(entity_of) for array in key_arrays(view, keys)]
    arrays += [pa.array(np.ascontiguousarray(stamps[:, i])).cast(TIME) for i in range(2)]
    arrays.append(pa.array(np.ascontiguousarray(stamps[:, 2]).view(np.uint64)))
    arrays += [arrow_array(each.dtype, column) for each, column in zip(view.schema, columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=rows_schema(view))


def heads_batch(view: FeatureView, exported: Exported) -> pa.RecordBatch:
    """The heads of an export: of those entities only that remember something."""
    keys, heads, _, _ = exported
    chosen = np.flatnonzero((heads[:, 0] != NEVER) | (heads[:, 1] != 0))
    arrays = [array.take(pa.array(chosen)) for array in key_arrays(view, keys)]
    heads = heads[chosen]
    arrays.append(pa.array(heads[:, 0], mask=heads[:, 0] == NEVER))
    arrays.append(pa.array(heads[:, 1] != 0))
    arrays += [pa.array(np.where(heads[:, 1] != 0, heads[:, i], 0)) for i in range(2, 7)]
    return pa.RecordBatch.from_arrays(arrays, schema=heads_schema(view))


def key_arrays(view: FeatureView, keys: Sequence[tuple[NDArray[Any], NDArray[np.uint32] | None]]) -> list[Any]:
    arrays = []
    for kind, (data, offsets) in zip(view.entity.join_keys.values(), keys, strict=True):
        if offsets is None:
            arrays.append(pa.array(data))
        else:
            arrays.append(arrow_array(DType(kind), (np.ones(len(offsets) - 1, np.uint8), data, offsets)))
    return arrays


def batch_of_rows(table: Table, view: FeatureView, rows: Any) -> RowBatch:
    """Rows at rest as a batch for Table.prepare, each with the sequence it had. The batch borrows them."""
    names = [*view.entity.join_keys, "event_timestamp", "created_timestamp", *[each.name for each in view.schema]]
    batch = table.borrowed_batch(rows.select(names))
    batch.set_sequences(rows.column(SEQUENCE).to_numpy())
    return batch


def entity_columns(view: FeatureView, rows: Any) -> dict[str, Any]:
    """The join keys of Arrow rows, as reads and deletes take them."""
    return {
        name: rows.column(name).to_pylist() if kind == "string" else rows.column(name).to_numpy()
        for name, kind in view.entity.join_keys.items()
    }


def key_hashes(view: FeatureView, columns: Any) -> NDArray[np.uint64]:
    """The stable hash of each entity's key: what files of rows are split by."""
    keys = view.entity.join_keys
    return hash_keys(list(keys), list(keys.values()), columns)


def heads_of(rows: Any) -> NDArray[np.int64]:
    """Heads at rest as Table.prepare_heads takes them."""
    columns = [rows.column(name) for name in HEAD_COLUMNS]
    columns = [columns[0].fill_null(NEVER), columns[1].cast(pa.int64()), *columns[2:]]
    return np.ascontiguousarray(np.stack([column.to_numpy() for column in columns], axis=1).astype(np.int64))
