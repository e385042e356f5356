"""Where a server calls functions: in threads until they have proved quick, and again once they were not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fastfeat_server import requests
from fastfeat_server.pace import ENTITIES_MAX, PROVEN_MIN, QUICK_SECONDS, TURN_SECONDS, Pace

from fastfeat import DataError, Store, connect
from fastfeat.computed import ComputedPlan

from .serving import serving
from .test_ondemand import HOUR_US, NOW_US, PROFILE, ROWS, fill, spending

SHARE = ["spending:share"]


class Turning:
    """A loop and a clock that are driven."""

    def __init__(self) -> None:
        self.now = 0.0
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, what: Callable[[], None]) -> None:
        self.soon.append(what)

    def turn(self) -> None:
        due, self.soon = self.soon, []
        for what in due:
            what()

    def taking(self, seconds: float) -> Callable[[], str]:
        def answer() -> str:
            self.now += seconds
            return "answer"

        return answer


@pytest.fixture
def loop() -> Turning:
    return Turning()


@pytest.fixture
def pace(loop: Turning) -> Pace:
    return Pace(cast("Any", loop), lambda: loop.now)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(capacity_bytes=32 << 20, clock=lambda: NOW_US) as store:
        fill(store)
        yield store


@pytest.fixture
def plan(store: Store) -> ComputedPlan:
    plan = store.plan(SHARE)
    assert isinstance(plan, ComputedPlan)
    return plan


def prove(pace: Pace, plan: ComputedPlan, loop: Turning) -> None:
    for _ in range(PROVEN_MIN):
        assert not pace.is_quick(plan, 1)
        assert pace.in_thread(plan, 1, loop.taking(QUICK_SECONDS / 2)) == "answer"
    assert pace.is_quick(plan, 1)


def test_functions_prove_themselves_in_threads(pace: Pace, plan: ComputedPlan, loop: Turning) -> None:
    prove(pace, plan, loop)
    assert pace.is_quick(plan, ENTITIES_MAX)
    assert not pace.is_quick(plan, ENTITIES_MAX + 1)


def test_one_slow_answer_and_all_is_to_be_proved_again(pace: Pace, plan: ComputedPlan, loop: Turning) -> None:
    prove(pace, plan, loop)
    pace.in_thread(plan, 1, loop.taking(QUICK_SECONDS * 2))
    prove(pace, plan, loop)
    pace.in_thread(plan, ENTITIES_MAX + 1, loop.taking(QUICK_SECONDS * 2))
    assert pace.is_quick(plan, 1)
    assert pace.at_once(plan, loop.taking(QUICK_SECONDS * 2)) == "answer"
    loop.turn()
    prove(pace, plan, loop)


def test_a_fault_proves_nothing(pace: Pace, plan: ComputedPlan) -> None:
    def fails() -> None:
        raise DataError("a request field is missing")

    for _ in range(PROVEN_MIN):
        with pytest.raises(DataError):
            pace.in_thread(plan, 1, fails)
    assert not pace.is_quick(plan, 1)


def test_a_turn_of_the_loop_is_not_filled_with_functions(pace: Pace, plan: ComputedPlan, loop: Turning) -> None:
    prove(pace, plan, loop)
    for _ in range(2):
        count = 0
        while pace.is_quick(plan, 1):
            pace.at_once(plan, loop.taking(QUICK_SECONDS * 0.9))
            count += 1
        assert count == -(-TURN_SECONDS // (QUICK_SECONDS * 0.9))
        assert len(loop.soon) == 1
        loop.turn()


def test_a_server_calls_what_is_quick_in_its_loop_and_answers_alike(store: Store, plan: ComputedPlan) -> None:
    callers: list[int] = []
    (call,) = plan._computation._calls
    function = call._function

    def watched(inputs: Any) -> Any:
        callers.append(threading.get_ident())
        return function(inputs)

    call._function = watched
    expected = [store.get_feature_vector(SHARE, row).tobytes() for row in ROWS]
    callers.clear()
    with serving(store) as server, connect(server.url) as client:
        pace, loops = server.server.pace, server._thread.ident
        for i in range(PROVEN_MIN):
            assert client.get_feature_vector(SHARE, ROWS[i % 5]).tobytes() == expected[i % 5]
        assert loops not in callers
        pace._clock = lambda: 0.0  # everything is quick
        for _ in range(PROVEN_MIN):
            client.get_feature_vector(SHARE, ROWS[0])
        callers.clear()
        assert [client.get_feature_vector(SHARE, row).tobytes() for row in ROWS] == expected
        many = client.get_online_features(SHARE, ROWS)
        assert many.to_numpy().tobytes() == b"".join(expected)
        assert set(callers) == {loops}


def test_rows_that_left_memory_are_for_threads(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data", capacity_bytes=32 << 20, clock=lambda: NOW_US) as store:
        store.apply([replace(PROFILE, keep="latest", ttl=None), spending])
        for hours in (2, 1):
            row = {"user_id": 1, "age": hours, "limit": 10.0 * hours, "country": ""}
            store.push("profile", {**row, "event_timestamp": NOW_US - hours * HOUR_US})
        plan = store.plan(SHARE)
        assert isinstance(plan, ComputedPlan)
        with serving(store) as server, connect(server.url) as client:
            pace = server.server.pace
            pace._quick[plan] = PROVEN_MIN
            pace._clock = lambda: 0.0
            entity = {"user_id": 1, "amount": 5.0}
            assert client.get_feature_vector(SHARE, entity, as_of=NOW_US - 2 * HOUR_US).tolist() == [0.25]
            assert client.get_feature_vector(SHARE, entity).tolist() == [0.5]


def test_the_entities_of_a_large_request_are_read_by_a_thread(
    store: Store, plan: ComputedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[int] = []

    def watched(*given: Any) -> Any:
        readers.append(threading.get_ident())
        return read(*given)

    read = requests.entity_columns
    monkeypatch.setattr(requests, "entity_columns", watched)
    with serving(store) as server, connect(server.url) as client:
        server.server.pace._quick[plan] = PROVEN_MIN
        client.get_feature_vectors(SHARE, ROWS[:1] * (ENTITIES_MAX + 1))
        assert server._thread.ident not in readers
        server.server.pace._quick[plan] = PROVEN_MIN
        client.get_feature_vectors(SHARE, ROWS[:1] * ENTITIES_MAX)
        assert server._thread.ident in readers
