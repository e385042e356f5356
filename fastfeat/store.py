"""Store: the in-process face. Definitions in, rows in, features out.

    apply --> views, services        load, push, delete --> Table (one per view)        get_* --> Plan (one per list)

Promise:     a write is visible as a whole or not at all; `load` is a series of such writes, one per batch.
Concurrency: any number of threads may read and write. Writers of one view take turns; readers wait for nobody. A table
             of definitions or plans is never changed in place: the new one is built aside and put in its place.
Errors:      see each method; all of fastfeat/errors.py.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ._core.arena import Arena
from ._core.request import plain_keys
from ._core.table import Clock, Table
from .applied import NOTHING, Definitions, check_features, check_same_rows, listed, merged, service_of
from .commits import Write
from .computed import AnyPlan, compile_plan, plain_request
from .cores import writing_threads
from .definitions import (
    Definition,
    definition_dict,
    definitions_from_list,
    definitions_to_list,
    on_demand_dict,
    window_dict,
)
from .durations import duration_us
from .errors import (
    BeforeHistory,
    DataError,
    FastFeatError,
    LogFailed,
    ReadOnly,
    SchemaError,
    StorageError,
    UnknownView,
)
from .receipts import Receipt
from .report import LoadReport, ignore_rows, load_progress
from .result import Result
from .schema import Feature, FeatureService, FeatureView, View, parse_features
from .times import to_us

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from .durable import Fsync, Storage
    from .explain import Explanation
    from .files import Files
    from .history import CompactReport
    from .shared import Sharing
    from .snapshot import SnapshotInfo
    from .training.labels import Known
    from .training.saved import Origin

    Moment = datetime | int | None
    Features = str | FeatureService | Sequence[str | Feature | View]
    EntityRows = Sequence[Mapping[str, object]] | Mapping[str, Any]

LEAVE_SECONDS = 1.0  # at the end of a shared store, for readers to leave what was replaced
LOOK_SECONDS = 0.005
PLANS_MAX = 1024  # cached lists of features; a program that makes up more of them starts over


class Store:
    """A feature store in this process's memory; Store.open(directory) makes one that outlives it.

    capacity_bytes: the hard limit of all rows together; reserved, not used. Default: half of physical memory.
    clock:          int microseconds since 1970 UTC; drives time in tests. Default: the system's.
    shared:         a name under which other processes of this machine may read the rows (fastfeat+shm://NAME).
    shared_group:   the group whose members may; None: this user's processes.
    Raises StorageError: another process has that name; its place can't be written.
    """

    def __init__(
        self,
        capacity_bytes: int | None = None,
        clock: Callable[[], int] | None = None,
        *,
        shared: str | None = None,
        shared_group: str | None = None,
    ) -> None:
        self._capacity = half_of_memory() if capacity_bytes is None else capacity_bytes
        self._storage: Storage | None = None
        self._sharing: Sharing | None = None
        self._is_published = True
        self._position = 0  # counts the writes of a store without a directory
        self._arena: Arena | None = None
        self._clock = Clock(clock)
        self._definitions = NOTHING
        self._plans: dict[object, AnyPlan] = {}
        self._lock = threading.Lock()  # of apply, close and the last created time; no reader takes it
        # Pushes and deletes become visible in the order of their created times: what was known by K stays so.
        self._order = threading.Lock()
        _stores.add(self)
        self._created_us = 0
        if shared is None:
            self._arena = Arena(self._capacity)
        else:
            with self._sharing_as(shared, shared_group):
                self._show()

    @contextmanager
    def _sharing_as(self, name: str | None, group: str | None) -> Iterator[None]:
        """Begin with a shared arena of this name, if any; what fails inside lets go of the name."""
        from .shared import Sharing

        if name is not None:
            self._sharing = Sharing(name, group)
        try:
            if self._sharing is not None:
                self._reset(None)
            yield
        except BaseException:
            self._stop_sharing(is_whole=False)
            raise

    def _show(self) -> None:
        """Let readers find the arena."""
        if self._sharing is not None:
            self._publish()
            self._sharing.install()
            reference = weakref.ref(self)
            self._sharing.watch(lambda: (store := reference()) is not None and store._tidy())

    def _tidy(self) -> bool:
        """Free what readers have left, expel those who don't leave; False: closed. For the thread of the sharing."""
        arena = self._arena
        if arena is None:
            return False
        arena.sweep()
        for table in self._definitions.tables.values():
            table.tidy()
        return True

    def _publish(self, state: dict[str, Any] | None = None) -> None:
        """Tell readers what there is now. Raises StorageError."""
        if self._sharing is not None:
            now = self._definitions
            self._sharing.publish(self._open_arena(), definitions_to_list(now.all()), now.tables, state)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        capacity_bytes: int | None = None,
        clock: Callable[[], int] | None = None,
        read_only: bool = False,
        fsync: Fsync = "always",
        fsync_interval: float = 0.1,
        snapshot_seconds: float = 900.0,
        flush_bytes: int = 64 << 20,
        segment_size: int = 64 << 20,
        snapshots: str | None = None,
        history: str | None = None,
        shared: str | None = None,
        shared_group: str | None = None,
        files: Files | None = None,
    ) -> Self:
        """The durable store of a directory, as it was: what was acknowledged is there. Begins one where none is.

        fsync:       "always": a write is on the disk before it is acknowledged; "interval": within fsync_interval
                     seconds; "off": when the system pleases (a crash of the process alone loses nothing either way).
        snapshot_seconds, flush_bytes: how often a snapshot is due, and how much of the log waits for the history.
        segment_size: bytes of one file of the log, allocated beforehand.
        snapshots, history: other places for them: a directory or a pyarrow.fs URL (s3://...).
        shared, shared_group: as for Store(...). What a clean stop left in shared memory is taken up as it is.
        read_only:   what is there now, without owning it: no writes, and later ones of the owner are not seen.
        files:       the system calls; tests put a failing disk here.
        Raises DirectoryLocked, LogCorrupt, SnapshotCorrupt, HistoryCorrupt, ArenaFull, StorageError.
        """
        from .durable import Options, Storage, Target
        from .files import Files

        options = Options(
            fsync=fsync,
            fsync_interval=fsync_interval,
            snapshot_seconds=snapshot_seconds,
            flush_bytes=flush_bytes,
            segment_size=segment_size,
            snapshots=snapshots,
            history=history,
            read_only=read_only,
        )
        if read_only and shared is not None:
            raise DataError(f"shared={shared!r} with read_only=True: only the process that writes may share its rows")
        store = cls(capacity_bytes, clock)
        target = Target(store._reset, store._install, store._tables, store._open_arena, store._moved, store._resume)
        with store._sharing_as(shared, shared_group):
            store._storage = Storage.open(files or Files(), os.fspath(directory), options, store._clock, target)
            store._show()
        return store

    def _reset(self, seed: bytes | None) -> None:
        """Begin again, empty."""
        self._arena = (
            Arena(self._capacity, seed) if self._sharing is None else self._sharing.create(self._capacity, seed)
        )
        self._definitions = NOTHING
        self._plans = {}

    def _resume(self, state: dict[str, Any]) -> bool:
        """Take up what a clean stop of this state left in shared memory."""
        found = None if self._sharing is None else self._sharing.resume(state, self._capacity)
        if found is None:
            return False
        self._arena, catalogue = found
        try:
            self._put(self._merged(definitions_from_list(catalogue.definitions), catalogue.tables))
        except StorageError:  # of another version
            self._reset(None)
            return False
        return True

    def _moved(self, position: int) -> None:
        """All before this position of the log is visible."""
        self._open_arena().position = position

    @property
    def position(self) -> int:
        """What is visible, as a number that only grows: a reader that has come so far sees every write before now."""
        return self._open_arena().position

    def _tables(self) -> dict[str, tuple[FeatureView, Table]]:
        now = self._definitions
        return {name: (view, now.tables[name]) for name, view in now.views.items()}

    @property
    def is_durable(self) -> bool:
        """True where writes are kept in a directory."""
        return self._storage is not None

    @property
    def log_failure(self) -> LogFailed | None:
        """The error after which no write is taken any more, where there was one: also in the background."""
        refusal = None if self._storage is None else self._storage.log.refusal
        return refusal if isinstance(refusal, LogFailed) else None

    # --- definitions

    def apply(self, definitions: Definition | Iterable[Definition]) -> None:
        """Make definitions known, all or none, in any order; applying them again changes nothing.

        A view's ttl, delay, description, owner and tags may change while it holds rows. Raises SchemaError (a name
        twice, a service whose views disagree about a join key), UnknownView, UnknownFeature, IncompatibleSchema
        (rows of the applied view could not be read by the new one), ArenaFull.
        """
        items = [definitions] if isinstance(definitions, Definition) else list(definitions)
        with self._lock:
            self._open_arena()
            self._check_owner()
            new = self._merged(items)
            if self._storage is None:
                self._put(new)
            elif not new.is_like(self._definitions):
                self._storage.define(definitions_to_list(new.all()), lambda: self._put(new))
            elif not self._is_published:
                self._put(new)

    def _install(self, items: list[Definition]) -> None:
        """Apply definitions that a directory remembers."""
        self._put(self._merged(items))

    def _merged(self, items: list[Definition], there: Mapping[str, tuple[int, int]] | None = None) -> Definitions:
        """The applied definitions with these in their places, and a table for each view, which may be there already."""
        return self._in_arena(self._open_arena(), self._definitions, items, there)

    def _in_arena(
        self,
        arena: Arena,
        old: Definitions,
        items: list[Definition],
        there: Mapping[str, tuple[int, int]] | None = None,
    ) -> Definitions:
        new = merged(old, items)
        tables = {
            name: old.tables.get(name) or self._table(arena, view, (there or {}).get(name))
            for name, view in new.views.items()
        }
        return replace(new, tables=tables)

    def _put(self, new: Definitions) -> None:
        for name, view in new.views.items():
            new.tables[name].set_ttl(view.ttl_us)
        self._definitions = new
        self._plans = {}
        self._is_published = False  # where readers can't be told, as memory is full, they are when it is applied again
        self._publish()
        self._is_published = True

    def _table(self, arena: Arena, view: FeatureView, there: tuple[int, int] | None = None) -> Table:
        """there: where in the arena it lies, and its fingerprint. Raises StorageError: the two programs differ."""
        keep_rows, keep_us = retention(view)
        keys = view.entity.join_keys
        fields = [(field.name, field.dtype, field.nullable) for field in view.schema]
        at, fingerprint = there or (0, 0)
        shape = (view.name, list(keys), list(keys.values()), fields, view.ttl_us, keep_rows, keep_us)
        is_event = view.kind == "event"
        table = Table(arena, self._clock, *shape, at, is_event=is_event, event_id=view.event_id)
        if there and table.fingerprint != fingerprint:
            raise StorageError(
                f"view {view.name!r}: its rows were laid out by another version of fastfeat; run the same on both sides"
            )
        return table

    def info(self) -> dict[str, Any]:
        """Views (definition, rows, entities), windows, on-demand views (source, hash), services, arena (bytes)."""
        arena, now = self._open_arena(), self._definitions
        views = {
            name: {**definition_dict(view), "rows": now.tables[name].rows, "entities": now.tables[name].entities}
            for name, view in now.views.items()
        }
        windows = {name: window_dict(window) for name, window in now.windows.items()}
        on_demand = {name: on_demand_dict(view) for name, view in now.on_demand.items()}
        services = {name: [str(feature) for feature in service.features] for name, service in now.services.items()}
        sizes = {"capacity": arena.capacity, "used": arena.used}
        storage = None if self._storage is None else self._storage.info()
        sharing = None if self._sharing is None else self._sharing.info(arena)
        return {
            "views": views,
            "windows": windows,
            "on_demand": on_demand,
            "services": services,
            "arena": sizes,
            "storage": storage,
            "shared": sharing,
        }

    # --- writing

    def load(
        self,
        view: str | FeatureView,
        source: object,
        *,
        event_time: str = "event_timestamp",
        created_time: str | None = None,
        progress: bool = False,
        threads: int | None = None,
    ) -> LoadReport:
        """Add a source's rows to a view, batch by batch; return what was taken and what was refused.

        source:       a table, reader or dataframe with Arrow inside, a path (.parquet, .arrow, .feather, .ipc, .csv),
                      or a directory of such files. Columns that the view does not have are ignored.
        created_time: the column that says when a row could be known; else event time + the view's delay.
        threads:      that write; by default one per core that this process may use, at most 8.
        Raises DataError (a column's fault, before any row is taken; a file that can't be read on) and ArenaFull (the
        batch that met the limit changed nothing, those before it stay); both carry `.report`.
        """
        from .arrow import read_batches
        from .loads import DurableLoad

        definition, table = self._view(view)
        report = LoadReport(definition.name)
        workers = writing_threads() if threads is None else threads
        batches = read_batches(definition, source, report, event_time=event_time, created_time=created_time)
        try:
            with load_progress(definition.name, source) if progress else nullcontext(ignore_rows) as advance:
                if self._storage is not None:
                    DurableLoad(self._commit, report, advance).run(table, batches, workers)
                    return report
                self._check_owner()
                for batch in batches:
                    table.append_arrow(batch, workers)
                    self._count()
                    advance(batch.num_rows)
        except (DataError, StorageError) as error:
            error.report = report
            raise
        return report

    def push(self, view: str | FeatureView, rows: Any) -> int:
        """Add rows that became known now: a dict, a list of dicts, or Arrow; return their created time (us).

        A row has every join key, every field (None for a null) and "event_timestamp". All become visible or,
        on an error, none; a batch read at that very moment may see some entities before and others after it.
        Raises DataError that names row and field, and ArenaFull.
        """
        if self._storage is not None:
            return self._commit(self._write_of(view, rows))
        definition, table = self._view(view)
        if is_arrow(rows):
            return self._push_arrow(definition, table, rows)
        rows = checked_rows(definition, rows)
        self._check_owner()
        with self._order:
            created_us = self._next_created_us()
            table.append_rows(rows, created_us)
            self._count()
        return created_us

    def _count(self) -> None:
        """One more write of a store without a directory is visible."""
        with self._lock:
            self._position += 1
            self._moved(self._position)

    def _push_arrow(self, view: FeatureView, table: Table, rows: object) -> int:
        from .arrow import read_whole

        self._check_owner()
        with self._order:
            created_us = self._next_created_us()
            batch = read_whole(view, rows, created_us)
            if batch is not None:
                table.append_arrow(batch)
            self._count()
        return created_us

    def push_group(self, pushes: Iterable[tuple[str | FeatureView, Any]]) -> list[int | BaseException]:
        """Many pushes, each by itself, in their order, with one sync for all: the created time or the error of each."""
        answers: list[Any] = []
        if self._storage is None:
            for view, rows in pushes:
                try:
                    answers.append(self.push(view, rows))
                except FastFeatError as error:
                    answers.append(error)
            return answers
        for view, rows in pushes:
            try:
                answers.append(self._write_of(view, rows))
            except FastFeatError as error:
                answers.append(error)
        self._submit([answer for answer in answers if isinstance(answer, Write)])
        return [(answer.error or answer.created_us) if isinstance(answer, Write) else answer for answer in answers]

    def _write_of(self, view: str | FeatureView, rows: Any) -> Write:
        """A push on its way. Raises DataError, UnknownView, IncompatibleSchema."""
        definition, table = self._view(view)
        if type(rows) is list:  # what servers push, thousands of times a second: nothing to find out
            return Write(table, rows=rows)
        if is_arrow(rows):
            from .arrow import read_whole

            batch = read_whole(definition, rows, 0)
            return Write(table, rows=()) if batch is None else Write(table, batch=table.arrow_batch(batch))
        return Write(table, rows=checked_rows(definition, rows))

    def _submit(self, writes: list[Write]) -> None:
        assert self._storage is not None
        self._storage.check_writable()
        self._storage.commits.submit(writes)

    def _commit(self, write: Write) -> int:
        """The created time of a write that is durable and visible now. Raises what refused it."""
        self._submit([write])
        if write.error is not None:
            raise write.error
        return write.created_us

    def delete(self, view: str | FeatureView, entity_rows: EntityRows) -> int:
        """Take every row created before now out of every answer, at any time asked; return that moment (us).

        entity_rows: a list of dicts of join keys, or a dict of columns. Unknown entities are remembered as deleted too.
        """
        definition, table = self._view(view)
        if self._storage is not None:
            keys = definition.entity.join_keys
            return self._commit(Write(table, keys=plain_keys(list(keys), list(keys.values()), entity_rows)))
        self._check_owner()
        with self._order:
            created_us = self._next_created_us()
            table.delete(entity_rows, created_us)
            self._count()
        return created_us

    def _next_created_us(self) -> int:
        """Now, and later than every created time given before: two pushes are never at the same moment."""
        with self._lock:
            self._created_us = max(self._clock.now(), self._created_us + 1)
            return self._created_us

    def _check_owner(self) -> None:
        """Raises ReadOnly: shared rows are written by the process that made the store, not by a child of it."""
        if self._sharing is not None and not self._sharing.is_writer:
            raise ReadOnly(
                f"the shared arena {self._sharing.name!r} is written by the process that this one was forked from;"
                f" read it by fastfeat.connect('fastfeat+shm://{self._sharing.name}'), or open a store after the fork"
            )

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
        """The features of entities, as they stand now or stood at `as_of`, by what was known at `known_at`.

        features:    a FeatureService, its name, or a list of "view:field".
        entity_rows: a list of dicts of join keys, or a dict of columns (sequences, integer arrays, Arrow arrays).
        receipt:     carry one if the store is durable. A client, for whom it takes a longer way, does not by itself.
        Raises UnknownView, UnknownFeature, DataError (keys, times), BeforeHistory. A missing entity is a status.
        """
        return self.answer(features, entity_rows, as_of, known_at, receipt=receipt)

    def answer(
        self,
        features: Features,
        entity_rows: EntityRows,
        as_of: Moment,
        known_at: Moment,
        *,
        receipt: bool = True,
        size_max: int | None = None,
    ) -> Result:
        """get_online_features for whoever takes values of at most `size_max` bytes (the server); DataError beyond."""
        event_us, known_us = us(as_of, "as_of"), us(known_at, "known_at")
        storage = self._storage
        if storage is None or not receipt:
            plan = self._plan(features)
            return result_of(plan, self._columns(plan, entity_rows, event_us, known_us, size_max))
        moment = self._clock.now() if event_us is None else event_us

        def read() -> tuple[AnyPlan, Any, int, Definitions]:  # all of one version of the definitions
            plan, now, version = self._plan(features), self._definitions, len(storage.versions)
            try:
                return plan, plan.columns(entity_rows, moment, known_us, size_max), version, now
            except BeforeHistory:
                return plan, None, version, now

        (plan, columns, version, definitions), position = storage.commits.consistent(read)
        if columns is None:  # reading files takes too long to meet no write: what came later is left out by its place
            past = self._past(storage, plan.features, entity_rows, definitions, position)
            columns = past.columns(entity_rows, moment, known_us, size_max)
        asked = features if isinstance(features, str) else plan.features
        entities = plain_keys(plan.key_names, plan.key_types, entity_rows) | plain_request(plan, entity_rows)
        return result_of(plan, columns, Receipt(asked, version, entities, moment, known_us, position))

    def _columns(
        self,
        plan: AnyPlan,
        entity_rows: EntityRows,
        event_us: int | None,
        known_us: int | None,
        size_max: int | None,
    ) -> Any:
        """Plan.columns, from the history where memory no longer has what it takes."""
        try:
            return plan.columns(entity_rows, event_us, known_us, size_max)
        except BeforeHistory as error:
            return self.past(plan, entity_rows, error).columns(entity_rows, event_us, known_us, size_max)

    def past(self, plan: AnyPlan, entity_rows: EntityRows, error: BeforeHistory) -> AnyPlan:
        """A plan like this one that has every row these entities ever had: for whoever met BeforeHistory.

        It reads files, so not on an event loop. Raises that error where the store has no directory.
        """
        if self._storage is None:
            raise error
        self._open_arena()
        return self._past(self._storage, plan.features, entity_rows, self._definitions)

    def _past(
        self,
        storage: Storage,
        features: Sequence[str],
        entity_rows: EntityRows,
        definitions: Definitions,
        position: int | None = None,
    ) -> AnyPlan:
        from .past import past_plan

        wanted = parse_features(list(features), "the request")
        return past_plan(storage, self._clock, wanted, definitions, entity_rows, position)

    def replay(self, receipt: Receipt, *, size_max: int | None = None) -> Result:
        """The answer of this receipt again, from what was in the store then and under the definitions of then.

        What was deleted since is DELETED: forgetting wins. Raises UnknownView, UnknownFeature, DataError (a receipt of
        another store; values of more than `size_max` bytes), StorageError (the store has no directory).
        Source: docs/SEMANTICS.md, "Receipts".
        """
        storage = self._storage
        if storage is None:
            raise StorageError("a store in memory can't replay: open one with a directory, Store.open(...)")
        self._open_arena()
        if not 0 < receipt.version <= len(storage.versions):
            raise DataError(
                f"the receipt names version {receipt.version} of the definitions, and there are"
                f" {len(storage.versions)}: it is of another store"
            )
        if receipt.position > storage.commits.visible:
            raise DataError(
                f"the receipt is of position {receipt.position}, and the store is at {storage.commits.visible}: it is"
                " of another store, or of a later state than this one"
            )
        definitions = definitions_from_list(storage.versions[receipt.version - 1]["definitions"])
        then = replace(merged(NOTHING, definitions), tables=self._definitions.tables)
        features = receipt.features
        if isinstance(features, str):
            wanted = service_of(features, then.services).features
        else:
            wanted = parse_features(features, "the receipt")
            check_features(wanted, then.readable, "the receipt")
        plan = self._past(storage, [str(each) for each in wanted], receipt.entities, then, receipt.position)
        return result_of(plan, plan.columns(receipt.entities, receipt.as_of, receipt.known_at, size_max), receipt)

    def explain(
        self, feature: str | Feature, entity_row: Mapping[str, object], *, as_of: Moment = None, known_at: Moment = None
    ) -> Explanation:
        """How one value of an answer came about: the rows it was made of, and the definition that made it.

        Raises as get_online_features. It reads what a look-up reads and more: for people, not for serving.
        """
        from .explain import explain

        (wanted,) = parse_features([feature], "the request")
        now = self._definitions
        check_features([wanted], now.readable, "the request")
        moment = self._clock.now() if as_of is None else to_us(as_of, "as_of")
        known_us = us(known_at, "known_at")
        version = None if self._storage is None else len(self._storage.versions)
        try:
            return explain(self._clock, now, now.tables, wanted, entity_row, moment, known_us, version)
        except BeforeHistory:
            if self._storage is None:
                raise
            from .past import past_tables

            tables = past_tables(self._storage, self._clock, [wanted], now, [entity_row])
            return explain(self._clock, now, tables, wanted, entity_row, moment, known_us, version)

    def get_feature_vector(
        self,
        features: Features,
        entity_row: Mapping[str, object],
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """One entity's features as float64 [m], vectors spread, NaN where there is no value; into `out` if given.

        Raises as get_online_features, and DataError for a feature without a float form.
        """
        # Every line here is in the two microseconds of a read: a service's name costs one look-up and no call.
        plan = self._plans.get(features) if type(features) is str else None
        if plan is None:
            plan = self._plan(features)
        if as_of is not None:
            as_of = to_us(as_of, "as_of")
        if known_at is not None:
            known_at = to_us(known_at, "known_at")
        try:
            return plan.vector(entity_row, as_of, known_at, out)
        except BeforeHistory as error:
            return self.past(plan, [entity_row], error).vector(entity_row, as_of, known_at, out)

    def get_feature_vectors(
        self,
        features: Features,
        entity_rows: EntityRows,
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Entities' features as float64 [n, m], vectors spread, NaN where there is no value; into `out` if given.

        An `out` of float32 is filled in float32. Raises as get_feature_vector.
        """
        plan = self._plans.get(features) if type(features) is str else None
        if plan is None:
            plan = self._plan(features)
        if as_of is not None:
            as_of = to_us(as_of, "as_of")
        if known_at is not None:
            known_at = to_us(known_at, "known_at")
        try:
            return plan.matrix(entity_rows, as_of, known_at, out)
        except BeforeHistory as error:
            return self.past(plan, entity_rows, error).matrix(entity_rows, as_of, known_at, out)

    def get_historical_features(
        self,
        labels: object,
        features: Features,
        *,
        known: Known = "as_served",
        event_time: str = "event_timestamp",
        progress: bool = False,
        memory_bytes: int = 1 << 30,
    ) -> pa.RecordBatchReader:
        """Join to each label the feature values as they stood at its time.

        labels:   one row per example, with the join keys and the column `event_time`, in any order: a table, reader or
                  dataframe with Arrow inside, a .parquet or .arrow path or a directory of such files. A time without a
                  zone is UTC.
        features: a FeatureService, its name, or a list of "view:field".
        known:    "as_served" counts only rows created by the label's time; "as_corrected" counts all.
        memory_bytes: what it may take beside the store, about; a durable store's rows need not fit in it.
        Returns the labels in their order, streamed, plus a column "view:field" per feature (null where nothing lives).
        A durable store's set is of one position: what is written meanwhile is in none of it.
        Raises UnknownView, UnknownFeature, DataError (a column missing, of another type, or with a null),
        BeforeHistory (a store without a directory dropped what it may need), also while the reader is read.
        Source: docs/SEMANTICS.md, "Two clocks".
        """
        return self._training_set(labels, features, known, event_time, progress, memory_bytes)[0]

    def _training_set(
        self, labels: object, features: Features, known: Known, event_time: str, progress: bool, memory_bytes: int
    ) -> tuple[pa.RecordBatchReader, Origin]:
        """A reader of the set, and what it is of, rows not yet counted."""
        from .training.saved import origin_of
        from .training.sets import training_set

        now, stored, version = self._past_state()
        reader, request = training_set(
            labels,
            features,
            now,
            self._clock,
            stored=stored,
            known=known,
            event_time=event_time,
            progress=progress,
            memory_bytes=memory_bytes,
        )
        position = None if stored is None else stored[1]
        return reader, origin_of(request, known, event_time, version, position, self._clock.now())

    def _past_state(self) -> tuple[Definitions, tuple[Storage, int] | None, int | None]:
        """The definitions; of a durable store also its position, and the version of the definitions."""
        self._open_arena()
        storage = self._storage
        if storage is None:
            return self._definitions, None, None
        (now, version), position = storage.commits.consistent(lambda: (self._definitions, len(storage.versions)))
        return now, (storage, position), version

    def create_saved_dataset(
        self,
        path: str | os.PathLike[str],
        labels: object,
        features: Features,
        *,
        known: Known = "as_served",
        event_time: str = "event_timestamp",
        progress: bool = False,
        memory_bytes: int = 1 << 30,
    ) -> Origin:
        """Write a training set as the Parquet file `path`, whole or not at all; what it is of is in it, too.

        As get_historical_features; fastfeat.training.read_origin(path) says again what this returns: the definitions
        that the features were made by, their sha256, version and position of the store, the rows. Raises StorageError
        where the file can't be written.
        """
        from .training.saved import save

        reader, origin = self._training_set(labels, features, known, event_time, progress, memory_bytes)
        return save(reader, Path(path), origin)

    def plan(self, features: Features) -> AnyPlan:
        """The compiled plan of a list of features, for whoever answers many requests of it (the server).

        A plan keeps working after `apply`; it reads the views as they were when it was made, under their present ttl.
        """
        return self._plan(features)

    def _plan(self, features: Features) -> AnyPlan:
        """The plan, from the cache where the same list was asked before."""
        plans = self._plans  # this generation's: a plan made while `apply` runs must not outlive it in the new cache
        key = as_key(features)
        plan = plans.get(key)
        if plan is None:
            plan = self._compile(features)
            if len(plans) >= PLANS_MAX:
                plans.clear()
            plans[key] = plan
        return plan

    def _compile(self, features: Features) -> AnyPlan:
        self._open_arena()
        now = self._definitions
        wanted: Sequence[Feature]
        if isinstance(features, str):
            wanted = service_of(features, now.services).features
        elif isinstance(features, FeatureService):
            wanted = features.features
        else:
            wanted = parse_features(list(features), "the request")
        check_features(wanted, now.readable, "the request")
        return compile_plan(self._clock, now, wanted, now.tables)

    def _view(self, view: str | FeatureView) -> tuple[FeatureView, Table]:
        """The applied view of that name and its table; a FeatureView must be the applied one."""
        self._open_arena()
        now = self._definitions
        name = view.name if isinstance(view, FeatureView) else view
        if name in now.windows:
            raise DataError(f"{name!r} is a window view: it has no rows of its own; write to {now.stored(name).name!r}")
        if name in now.on_demand:
            raise DataError(f"{name!r} is an on-demand feature view: its features are computed; it takes no rows")
        if name not in now.views:
            raise UnknownView(f"no feature view {name!r} is applied{listed(now.views)}; apply it first")
        if isinstance(view, FeatureView):
            check_same_rows(now.views[name], view)
        return now.views[name], now.tables[name]

    # --- the directory

    def snapshot(self, *, is_gentle: bool = False) -> SnapshotInfo:
        """Take a snapshot now, while reads and writes go on. Raises ReadOnly, StorageError.

        is_gentle: take five times as long and leave the others in peace, as the store's own snapshots do.
        """
        return self._directory().snapshot(is_gentle=is_gentle)

    def flush_history(self) -> None:
        """Move what the history lacks into it now. Raises ReadOnly, StorageError."""
        self._directory().flush_history()

    def compact(self) -> CompactReport:
        """Merge the history's files and erase deleted rows from every file. Raises ReadOnly, StorageError."""
        return self._directory().compact()

    def _directory(self) -> Storage:
        if self._storage is None:
            raise StorageError("a store in memory has no files; open one with a directory, Store.open(...)")
        self._open_arena()
        return self._storage

    # --- the end

    def close(self) -> None:
        """Let go of all rows; what is called later raises StorageError. Memory is returned when the last read ends.

        A durable store takes a snapshot, if anything changed since the last one, and lets go of its directory.
        """
        with self._lock:
            is_whole = False
            try:
                # Invariant: _storage stays, so that a write which comes meanwhile is logged or refused.
                if self._storage is not None:
                    self._storage.close()
                    is_whole = self._storage.is_whole
            finally:
                self._stop_sharing(is_whole=is_whole)
                self._arena = None
                self._definitions = NOTHING
                self._plans = {}

    def _is_left(self) -> bool:
        """True once readers have left everything that was replaced."""
        deadline = time.monotonic() + LEAVE_SECONDS
        tables = self._definitions.tables.values()
        while self._tidy() and not (is_left := all(table.is_quiet for table in tables)):
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return is_left

    def _stop_sharing(self, *, is_whole: bool) -> None:
        """is_whole: what the arena holds may be taken up by the next process that opens the directory."""
        if self._sharing is None:
            return
        self._sharing.rest()
        try:
            if is_whole and self._sharing.is_writer and self._storage is not None and self._is_left():
                self._publish(self._storage.state())
                self._open_arena().let_go()
        except StorageError:
            pass  # no room, or no file to be had, for what the next start would know it by: it builds a new one
        finally:
            self._sharing.close(is_kept=self._storage is not None)

    def _open_arena(self) -> Arena:
        if self._arena is None:
            raise StorageError("the store is closed; make a new one")
        return self._arena

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._arena is None:
            return "Store(closed)"
        views = ", ".join(self._definitions.views) or "none"
        return f"Store(views: {views}; {self._arena.used >> 20} of {self._arena.capacity >> 20} MiB used)"


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def renew_locks() -> None:
    """In a child of fork: threads that it does not have may have had them."""
    for store in list(_stores):
        store._lock, store._order = threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=renew_locks)


def is_arrow(rows: object) -> bool:
    return hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__")


def checked_rows(view: FeatureView, rows: Any) -> Sequence[Any]:
    """Rows of Python values as a sequence of dicts. Raises DataError."""
    if isinstance(rows, Mapping):
        return [rows]
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise DataError(f"view {view.name!r}: rows are a dict, a list of dicts or Arrow, not {type(rows).__name__}")
    return rows


def result_of(plan: AnyPlan, answer: Any, receipt: Receipt | None = None) -> Result:
    statuses, event_times, columns = answer
    return Result(plan.features, plan.dtypes, plan.views, plan.view_of, statuses, event_times, columns, receipt)


def us(moment: Moment, what: str) -> int | None:
    return None if moment is None else to_us(moment, what)


def half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def retention(view: FeatureView) -> tuple[int | None, int | None]:
    """The view's `keep` as the core takes it: (rows, microseconds)."""
    if view.keep == "all":
        return None, None
    if view.keep == "latest":
        return 1, None
    return (view.keep, None) if isinstance(view.keep, int) else (None, duration_us(view.keep))


def as_key(features: object) -> Hashable:
    """What a request's features are cached under."""
    if isinstance(features, str):
        return features
    if isinstance(features, FeatureService):
        return features.features
    if not isinstance(features, Sequence):
        raise SchemaError(
            f"features are a FeatureService, its name, or a list of 'view:field', not {type(features).__name__}"
        )
    key = tuple(features)
    if not all(isinstance(each, Hashable) for each in key):
        parse_features(key, "the request")  # says which of them is no feature
    return key
