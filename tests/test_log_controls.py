"""Positive controls: logs and disks with one bug each, and the check of tests/log_trials.py that catches it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from unittest.mock import patch

import pytest

from fastfeat import log as module
from fastfeat.errors import LogCorrupt, LogFailed, StorageError
from fastfeat.log import Frame, Log, Segment
from tests.faulty_files import FaultyFiles
from tests.log_trials import (
    DIRECTORY,
    Violation,
    crash_everywhere,
    flip_everything,
    misplace_everything,
    sample,
    survive_failures,
)

# --- disks


class NeverSyncs(FaultyFiles):
    def sync(self, fd: int) -> None:
        pass


class NeverSyncsNames(FaultyFiles):
    def sync_directory(self, path: str) -> None:
        pass


# --- logs


class AcknowledgesEarly(Log):
    def _append(self, kind: int, parts: list[memoryview]) -> int:
        end = super()._append(kind, parts)
        self.durable = end
        return end


class LeavesTornTails(Log):
    def _cut(self, segment: Segment, data: memoryview, written: int) -> None:
        pass

    def _write_zeros(self, segment: Segment, stop: int) -> None:
        """Nothing: zeros written ahead would cover for the tail that was left."""


class CutsWithoutSync(Log):
    """Zeroes the tail and takes it for durable."""

    def _settle(self, segment: Segment, data: memoryview) -> None:
        self.durable = self.end


class TrustsThePageCache(Log):
    """Syncs what it found, but does not write it again."""

    def _settle(self, segment: Segment, data: memoryview) -> None:
        self._files.sync(self._fd)
        self._files.sync_directory(self._directory)
        self.durable = self.end


class RetriesSync(Log):
    def sync(self) -> None:
        try:
            super().sync()
        except LogFailed:
            self._refusal = None
            super().sync()


class ForgetsThatItFailed(Log):
    def _fail(self, error: OSError, doing: str) -> LogFailed:
        failure = super()._fail(error, doing)
        self._refusal = None
        return failure


class LeavesFailedWrites(Log):
    def _undo(self, error: OSError, size: int, at: int, is_touched: bool) -> StorageError:
        return self._refuse(error, "writing")


class UndoesWithoutSync(Log):
    def _undo(self, error: OSError, size: int, at: int, is_touched: bool) -> StorageError:
        with patch.object(self._files, "sync"):
            durable = self.durable
            failure = super()._undo(error, size, at, is_touched)
            self.durable = durable
            return failure


class DropsTooMuch(Log):
    def drop_before(self, position: int) -> None:
        if len(self._segments) > 1 and self._segments[0].first < position:
            position = max(position, self._segments[1].first)
        super().drop_before(position)


class DropsWithoutOrder(Log):
    """Removes several segments and leaves their names to one sync that never comes."""

    def _sync_directory(self) -> None:
        pass


class BeginsBeforeSync(Log):
    """Makes a segment, which promises all before it, without syncing that."""

    def _begin(self, room: int) -> None:
        self.durable = self.end
        super()._begin(room)


class NamesBeforeSync(Log):
    """Gives a segment its name before its header is synced."""

    def _make(self, segment: Segment) -> int:
        with patch.object(self._files, "sync"):
            return super()._make(segment)


# --- checks


def crashes(cls: type[Log] = Log, disks: type[FaultyFiles] = FaultyFiles) -> None:
    for seed in range(6):
        crash_everywhere(seed, 3, cls, disks)


def failures(code: int, only: str) -> Callable[[type[Log]], None]:
    def check(cls: type[Log]) -> None:
        for seed in range(6):
            for every in (2, 3, 5):
                survive_failures(seed, FaultyFiles(fail_every=(every, code), only=only), cls)

    return check


def damage(cls: type[Log] = Log) -> None:
    flip_everything(sample(is_closed=True), cls)


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (AcknowledgesEarly, crashes),
        (LeavesTornTails, crashes),
        (CutsWithoutSync, crashes),
        (DropsTooMuch, crashes),
        (DropsWithoutOrder, crashes),
        (BeginsBeforeSync, crashes),
        (NamesBeforeSync, crashes),
        (RetriesSync, failures(errno.EIO, "sync")),
        (ForgetsThatItFailed, failures(errno.EIO, "sync")),
        (TrustsThePageCache, failures(errno.EIO, "sync")),
        (LeavesFailedWrites, failures(errno.ENOSPC, "write")),
        (UndoesWithoutSync, failures(errno.ENOSPC, "write")),
    ],
)
def test_a_log_with_a_bug_is_caught(bug: type[Log], check: Callable[[type[Log]], None]) -> None:
    with pytest.raises(Violation):
        check(bug)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(crashes, marks=pytest.mark.torture),
        failures(errno.EIO, "sync"),
        failures(errno.ENOSPC, "write"),
    ],
)
def test_the_log_itself_passes_these_checks(check: Callable[[type[Log]], None]) -> None:
    check(Log)


@pytest.mark.parametrize("bug", [NeverSyncs, NeverSyncsNames])
def test_a_disk_that_does_not_sync_is_caught(bug: type[FaultyFiles]) -> None:
    with pytest.raises(Violation):
        crashes(disks=bug)


# --- functions of the log


@contextmanager
def checksums_unread() -> Iterator[None]:
    """Frames are taken as they are: every checksum is made to hold."""

    def read_frame(segment: Segment, data: memoryview, position: int) -> Frame | str:
        head = data[segment.offset(position) :][: module.FRAME_SIZE]
        if len(head) < module.FRAME_SIZE or not any(head):
            return "no frame begins"
        _, _, size, own, durable, kind, _ = module.FRAME_HEAD.unpack(head)
        start = segment.offset(position) + module.FRAME_SIZE
        stop = start + (size + 7 & ~7)
        if own != position or stop > segment.size:
            return "not a frame"
        return Frame(segment.position(stop), durable, kind, data[start : start + size])

    with patch.object(module, "read_frame", read_frame):
        yield


@contextmanager
def positions_unread() -> Iterator[None]:
    """Any whole frame counts, wherever it was meant to lie."""
    real = module.read_frame

    def read_frame(segment: Segment, data: memoryview, position: int) -> Frame | str:
        offset = segment.offset(position)
        own = module.FRAME_HEAD.unpack_from(data, offset)[3] if offset + module.FRAME_SIZE <= len(data) else position
        frame = real(segment._replace(first=segment.first + own - position), data, own)
        return frame._replace(end=frame.end - own + position) if isinstance(frame, Frame) else frame

    with patch.object(module, "read_frame", read_frame):
        yield


@contextmanager
def promises_unread() -> Iterator[None]:
    """Whatever breaks off is a torn tail."""
    with patch.object(module, "find_promise", lambda *_: 0):
        yield


@contextmanager
def chains_unread() -> Iterator[None]:
    with patch.object(module, "check_chain", lambda _: None):
        yield


def misplaced() -> None:
    misplace_everything(sample(is_closed=True))


def missing() -> None:
    """A segment in the middle is gone: opening refuses, whether the records are read or not."""
    made = sample(is_closed=True)
    gone = made.segments[1]
    disk = FaultyFiles.holding({path: content for path, content in made.contents.items() if path != gone})
    with suppress(LogCorrupt):
        Log.open(disk, DIRECTORY)
        raise Violation("a missing segment is not noticed")


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (checksums_unread, damage),
        (positions_unread, misplaced),
        (promises_unread, damage),
        (chains_unread, missing),
    ],
)
def test_a_function_with_a_bug_is_caught(
    bug: Callable[[], AbstractContextManager[None]], check: Callable[[], None]
) -> None:
    with bug(), pytest.raises(Violation):
        check()


@pytest.mark.parametrize("check", [misplaced, missing])
def test_the_functions_themselves_pass_these_checks(check: Callable[[], None]) -> None:
    check()
