"""Deletes: per view, the keys that were deleted and when; what a compaction takes out of the row files by them.

    key columns | deleted_us        one file per view, sorted by keys, the latest delete of each key

Promise:  a delete stays for ever: a row that was created before it may come at any time, and must go again.
Errors:   HistoryCorrupt where the file is missing or not what was written.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from crc32c import crc32c

from ..errors import HistoryCorrupt
from ..places import Place
from .catalog import DeletesFile, deletes_name
from .rowfile import CREATED_TIME, key_at, key_names, key_range

DELETED = "deleted_us"


def write_deletes(place: Place, view: str, number: int, deletes: pa.Table) -> DeletesFile:
    name = deletes_name(view, number)
    sink = io.BytesIO()
    pq.write_table(deletes, sink, compression="lz4")
    data = sink.getvalue()
    place.write(name, data)
    return DeletesFile(name, view, number, deletes.num_rows, len(data), crc32c(data))


def read_deletes(place: Place, file: DeletesFile) -> pa.Table:
    try:
        data = place.read(file.name)
    except FileNotFoundError:
        raise HistoryCorrupt(f"{place.where}: {file.name} is missing; restore it from a backup") from None
    if crc32c(data) != file.crc32c:
        raise HistoryCorrupt(
            f"{place.where}: {file.name} is damaged: its checksum does not match; restore it from a backup"
        )
    return pq.read_table(pa.BufferReader(pa.py_buffer(data)), use_threads=False)


def merge_deletes(old: pa.Table | None, new: pa.Table) -> pa.Table:
    """One delete per key, the latest, sorted by keys."""
    both = pa.concat_tables([old, new]) if old is not None else new
    names = [name for name in both.schema.names if name != DELETED]
    latest = both.group_by(names, use_threads=False).aggregate([(DELETED, "max")]).rename_columns([*names, DELETED])
    return latest.sort_by([(name, "ascending") for name in names]).combine_chunks()


def erase(chunks: Iterable[pa.Table], deletes: pa.Table) -> Iterator[pa.Table]:
    """The rows that were not created before their key's delete; `deletes` is sorted by keys."""
    for chunk in chunks:
        names = key_names(chunk.schema)
        first, _ = key_range(deletes, names, key_at(chunk, names, 0))
        _, stop = key_range(deletes, names, key_at(chunk, names, chunk.num_rows - 1))
        yield without_deleted(chunk, names, deletes.slice(first, stop - first)) if stop > first else chunk


def without_deleted(chunk: pa.Table, names: list[str], deletes: pa.Table) -> pa.Table:
    keys = chunk.select(names)
    keys = keys.append_column("created", chunk.column(CREATED_TIME).cast(pa.int64()))
    keys = keys.append_column("row", pa.array(np.arange(chunk.num_rows)))
    joined = keys.join(deletes, names, join_type="inner", use_threads=False)
    gone = joined.filter(pc.less(joined.column("created"), joined.column(DELETED))).column("row").to_numpy()
    kept = np.ones(chunk.num_rows, np.bool_)
    kept[gone] = False
    return chunk.filter(pa.array(kept))
