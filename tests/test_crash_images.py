"""A durable store on a disk that loses power before every single change, and on one whose calls fail.

Source: tests/store_trials.py says what is expected, tests/faulty_files.py what a disk may do.
"""

from __future__ import annotations

import errno
import random

import pytest

from fastfeat.errors import DiskFull, HistoryCorrupt, LogCorrupt, LogFailed, ReadOnly, SnapshotCorrupt, StorageError

from .faulty_files import FaultyFiles
from .store_trials import damage, endure, moments, survive

REFUSALS = {DiskFull, LogFailed, ReadOnly, StorageError}
DAMAGES = {LogCorrupt, SnapshotCorrupt, HistoryCorrupt}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.torture) for seed in range(1, 10))])
def test_a_power_loss_before_any_change_loses_nothing_acknowledged(seed: int) -> None:
    """Some 1,000 images in all; every fourth one is crashed again while it recovers, or more than once."""
    found = moments(seed, steps=5)
    assert len(found) > 50
    for number, moment in enumerate(found):
        survive(moment, seed * 10_000 + number)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_twenty_thousand_power_losses_lose_nothing_acknowledged(seed: int) -> None:
    for number, moment in enumerate(moments(seed, steps=14, images=3)):
        survive(moment, seed * 10_000 + number)


def failing(code: str, seed: int) -> FaultyFiles:
    every = random.Random(seed).randrange(3, 40)
    if code == "short write":
        return FaultyFiles(short_every=every)
    return FaultyFiles(fail_every=(every, getattr(errno, code)))


@pytest.mark.parametrize(
    "code",
    ["EIO", "short write", *(pytest.param(code, marks=pytest.mark.torture) for code in ("ENOSPC", "EINTR", "EROFS"))],
)
def test_whatever_fails_what_was_acknowledged_stays_and_errors_are_typed(code: str) -> None:
    refusals = {refusal for seed in range(25) for refusal in endure(seed, 15, failing(code, seed)).refusals}
    assert refusals <= REFUSALS
    assert bool(refusals) == (code != "short write")


@pytest.mark.long
@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EINTR", "EROFS", "short write"])
def test_whatever_fails_what_was_acknowledged_stays_in_a_thousand_scripts(code: str) -> None:
    for seed in range(1_000, 2_000):
        assert set(endure(seed, 20, failing(code, seed)).refusals) <= REFUSALS


def test_a_full_disk_breaks_nothing_and_writes_resume() -> None:
    """What fails is every third write of the log; no store has to be opened again."""
    for seed in range(20):
        disk = FaultyFiles(fail_every=(3, errno.ENOSPC), only="write")
        trial = endure(seed, 15, disk)
        assert set(trial.refusals) == {DiskFull}


@pytest.mark.parametrize(
    "seeds",
    [
        range(4),
        pytest.param(range(4, 16), marks=pytest.mark.torture),
        pytest.param(range(1_000, 1_200), marks=pytest.mark.long),
    ],
)
def test_any_damage_is_detected_or_leaves_what_a_prefix_of_the_writes_would(seeds: range) -> None:
    found = [error for seed in seeds for error in damage(seed, steps=12, times=25)]
    assert {LogCorrupt, HistoryCorrupt} <= set(found) <= DAMAGES
    assert len(found) < 25 * len(seeds), "not even a snapshot's damage was got over"
