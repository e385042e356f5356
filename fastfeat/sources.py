"""Sources: whatever holds rows, opened as parts that each have one schema and stream record batches.

pyarrow.Table, RecordBatch, RecordBatchReader                   one part
__arrow_c_stream__, __arrow_c_array__ (pandas, polars, ...)     one part
path of .parquet, .arrow, .feather, .ipc, .csv                  one part
directory                                                       a part per file, in order of their paths
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import DataError

BATCH_ROWS_MAX = 65_536  # of one append: large enough to be cheap per row, small enough to bound what readers wait for
BATCH_SIZE_AIM = 64 << 20
IPC_FILE_MAGIC = b"ARROW1"
IPC_SUFFIXES = (".arrow", ".feather", ".ipc")
SUFFIXES = (".parquet", *IPC_SUFFIXES, ".csv")
CSV_RAGGED = "CSV line has another number of columns than the header"


@dataclass(frozen=True)
class Part:
    """Rows of one schema. `read(columns, reject)` streams those columns; CSV tells `reject` of lines it can't read."""

    name: str
    schema: pa.Schema
    read: Callable[[Sequence[str], Callable[[str], None]], Iterator[Any]]
    is_csv: bool = False


def open_source(source: object) -> list[Part]:
    """The parts of a source (a Part is its own). Raises DataError: not there, not readable, or no Arrow rows in it."""
    if isinstance(source, Part):
        return [source]
    if isinstance(source, (str, os.PathLike)):
        return open_path(Path(source))
    if isinstance(source, pa.RecordBatch):
        source = pa.Table.from_batches([source])
    if isinstance(source, pa.Table):
        return [reader_part(source.to_reader(max_chunksize=BATCH_ROWS_MAX))]
    if isinstance(source, pa.RecordBatchReader):
        return [reader_part(source)]
    if hasattr(source, "__arrow_c_stream__"):
        return [reader_part(pa.RecordBatchReader.from_stream(source))]
    if hasattr(source, "__arrow_c_array__"):
        return open_source(pa.record_batch(source))
    raise DataError(
        f"a source is an Arrow table or reader, a dataframe, or a path, not {type(source).__name__};"
        " rows as dicts go through push"
    )


def reader_part(reader: Any) -> Part:
    return Part("source", reader.schema, lambda columns, reject: iter(reader))


def open_path(path: Path) -> list[Part]:
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in SUFFIXES and not is_hidden(f.relative_to(path)))
        if not files:
            raise DataError(f"directory {path} holds no {', '.join(SUFFIXES)} file")
        return [open_file(file) for file in files]
    if not path.exists():
        raise DataError(f"there is no file {path}")
    return [open_file(path)]


def is_hidden(path: Path) -> bool:
    """True for what writers leave beside data: .crc files, _SUCCESS, _temporary."""
    return any(part.startswith((".", "_")) for part in path.parts)


def open_file(path: Path) -> Part:
    try:
        if path.suffix == ".parquet":
            return open_parquet(path)
        if path.suffix in IPC_SUFFIXES:
            return open_ipc(path)
        if path.suffix == ".csv":
            return open_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {error}") from error
    raise DataError(f"{path} is none of {', '.join(SUFFIXES)}")


def open_parquet(path: Path) -> Part:
    import pyarrow.parquet as pq

    def read(columns: Sequence[str], reject: Callable[[str], None]) -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH_ROWS_MAX, columns=list(columns))

    return Part(str(path), pq.read_schema(path), read)


def open_ipc(path: Path) -> Part:
    with path.open("rb") as file:
        is_file = file.read(len(IPC_FILE_MAGIC)) == IPC_FILE_MAGIC

    def read(columns: Sequence[str], reject: Callable[[str], None]) -> Iterator[Any]:
        with pa.memory_map(str(path)) as mapped:
            if not is_file:
                yield from pa.ipc.open_stream(mapped)
                return
            file = pa.ipc.open_file(mapped)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))

    with pa.memory_map(str(path)) as mapped:
        schema = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).schema
    return Part(str(path), schema, read)


def open_csv(path: Path) -> Part:
    """Every column as bytes: types are the view's to say, and one bad line must not end the file."""
    from pyarrow import csv

    # Opening reads a first block already, and its bad lines are `read`'s to report.
    with csv.open_csv(path, parse_options=csv_format(csv, lambda reason: None)) as reader:
        names = reader.schema.names

    def read(columns: Sequence[str], reject: Callable[[str], None]) -> Iterator[Any]:
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.binary()),
            include_columns=list(columns),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        with csv.open_csv(path, convert_options=convert, parse_options=csv_format(csv, reject)) as reader:
            yield from reader

    return Part(str(path), pa.schema([(name, pa.binary()) for name in names]), read, is_csv=True)


def csv_format(csv: Any, reject: Callable[[str], None]) -> Any:
    """Values may hold newlines; a line of another width than the header is told to `reject` and skipped."""

    def skip(row: object) -> str:
        reject(CSV_RAGGED)
        return "skip"

    return csv.ParseOptions(invalid_row_handler=skip, newlines_in_values=True)


def bounded(batch: Any) -> Iterator[Any]:
    """Slices of a batch, each of at most BATCH_ROWS_MAX rows and about BATCH_SIZE_AIM bytes."""
    rows = batch.num_rows
    step = max(1, min(BATCH_ROWS_MAX, rows * BATCH_SIZE_AIM // max(batch.nbytes, 1)))
    if rows <= step:
        yield batch
        return
    yield from (batch.slice(at, step) for at in range(0, rows, step))
