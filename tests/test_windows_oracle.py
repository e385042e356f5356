"""Windows through the machine of test_stateful.py: every answer is the oracle's, bit for bit.

    test_stateful.StoreMachine --same steps--> a Store, a durable one, a Client     worlds of event and window views

Rows come late, twice, with equal times, corrected and in any order; windows are read at their edges, as of any moment
and as known at any; entities are deleted; what keep= dropped may be refused, but by no durable store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from fastfeat import Aggregation, BeforeHistory, Store, WindowView, connect

from .strategies import World, event_worlds, row_table, window_views
from .test_durable_store import DurableMachine
from .test_ids import IdIgnored
from .test_stateful import Remote, StoreMachine


class WindowMachine(StoreMachine):
    """The machine with events; windows are added and changed while it runs."""

    may_change: ClassVar[bool] = True

    @initialize(world=event_worlds())
    def apply(self, world: World) -> None:
        super().apply(world)

    @rule(data=st.data())
    def load_many(self, data: st.DataObject) -> None:
        """Enough rows of one entity for its blocks to keep sums of, in order or not."""
        view, drawn = self.draw_rows(data, rows_max=5)
        key, start_us, _ = drawn[0]
        start_us = start_us if abs(start_us - self.now_us) < 10**12 else self.now_us  # not next to the ends of time
        step = data.draw(st.sampled_from([1, 7, -1]), "step")
        rows = [(key, start_us + step * i % 40, drawn[i % len(drawn)][2]) for i in range(40)]
        created = [self.now_us - 1 - i % 3 for i in range(40)]
        self.store.load(view.name, row_table(view, rows, created), created_time="created")
        loaded = [(key, at, us, values) for (key, at, values), us in zip(rows, created, strict=True)]
        self.model.load(view.name, loaded, self.now_us)

    @rule(data=st.data())
    def change_windows(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["windows8", "windows9"]), "name")  # of no service
        if not self.may_change:
            name = f"windows{len(self.world.windows)}"
        view = data.draw(window_views(name, self.world.views[0]), "view")
        self.store.apply([view])
        self.model.apply(view)
        self.world = replace(self.world, windows=[*(each for each in self.world.windows if each.name != name), view])


class DurableWindowMachine(WindowMachine, DurableMachine):
    pass


class ClientWindowMachine(WindowMachine):
    make_store = staticmethod(partial(Remote, connect))
    may_change = False  # a connection's plans mean what they meant when they were made


@pytest.mark.parametrize(
    "machine",
    [WindowMachine, *(pytest.param(m, marks=pytest.mark.torture) for m in (DurableWindowMachine, ClientWindowMachine))],
)
def test_windows_are_those_of_the_oracle(machine: type[StoreMachine]) -> None:
    profile = settings()
    run_state_machine_as_test(machine, settings=settings(profile, max_examples=profile.max_examples // 3))


# --- the checker's own controls: stores that each get one thing about windows wrong


class Changed(Store):
    """A store that takes other windows than it was told."""

    def apply(self, definitions: Any) -> Any:
        return super().apply([self.changed_view(each) for each in definitions])

    def changed_view(self, view: Any) -> Any:
        if not isinstance(view, WindowView):
            return view
        return replace(view, features=[self.changed(each) for each in view.features])

    def changed(self, each: Aggregation) -> Aggregation:
        raise NotImplementedError


class EndsLate(Changed):
    """The event being scored is in its own window."""

    def changed(self, each: Aggregation) -> Aggregation:
        return replaced(each, closed={"left": "both", "neither": "right"}.get(each.closed, each.closed))


class BeginsLate(Changed):
    """An event at the window's beginning is not in it."""

    def changed(self, each: Aggregation) -> Aggregation:
        return replaced(each, closed={"left": "neither", "both": "right"}.get(each.closed, each.closed))


class DelayForgotten(Changed):
    """Windows end at the moment of the read."""

    def changed(self, each: Aggregation) -> Aggregation:
        return replaced(each, delay=0 * each.delay)


class FilterForgotten(Changed):
    """Every row meets every condition."""

    def changed(self, each: Aggregation) -> Aggregation:
        return replaced(each, where=())


class FirstIsLast(Changed):
    """The order of rows is turned round."""

    def changed(self, each: Aggregation) -> Aggregation:
        return replaced(each, function={"first": "last", "last": "first"}.get(each.function, each.function))


def replaced(each: Aggregation, **change: Any) -> Aggregation:
    parts = ("column", "function", "window", "name", "delay", "closed", "where", "q", "n")
    return Aggregation(**{**{part: getattr(each, part) for part in parts}, **change})


@pytest.mark.parametrize("store", [EndsLate, BeginsLate, DelayForgotten, FilterForgotten, FirstIsLast, IdIgnored])
def test_the_checker_catches(store: Callable[..., Any]) -> None:
    class Control(WindowMachine):
        make_store = store

    bounded = settings(
        max_examples=400,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, BeforeHistory)):
        run_state_machine_as_test(Control, settings=bounded)
