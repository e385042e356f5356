"""Stored rows: every row of a durable store below one position, bucket by bucket, in chunks that hold whole keys.

    tails (in memory, taken once) --+
    row files of the bucket --------+--merged by key--> chunk, chunk, ...      deletes, taken once

Promise:      what is read is what the store held at the position, whatever is written, flushed or compacted meanwhile;
              only a delete that comes meanwhile may show: to forget is worth more than to repeat.
Memory:       the tails and the deletes, and per bucket that is read one chunk and a row group or two per file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._core.exports import export_shards, shards_of
from ..applied import Definitions
from ..durable import Storage, Tail
from ..history.deletes import DELETED, erase
from ..history.history import bucket_of
from ..history.merging import merge_rows
from ..history.rowfile import sort_rows
from ..rows import SEQUENCE, entity_columns, heads_batch, key_hashes, rows_batch, rows_schema
from ..schema import FeatureView

if TYPE_CHECKING:
    from .._core.table import Table

VARIABLE_SIZE: Final = 64  # bytes taken for a text or list


class StoredRows:
    """The rows of some views of a durable store as they are at a position."""

    def __init__(self, storage: Storage, definitions: Definitions, views: Mapping[str, FeatureView], end: int) -> None:
        """views: with the fields that are wanted. Order: the tails are taken now, before any file is looked at."""
        self._history = storage.history
        self._definitions = definitions
        self._end = end
        self._views = views
        tails = storage.tails
        self._tails = {name: split_by_bucket(view, self._tail_rows(tails, view)) for name, view in views.items()}
        self._deletes = {
            name: split_by_bucket(view, deletes_of(view, definitions.tables[name])) for name, view in views.items()
        }

    def _tail_rows(self, tails: Sequence[Tail], view: FeatureView) -> pa.Table:
        whole = self._definitions.views[view.name]
        schema = rows_schema(view)
        tables = [table for tail in tails if (table := tail.table(whole)) is not None]
        parts = [
            rows_batch(whole, export_shards(table, shard, shard + 1, self._end)).select(schema.names)
            for table in tables
            for shard in range(shards_of(table))
        ]
        return pa.Table.from_batches(parts, schema=schema)

    def chunks(self, view: str, bucket: int, size_max: int) -> Iterator[pa.Table]:
        """The rows of a bucket in tables of about `size_max` bytes that each hold whole keys.

        They follow one another by key, and are sorted by it where there are several.
        """
        schema = rows_schema(self._views[view])
        held: list[pa.Table] = []
        size = 0
        with self._history.reading_bucket(view, bucket, schema.names) as (covered, rows, files):
            tail = self._tails[view].get(bucket)
            if tail is not None:
                # What moved into the history since the tails were taken is there, too.
                tail = tail.filter(pc.greater_equal(tail.column(SEQUENCE), pa.scalar(covered, pa.uint64())))
                files = [*files, iter([sort_rows(tail)] if tail.num_rows else [])]
            deletes = self._deletes[view].get(bucket)
            # Why not merged where all fit: rows are put in order later in any case, and merging costs more than that.
            is_by_key = rows * row_size(self._views[view]) > size_max or deletes is not None
            parts = merge_rows(files) if is_by_key else chain(*files)
            for part in parts if deletes is None else erase(parts, sorted_by_key(deletes)):
                part = part.cast(schema)
                part = part.filter(pc.less(part.column(SEQUENCE), pa.scalar(self._end, pa.uint64())))
                if not part.num_rows:
                    continue
                held.append(part)
                size += part.nbytes
                if size >= size_max and is_by_key:
                    yield pa.concat_tables(held)
                    held, size = [], 0
        if held:
            yield pa.concat_tables(held)


def row_size(view: FeatureView) -> int:
    """About the bytes of a row as Arrow; of a text or list nobody knows."""
    keys = sum(VARIABLE_SIZE if kind == "string" else 8 for kind in view.entity.join_keys.values())
    fields = sum(VARIABLE_SIZE if field.dtype.is_variable else field.dtype.width + 1 for field in view.schema)
    return keys + 3 * 8 + fields


def deletes_of(view: FeatureView, table: Table) -> pa.Table:
    """The deletes that a table in memory knows: join keys and deleted_us. By shard, as most entities have none."""
    names = [*view.entity.join_keys, DELETED]
    parts = [heads_batch(view, export_shards(table, shard, shard + 1, 0)) for shard in range(shards_of(table))]
    some = [part.filter(pc.is_valid(part.column(DELETED))).select(names) for part in parts]
    return pa.Table.from_batches(some)


def sorted_by_key(deletes: pa.Table) -> pa.Table:
    return deletes.sort_by([(name, "ascending") for name in deletes.schema.names if name != DELETED])


def split_by_bucket(view: FeatureView, table: pa.Table) -> dict[int, pa.Table]:
    if not table.num_rows:
        return {}
    buckets = bucket_of(key_hashes(view, entity_columns(view, table)))
    order = np.argsort(buckets, kind="stable")
    table = table.take(pa.array(order))
    numbers, starts = np.unique(buckets[order], return_index=True)
    stops = [*starts[1:], len(order)]
    return {int(n): table.slice(a, b - a) for n, a, b in zip(numbers, starts.tolist(), stops, strict=True)}
