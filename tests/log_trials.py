"""What the log promises, as checks that any log and any disk can be put through; the seeded bugs must fail them.

    script (seeded: append, sync, roll, drop, close and open again) --> log on a FaultyFiles --> crash, image --> check

Expected is what may be found after a crash: every record that `durable` covered, then perhaps some others, in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from fastfeat.errors import LogCorrupt, LogFailed, ReadOnly, StorageError
from fastfeat.log import HEAD_SIZE, Log
from tests.faulty_files import ROOT, Crashed, FaultyFiles

DIRECTORY = ROOT + "/log"
SEGMENT_SIZE = 4096  # small, so that a script fills several
SIZES = (0, 40, 464, 464, 464, 464, 1500, 5000)  # equal ones often: a stale frame then fits behind a new one


class Violation(AssertionError):
    """The log broke a promise."""


@dataclass
class Entry:
    kind: int
    payload: bytes
    position: int  # where it begins, or could at the earliest
    end: int = 1 << 63  # of one whose append did not return: unknown


@dataclass
class Expected:
    entries: list[Entry] = field(default_factory=list)
    durable: int = 0
    dropped: int = 0  # segments below it may be gone
    serial: int = 0

    def payload(self, rng: random.Random) -> bytes:
        """No two alike, and some end with zeros: what a missing rest would look like."""
        self.serial += 1
        size = rng.choice(SIZES)
        filler = bytes(size) if rng.random() < 0.3 else rng.randbytes(size)
        return self.serial.to_bytes(8, "little") + filler


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


def append(log: Log, expected: Expected, rng: random.Random) -> None:
    """Append one record; one that is refused must never be found, one whose fate is unknown may be."""
    payload = expected.payload(rng)
    entry = Entry(rng.randrange(1, 4), payload, log.end)
    expected.entries.append(entry)
    cut = rng.randrange(len(payload) + 1)
    try:
        entry.end = log.append(entry.kind, [payload[:cut], memoryview(payload)[cut:]])
    except LogFailed:
        raise
    except ReadOnly:
        expected.entries.pop()
        raise


def act(log: Log, expected: Expected, rng: random.Random) -> None:
    action = rng.choices(["append", "sync", "roll", "drop"], [6, 4, 0.5, 0.7])[0]
    if action == "append":
        append(log, expected, rng)
    elif action == "sync":
        log.sync()
        demand(log.durable == log.end, "a sync returned and left something out")
    elif action == "roll":
        log.roll()
    else:
        position = rng.randrange(log.start, log.end + 1)
        expected.dropped = max(expected.dropped, position)
        log.drop_before(position)
    expected.durable = max(expected.durable, log.durable)


def recovered(disk: FaultyFiles, expected: Expected, cls: type[Log] = Log) -> Log:
    """The log as it opens, checked against what is expected; what it did not find must not come back later."""
    required = expected.durable if expected.serial % 2 else 0
    try:
        log = cls.open(disk, DIRECTORY, segment_size=SEGMENT_SIZE, required=required)
        found = list(log.records(log.start))
    except LogCorrupt as error:
        raise Violation(f"a crash is taken for damage: {error}") from error
    demand(log.start <= expected.dropped, f"positions {expected.dropped} to {log.start} are gone")
    kept = [entry for entry in expected.entries if entry.position >= log.start]
    demand(len(found) <= len(kept), f"{len(found)} records are found, {len(kept)} were written")
    for record, entry in zip(found, kept, strict=False):
        demand(record.kind == entry.kind and record.payload == entry.payload, f"{record} is not {entry}")
    missing = [entry for entry in kept[len(found) :] if entry.end <= expected.durable]
    demand(not missing, f"durable up to {expected.durable}, but not found: {missing[:1]}")
    demand(log.durable == log.end, "what is found is not durable")
    expected.entries = kept[: len(found)]
    for record, entry in zip(found, expected.entries, strict=True):
        entry.position, entry.end = record.position, record.end
    expected.durable = log.durable
    return log


def run(disk: FaultyFiles, expected: Expected, rng: random.Random, steps: int, cls: type[Log] = Log) -> None:
    """Some steps on a log, with restarts of the process in between; a clean close at the end."""
    log = recovered(disk, expected, cls)
    for _ in range(steps):
        if rng.random() < 0.06:
            log.close()
            log = recovered(disk, expected, cls)
        act(log, expected, rng)
    log.close()


def crashed(seed: int, at: int, cls: type[Log], disks: type[FaultyFiles]) -> tuple[FaultyFiles, Expected]:
    """The disk and what is expected of it when the script of that seed crashes at its n-th change."""
    disk, expected = disks(crash_at=at), Expected()
    with suppress(Crashed):
        run(disk, expected, random.Random(seed), 25, cls)
    return disk, expected


def copy(expected: Expected) -> Expected:
    entries = [Entry(entry.kind, entry.payload, entry.position, entry.end) for entry in expected.entries]
    return Expected(entries, expected.durable, expected.dropped, expected.serial)


def after_power_loss(disk: FaultyFiles, expected: Expected, seed: int, cls: type[Log]) -> None:
    """One image: recover, write on, crash anywhere in that (process or machine), twice; then once without a crash."""
    rng = random.Random(seed)
    image, expected = disk.image(seed), copy(expected)
    for _ in range(2):
        image.crash_at = rng.randrange(1, 30)
        with suppress(Crashed):
            log = recovered(image, expected, cls)
            for _ in range(5):
                act(log, expected, rng)
        if rng.random() < 0.3:
            image.restart()
        else:
            image = image.image(rng.randrange(1 << 30))
    run(image, expected, rng, 3, cls)
    recovered(image, expected, cls).close()


def crash_everywhere(seed: int, images: int, cls: type[Log] = Log, disks: type[FaultyFiles] = FaultyFiles) -> int:
    """Crash one script at each of its changes, look at some images of each; how many there were."""
    whole, _ = crashed(seed, 1 << 30, cls, disks)
    for at in range(1, whole.operations + 1):
        disk, expected = crashed(seed, at, cls, disks)
        for image in range(images):
            try:
                after_power_loss(disk, expected, hash((seed, at, image)), cls)
            except Violation as error:
                error.add_note(f"script {seed}, crash at change {at}, image {image}:\n" + "\n".join(disk.trace[-12:]))
                raise
    return whole.operations * images


def survive_failures(seed: int, disk: FaultyFiles, cls: type[Log] = Log) -> int:
    """A script on a disk whose calls fail; then the faults end and all that was promised is there. How many failed.

    The process restarts first and the machine later: what the page cache alone holds must not count as durable.
    """
    rng, expected, failures = random.Random(seed), Expected(), 0
    log = None
    for _ in range(60):
        try:
            log = recovered(disk, expected, cls) if log is None else log
            act(log, expected, rng)
            if rng.random() < 0.06:
                log.close()
                log = None
        except LogFailed:
            failures += 1
            if log is not None:
                stays_failed(log)
            log = None
        except StorageError as error:
            failures += 1
            demand(log is None or isinstance(error, ReadOnly), f"{error!r} is not what a write may raise")
            recovered(disk.image(hash((seed, failures))), copy(expected), cls).close()
    disk.restart()
    recovered(disk, expected, cls)
    for image in range(3):
        recovered(disk.image(hash((seed, image))), copy(expected), cls).close()
    return failures


def stays_failed(log: Log) -> None:
    attempts: tuple[Callable[[], object], ...] = (log.sync, lambda: log.append(1, [b"more"]), log.sync)
    for attempt in attempts:
        try:
            attempt()
        except LogFailed:
            continue
        raise Violation("a log that failed takes writes again")


# --- damage


@dataclass(frozen=True)
class Sample:
    """A small log at rest: its files, its records, and the position below which its own frames prove a promise."""

    contents: dict[str, bytes]
    entries: list[Entry]
    promised: int

    @property
    def segments(self) -> list[str]:
        return [path for path in self.contents if path.endswith(".seg")]


def sample(*, is_closed: bool) -> Sample:
    """A few segments; where it was not closed, nothing proves its last records."""
    disk, entries, promised = FaultyFiles(), list[Entry](), 0
    log = Log.open(disk, DIRECTORY, segment_size=512)
    for number, size in enumerate([30, 0, 8, 8, 150, 16, 300, 8, 8, 8]):
        position, promised = log.end, log.durable
        payload = bytes([number + 1]) * size
        entries.append(Entry(1 + number % 2, payload, position, log.append(1 + number % 2, [payload])))
        if number % 3:
            log.sync()
    log.sync()
    if is_closed:
        promised = log.end
        log.close()
    return Sample(disk.contents(), entries, promised)


def opens_with(made: Sample, path: str, content: bytes, promised: int, cls: type[Log] = Log) -> bool:
    """Whether the log opens with one file changed; it must then hold a prefix that keeps the promised records."""
    disk = FaultyFiles.holding({**made.contents, path: content})
    try:
        log = cls.open(disk, DIRECTORY, segment_size=512)
        found = [(record.position, record.kind, bytes(record.payload)) for record in log.records(log.start)]
    except LogCorrupt as error:
        demand(DIRECTORY in str(error) and "restore a backup" in str(error), f"the message does not help: {error}")
        return False
    wanted = [(entry.position, entry.kind, entry.payload) for entry in made.entries]
    demand(found == wanted[: len(found)], f"{found} is no prefix of {wanted}")
    lost = [entry for entry in made.entries[len(found) :] if entry.end <= promised]
    demand(not lost, f"promised, but gone without a word: {lost}")
    expected = Expected(made.entries[: len(found)], log.durable)
    entry = Entry(7, b"after the damage", log.end)
    entry.end = log.append(entry.kind, [entry.payload])
    expected.entries.append(entry)
    log.close()
    recovered(disk, expected, cls).close()
    return True


def flips(content: bytes) -> Iterator[bytes]:
    """The content with each single bit changed."""
    changed = bytearray(content)
    for index in range(len(content)):
        for bit in range(8):
            changed[index] ^= 1 << bit
            yield bytes(changed)
            changed[index] ^= 1 << bit


def flip_everything(made: Sample, cls: type[Log] = Log) -> tuple[int, int]:
    """Each bit of each segment changed: in how many cases the log opens, and in how many it refuses."""
    outcomes = [
        opens_with(made, path, content, made.promised, cls)
        for path in made.segments
        for content in flips(made.contents[path])
    ]
    return sum(outcomes), len(outcomes) - sum(outcomes)


def misplace_everything(made: Sample, cls: type[Log] = Log) -> int:
    """Each frame replaced by another of its size, as a misdirected write would: in how many cases the log refuses."""
    refused, firsts = 0, [int(path[-24:-4]) for path in made.segments]
    for path, first, stop in zip(made.segments, firsts, [*firsts[1:], made.entries[-1].end], strict=True):
        content = made.contents[path]
        frames = [(entry.position - first + HEAD_SIZE, entry.end - first + HEAD_SIZE) for entry in made.entries]
        inside = [content[at:end] for at, end in frames if HEAD_SIZE <= at < stop - first + HEAD_SIZE]
        for at, end in frames:
            for other in inside:
                moved = content[:at] + other + content[end:]
                if content[at:end] in inside and len(moved) == len(content) and moved != content:
                    refused += not opens_with(made, path, moved, made.promised, cls)
    return refused
