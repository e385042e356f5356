"""AttachedStore: a store whose rows another process of this machine writes, read where they lie.

    writer --rows--> arena in shared memory <--plans-- AttachedStore, any number of them

    A read is the read of a Store: the same plans over the same arena, with no copy and no message. What changes under
    it are two words of the arena's header: the catalogue (a view was applied) and the generation (a new writer has it
    all in a new arena). Both are looked at before each read; then definitions, tables and plans are made anew.

Promise:     the answers of the writer's own Store at that moment, except for rows that only its history has:
             BeforeHistory. While the writer is gone, the last state that it published, until another takes the name.
Concurrency: any number of threads. A child of fork reads on, under slots of its own.
Errors:      StorageError: no such arena, one of another version, another user's with functions in its definitions.
             Every write raises ReadOnly.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from ._core.plan import ReadsAtHand
from .applied import NOTHING
from .definitions import definitions_from_list
from .errors import ReadOnly, SchemaError, StorageError
from .shared import Catalogue, attach, has_arena
from .store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from ._core.arena import Arena
    from .definitions import Definition
    from .result import Result
    from .store import EntityRows, Features, Moment

log_lines = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.05  # between two looks at an arena that could not be read
MAPPED_AT_ONCE: Final = 64 << 20  # bytes
MAPPING_SECONDS: Final = 0.5  # between two looks at whether the arena has grown
POLL_SECONDS: Final = 2e-4


class AttachedStore(ReadsAtHand, Store):
    """The store of the server that shares its memory under `name`."""

    _arena: Arena

    def __init__(self, name: str, clock: Callable[[], int] | None = None) -> None:
        super().__init__(1 << 20, clock)
        self.name = name
        self._following = threading.Lock()
        self._has_moved = False
        self._next_look = 0.0
        self._is_mapping = False
        self._is_closed = threading.Event()
        self._catalogue_word = 0
        self._owner = 0
        self._attach(*attach(name))
        _attached.add(self)
        self._start_mapping()

    def _start_mapping(self) -> None:
        self._is_mapping = True
        threading.Thread(target=map_pages, args=(weakref.ref(self), self._is_closed), daemon=True).start()

    def _attach(self, arena: Arena, owner: int) -> None:
        """Read from this user's arena from now on, by what its catalogue says."""
        # Why the word first: a catalogue published in between is then met again, not missed.
        word, catalogue = arena.catalogue_word, Catalogue.of(arena)
        check_functions(catalogue, owner, self.name)
        now = self._in_arena(arena, NOTHING, definitions_from_list(catalogue.definitions), catalogue.tables)
        # Why the arena last: others read meanwhile. Until it is there they come here, too, and wait; from then on all
        # that they read by is of it, and so is the position that it says.
        self._put(now)
        self.at_hand.turn_to(arena, word, self._plans)
        self._owner = owner
        self._arena = arena
        self._catalogue_word = word

    def _follow(self) -> None:
        """Move to what is there now. Keeps what it has where there is nothing newer that can be read yet."""
        with self._following:
            arena = self._arena
            if arena is None or time.monotonic() < self._next_look:
                return
            if not self._is_mapping:
                self._start_mapping()
            is_replaced = arena.superseded or arena.is_removed
            if not is_replaced and arena.is_current(self._catalogue_word):
                return
            if is_replaced and not has_arena(self.name):  # its store ended, and none has its name yet
                return
            try:
                self._attach(*(attach(self.name) if is_replaced else (arena, self._owner)))
            except (SchemaError, StorageError):
                self._next_look = time.monotonic() + LOOK_SECONDS
                return
            self._next_look = 0.0
            self._has_moved = True

    def _look(self) -> None:
        """Before every read: is what it reads still the newest?"""
        if not self._open_arena().is_current(self._catalogue_word):
            self._follow()

    def follow(self) -> bool:
        """True where definitions or generation changed since the last call: plans made before work on, on what was."""
        self._look()
        with self._following:  # the thread that maps pages may be moving
            moved, self._has_moved = self._has_moved, False
        return moved

    @property
    def is_stale(self) -> bool:
        """True while the writing process is gone: answers are of its last state. Asks the kernel."""
        return not self._open_arena().has_writer

    def wait_for(self, position: int, seconds: float) -> bool:
        """Wait until what is visible here has come to this position; False: it has not within the time."""
        deadline = time.monotonic() + seconds
        self._look()  # a position is of the newest arena
        while self.position < position:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
            self._look()
        return True

    # --- reading

    def get_online_features(
        self,
        features: Features,
        entity_rows: EntityRows,
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        receipt: bool = True,
    ) -> Result:
        """As Store.get_online_features; without a receipt."""
        self._look()
        return super().get_online_features(features, entity_rows, as_of=as_of, known_at=known_at, receipt=receipt)

    def _vector(
        self,
        features: Features,
        entity_row: Mapping[str, object],
        as_of: Moment,
        known_at: Moment,
        out: NDArray[Any] | None,
    ) -> NDArray[Any]:
        self._look()
        return Store.get_feature_vector(self, features, entity_row, as_of=as_of, known_at=known_at, out=out)

    def _vectors(
        self, features: Features, entity_rows: EntityRows, as_of: Moment, known_at: Moment, out: NDArray[Any] | None
    ) -> NDArray[Any]:
        self._look()
        return Store.get_feature_vectors(self, features, entity_rows, as_of=as_of, known_at=known_at, out=out)

    def info(self) -> dict[str, Any]:
        """As Store.info, and of what is shared: name, generation, position, is_stale."""
        self._look()
        arena = self._open_arena()
        shared = {
            "name": self.name,
            "generation": arena.generation,
            "position": arena.position,
            "is_stale": self.is_stale,
        }
        return {**super().info(), "shared": shared}

    # --- what is not done here

    def apply(self, definitions: Definition | Iterable[Definition]) -> None:
        """Raises ReadOnly: definitions are applied where the rows are written."""
        raise ReadOnly(f"the shared arena {self.name!r} is another process's; apply definitions there")

    def close(self) -> None:
        """Let go of the arena once the last read ends."""
        self._is_closed.set()
        with self._following:  # whoever is about to move to another arena ends first
            self.at_hand.turn_to(None, 0, {})
            super().close()


_attached: weakref.WeakSet[AttachedStore] = weakref.WeakSet()


def renew_locks() -> None:
    """In a child of fork: a thread that it does not have may have been moving. Its first read looks anew."""
    for store in list(_attached):
        store._following = threading.Lock()
        store._catalogue_word = 0
        store.at_hand.turn_to(None, 0, {})
        if not store._is_closed.is_set():
            store._is_closed = threading.Event()
        store._is_mapping = False


os.register_at_fork(after_in_child=renew_locks)


def check_functions(catalogue: Catalogue, owner: int, name: str) -> None:
    """Raises StorageError: functions of on-demand features that another user wrote would run as this one's code."""
    if owner not in (0, os.geteuid()) and any(each["type"] == "on_demand" for each in catalogue.definitions):
        raise StorageError(
            f"the shared arena {name!r} is user {owner}'s, and its definitions have functions, which would run as code"
            " of this user: read it as its owner, or by message from its server"
        )


def map_pages(reference: weakref.ref[AttachedStore], is_closed: threading.Event) -> None:
    """Map what the writer has filled, bit by bit: a first read of a page costs more than all the rest of it.

    And move to another arena where nobody reads: an old one would keep its memory. That of a directory that somebody
    removed says nothing of its end; only its file does.
    """
    mapped, generation = 0, 0
    while True:
        store = reference()
        if store is None:
            return
        try:
            store._follow()
        except Exception:  # whoever reads gets it, too; what is mapped here is not changed by it
            store._next_look = time.monotonic() + MAPPING_SECONDS
            log_lines.warning("the shared arena %r can't be moved to", store.name, exc_info=True)
        arena = store._arena
        if arena is None:
            return
        if arena.generation != generation:
            mapped, generation = 0, arena.generation
        end = arena.map_pages(mapped, MAPPED_AT_ONCE)
        mapped = min(mapped + MAPPED_AT_ONCE, end)
        is_done = mapped == end
        del store, arena
        if is_closed.wait(MAPPING_SECONDS if is_done else 0):
            return
