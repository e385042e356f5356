"""The log: every accepted write, in order, on the disk before anyone sees it.

    directory/<first position, 20 digits>.seg       one segment: preallocated, zeros where nothing was written yet

    offset 0         40                                                             size
    +----------------+---------+---------+---------+---------------- - - - ---------+
    | segment header | frame   | frame   | frame   | zeros                          |
    +----------------+---------+---------+---------+---------------- - - - ---------+
      position ----> first     ...                 end = first of the next segment

    segment header, 40 B, little-endian                 frame, 40 B + payload + zeros up to a multiple of 8 B
    0   magic      8 B   "FFLOG001"                     0   checksum  u32  CRC-32C of bytes 4..40, begun with salt
    8   checksum   u32   CRC-32C of bytes 12..40         4   content   u32  CRC-32C of payload and padding
    12  salt       u32   random, begins every frame's   8   size      u64  of the payload
    16  first      u64   position of the first frame    16  position  u64  of this frame
    24  size       u64   of the file                    24  durable   u64  all below it was synced when this was written
    32  previous   u64   first of the segment before    32  kind      u32  the caller's; 0 is the mark of a clean close
                                                        36  zero      u32

A position counts the bytes of frames, not those of segment headers: a frame's end is the next one's position.

Promise:     a record is found again, whole and in order, once `sync` returned after it. Of what was not synced, a
             prefix may be found.
Invariant:   a segment gets its name only after all before it and its own header are synced. So a name promises what is
             before it, and a broken header is damage, never a torn write.
Invariant:   behind `end` the last segment holds zeros only: no frame of an earlier life can follow a new one.
Recovery:    where the last segment's frames break off, somebody may have been promised more: a later frame's header
             says so (its `durable` is beyond the break), or the position that the caller requires. Then LogCorrupt;
             else the torn tail is set aside and cut. Any other segment holds whole frames up to the next one's first.
Concurrency: one thread at a time appends, syncs, rolls, drops and closes; others may walk records meanwhile.
Errors:      DiskFull and ReadOnly change nothing and may pass; LogFailed stays until the log is opened again.
Source:      docs/STORAGE.md, "The log".
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from crc32c import crc32c

from .errors import DiskFull, LogCorrupt, LogFailed, ReadOnly, StorageError
from .files import Files, after, write_all, write_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

SMALL_SIZE = 512 << 10  # frames up to here are synced into zeros; for larger ones writing twice costs more
ZEROS_SIZE = 1 << 20
ZEROS = memoryview(bytes(SMALL_SIZE + ZEROS_SIZE))
SEGMENT_SIZE = 64 << 20  # a new one costs a few syncs; a tail of this size is walked in 30 ms
MAGIC = b"FFLOG001"
SEGMENT_HEAD = Struct("<8sIIQQQ")
SEGMENT_BODY = Struct("<IQQQ")  # what its checksum covers
FRAME_HEAD = Struct("<IIQQQII")
FRAME_BODY = Struct("<IQQQII")  # what its checksum covers
HEAD_SIZE = SEGMENT_HEAD.size
FRAME_SIZE = FRAME_HEAD.size
PADDING = [memoryview(bytes(-size % 8)) for size in range(8)]
WORD = np.dtype("<u8")
CHUNK_SIZE = 8 << 20  # looked through at once: bounds the memory that a search takes
CLOSED = 0  # the kind of the mark that a clean close leaves
SEGMENT_NAME = re.compile(r"\d{20}\.seg")
TORN_NAME = re.compile(r"torn-\d{20}\.bin")
SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})
REFUSAL_ERRORS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Record(NamedTuple):
    position: int
    end: int
    kind: int
    payload: memoryview


class Frame(NamedTuple):
    end: int
    durable: int
    kind: int
    payload: memoryview


class Segment(NamedTuple):
    path: str
    salt: int
    first: int
    size: int
    previous: int

    def offset(self, position: int) -> int:
        return position - self.first + HEAD_SIZE

    def position(self, offset: int) -> int:
        return offset + self.first - HEAD_SIZE

    def head(self) -> bytes:
        body = SEGMENT_BODY.pack(self.salt, self.first, self.size, self.previous)
        return SEGMENT_HEAD.pack(MAGIC, crc32c(body), self.salt, self.first, self.size, self.previous)


class Log:
    """The segments in one directory, and the place where the next record goes.

    end:     the position after the last record. durable: everything below it is synced.
    """

    def __init__(self, files: Files, directory: str, segment_size: int) -> None:
        self._files = files
        self._directory = os.path.abspath(directory)
        self._segment_size = max(segment_size, HEAD_SIZE + 2 * FRAME_SIZE) + 7 & ~7
        self._segments: list[Segment] = []
        self._fd = -1
        self._zeroed = 0  # offset in the last segment up to which something was written
        self._is_marked = False  # the last frame is the mark of a clean close
        self._refusal: StorageError | None = None  # why nothing is written any more
        self.end = 0
        self.durable = 0

    @classmethod
    def open(
        cls,
        files: Files,
        directory: str,
        *,
        segment_size: int = SEGMENT_SIZE,
        required: int = 0,
        read_only: bool = False,
    ) -> Self:
        """Open or begin the log in a directory, whose parent must be there; find its end and cut a torn tail.

        required:  a position known to be durable from elsewhere; a log that ends before it has lost something.
        read_only: nothing on the disk is changed, a torn tail is left out.
        Raises LogCorrupt (damage, or a segment is missing), DiskFull, ReadOnly, LogFailed, StorageError (unreadable).
        """
        log = cls(files, directory, segment_size)
        try:
            log._recover(required, read_only)
        except OSError as error:
            log._abandon()
            raise refusal_of(error, f"opening the log {directory}") from error
        except BaseException:
            log._abandon()
            raise
        return log

    # --- what is there

    @property
    def start(self) -> int:
        """The first position kept."""
        return self._segments[0].first if self._segments else self.end

    @property
    def segments(self) -> Sequence[Segment]:
        """Oldest first; the last is the one written to."""
        return tuple(self._segments)

    def records(self, start: int) -> Iterator[Record]:
        """The records from `start` (a record's position or end) to the end that the log has now, each one verified.

        A payload is a view of the mapped file, 8-byte aligned. Raises LogCorrupt at the first damage.
        """
        segments, end = self.segments, self.end
        if not self.start <= start <= end:
            raise LogCorrupt(
                f"the log {self._directory} holds positions {self.start} to {end}, not {start}: a segment is missing; "
                f"{remedy(self._directory)}"
            )
        stops = [*(segment.first for segment in segments[1:]), end]
        for segment, stop in zip(segments, stops, strict=False):
            if stop > start:
                yield from self._records(segment, max(start, segment.first), stop)

    def _records(self, segment: Segment, position: int, stop: int) -> Iterator[Record]:
        data = read_whole(self._files, segment.path)
        while position < stop:
            frame = read_frame(segment, data, position)
            if isinstance(frame, str):
                raise damage(segment, position, frame, f"everything below {stop} was")
            if frame.kind != CLOSED:
                yield Record(position, frame.end, frame.kind, frame.payload)
            position = frame.end
        if position != stop:
            raise damage(segment, position, "a frame ends", f"the next segment begins at {stop}: all below was")

    @property
    def refusal(self) -> StorageError | None:
        """Why nothing is written any more; None where the log takes records."""
        return self._refusal

    # --- writing

    def append(self, kind: int, payload: Sequence[Buffer]) -> int:
        """Write one record behind the last and return its end; it is durable after the next `sync`.

        payload: its parts, written one after the other. A record larger than a segment takes one of its own size.
        Raises DiskFull or ReadOnly (nothing of the record stays, also not after a crash), LogFailed.
        """
        if kind == CLOSED:
            raise ValueError("kind 0 is the log's own; use 1 or more")
        return self._append(kind, [memoryview(part) for part in payload])

    def _append(self, kind: int, parts: list[memoryview]) -> int:
        if self._refusal is not None:
            raise again(self._refusal)
        size = sum(part.nbytes for part in parts)
        room = FRAME_SIZE + (size + 7 & ~7)
        # Room for a mark is always left: a clean close must not need another segment.
        spare = 0 if kind == CLOSED else FRAME_SIZE
        if self._segments[-1].offset(self.end) + room + spare > self._segments[-1].size:
            self._begin(room + FRAME_SIZE)
        segment = self._segments[-1]
        if room <= SMALL_SIZE:
            self._write_zeros(segment, segment.offset(self.end) + room)
        frame = pack_frame(segment.salt, kind, self.end, self.durable, size, parts)
        self._write(frame, room, segment.offset(self.end))
        self.end += room
        self._is_marked = kind == CLOSED
        return self.end

    def sync(self) -> None:
        """Make everything appended durable. A failure is final: LogFailed now and at every later append or sync."""
        if self._refusal is not None:
            raise again(self._refusal)
        if self.durable == self.end:
            return
        end = self.end
        try:
            self._files.sync(self._fd)
        except OSError as error:
            raise self._fail(error, "syncing the log") from error
        self.durable = end

    def roll(self) -> None:
        """Go on in a new segment, so that what is written so far can be dropped. Raises as `append` does."""
        if self._refusal is not None:
            raise again(self._refusal)
        if self.end > self._segments[-1].first:
            self._begin(0)

    def drop_before(self, position: int) -> None:
        """Remove the segments that end at or below a position; the last one always stays."""
        if self._refusal is not None:
            raise again(self._refusal)
        while len(self._segments) > 1 and self._segments[1].first <= position:
            try:
                self._files.remove(self._segments[0].path)
            except OSError as error:
                raise self._refuse(error, f"removing {self._segments[0].path}") from error
            del self._segments[0]
            # Ordering: one removal is durable before the next; or a crash could undo the first alone, and leave a gap.
            self._sync_directory()

    def remove_torn(self) -> None:
        """Remove the torn tails that were set aside."""
        if self._refusal is not None:
            raise again(self._refusal)
        try:
            for name in filter(TORN_NAME.fullmatch, self._files.list(self._directory)):
                self._files.remove(os.path.join(self._directory, name))
        except OSError as error:
            raise self._refuse(error, f"removing torn tails from {self._directory}") from error
        self._sync_directory()

    @property
    def is_marked(self) -> bool:
        """True where the mark of a clean close is the last frame."""
        return self._is_marked

    def refuse(self, error: StorageError) -> None:
        """Write nothing from now on, with this error, unless there is one already."""
        self._refusal = self._refusal or error

    def close(self) -> None:
        """Sync, leave the mark of a clean close, let go. Nothing is written to a log that failed or is read-only."""
        try:
            if self._refusal is None:
                self.sync()
                if not self._is_marked:
                    with suppress(ReadOnly):  # all records are durable; the mark only makes later damage provable
                        self._append(CLOSED, [])
                        self.sync()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1
        self._refusal = self._refusal or StorageError(f"the log {self._directory} is closed")

    # --- a frame's way to the file

    def _write_zeros(self, segment: Segment, stop: int) -> None:
        """Have zeros written a good way beyond `stop`.

        Why: to sync a write into space that was only allocated, a file system must commit a change of its own as well;
        into space once written it need not. That is a third of a small record's time.
        """
        if stop <= self._zeroed:
            return
        start = max(self._zeroed, segment.offset(self.end))
        end = min(stop + ZEROS_SIZE, segment.size)
        try:
            write_all(self._files, self._fd, ZEROS[: end - start], start)
        except OSError as error:
            raise self._refuse(error, f"writing to {segment.path}") from error
        self._zeroed = end

    def _write(self, parts: list[memoryview], size: int, at: int) -> None:
        count, is_touched = 0, False
        try:
            with suppress(InterruptedError):
                count = self._files.write(self._fd, parts, at)
            if count != size:
                is_touched = True
                write_all(self._files, self._fd, after(parts, count), at + count)
        except OSError as error:
            raise self._undo(error, size, at, is_touched) from error

    def _undo(self, error: OSError, size: int, at: int, is_touched: bool) -> StorageError:
        """What to raise for a failed write, once nothing of it is left.

        Why not later: what was written may be all that the record needs (the rest may be zeros); a crash would find it.
        """
        failure = self._refuse(error, f"writing {size} B to {self._segments[-1].path}")
        if isinstance(failure, LogFailed) or (not isinstance(failure, DiskFull) and not is_touched):
            return failure
        try:
            write_all(self._files, self._fd, bytes(size), at)
            self._files.sync(self._fd)
        except OSError as second:
            return self._fail(second, "undoing a write that failed")
        self.durable = self.end
        return failure

    def _refuse(self, error: OSError, doing: str) -> StorageError:
        failure = refusal_of(error, doing)
        if isinstance(failure, LogFailed):
            self._refusal = failure
        return failure

    def _fail(self, error: OSError, doing: str) -> LogFailed:
        failure = LogFailed(
            f"{doing} in {self._directory}: {error}; what the disk holds is unknown: open the store again"
        )
        self._refusal = failure
        return failure

    def _sync_directory(self) -> None:
        try:
            self._files.sync_directory(self._directory)
        except OSError as error:
            raise self._fail(error, "syncing the directory") from error

    # --- segments

    def _begin(self, room: int) -> None:
        """Go on in a new segment with room for frames of that size; one that is still empty is replaced."""
        self.sync()
        kept = [segment for segment in self._segments if segment.first < self.end]
        segment = Segment(
            path=os.path.join(self._directory, f"{self.end:020d}.seg"),
            salt=int.from_bytes(os.urandom(4), "little"),
            first=self.end,
            size=max(self._segment_size, HEAD_SIZE + room),
            previous=kept[-1].first if kept else self.end,
        )
        fd = self._make(segment)
        try:
            # Ordering: the header is synced; from here on the name promises all that is before it.
            self._files.rename(segment.path + ".tmp", segment.path)
            self._files.sync_directory(self._directory)
            before, self._fd, self._segments, self._zeroed = self._fd, fd, [*kept, segment], HEAD_SIZE
        except OSError as error:
            self._files.close(fd)
            raise self._fail(error, f"naming {segment.path}") from error
        except BaseException:  # an interrupt: the log would have two places to go on
            self._refusal = LogFailed(f"naming {segment.path} was interrupted; open the store again")
            raise
        if before >= 0:
            self._files.close(before)

    def _make(self, segment: Segment) -> int:
        """The new segment's file under its temporary name; a failure leaves nothing that counts."""
        fd = -1
        try:
            fd = self._files.open(segment.path + ".tmp", create=True)
            self._files.allocate(fd, segment.size)
            write_all(self._files, fd, segment.head(), 0)
            self._files.sync(fd)
        except OSError as error:
            with suppress(OSError):
                if fd >= 0:
                    self._files.close(fd)
                self._files.remove(segment.path + ".tmp")
            raise self._refuse(error, f"making the segment {segment.path} of {segment.size} B") from error
        return fd

    # --- recovery

    def _recover(self, required: int, read_only: bool) -> None:
        if read_only:
            self._refusal = ReadOnly(f"the log {self._directory} was opened with read_only=True")
        else:
            self._prepare()
        names = self._files.list(self._directory) if self._files.exists(self._directory) else []
        for name in filter(SEGMENT_NAME.fullmatch, names):
            self._segments.append(read_segment(self._files, os.path.join(self._directory, name)))
            check_chain(self._segments[-2:])
        if self._segments:
            self._find_end(required, read_only)
        elif required > 0:
            raise LogCorrupt(
                f"the log {self._directory} is empty, but everything below {required} was promised durable; "
                f"{remedy(self._directory)}"
            )
        elif not read_only:
            self._begin(0)

    def _prepare(self) -> None:
        """Make the directory durable; what a crash left of an unfinished file goes."""
        if not self._files.exists(self._directory):
            self._files.make_directory(self._directory)
        self._files.sync_directory(os.path.dirname(self._directory))
        for name in self._files.list(self._directory):
            if name.endswith(".tmp"):
                self._files.remove(os.path.join(self._directory, name))

    def _find_end(self, required: int, read_only: bool) -> None:
        segment = self._segments[-1]
        data = read_whole(self._files, segment.path)
        position, durable = segment.first, segment.first
        while True:
            while isinstance(frame := read_frame(segment, data, position), Frame):
                position, durable, self._is_marked = frame.end, frame.durable, frame.kind == CLOSED
            written = last_written(data[: written_size(self._files, segment.path)])
            promised = find_promise(segment, data, position, written)
            # Where this only reads, the owner may have written on meanwhile: then a frame is here now.
            if not promised or isinstance(read_frame(segment, data, position), str):
                break
        if required > position:
            raise damage(segment, position, frame, f"the store knows that everything below {required} was")
        if promised:
            raise damage(segment, position, frame, f"a later frame says that everything below {promised} was")
        self.end = position
        self.durable = max(durable, segment.first)
        if not read_only:
            self._fd = self._files.open(segment.path)
            self._cut(segment, data, written)
            self._settle(segment, data)

    def _cut(self, segment: Segment, data: memoryview, written: int) -> None:
        """Set aside what is behind the last whole frame, and leave zeros."""
        offset = segment.offset(self.end)
        if written <= offset:
            return
        torn = bytes(data[offset:written])
        write_file(self._files, os.path.join(self._directory, f"torn-{self.end:020d}.bin"), torn)
        write_all(self._files, self._fd, bytes(len(torn)), offset)

    def _settle(self, segment: Segment, data: memoryview) -> None:
        """Make durable what was found.

        Why written again: when an earlier process's sync failed, pages may be clean without being on the disk, and a
        sync alone would not write them. What that sync was for lies behind the last promise. The directory is synced
        because that process may have died between naming the segment and syncing the name.
        """
        found = bytes(data[segment.offset(self.durable) : segment.offset(self.end)])
        write_all(self._files, self._fd, found, segment.offset(self.durable))
        self._files.sync(self._fd)
        self._files.sync_directory(self._directory)
        self.durable = self.end


# --- frames


def pack_frame(
    salt: int, kind: int, position: int, durable: int, size: int, parts: list[memoryview]
) -> list[memoryview]:
    """A frame as parts to be written one after the other; the payload is not copied."""
    padding = PADDING[size & 7]
    content = 0
    for part in parts:
        content = crc32c(part, content)
    content = crc32c(padding, content)
    body = FRAME_BODY.pack(content, size, position, durable, kind, 0)
    head = FRAME_HEAD.pack(crc32c(body, salt), content, size, position, durable, kind, 0)
    return [memoryview(head), *parts, padding]


def read_frame(segment: Segment, data: memoryview, position: int) -> Frame | str:
    """The frame at a position, or why there is none."""
    offset = segment.offset(position)
    start = offset + FRAME_SIZE
    if start > segment.size:
        return "the segment is full"
    checksum, content, size, own, durable, kind, _ = FRAME_HEAD.unpack_from(data, offset)
    if checksum != crc32c(data[offset + 4 : start], segment.salt):
        return "the frame's checksum does not hold" if checksum or own or size else "no frame begins"
    if own != position:
        return f"the frame says it is of position {own}"
    stop = start + (size + 7 & ~7)
    if stop > segment.size:
        return f"a payload of {size} B does not fit into the segment"
    if content != crc32c(data[start:stop]):
        return "the payload's checksum does not hold"
    return Frame(segment.position(stop), durable, kind, data[start : start + size])


def find_promise(segment: Segment, data: memoryview, position: int, written: int) -> int:
    """A position beyond the given one that a frame header behind it calls durable; 0 where none does.

    A header is one whose checksum and own position hold; its payload may be damaged. One pass, whatever the bytes are.
    """
    stop = min(written + FRAME_SIZE, segment.size)  # a header may end with zeros
    for begin in range(segment.offset(position), stop - FRAME_SIZE + 1, CHUNK_SIZE):
        # One that begins in this chunk may end behind it.
        words = np.frombuffer(data[begin : min(begin + CHUNK_SIZE + FRAME_SIZE - 8, stop)], WORD)[2:]
        own = np.arange(len(words), dtype=WORD) * 8 + segment.position(begin)
        for index in np.flatnonzero(words == own).tolist():
            head = data[begin + 8 * index : begin + 8 * index + FRAME_SIZE]
            if len(head) == FRAME_SIZE:
                checksum, *_, durable, _, _ = FRAME_HEAD.unpack(head)
                if durable > position and checksum == crc32c(head[4:], segment.salt):
                    return int(durable)
    return 0


def last_written(data: memoryview) -> int:
    """The offset after the last word that is not zero."""
    for end in range(len(data), 0, -CHUNK_SIZE):
        begin = max(0, end - CHUNK_SIZE)
        words = np.frombuffer(data[begin:end], WORD)
        if words.any():
            return begin + 8 * int(np.flatnonzero(words)[-1] + 1)
    return 0


# --- segments


def read_segment(files: Files, path: str) -> Segment:
    """A segment by its header; LogCorrupt where that is not what was written."""
    data, name = read_whole(files, path), os.path.basename(path)
    if len(data) < HEAD_SIZE:
        raise broken(path, f"the file has {len(data)} B, its header alone {HEAD_SIZE}")
    magic, checksum, salt, first, size, previous = SEGMENT_HEAD.unpack_from(data)
    if magic != MAGIC or checksum != crc32c(data[12:HEAD_SIZE]):
        raise broken(path, f"the segment's header does not hold (it begins with {magic!r})")
    if f"{first:020d}.seg" != name:
        raise broken(path, f"the header is that of position {first}")
    if size != len(data):
        raise broken(path, f"the file has {len(data)} B, its header says {size}")
    return Segment(path, salt, first, size, previous)


def read_whole(files: Files, path: str) -> memoryview:
    try:
        return files.read(path)
    except OSError as error:
        raise StorageError(f"reading {path}: {error}; nothing is known about what it holds") from error


def written_size(files: Files, path: str) -> int:
    """Rounded up to whole words."""
    try:
        return -(-files.written_size(path) // WORD.itemsize) * WORD.itemsize
    except OSError as error:
        raise StorageError(f"looking for the end of {path}: {error}; nothing is known about what it holds") from error


def check_chain(pair: Sequence[Segment]) -> None:
    if len(pair) == 2 and pair[1].previous != pair[0].first:
        raise broken(pair[1].path, f"the segment before it, of position {pair[1].previous}, is missing")


# --- what went wrong


def remedy(directory: str) -> str:
    return f"restore a backup; `fastfeat check {os.path.dirname(directory)}` shows what is left"


def broken(path: str, reason: str) -> LogCorrupt:
    return LogCorrupt(f"{path}: {reason}; {remedy(os.path.dirname(path))}")


def damage(segment: Segment, position: int, reason: str, promise: str) -> LogCorrupt:
    offset = segment.offset(position)
    return broken(segment.path, f"offset {offset} (position {position}): {reason}, but {promise} promised durable")


def refusal_of(error: OSError, doing: str) -> ReadOnly:
    """The error that a failed system call means for whoever writes."""
    if error.errno in SPACE_ERRORS:
        return DiskFull(f"{doing}: {error}; free space on that disk, writes then go on")
    if error.errno in REFUSAL_ERRORS:
        return ReadOnly(f"{doing}: {error}; make the disk writable, writes then go on")
    return LogFailed(f"{doing}: {error}; no write is taken until the store is opened again")


def again(refusal: StorageError) -> StorageError:
    """The same refusal as a new exception, so that no traceback grows with every attempt."""
    return type(refusal)(*refusal.args)
