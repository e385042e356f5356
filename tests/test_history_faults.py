"""History on a disk that loses power, fails or turns bits: what was durable is there, and no read gives a wrong row."""

from __future__ import annotations

import errno

import pyarrow as pa
import pytest

from fastfeat.errors import HistoryCorrupt, StorageError
from fastfeat.history import History, rowfile

from .faulty_files import FaultyFiles
from .histories import (
    MemoryPlace,
    Model,
    ask,
    check_crashes,
    check_damage,
    check_failing_calls,
    check_failures,
    life_on,
    small_row_groups,
    written,
)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in small_row_groups().items():
        monkeypatch.setattr(rowfile, name, value)


def test_power_loss_before_any_change_loses_nothing_and_leaves_nothing() -> None:
    assert check_crashes(seeds=2) > 150


def test_power_loss_while_recovering_from_one_changes_nothing() -> None:
    assert check_crashes(seeds=1, also_recovering=True) > 75


@pytest.mark.long
def test_power_loss_leaves_ten_thousand_disks_whole() -> None:
    assert check_crashes(seeds=60, also_recovering=True) + check_crashes(seeds=60) > 10_000


def test_any_failing_change_leaves_the_history_as_it_was_and_it_goes_on() -> None:
    assert check_failures() > 30


@pytest.mark.parametrize(
    "code", [pytest.param(errno.EIO, id="EIO"), pytest.param(errno.ENOSPC, id="ENOSPC", marks=pytest.mark.torture)]
)
def test_any_failing_call_is_a_typed_error_and_loses_nothing(code: int) -> None:
    assert check_failing_calls(code) > 100


def test_interruptions_and_short_writes_are_nothing_to_a_history() -> None:
    told: list[Model] = []
    life_on(FaultyFiles(fail_every=(2, errno.EINTR), only="write", short_every=3), told)
    assert len(told) == 2


@pytest.mark.usefixtures("small_groups")
def test_no_damage_gives_a_wrong_row() -> None:
    assert check_damage() > 4_000


def test_a_place_that_does_not_answer_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    place = MemoryPlace()
    history = History.open(place)
    written(history)

    def fail(name: str) -> pa.NativeFile:
        raise OSError("no route to host")

    monkeypatch.setattr(place, "open", fail)
    with pytest.raises(StorageError, match="no route to host") as caught:
        ask(history, "user", [(1,)])
    assert not isinstance(caught.value, HistoryCorrupt)
