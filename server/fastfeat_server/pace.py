"""Pace: which plans' functions are so quick that the event loop may wait for them.

    by threads --PROVEN_MIN answers in a row within QUICK_SECONDS--> in the loop --one that took longer--> by threads

Why: a thread and back costs 60 us and more, which is several times what a usual function takes for a few entities, and
     whatever it computes it holds the GIL, there as here.
Promise:     a function that nobody has seen yet never runs in the loop, and in one turn of the loop functions take
             TURN_SECONDS and one answer at most: who sends many requests at once gets the rest of them from threads.
Concurrency: `in_thread` is for any thread, the rest for the loop's.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from fastfeat.computed import ComputedPlan

T = TypeVar("T")

QUICK_SECONDS: Final = 0.0005  # a look-up of a thousand entities, which the loop waits for, takes as long
PROVEN_MIN: Final = 32
TURN_SECONDS: Final = 0.001
ENTITIES_MAX: Final = 16  # of an answer that is timed, and of one that the loop waits for


class Pace:
    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._quick: WeakKeyDictionary[ComputedPlan, int] = WeakKeyDictionary()  # answers in a row
        self._turn_seconds = 0.0  # that functions have taken in this turn of the loop

    def is_quick(self, plan: ComputedPlan, entities: int) -> bool:
        """Whether the loop may wait for the functions of this plan, now and for so many entities."""
        if entities > ENTITIES_MAX or self._quick.get(plan, 0) < PROVEN_MIN:
            return False
        return self._turn_seconds < TURN_SECONDS

    def at_once(self, plan: ComputedPlan, answer: Callable[[], T]) -> T:
        """The answer, made in the loop."""
        if not self._turn_seconds:
            self._loop.call_soon(self._end_turn)
        began = self._clock()
        try:
            result = answer()
        finally:
            took = self._clock() - began
            self._turn_seconds += took
            if took > QUICK_SECONDS:
                self._quick[plan] = 0
        return result

    def in_thread(self, plan: ComputedPlan, entities: int, answer: Callable[[], T]) -> T:
        """The answer, made elsewhere; whether it was quick is remembered. A fault proves nothing."""
        began = self._clock()
        result = answer()
        if entities <= ENTITIES_MAX:
            is_quick = self._clock() - began <= QUICK_SECONDS
            self._quick[plan] = self._quick.get(plan, 0) + 1 if is_quick else 0
        return result

    def _end_turn(self) -> None:
        self._turn_seconds = 0.0
