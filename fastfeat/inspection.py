"""Inspection: is a directory whole, a copy of it that is, and a directory made from the copy.

    check_directory  log, snapshots, history --every checksum and count--> CheckReport
    backup           newest snapshot + history + the log behind both --> a place; backup.json is written last
    restore          that place --> an empty directory

All three work beside a store in use: they take no lock of it, and where a file goes while they look (a snapshot is
replaced, a history compacted), they look again.

Promise:     a backup holds what its backup.json names, byte for byte, or has no backup.json. What `restore` began and
             did not end holds nothing yet, or is refused by Store.open: the files that ask for others come first, and
             the log's last segment before the others.
Errors:      StorageError and its kinds; what a check finds wrong is no error but a sentence in its report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import pyarrow.compute as pc
from crc32c import crc32c

from .errors import HistoryCorrupt, LayoutMismatch, LogCorrupt, SnapshotCorrupt, StorageError
from .files import Files
from .history import History
from .history.catalog import Catalog, catalog_name, read_newest
from .log import Log, Segment
from .places import Place, open_place
from .snapshot import (
    MANIFEST,
    SnapshotInfo,
    decode_checked,
    encode_checked,
    folder,
    list_snapshots,
    read_info,
    read_parts,
)

Where = str | os.PathLike[str]
Progress = Callable[[str, int, int], object]  # what is being worked on, how much of it is done, of how much

LOG, SNAPSHOTS, HISTORY, LOCK = "log", "snapshots", "history", "LOCK"
BACKUP = "backup.json"
FORMAT = 1
ATTEMPTS = 5  # of looking at a directory that changes meanwhile
SNAPSHOTS_KEPT = 2  # what the log must reach back to


def ignore_progress(step: str, done: int, total: int) -> None:
    """Whoever asks for no progress gets none."""


class Parts(NamedTuple):
    """Where the parts of one store lie."""

    files: Files
    path: str
    snapshots: Place
    history: Place

    @property
    def log(self) -> str:
        return f"{self.path}/{LOG}"


def parts_of(files: Files, directory: Where, snapshots: str | None, history: str | None) -> Parts:
    path = os.path.abspath(directory)
    return Parts(
        files,
        path,
        open_place(files, snapshots or f"{path}/{SNAPSHOTS}"),
        open_place(files, history or f"{path}/{HISTORY}"),
    )


# --- check


@dataclass(frozen=True)
class CheckReport:
    """What was looked at, counted, and what is wrong with it: nothing where `problems` is empty."""

    directory: str
    log: dict[str, int] = field(default_factory=dict)  # start, end, segments, records
    snapshots: dict[int, dict[str, int]] = field(default_factory=dict)  # generation -> sequence, views, rows, heads
    history: dict[str, int] = field(default_factory=dict)  # sequence and position covered, files, rows
    problems: list[str] = field(default_factory=list)


def check_directory(
    directory: Where,
    *,
    snapshots: str | None = None,
    history: str | None = None,
    files: Files | None = None,
    progress: Progress = ignore_progress,
) -> CheckReport:
    """Verify every checksum of a store's directory, and that its parts fit together. Changes nothing.

    snapshots, history: their URLs, as given to Store.open. Raises StorageError where it holds no store.
    """
    parts = parts_of(files or Files(), directory, snapshots, history)
    check_is_store(parts)
    report = check_once(parts, progress)
    for _ in range(ATTEMPTS):
        if not report.problems:
            break
        # A store in use takes files away. What is truly wrong is so the next time too.
        before, report = report, check_once(parts, progress)
        if report.problems == before.problems:
            break
    return report


def check_is_store(parts: Parts) -> None:
    if not parts.files.is_directory(parts.log):
        raise StorageError(f"{parts.path} holds no store; name the directory that Store.open was given")


def check_once(parts: Parts, progress: Progress) -> CheckReport:
    """Snapshots and history before the log, which then reaches at least as far as they say."""
    report = CheckReport(parts.path)
    with problems_to(report):
        check_snapshots(parts, report, progress)
    with problems_to(report):
        check_history(parts, report, progress)
    with problems_to(report):
        check_log(parts, report, progress)
    return report


@contextmanager
def problems_to(report: CheckReport) -> Iterator[None]:
    try:
        yield
    except (StorageError, OSError) as error:
        report.problems.append(str(error))


def check_snapshots(parts: Parts, report: CheckReport, progress: Progress) -> None:
    for generation in list_snapshots(parts.snapshots):
        with problems_to(report):
            info = read_info(parts.snapshots, generation)
            counts = check_snapshot(parts.snapshots, info, progress)
            stands = {"sequence": info.sequence, "log_start": info.log_start, "log_end": info.log_end}
            report.snapshots[generation] = {**stands, **counts}


def check_snapshot(place: Place, info: SnapshotInfo, progress: Progress) -> dict[str, int]:
    total = sum(view["rows"] for view in info.views.values())
    rows = heads = 0
    for part in read_parts(place, info.generation):
        rows += part.rows.num_rows
        heads += part.heads.num_rows
        if part.rows.num_rows:
            sequences = part.rows.column("_sequence")
            where = f"{place.where}: snapshot {info.generation}, view {part.view!r}, shard {part.shard}"
            if pc.max(sequences).as_py() >= info.sequence:
                raise SnapshotCorrupt(f"{where}: a row's sequence is not below the snapshot's, {info.sequence}")
            if pc.count_distinct(sequences).as_py() != part.rows.num_rows:
                raise SnapshotCorrupt(f"{where}: a sequence is there twice")
        progress(f"snapshot {info.generation}", rows, total)
    return {"views": len(info.views), "rows": rows, "heads": heads}


def check_history(parts: Parts, report: CheckReport, progress: Progress) -> None:
    catalog = newest_catalog(parts.history)
    rows = sum(file.rows for file in catalog.files)
    report.history.update(
        sequence=catalog.covered.sequence, position=catalog.covered.position, files=len(catalog.names()), rows=rows
    )
    report.problems.extend(History.open(parts.history, read_only=True).check())
    progress("history", rows, rows)


def newest_catalog(place: Place) -> Catalog:
    return read_newest(place, place.list()) or Catalog()


def check_log(parts: Parts, report: CheckReport, progress: Progress) -> None:
    log = Log.open(parts.files, parts.log, read_only=True)
    report.log.update(start=log.start, end=log.end, segments=len(log.segments), records=0)
    report.problems.extend(gaps(report))
    for record in log.records(log.start):
        report.log["records"] += 1
        progress(LOG, record.end - log.start, log.end - log.start)
    for _, position in positions(report):
        if log.start <= position <= log.end:
            with problems_to(report):
                next(log.records(position), None)  # raises where no record begins there


def positions(report: CheckReport) -> list[tuple[str, int]]:
    """Where in the log a reader of the snapshots that count, and of the history, goes on."""
    newest = sorted(report.snapshots, reverse=True)[:SNAPSHOTS_KEPT]
    found = [(f"snapshot {each}", report.snapshots[each]["log_start"]) for each in newest]
    return [*found, ("the history", report.history.get("position", 0))]


def gaps(report: CheckReport) -> Iterator[str]:
    """Rows that are in none of the parts."""
    start, end = report.log["start"], report.log["end"]
    if not report.snapshots and start > 0:
        yield f"the log begins at {start}, and no snapshot holds what was before"
    for name, position in positions(report):
        if position < start:
            yield f"{name} ends at {position} of the log, which begins at {start}: what was between is lost"
        if position > end:
            yield f"{name} reaches to {position} of the log, which ends at {end}: its end is lost"
    for generation, info in report.snapshots.items():
        if info["log_end"] > end:
            yield f"snapshot {generation} saw the log up to {info['log_end']}, it ends at {end}: its end is lost"


# --- backup


@dataclass(frozen=True)
class BackupFile:
    name: str
    size: int
    crc32c: int


@dataclass(frozen=True)
class BackupInfo:
    """What a backup is of and what is in it."""

    taken_us: int
    generation: int  # of its snapshot, 0 for none
    log_start: int
    log_end: int
    covered_sequence: int
    covered_position: int
    files: list[BackupFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class Copy:
    """Files on their way into a place; each is read back."""

    def __init__(self, target: Place, progress: Progress) -> None:
        self.files: list[BackupFile] = []
        self._target = target
        self._progress = progress
        self._done = 0

    def put(self, name: str, data: memoryview) -> None:
        file = BackupFile(name, data.nbytes, crc32c(data))
        self._target.write(name, data)
        if crc32c(self._target.read(name)) != file.crc32c:
            raise StorageError(
                f"{self._target.where}/{name}: what was written is read back differently; check that disk"
            )
        self.files.append(file)
        self._done += file.size
        self._progress("copy", self._done, 0)


def backup(
    directory: Where,
    to: Where,
    *,
    snapshots: str | None = None,
    history: str | None = None,
    files: Files | None = None,
    progress: Progress = ignore_progress,
) -> BackupInfo:
    """Copy a store that may be in use to an empty directory or URL: a whole store as it stood at one moment.

    Everything that was acknowledged when this was called is in it. Every file is verified where it lies and where it
    was copied to. Raises StorageError where `to` holds files or `directory` holds no store; SnapshotCorrupt,
    HistoryCorrupt, LogCorrupt where the store is damaged.
    """
    files = files or Files()
    source = parts_of(files, directory, snapshots, history)
    check_is_store(source)
    target = open_place(files, os.fspath(to))
    if target.list():
        raise StorageError(f"{target.where} holds files; back up to an empty place, one for each backup")
    info = copy_until_whole(source, target, progress)
    target.write(BACKUP, encode_backup(info))
    return info


def copy_until_whole(source: Parts, target: Place, progress: Progress) -> BackupInfo:
    """Begin again where the store took away a file that was about to be copied; what stays wrong is raised."""
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            return copy_store(source, target, progress)
        except (FileNotFoundError, SnapshotCorrupt, HistoryCorrupt, LogCorrupt) as error:
            clear(target)
            if str(error) == reason:
                raise
            reason = str(error)
    raise StorageError(f"{source.path} changed each of {ATTEMPTS} times that it was copied ({reason}); try again later")


def copy_store(source: Parts, target: Place, progress: Progress) -> BackupInfo:
    """The log last: it then reaches at least as far as the others say."""
    copy = Copy(target, progress)
    snapshot = copy_snapshot(source.snapshots, target, copy)
    catalog = copy_history(source.history, target, copy)
    promised = max(snapshot.log_end if snapshot else 0, catalog.covered.position)
    needed = min(snapshot.log_start if snapshot else 0, catalog.covered.position)
    log = Log.open(source.files, source.log, read_only=True, required=promised)
    start = copy_log(source.files, log, needed, copy)
    return BackupInfo(
        taken_us=time.time_ns() // 1000,
        generation=snapshot.generation if snapshot else 0,
        log_start=start,
        log_end=log.end,
        covered_sequence=catalog.covered.sequence,
        covered_position=catalog.covered.position,
        files=copy.files,
    )


def copy_snapshot(place: Place, target: Place, copy: Copy) -> SnapshotInfo | None:
    newest = next(iter(list_snapshots(place)), None)
    if newest is None:
        return None
    for name in place.list(f"{folder(newest)}/"):
        copy.put(f"{SNAPSHOTS}/{name}", place.read(name))
    check_snapshot(target.sub(SNAPSHOTS), info := read_info(target.sub(SNAPSHOTS), newest), ignore_progress)
    return info


def copy_history(place: Place, target: Place, copy: Copy) -> Catalog:
    names = place.list()
    catalog = read_newest(place, names)
    if catalog is None:
        return Catalog()
    for name in [*sorted(catalog.names()), catalog_name(catalog.number)]:
        copy.put(f"{HISTORY}/{name}", place.read(name))
    if problems := History.open(target.sub(HISTORY), read_only=True).check():
        raise HistoryCorrupt(f"{place.where}: {'; '.join(problems)}")
    return catalog


def copy_log(files: Files, log: Log, needed: int, copy: Copy) -> int:
    """The segments from `needed` on, the last one up to the log's end; where they begin."""
    for _ in log.records(needed):  # every checksum
        pass
    segments = log.segments
    stops = [*(segment.first for segment in segments[1:]), log.end]
    wanted = [(s, stop) for s, stop in zip(segments, stops, strict=True) if stop > needed or stop == log.end]
    for segment, stop in wanted:
        copy.put(f"{LOG}/{os.path.basename(segment.path)}", up_to(files.read(segment.path), segment, stop))
    return wanted[0][0].first if wanted else log.end


def up_to(data: memoryview, segment: Segment, stop: int) -> memoryview:
    """The segment with zeros behind `stop`: somebody may be writing there."""
    content = bytearray(len(data))
    size = segment.offset(stop)
    content[:size] = data[:size]
    return memoryview(content)


def clear(place: Place) -> None:
    for name in place.list():
        place.remove(name)
    place.tidy()


def encode_backup(info: BackupInfo) -> bytes:
    return encode_checked({"format": FORMAT, **asdict(info)})


def read_backup(place: Place) -> BackupInfo:
    """What a backup holds. Raises StorageError where it is not whole, LayoutMismatch."""
    try:
        body = decode_checked(bytes(place.read(BACKUP)))
    except FileNotFoundError:
        raise StorageError(f"{place.where} is no whole backup: it has no {BACKUP}; use another") from None
    except ValueError as error:
        raise StorageError(f"{place.where}/{BACKUP} is damaged: {error}; use another backup") from None
    if (found := body.pop("format", None)) != FORMAT:
        raise LayoutMismatch(f"{place.where}: a backup of format {found}, this fastfeat reads {FORMAT}")
    del body["crc32c"]
    return BackupInfo(**{**body, "files": [BackupFile(**file) for file in body["files"]]})


# --- restore


def restore(
    backup: Where,
    directory: Where,
    *,
    snapshots: str | None = None,
    history: str | None = None,
    files: Files | None = None,
    progress: Progress = ignore_progress,
) -> BackupInfo:
    """Make a store's directory from a backup, verified; the directory is empty or not there yet.

    snapshots, history: URLs, empty too, where those parts are to lie elsewhere. Raises StorageError: the directory
    holds something, the backup is not whole, a file is not what was backed up. What is left then is refused by
    Store.open; empty the directory and restore again.
    """
    files = files or Files()
    source = open_place(files, os.fspath(backup))
    info = read_backup(source)
    target = parts_of(files, directory, snapshots, history)
    refuse_full(target)
    home = open_place(files, target.path)
    home.write(LOCK, b"")  # and so the directory is there
    lock = files.lock(f"{target.path}/{LOCK}")
    try:
        done = 0
        for file in demanding_first(info.files):
            part, _, name = file.name.partition("/")
            place = {SNAPSHOTS: target.snapshots, HISTORY: target.history}.get(part) or home.sub(part)
            place.write(name, read_backup_file(source, file))
            progress("restore", done := done + file.size, info.size)
        report = check_once(target, progress)
    finally:
        files.close(lock)
    if report.problems:
        raise StorageError(f"{target.path}: {report.problems[0]}; the backup was not whole: use another")
    return info


def refuse_full(target: Parts) -> None:
    has_files = target.files.is_directory(target.path) and target.files.list(target.path)
    for where, found in (
        (target.path, has_files),
        (target.snapshots.where, target.snapshots.list()),
        (target.history.where, target.history.list()),
    ):
        if found:
            raise StorageError(f"{where} is not empty; restore into a new place, or empty this one first")


def demanding_first(files: list[BackupFile]) -> list[BackupFile]:
    """In an order of which no beginning is a store: see the module's promise."""
    log = [file for file in files if file.name.startswith(f"{LOG}/")]
    rest = [file for file in files if file not in log]
    log.sort(key=lambda file: file.name, reverse=True)
    return [*sorted(rest, key=lambda file: not names_others(file.name)), *log]


def names_others(name: str) -> bool:
    return name.endswith(f"/{MANIFEST}") or name.startswith(f"{HISTORY}/catalog-")


def read_backup_file(source: Place, file: BackupFile) -> memoryview:
    try:
        data = source.read(file.name)
    except FileNotFoundError:
        raise StorageError(f"{source.where}/{file.name}: the file is missing; use another backup") from None
    if len(data) != file.size or crc32c(data) != file.crc32c:
        raise StorageError(f"{source.where}/{file.name}: its checksum is not the backup's; use another backup")
    return data
