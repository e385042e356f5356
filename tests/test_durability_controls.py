"""Positive controls: stores and disks with one bug each, which the trials of store_trials.py must catch.

The bugs of the log alone are in test_log_controls.py, those of the history alone in test_history.py.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from crc32c import crc32c

from fastfeat import commits, durable, rows, snapshot
from fastfeat.commits import Commits, Prepared, Write
from fastfeat.durable import Storage, Tail
from fastfeat.errors import StorageError
from fastfeat.history import Covered, History
from fastfeat.history.catalog import Catalog
from fastfeat.log import Log

from .faulty_files import FaultyFiles
from .store_trials import SETTINGS, Observed, Violation, damage, endure, moments, survive

# --- the trials


def lose_power(disks: type[Observed] = Observed) -> None:
    """Scripts that lose power at any change; every fifth of the images."""
    for seed in range(40):
        for number, moment in list(enumerate(moments(seed, steps=14, disks=disks)))[seed % 5 :: 5]:
            survive(moment, seed * 10_000 + number)


def fail_to_write() -> None:
    for seed in range(40):
        endure(seed, 15, FaultyFiles(fail_every=(3, errno.ENOSPC), only="write"))


def be_damaged() -> None:
    for seed in range(40):
        damage(seed, steps=12, times=25)


# --- disks


class NeverSyncs(Observed):
    def sync(self, fd: int) -> None:
        pass


class NeverSyncsDirectories(Observed):
    def sync_directory(self, path: str) -> None:
        pass


@pytest.mark.torture
@pytest.mark.parametrize("disks", [NeverSyncs, NeverSyncsDirectories])
def test_a_disk_that_does_not_sync_is_caught(disks: type[Observed]) -> None:
    with pytest.raises((Violation, StorageError)):
        lose_power(disks)


# --- writes


@contextmanager
def acknowledges_before_the_sync() -> Iterator[None]:
    with patch.dict(SETTINGS, fsync="off"):
        yield


@contextmanager
def publishes_before_the_log() -> Iterator[None]:
    def finish(self: Commits, prepared: list[Prepared]) -> None:
        self._publish(prepared)
        error: Exception | None = None
        try:
            for each in prepared:
                self.log.append(each.kind, each.record)
            self.log.sync()
        except StorageError as refused:
            error = refused
        for each in prepared:
            commits.fail(each.writes, error)

    with patch.object(Commits, "_finish", finish):
        yield


@contextmanager
def deletes_in_parts() -> Iterator[None]:
    """A delete of some keys is some records."""
    commit = Commits._commit

    def in_parts(self: Commits, runs: list[list[Write]]) -> None:
        if len(runs) == 1 and runs[0][0].keys is not None:
            write = runs[0][0]
            write.created_us = self._stamp()
            self._delete_in_parts(write)
            write.is_done = True
        else:
            commit(self, runs)

    with patch.object(Commits, "_commit", in_parts), patch.object(commits, "DELETE_PART", 1):
        yield


@contextmanager
def forgets_deletes() -> Iterator[None]:
    """The log knows that something was deleted, but not what."""
    prepare = Commits._prepare_delete

    def forget(self: Commits, write: Write, low: int, high: int | None) -> Prepared:
        prepared = prepare(self, write, low, high)
        prepared.record = [
            b'{"view": "%s", "created_us": %d, "keys": {"user_id": []}}' % (write.table.name.encode(), write.created_us)
        ]
        return prepared

    with patch.object(Commits, "_prepare_delete", forget):
        yield


# --- recovery


@contextmanager
def after_recovery(forget: Callable[[Storage], None]) -> Iterator[None]:
    recover = Storage._recover

    def recovered(self: Storage) -> None:
        recover(self)
        forget(self)

    with patch.object(Storage, "_recover", recovered):
        yield


def forgets_the_created_clock() -> AbstractContextManager[None]:
    return after_recovery(lambda storage: setattr(storage.commits, "created_us", 0))


def forgets_the_sequence() -> AbstractContextManager[None]:
    return after_recovery(lambda storage: setattr(storage.commits, "sequence", 0))


def forgets_the_tail() -> AbstractContextManager[None]:
    return after_recovery(lambda storage: setattr(storage, "tails", (Tail(storage._clock),)))


@contextmanager
def replays_what_the_snapshot_holds() -> Iterator[None]:
    replay = Storage._replay

    def twice(self: Storage, start: int) -> None:
        replay(self, min(start, self.log.start))

    with patch.object(Storage, "_replay", twice):
        yield


# --- snapshots and the history


@contextmanager
def snapshots_hold_later_rows() -> Iterator[None]:
    parts_of = durable.parts_of
    with patch.object(durable, "parts_of", lambda views, _: parts_of(views, durable.EVERY_SEQUENCE)):
        yield


@contextmanager
def snapshots_leave_out_heads() -> Iterator[None]:
    heads = rows.heads_batch
    with patch.object(durable, "heads_batch", lambda view, exported: heads(view, exported).slice(0, 0)):
        yield


@contextmanager
def snapshots_are_not_checked() -> Iterator[None]:
    """What a manifest says of its files' checksums is not compared; the manifest's own is."""

    with patch.object(snapshot, "crc32c", lambda data: crc32c(data) if isinstance(data, bytes) else 0):
        yield


@contextmanager
def drops_the_log_without_a_snapshot() -> Iterator[None]:
    def drop(self: Storage) -> None:
        with self.commits.lock:
            self.log.drop_before(self.history.covered.position)

    with patch.object(Storage, "_drop_log", drop):
        yield


@contextmanager
def drops_the_log_without_the_history() -> Iterator[None]:
    def drop(self: Storage) -> None:
        with self.commits.lock:
            self.log.drop_before(self.last_snapshot.log_start if self.last_snapshot else 0)

    with patch.object(Storage, "_drop_log", drop):
        yield


@contextmanager
def the_history_covers_too_much() -> Iterator[None]:
    """It says that it has what was written while it was."""
    install, open_log, logs = History._install, Log.open, list[Log]()

    def opened(*arguments: Any, **options: Any) -> Log:
        logs.append(open_log(*arguments, **options))
        return logs[-1]

    def covering(self: History, change: Callable[[Catalog], Catalog], names: list[str]) -> None:
        def more(catalog: Catalog) -> Catalog:
            changed = change(catalog)
            return replace(changed, covered=Covered(changed.covered.sequence, logs[-1].end))

        install(self, more, names)

    with patch.object(History, "_install", covering), patch.object(Log, "open", opened):
        yield


@pytest.mark.torture
@pytest.mark.parametrize(
    ("bug", "trial"),
    [
        (acknowledges_before_the_sync, lose_power),
        (publishes_before_the_log, fail_to_write),
        (deletes_in_parts, lose_power),
        (forgets_deletes, lose_power),
        (forgets_the_created_clock, lose_power),
        (forgets_the_sequence, lose_power),
        (forgets_the_tail, lose_power),
        (replays_what_the_snapshot_holds, lose_power),
        (snapshots_hold_later_rows, lose_power),
        (snapshots_leave_out_heads, lose_power),
        (snapshots_are_not_checked, be_damaged),
        (drops_the_log_without_a_snapshot, lose_power),
        (drops_the_log_without_the_history, lose_power),
        (the_history_covers_too_much, lose_power),
    ],
)
def test_a_store_with_a_bug_is_caught(
    bug: Callable[[], AbstractContextManager[None]], trial: Callable[[], None]
) -> None:
    with bug(), pytest.raises((Violation, StorageError, ValueError)):  # the last: the history was given what it has
        trial()
