"""The stateful test's store as a durable one: stopped, crashed, snapshot, flushed and compacted between any two steps.

    test_stateful.StoreMachine --same steps--> Durable: a Store on a disk in memory, opened again and again

A durable store forgets nothing: where a view keeps less, as-of reads fall through to the history, so that every answer
is the oracle's and none is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from fastfeat import BeforeHistory, Store, past
from fastfeat.durable import Storage
from fastfeat.past import past_plan

from .faulty_files import ROOT, FaultyFiles
from .test_stateful import StoreMachine


class Durable:
    """A durable store behind a Store's face. What it refuses for want of rows is a fault."""

    def __init__(self, capacity_bytes: int, clock: Callable[[], int]) -> None:
        self._options: dict[str, Any] = {
            "capacity_bytes": capacity_bytes,
            "clock": clock,
            "segment_size": 1 << 14,
            "snapshot_seconds": 1e9,
            "flush_bytes": 1 << 50,
        }
        self._open(FaultyFiles())

    def _open(self, disk: FaultyFiles) -> None:
        self._disk = disk
        self._store = Store.open(ROOT + "/store", files=disk, **self._options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def reopen(self) -> None:
        self._store.close()
        self._open(self._disk)

    def lose_power(self, seed: int) -> None:
        """Go on with what the disk has when the power goes; the old store ends on a disk that nobody looks at."""
        image = self._disk.image(seed)
        self._store.close()
        self._open(image)

    def get_online_features(self, *arguments: Any, **options: Any) -> Any:
        return answered(self._store.get_online_features, *arguments, **options)

    def get_feature_vector(self, *arguments: Any, **options: Any) -> Any:
        return answered(self._store.get_feature_vector, *arguments, **options)

    def get_feature_vectors(self, *arguments: Any, **options: Any) -> Any:
        return answered(self._store.get_feature_vectors, *arguments, **options)


def answered(read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return read(*arguments, **options)
    except BeforeHistory as error:
        raise AssertionError(f"a durable store refused to answer: {error}") from error


class DurableMachine(StoreMachine):
    make_store = Durable

    @rule()
    def reopen(self) -> None:
        self.store.reopen()

    @rule(seed=st.integers(0, 1 << 16))
    def lose_power(self, seed: int) -> None:
        self.store.lose_power(seed)

    @rule(what=st.sampled_from(["snapshot", "flush_history", "flush_history", "compact"]))
    def keep(self, what: str) -> None:
        getattr(self.store, what)()


def test_a_durable_store_answers_as_one_that_never_ended_and_forgot_nothing() -> None:
    profile = settings()
    run_state_machine_as_test(DurableMachine, settings=settings(profile, max_examples=profile.max_examples // 2))


def forgets_the_tail(storage: Storage, *arguments: Any) -> Any:
    """The past as the history has it, without what is still on its way there."""
    tails, storage.tails = storage.tails, ()
    try:
        return past_plan(storage, *arguments)
    finally:
        storage.tails = tails


def has_no_past(storage: Storage, *arguments: Any) -> Any:
    raise BeforeHistory("it was never written")


@pytest.mark.parametrize("bug", [forgets_the_tail, has_no_past])
def test_the_machine_catches_a_store_that(bug: Callable[..., Any]) -> None:
    class Control(DurableMachine):
        focus: ClassVar[Mapping[str, Any]] = {"keep": "latest"}

    bounded = settings(
        max_examples=400,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with patch.object(past, "past_plan", bug), pytest.raises((AssertionError, BeforeHistory)):
        run_state_machine_as_test(Control, settings=bounded)
