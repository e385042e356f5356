"""Snapshot: all rows of all views at one point of the log, as plain Arrow files with one manifest.

    <generation, 20 digits>/
        <view>/rows/<shard>.arrow     Arrow IPC file, lz4: keys, event_timestamp, created_timestamp, _sequence, fields
        <view>/heads/<shard>.arrow    what an entity remembers beyond its rows: deleted, dropped
        manifest.json                 first line: checksum of the rest; then where in the log it stands, every file's
                                      size, rows and checksum, every view's schemas

Promise:     a snapshot exists once its manifest does, and the manifest is written last: it is whole or not there. What
             `read_parts` yields is what `write_snapshot` was given, or it raises.
Invariant:   a generation's files are never changed; a new snapshot takes a new number.
Concurrency: one writer; readers wherever they like. A snapshot that is removed while it is read raises SnapshotCorrupt.
Errors:      SnapshotCorrupt (size, checksum, count, schema, a missing file); LayoutMismatch (of a later fastfeat);
             StorageError from the place.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa

from .errors import LayoutMismatch, SnapshotCorrupt, StorageError
from .places import Place

FORMAT = 1
MANIFEST = "manifest.json"
GENERATION = re.compile(r"(\d{20})/(.+)")
KINDS = ("rows", "heads")
# One thread per file already: Arrow's own would only take turns with ours.
WRITING = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
READING = pa.ipc.IpcReadOptions(use_threads=False)


class Part(NamedTuple):
    """One shard of one view."""

    view: str
    shard: int
    rows: pa.RecordBatch
    heads: pa.RecordBatch


@dataclass(frozen=True)
class SnapshotInfo:
    """Where a snapshot stands and what is in it."""

    generation: int  # given by write_snapshot
    sequence: int  # rows below it are in the snapshot
    log_start: int  # recovery replays the log from here
    log_end: int  # the log must reach this far: rows up to here were seen
    created_us: int  # the last created time given out
    taken_us: int
    seed: tuple[int, int]  # of the key hash, which says what shard an entity is in
    definitions: list[dict[str, Any]]
    views: dict[str, dict[str, int]]  # name -> rows (counted by write_snapshot), entities


@dataclass(frozen=True)
class PartFile:
    """One file as the manifest describes it."""

    view: str
    shard: int
    kind: str
    rows: int
    size: int
    crc32: int

    @property
    def name(self) -> str:
        return f"{self.view}/{self.kind}/{self.shard:02d}.arrow"


@dataclass(frozen=True)
class Manifest:
    """The one file that makes the others a snapshot."""

    info: SnapshotInfo
    schemas: dict[str, dict[str, pa.Schema]] = field(default_factory=dict)  # view -> kind -> schema
    files: list[PartFile] = field(default_factory=list)

    def encode(self) -> bytes:
        schemas = {view: {kind: encode_schema(kinds[kind]) for kind in KINDS} for view, kinds in self.schemas.items()}
        body = {
            "format": FORMAT,
            "info": asdict(self.info),
            "schemas": schemas,
            "files": [asdict(file) for file in self.files],
        }
        return encode_checked(body)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Manifest:
        try:
            body = decode_checked(data)
        except ValueError as error:
            raise SnapshotCorrupt(f"{where}: the manifest is damaged: {error}; use another snapshot") from None
        if body["format"] != FORMAT:
            raise LayoutMismatch(
                f"{where}: a snapshot of format {body['format']}, this fastfeat reads {FORMAT};"
                " use the fastfeat that wrote it"
            )
        info = SnapshotInfo(**{**body["info"], "seed": tuple(body["info"]["seed"])})
        schemas = {
            view: {kind: decode_schema(kinds[kind]) for kind in KINDS} for view, kinds in body["schemas"].items()
        }
        return cls(info, schemas, [PartFile(**file) for file in body["files"]])


def encode_checked(body: dict[str, Any]) -> bytes:
    """A JSON object whose first line is the checksum of all that follows it."""
    text = json.dumps(body, indent=1).encode().removeprefix(b"{\n")
    return checksum_line(text) + text


def decode_checked(data: bytes) -> dict[str, Any]:
    """Raises ValueError where it is not what `encode_checked` made."""
    first, _, text = data.partition(b"\n")
    if first + b"\n" != checksum_line(text):
        raise ValueError("its checksum is not that of its text")
    body: dict[str, Any] = json.loads(data)
    return body


def checksum_line(text: bytes) -> bytes:
    return b'{"crc32": "%08x",\n' % zlib.crc32(text)


def encode_schema(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode()


def decode_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


# --- writing


def write_snapshot(place: Place, parts: Iterable[Part], finish: Callable[[], SnapshotInfo]) -> SnapshotInfo:
    """Write the parts as they come, then call `finish`, then install the manifest; return what was installed.

    finish: makes the log durable up to what the parts have seen and says where that is. Its generation and its counts
            of rows are replaced by the true ones.
    Nothing of it stays if anything raises, unless the place itself fails; then the next call removes what is left.
    """
    generation = next_generation(place)
    home = place.sub(folder(generation))
    try:
        files: list[PartFile] = []
        schemas: dict[str, dict[str, pa.Schema]] = {}
        for part in parts:
            check_schemas(schemas, part)
            files += [write_part_file(home, part, kind) for kind in KINDS if getattr(part, kind).num_rows]
        info = counted(replace(finish(), generation=generation), files)
        home.write(MANIFEST, Manifest(info, schemas, files).encode())
    except Exception:
        with suppress(StorageError, OSError):
            remove_leftovers(place)
        raise
    return info


def next_generation(place: Place) -> int:
    """A number that no snapshot has, finished or not; leftovers of unfinished ones are removed."""
    numbers = {int(found[1]) for name in place.list() if (found := GENERATION.fullmatch(name))}
    remove_leftovers(place)
    return max(numbers, default=0) + 1


def check_schemas(schemas: dict[str, dict[str, pa.Schema]], part: Part) -> None:
    """Raises ValueError where parts of one view differ: they could not be read as one table."""
    new = {kind: getattr(part, kind).schema for kind in KINDS}
    known = schemas.setdefault(part.view, new)
    for kind in KINDS:
        if not known[kind].equals(new[kind], check_metadata=True):
            raise ValueError(f"view {part.view!r}, shard {part.shard}: {kind} have another schema than the part before")


def write_part_file(home: Place, part: Part, kind: str) -> PartFile:
    batch: pa.RecordBatch = getattr(part, kind)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema, options=WRITING) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    file = PartFile(part.view, part.shard, kind, batch.num_rows, data.size, zlib.crc32(data))
    home.write(file.name, data)
    return file


def counted(info: SnapshotInfo, files: list[PartFile]) -> SnapshotInfo:
    """The info with the number of rows that were written."""
    views = {view: {**counts, "rows": rows_of(files, view)} for view, counts in info.views.items()}
    unknown = {file.view for file in files} - views.keys()
    if unknown:
        raise ValueError(f"parts of views that the snapshot's info does not name: {', '.join(sorted(unknown))}")
    return replace(info, views=views)


def rows_of(files: list[PartFile], view: str) -> int:
    return sum(file.rows for file in files if file.view == view and file.kind == "rows")


# --- reading


def list_snapshots(place: Place) -> list[int]:
    """Generations that have a manifest, newest first; whether they are good is known once they are read."""
    found = (GENERATION.fullmatch(name) for name in place.list())
    return sorted((int(each[1]) for each in found if each and each[2] == MANIFEST), reverse=True)


def read_info(place: Place, generation: int) -> SnapshotInfo:
    """Where a snapshot stands. Raises SnapshotCorrupt, LayoutMismatch."""
    return read_manifest(place, generation).info


def read_manifest(place: Place, generation: int) -> Manifest:
    home = place.sub(folder(generation))
    manifest = Manifest.decode(bytes(read_file(home, MANIFEST)), home.where)
    if manifest.info.generation != generation:
        raise SnapshotCorrupt(f"{home.where}: holds the manifest of snapshot {manifest.info.generation}; remove it")
    for view, counts in manifest.info.views.items():
        if counts["rows"] != rows_of(manifest.files, view):
            raise SnapshotCorrupt(f"{home.where}: view {view!r} has {counts['rows']} rows, its files hold others")
    return manifest


def read_parts(place: Place, generation: int, *, threads: int = 1) -> Iterator[Part]:
    """Every part, in the order written, verified. Raises SnapshotCorrupt at the first that is not what was written.

    threads: that many read, check and decompress ahead of the caller; memory holds at most `threads` + 1 parts.
    """
    manifest = read_manifest(place, generation)
    home = place.sub(folder(generation))
    by_part: dict[tuple[str, int], dict[str, PartFile]] = {}
    for file in manifest.files:
        by_part.setdefault((file.view, file.shard), {})[file.kind] = file

    def read(view: str, shard: int, files: dict[str, PartFile]) -> Part:
        schemas = manifest.schemas[view]
        rows, heads = (read_part_file(home, files.get(kind), schemas[kind]) for kind in KINDS)
        return Part(view, shard, rows, heads)

    with ThreadPoolExecutor(threads, thread_name_prefix="fastfeat-snapshot") as pool:
        ahead: deque[Future[Part]] = deque()
        try:
            for (view, shard), files in by_part.items():
                ahead.append(pool.submit(read, view, shard, files))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_part_file(home: Place, file: PartFile | None, schema: pa.Schema) -> pa.RecordBatch:
    """One file's rows, exactly as written; no file is no rows."""
    if file is None:
        return pa.RecordBatch.from_pylist([], schema=schema)
    where = f"{home.where}/{file.name}"
    data = read_file(home, file.name)
    if len(data) != file.size:
        raise SnapshotCorrupt(f"{where}: {len(data)} bytes, its manifest says {file.size}; use another snapshot")
    if zlib.crc32(data) != file.crc32:
        raise SnapshotCorrupt(f"{where}: its checksum is not the manifest's; use another snapshot")
    try:
        with pa.ipc.open_file(pa.py_buffer(data), options=READING) as reader:
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        raise SnapshotCorrupt(f"{where}: no Arrow file ({error}); use another snapshot") from error
    if len(batches) != 1 or batches[0].num_rows != file.rows or not batches[0].schema.equals(schema, True):
        raise SnapshotCorrupt(f"{where}: other rows or columns than its manifest says; use another snapshot")
    return batches[0]


def read_file(home: Place, name: str) -> memoryview:
    try:
        return home.read(name)
    except FileNotFoundError as error:
        raise SnapshotCorrupt(f"{home.where}/{name}: the file is missing; use another snapshot") from error


# --- removing


def remove_snapshots(place: Place, keep: int) -> None:
    """Remove all but the newest `keep`, oldest first; of each the manifest first, so none is ever seen half removed."""
    for generation in reversed(list_snapshots(place)[keep:]):
        place.remove(f"{folder(generation)}/{MANIFEST}")
    remove_leftovers(place)


def remove_leftovers(place: Place) -> None:
    """Remove the files of generations without a manifest."""
    whole = {folder(generation) for generation in list_snapshots(place)}
    for name in place.list():
        found = GENERATION.fullmatch(name)
        if found and found[1] not in whole:
            place.remove(name)
    place.tidy()


def folder(generation: int) -> str:
    return f"{generation:020d}"
