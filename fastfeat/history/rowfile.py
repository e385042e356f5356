"""Row files: the rows of one view and bucket, sorted, as Parquet that is read one row group at a time.

    | PAR1 | row group | row group | ... | footer: Parquet's own, and where each row group lies with its crc32c | PAR1 |
             sorted by join keys, event time, created time, sequence

Promise:   bytes are checked before they are decoded: the footer against the catalog, a row group against the footer.
           A row group has the rows of neighbouring keys: one entity's are in one row group of a file, seldom two.
Measured:  4,096 rows x 10 float64 (0.5 MiB) are decoded in 0.25 ms with lz4, 0.7 ms with zstd for 8 % fewer bytes.
           Checked, found and copied, they take 0.6 ms, twice as many rows 1.1 ms, half as many 0.5 ms and twice the
           footers. Hence lz4, and rows enough for 0.5 MiB.
Errors:    HistoryCorrupt names the file and what does not match.
"""

from __future__ import annotations

import io
import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from crc32c import crc32c

from ..errors import HistoryCorrupt, StorageError
from ..places import Place
from .catalog import RowFile, row_file_name

EVENT_TIME, CREATED_TIME, SEQUENCE = "event_timestamp", "created_timestamp", "_sequence"
TIMES = (EVENT_TIME, CREATED_TIME, SEQUENCE)

COMPRESSION = "lz4"
GROUP_SIZE_AIM = 1 << 19  # of a row group's values in memory
GROUP_ROWS_MIN, GROUP_ROWS_MAX = 64, 16_384
GROUPS_KEY = b"fastfeat.groups"  # in the footer: [start, size, crc32c] of each row group
TAIL_SIZE = 8  # Parquet's last bytes: the footer's size (4) and its magic (4)

Key = tuple[Any, ...]  # an entity's join keys as Python values, in the order of the columns


def key_names(schema: pa.Schema) -> list[str]:
    """The join keys: all columns before the event time."""
    names: list[str] = schema.names
    return names[: names.index(EVENT_TIME)]


def sort_rows(table: pa.Table) -> pa.Table:
    """By join keys, event time, created time, sequence. Arrow orders text by its bytes, which is Python's order too."""
    order = [*key_names(table.schema), *TIMES]
    table = table.combine_chunks()
    return table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in order]))


def keys_of(table: pa.Table, names: Sequence[str]) -> list[Key]:
    return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))


def key_at(table: pa.Table, names: Sequence[str], row: int) -> Key:
    return tuple(table.column(name)[row].as_py() for name in names)


def key_range(table: pa.Table, names: Sequence[str], key: Key) -> tuple[int, int]:
    """First row and the one after the last of `key` in a table sorted by keys; both the place for it where absent."""
    first, stop = 0, table.num_rows
    for name, value in zip(names, key, strict=True):
        column = table.column(name)
        first, stop = (
            bisect_left(column, value, first, stop, key=as_py),
            bisect_right(column, value, first, stop, key=as_py),
        )
    return first, stop


def as_py(scalar: Any) -> Any:
    return scalar.as_py()


# --- writing


def write_row_file(
    place: Place, view: str, bucket: int, number: int, chunks: Iterable[pa.Table], erased: int = 0
) -> RowFile | None:
    """Write sorted rows as one durable file; None, and no file, where there are none."""
    name = row_file_name(view, bucket, number)
    sink = io.BytesIO()
    writer: Any = None
    groups: list[tuple[int, int, int]] = []
    extents = Extents()
    for table in grouped(chunks):
        if writer is None:
            writer = parquet_writer(sink, table.schema)
        start = sink.tell()
        writer.write_table(table, row_group_size=table.num_rows)
        groups.append((start, sink.tell() - start, checksum(sink, start)))
        extents.include(table)
    if writer is None:
        return None
    writer.add_key_value_metadata({GROUPS_KEY.decode(): json.dumps(groups)})
    writer.close()
    data = sink.getvalue()
    footer_size = int.from_bytes(data[-TAIL_SIZE:-4], "little") + TAIL_SIZE
    place.write(name, data)
    return RowFile(
        name,
        view,
        bucket,
        extents.rows,
        len(data),
        crc32c(data),
        footer_size,
        crc32c(memoryview(data)[-footer_size:]),
        extents.of(SEQUENCE),
        extents.of(EVENT_TIME),
        extents.of(CREATED_TIME),
        erased,
    )


def parquet_writer(sink: io.BytesIO, schema: pa.Schema) -> Any:
    keys = key_names(schema)
    text = [each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_binary(each.type)]
    deltas = [name for name in (*keys, *TIMES) if name not in text]
    return pq.ParquetWriter(
        sink,
        schema,
        compression=COMPRESSION,
        use_dictionary=text,
        column_encoding=dict.fromkeys(deltas, "DELTA_BINARY_PACKED"),
        write_statistics=[*keys, *TIMES],
        write_page_checksum=True,  # ours are checked here; these are for other readers
    )


def checksum(sink: io.BytesIO, start: int) -> int:
    with sink.getbuffer() as whole, whole[start:] as part:
        return crc32c(part)


def grouped(chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of a row group each."""
    held: list[pa.Table] = []
    for chunk in chunks:
        if chunk.num_rows:
            held.append(chunk)
            table = pa.concat_tables(held)
            limit = group_rows(table)
            for start in range(0, table.num_rows - limit + 1, limit):
                yield table.slice(start, limit).combine_chunks()
            held = [table.slice(table.num_rows - table.num_rows % limit)]
    if held and held[0].num_rows:
        yield pa.concat_tables(held).combine_chunks()


def group_rows(table: pa.Table) -> int:
    rows = int(GROUP_SIZE_AIM * table.num_rows // max(table.nbytes, 1))
    return max(GROUP_ROWS_MIN, min(GROUP_ROWS_MAX, rows))


class Extents:
    """How many rows were written, and the least and greatest of their times and sequences."""

    def __init__(self) -> None:
        self.rows = 0
        self._values: dict[str, list[int]] = defaultdict(list)

    def include(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        for name in TIMES:
            column = table.column(name)
            ends = pc.min_max(column if name == SEQUENCE else column.cast(pa.int64())).as_py()
            self._values[name] += ends.values()

    def of(self, name: str) -> tuple[int, int]:
        return min(self._values[name]), max(self._values[name])


# --- reading


@dataclass(frozen=True)
class Footer:
    """What a file's footer says: its row groups, where they lie, and the range of each join key in each of them."""

    file: RowFile
    metadata: Any
    groups: list[tuple[int, int, int]]
    key_names: list[str]
    ranges: list[tuple[list[Any], list[Any]] | None]  # per join key: least and greatest per row group, where all say so

    @property
    def size(self) -> int:
        """About what it takes in memory: the parsed form is a few times the written one."""
        return self.file.footer_size * 4

    def groups_of(self, keys: Iterable[Key]) -> dict[int, list[Key]]:
        """The row groups that may hold the keys, each with those it may hold."""
        found: dict[int, list[Key]] = defaultdict(list)
        for key in keys:
            for group in self._candidates(key[0]):
                if all(within(ends, group, value) for ends, value in zip(self.ranges, key, strict=True)):
                    found[group].append(key)
        return found

    def _candidates(self, first: Any) -> range:
        """By the first key alone: rows are sorted by it first, so its least and greatest grow from group to group."""
        ends = self.ranges[0]
        if ends is None:
            return range(len(self.groups))
        least, greatest = ends
        return range(bisect_left(greatest, first), bisect_right(least, first))


def within(ends: tuple[list[Any], list[Any]] | None, group: int, value: Any) -> bool:
    return ends is None or bool(ends[0][group] <= value <= ends[1][group])


def read_footer(place: Place, file: RowFile) -> Footer:
    data = read_range(place, file, file.size - file.footer_size, file.footer_size, file.footer_crc32c, "footer")
    metadata = pq.read_metadata(pa.BufferReader(data))
    names = key_names(metadata.schema.to_arrow_schema())
    ranges = [ranges_of(metadata, column) for column in range(len(names))]
    groups = [tuple(each) for each in json.loads(metadata.metadata[GROUPS_KEY])]
    return Footer(file, metadata, groups, names, ranges)


def ranges_of(metadata: Any, column: int) -> tuple[list[Any], list[Any]] | None:
    """None where a row group does not say: Parquet leaves out what is longer than 4,096 bytes."""
    statistics = [metadata.row_group(group).column(column).statistics for group in range(metadata.num_row_groups)]
    if not all(each is not None and each.has_min_max for each in statistics):
        return None
    return [each.min for each in statistics], [each.max for each in statistics]


def read_group(place: Place, footer: Footer, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group, each column in one chunk; `columns` in their order, or all."""
    start, size, checksum = footer.groups[group]
    data = read_range(place, footer.file, start, size, checksum, f"row group {group}")
    window = Window(data, start, footer.file.size)
    try:
        table = pq.ParquetFile(window, metadata=footer.metadata).read_row_group(group, columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise corrupt(place, footer.file, f"row group {group} can't be decoded: {error}") from error
    return (table.select(columns) if columns else table).combine_chunks()


def read_groups(place: Place, file: RowFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """All rows of a file, in order."""
    footer = read_footer(place, file)
    return (read_group(place, footer, group, columns) for group in range(len(footer.groups)))


def read_range(place: Place, file: RowFile, start: int, size: int, checksum: int, what: str) -> Any:
    """Bytes of a file, checked."""
    try:
        with place.open(file.name) as source:
            source.seek(min(start, source.size()))
            data = source.read_buffer(size)
    except FileNotFoundError:
        raise corrupt(place, file, "the file is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"{place.where}: {file.name} can't be read: {error}") from error
    if data.size != size:
        raise corrupt(place, file, f"its {what} ends after {data.size} of {size} B")
    if crc32c(data) != checksum:
        raise corrupt(place, file, f"the checksum of its {what} does not match")
    return data


def corrupt(place: Place, file: RowFile, why: str) -> HistoryCorrupt:
    return HistoryCorrupt(
        f"{place.where}: {file.name} of view {file.view!r} is damaged: {why}; restore it from a backup"
    )


class Window:
    """A file for Parquet's reader of which only one run of bytes is at hand."""

    closed = False

    def __init__(self, data: Any, start: int, size: int) -> None:
        self._data = data
        self._start = start
        self._size = size
        self._at = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> Any:
        start = self._at - self._start
        if start < 0 or size < 0 or start + size > self._data.size:
            raise OSError(f"read of {size} B at {self._at} leaves the row group")
        self._at += size
        return self._data.slice(start, size)

    def close(self) -> None:
        """Nothing is open."""
