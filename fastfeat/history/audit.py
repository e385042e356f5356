"""Audit: does every file of the history hold what its catalog says?

Every byte is read: checksums of whole files, then of footers and row groups, counts, order, times, and that no
sequence is there twice. A fault is a sentence that begins with the file's name; such a file is looked at no further.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from crc32c import crc32c

from ..errors import StorageError
from ..places import Place
from .catalog import Catalog, DeletesFile, RowFile
from .deletes import read_deletes
from .rowfile import SEQUENCE, TIMES, Extents, key_at, key_names, read_groups

Sequences = npt.NDArray[np.uint64]


def audit(place: Place, catalog: Catalog) -> Iterator[str]:
    for view, bucket in catalog.buckets():
        seen: list[Sequences] = []
        for file in catalog.files_of(view, bucket):
            yield from file_faults(place, file) or row_faults(place, file, seen)
        yield from sequence_faults(f"{view}/{bucket:02}", seen, catalog.covered.sequence)
    for deletes in catalog.deletes:
        yield from file_faults(place, deletes) or deletes_faults(place, deletes)


def file_faults(place: Place, file: RowFile | DeletesFile) -> list[str]:
    try:
        data = place.read(file.name)
    except FileNotFoundError:
        return [f"{file.name} is missing"]
    except StorageError as error:
        return [f"{file.name}: {error}"]
    if len(data) != file.size:
        return [f"{file.name} has {len(data)} B, the catalog says {file.size}"]
    if crc32c(data) != file.crc32c:
        return [f"{file.name}: its checksum does not match the catalog's"]
    return []


def row_faults(place: Place, file: RowFile, seen: list[Sequences]) -> list[str]:
    """Faults of the rows; their sequences are added to `seen`."""
    extents = Extents()
    last: Any = None
    try:
        for table in read_groups(place, file):
            order = [*key_names(table.schema), *TIMES]
            first = key_at(table, order, 0)
            if (last is not None and last >= first) or not is_sorted(table, order):
                return [f"{file.name}: its rows are not in order"]
            last = key_at(table, order, table.num_rows - 1)
            extents.include(table)
            seen.append(table.column(SEQUENCE).to_numpy())
    except StorageError as error:
        return [f"{file.name}: {error}"]
    if extents.rows != file.rows:
        return [f"{file.name} has {extents.rows} rows, the catalog says {file.rows}"]
    stated = (file.event_times, file.created_times, file.sequences)
    if tuple(extents.of(name) for name in TIMES) != stated:
        return [f"{file.name}: its times or sequences are not those that the catalog says"]
    return []


def is_sorted(table: pa.Table, order: list[str]) -> bool:
    indices = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in order]).to_numpy()
    return bool(np.array_equal(indices, np.arange(table.num_rows)))


def sequence_faults(where: str, seen: list[Sequences], limit: int) -> list[str]:
    sequences = np.sort(np.concatenate(seen)) if seen else np.empty(0, np.uint64)
    faults = []
    if twice := int(np.count_nonzero(sequences[1:] == sequences[:-1])):
        faults.append(f"{where}: {twice} sequences are there more than once")
    if len(sequences) and sequences[-1] >= limit:
        faults.append(f"{where}: sequence {sequences[-1]} is not below {limit}, which the catalog covers")
    return faults


def deletes_faults(place: Place, file: DeletesFile) -> list[str]:
    rows = read_deletes(place, file).num_rows
    return [] if rows == file.rows else [f"{file.name} has {rows} deletes, the catalog says {file.rows}"]
