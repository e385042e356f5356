"""Snapshot: all rows of all views at one point of the log, as plain Arrow files with one manifest.

    <generation, 20 digits>/
        <view>/rows/<shard>.arrow     Arrow IPC file, lz4: keys, event_timestamp, created_timestamp, _sequence, fields;
                                      a record batch for this shard, and for those after it while they are small
        <view>/heads/<shard>.arrow    of the same shards: what entities remember beyond their rows: deleted, dropped
        manifest.json                 first line: checksum of the rest; then where in the log it stands, every file's
                                      shards, rows, size and checksum, every view's schemas

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
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
from crc32c import crc32c

from .errors import LayoutMismatch, SnapshotCorrupt, StorageError
from .places import Place

FORMAT = 1
MANIFEST = "manifest.json"
GENERATION = re.compile(r"(\d{20})/(.+)")
KINDS = ("rows", "heads")
GROUP_SIZE = 8 << 20  # bytes of shards that share a file: a file costs two syncs, which this many bytes outweigh
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
class DataFile:
    """One file as the manifest describes it."""

    counts: list[int]  # rows of each of the group's shards
    size: int
    crc32c: int


@dataclass(frozen=True)
class Group:
    """Some shards of one view, in one file of rows and one of heads; no file where all of them have none."""

    view: str
    shards: list[int]
    rows: DataFile | None
    heads: DataFile | None

    def name(self, kind: str) -> str:
        return file_name(self.view, kind, self.shards[0])


def file_name(view: str, kind: str, shard: int) -> str:
    return f"{view}/{kind}/{shard:02d}.arrow"


@dataclass(frozen=True)
class Manifest:
    """The one file that makes the others a snapshot."""

    info: SnapshotInfo
    schemas: dict[str, dict[str, pa.Schema]] = field(default_factory=dict)  # view -> kind -> schema
    groups: list[Group] = field(default_factory=list)

    def encode(self) -> bytes:
        schemas = {view: {kind: encode_schema(kinds[kind]) for kind in KINDS} for view, kinds in self.schemas.items()}
        body = {
            "format": FORMAT,
            "info": asdict(self.info),
            "schemas": schemas,
            "groups": [asdict(group) for group in self.groups],
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
        return cls(info, schemas, [group_of(each) for each in body["groups"]])


def group_of(said: dict[str, Any]) -> Group:
    files = {kind: DataFile(**said[kind]) if said[kind] else None for kind in KINDS}
    return Group(said["view"], said["shards"], files["rows"], files["heads"])


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
    return b'{"crc32c": "%08x",\n' % crc32c(text)


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
        schemas: dict[str, dict[str, pa.Schema]] = {}
        groups = [write_group(home, some) for some in grouped(parts, schemas)]
        info = counted(replace(finish(), generation=generation), groups)
        home.write(MANIFEST, Manifest(info, schemas, groups).encode())
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


def grouped(parts: Iterable[Part], schemas: dict[str, dict[str, pa.Schema]]) -> Iterator[list[Part]]:
    """Parts that hold anything, in runs of one view of about GROUP_SIZE; the schemas are noted."""
    run: list[Part] = []
    size = 0
    for part in parts:
        check_schemas(schemas, part)
        if not part.rows.num_rows and not part.heads.num_rows:
            continue
        if run and (size >= GROUP_SIZE or part.view != run[0].view):
            yield run
            run, size = [], 0
        run.append(part)
        size += int(part.rows.nbytes) + int(part.heads.nbytes)
    if run:
        yield run


def check_schemas(schemas: dict[str, dict[str, pa.Schema]], part: Part) -> None:
    """Raises ValueError where parts of one view differ: they could not be read as one table."""
    new = {kind: getattr(part, kind).schema for kind in KINDS}
    known = schemas.setdefault(part.view, new)
    for kind in KINDS:
        if not known[kind].equals(new[kind], check_metadata=True):
            raise ValueError(f"view {part.view!r}, shard {part.shard}: {kind} have another schema than the part before")


def write_group(home: Place, parts: list[Part]) -> Group:
    rows, heads = (write_data_file(home, parts, kind) for kind in KINDS)
    return Group(parts[0].view, [part.shard for part in parts], rows, heads)


def write_data_file(home: Place, parts: list[Part], kind: str) -> DataFile | None:
    batches: list[pa.RecordBatch] = [getattr(part, kind) for part in parts]
    if not any(batch.num_rows for batch in batches):
        return None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema, options=WRITING) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data = sink.getvalue()
    home.write(file_name(parts[0].view, kind, parts[0].shard), data)
    return DataFile([batch.num_rows for batch in batches], data.size, crc32c(data))


def counted(info: SnapshotInfo, groups: list[Group]) -> SnapshotInfo:
    """The info with the number of rows that were written."""
    written = [(group.view, shard) for group in groups for shard in group.shards]
    if len(written) != len(set(written)):
        raise ValueError("a shard of a view came twice")
    unknown = {group.view for group in groups} - info.views.keys()
    if unknown:
        raise ValueError(f"parts of views that the snapshot's info does not name: {', '.join(sorted(unknown))}")
    views = {view: {**counts, "rows": rows_of(groups, view)} for view, counts in info.views.items()}
    return replace(info, views=views)


def rows_of(groups: list[Group], view: str) -> int:
    return sum(sum(group.rows.counts) for group in groups if group.view == view and group.rows)


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
        if counts["rows"] != rows_of(manifest.groups, view):
            raise SnapshotCorrupt(f"{home.where}: view {view!r} has {counts['rows']} rows, its files hold others")
    return manifest


def read_parts(place: Place, generation: int, *, threads: int = 1) -> Iterator[Part]:
    """Every part, in the order written, verified. Raises SnapshotCorrupt at the first that is not what was written.

    threads: that many read, check and decompress ahead of the caller; memory holds at most `threads` + 1 groups.
    """
    manifest = read_manifest(place, generation)
    home = place.sub(folder(generation))
    with ThreadPoolExecutor(threads, thread_name_prefix="fastfeat-snapshot") as pool:
        ahead: deque[Future[list[Part]]] = deque()
        try:
            for group in manifest.groups:
                ahead.append(pool.submit(read_group, home, group, manifest.schemas[group.view]))
                if len(ahead) > threads:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def take_parts(place: Place, generation: int, take: Callable[[Part], object], *, threads: int = 1) -> None:
    """Call `take` with every part, verified, in several threads at once and in no order.

    Raises SnapshotCorrupt, or what `take` raises; other parts may have been taken by then.
    """
    manifest = read_manifest(place, generation)
    home = place.sub(folder(generation))
    waiting = deque(manifest.groups)

    def work() -> None:
        while waiting:
            try:
                group = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            for part in read_group(home, group, manifest.schemas[group.view]):
                take(part)

    with ThreadPoolExecutor(threads, thread_name_prefix="fastfeat-snapshot") as pool:
        done = [pool.submit(work) for _ in range(threads)]
        try:
            for future in done:
                future.result()
        except BaseException:
            waiting.clear()
            raise


def read_group(home: Place, group: Group, schemas: dict[str, pa.Schema]) -> list[Part]:
    rows, heads = (read_batches(home, group, kind, schemas[kind]) for kind in KINDS)
    return [Part(group.view, *each) for each in zip(group.shards, rows, heads, strict=True)]


def read_batches(home: Place, group: Group, kind: str, schema: pa.Schema) -> list[pa.RecordBatch]:
    """One file's record batches, a shard each, exactly as written; no file is no rows."""
    file: DataFile | None = getattr(group, kind)
    if file is None:
        return [pa.RecordBatch.from_pylist([], schema=schema)] * len(group.shards)
    where = f"{home.where}/{group.name(kind)}"
    data = read_file(home, group.name(kind))
    if len(data) != file.size:
        raise SnapshotCorrupt(f"{where}: {len(data)} bytes, its manifest says {file.size}; use another snapshot")
    if crc32c(data) != file.crc32c:
        raise SnapshotCorrupt(f"{where}: its checksum is not the manifest's; use another snapshot")
    try:
        with pa.ipc.open_file(pa.py_buffer(data), options=READING) as reader:
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        raise SnapshotCorrupt(f"{where}: no Arrow file ({error}); use another snapshot") from error
    if [batch.num_rows for batch in batches] != file.counts or not batches[0].schema.equals(schema, True):
        raise SnapshotCorrupt(f"{where}: other rows or columns than its manifest says; use another snapshot")
    return batches


def read_file(home: Place, name: str) -> memoryview:
    try:
        return home.read(name)
    except FileNotFoundError as error:
        raise SnapshotCorrupt(f"{home.where}/{name}: the file is missing; use another snapshot") from error


# --- removing


def remove_snapshots(place: Place, keep: int, *, damaged: Collection[int] = ()) -> None:
    """Remove all but the newest `keep`, oldest first; of each the manifest first, so none is ever seen half removed.

    damaged: generations that are known to be; they go too, and count as none that is kept.
    """
    generations = list_snapshots(place)
    kept = [generation for generation in generations if generation not in damaged][:keep]
    for generation in reversed(generations):
        if generation not in kept:
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
