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
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ._core.arena import Arena
from ._core.plan import Plan
from ._core.table import Clock, Table
from .errors import ArenaFull, DataError, IncompatibleSchema, SchemaError, StorageError, UnknownFeature, UnknownView
from .report import LoadReport, ignore_rows, load_progress
from .result import Result
from .schema import (
    Definition,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    definition_dict,
    duration_us,
    parse_features,
)
from .times import to_us

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    Moment = datetime | int | None
    Features = str | FeatureService | Sequence[str | Feature | FeatureView]
    EntityRows = Sequence[Mapping[str, object]] | Mapping[str, Any]

Named = TypeVar("Named", FeatureView, FeatureService)

THREADS_MAX = 8  # of one load: beyond it, memory bandwidth is the limit
PLANS_MAX = 1024  # cached lists of features; a program that makes up more of them starts over
DURABLE_PARTS = ("join_keys", "fields", "keep", "kind")  # of a definition: what stored rows depend on


@dataclass(frozen=True)
class Definitions:
    """What is applied: a value that is replaced as a whole."""

    entities: Mapping[str, Entity]
    views: Mapping[str, FeatureView]
    services: Mapping[str, FeatureService]
    tables: Mapping[str, Table]


class Store:
    """A feature store in this process's memory.

    capacity_bytes: the hard limit of all rows together; reserved, not used. Default: half of physical memory.
    clock:          int microseconds since 1970 UTC; drives time in tests. Default: the system's.
    """

    def __init__(self, capacity_bytes: int | None = None, clock: Callable[[], int] | None = None) -> None:
        self._arena: Arena | None = Arena(half_of_memory() if capacity_bytes is None else capacity_bytes)
        self._clock = Clock(clock)
        self._definitions = Definitions({}, {}, {}, {})
        self._plans: dict[object, Plan] = {}
        self._lock = threading.Lock()  # of apply, close and the last created time; no reader takes it
        # Pushes and deletes become visible in the order of their created times: what was known by K stays so.
        self._order = threading.Lock()
        self._created_us = 0

    # --- definitions

    def apply(self, definitions: Definition | Iterable[Definition]) -> None:
        """Make definitions known, all or none, in any order; applying them again changes nothing.

        A view's ttl, delay, description, owner and tags may change while it holds rows. Raises SchemaError (a name
        twice, a service whose views disagree about a join key), UnknownView, UnknownFeature, IncompatibleSchema
        (rows of the applied view could not be read by the new one), ArenaFull.
        """
        items = [definitions] if isinstance(definitions, Definition) else list(definitions)
        with self._lock:
            arena = self._open_arena()
            old = self._definitions
            entities, views, services = merged(old, items)
            check_services(services.values(), views)
            tables = {name: old.tables.get(name) or self._table(arena, view) for name, view in views.items()}
            for name, view in views.items():
                tables[name].set_ttl(view.ttl_us)
            self._definitions = Definitions(entities, views, services, tables)
            self._plans = {}

    def _table(self, arena: Arena, view: FeatureView) -> Table:
        keep_rows, keep_us = retention(view)
        keys = view.entity.join_keys
        fields = [(field.name, field.dtype, field.nullable) for field in view.schema]
        return Table(
            arena, self._clock, view.name, list(keys), list(keys.values()), fields, view.ttl_us, keep_rows, keep_us
        )

    def info(self) -> dict[str, Any]:
        """Views (definition, rows, entities), services (features), arena (capacity and used, in bytes)."""
        arena, now = self._open_arena(), self._definitions
        views = {
            name: {**definition_dict(view), "rows": now.tables[name].rows, "entities": now.tables[name].entities}
            for name, view in now.views.items()
        }
        services = {name: [str(feature) for feature in service.features] for name, service in now.services.items()}
        return {"views": views, "services": services, "arena": {"capacity": arena.capacity, "used": arena.used}}

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
        threads:      that write; by default one per core, at most 8.
        Raises DataError (a column's fault, before any row is taken; a file that can't be read on) and ArenaFull (the
        batch that met the limit changed nothing, those before it stay); both carry `.report`.
        """
        from .arrow import read_batches

        definition, table = self._view(view)
        report = LoadReport(definition.name)
        workers = min(os.cpu_count() or 1, THREADS_MAX) if threads is None else threads
        batches = read_batches(definition, source, report, event_time=event_time, created_time=created_time)
        try:
            with load_progress(definition.name, source) if progress else nullcontext(ignore_rows) as advance:
                for batch in batches:
                    table.append_arrow(batch, workers)
                    advance(batch.num_rows)
        except (DataError, ArenaFull) as error:
            error.report = report
            raise
        return report

    def push(self, view: str | FeatureView, rows: Any) -> int:
        """Add rows that became known now: a dict, a list of dicts, or Arrow; return their created time (us).

        A row has every join key, every field (None for a null) and "event_timestamp". All become visible or,
        on an error, none; a batch read at that very moment may see some entities before and others after it.
        Raises DataError that names row and field, and ArenaFull.
        """
        definition, table = self._view(view)
        if isinstance(rows, Mapping):
            rows = [rows]
        if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
            return self._push_arrow(definition, table, rows)
        if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
            raise DataError(
                f"view {definition.name!r}: rows are a dict, a list of dicts or Arrow, not {type(rows).__name__}"
            )
        with self._order:
            created_us = self._next_created_us()
            table.append_rows(rows, created_us)
        return created_us

    def _push_arrow(self, view: FeatureView, table: Table, rows: object) -> int:
        from .arrow import read_whole

        with self._order:
            created_us = self._next_created_us()
            batch = read_whole(view, rows, created_us)
            if batch is not None:
                table.append_arrow(batch)
        return created_us

    def delete(self, view: str | FeatureView, entity_rows: EntityRows) -> int:
        """Take every row created before now out of every answer, at any time asked; return that moment (us).

        entity_rows: a list of dicts of join keys, or a dict of columns. Unknown entities are remembered as deleted too.
        """
        _, table = self._view(view)
        with self._order:
            created_us = self._next_created_us()
            table.delete(entity_rows, created_us)
        return created_us

    def _next_created_us(self) -> int:
        """Now, and later than every created time given before: two pushes are never at the same moment."""
        with self._lock:
            self._created_us = max(self._clock.now(), self._created_us + 1)
            return self._created_us

    # --- reading

    def get_online_features(
        self, features: Features, entity_rows: EntityRows, *, as_of: Moment = None, known_at: Moment = None
    ) -> Result:
        """The features of entities, as they stand now or stood at `as_of`, by what was known at `known_at`.

        features:    a FeatureService, its name, or a list of "view:field".
        entity_rows: a list of dicts of join keys, or a dict of columns (sequences, integer arrays, Arrow arrays).
        Raises UnknownView, UnknownFeature, DataError (keys, times), BeforeHistory. A missing entity is a status.
        """
        plan = self._plan(features)
        statuses, event_times, columns = plan.columns(entity_rows, us(as_of, "as_of"), us(known_at, "known_at"))
        return Result(plan.features, plan.dtypes, plan.views, plan.view_of, statuses, event_times, columns)

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
        return plan.vector(entity_row, as_of, known_at, out)

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
        dtype = "float64" if out is None else getattr(out, "dtype", "float64")
        return plan.matrix(entity_rows, us(as_of, "as_of"), us(known_at, "known_at"), out, dtype)

    def plan(self, features: Features) -> Plan:
        """The compiled plan of a list of features, for whoever answers many requests of it (the server).

        A plan keeps working after `apply`; it reads the views as they were when it was made, under their present ttl.
        """
        return self._plan(features)

    def _plan(self, features: Features) -> Plan:
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

    def _compile(self, features: Features) -> Plan:
        self._open_arena()
        now = self._definitions
        wanted: Sequence[Feature]
        if isinstance(features, str):
            wanted = service_of(features, now.services).features
        elif isinstance(features, FeatureService):
            wanted = features.features
        else:
            wanted = parse_features(list(features), "the request")
        check_features(wanted, now.views, "the request")
        return Plan(self._clock, [(now.tables[feature.view], feature.field) for feature in wanted])

    def _view(self, view: str | FeatureView) -> tuple[FeatureView, Table]:
        """The applied view of that name and its table; a FeatureView must be the applied one."""
        self._open_arena()
        now = self._definitions
        name = view.name if isinstance(view, FeatureView) else view
        if name not in now.views:
            raise UnknownView(f"no feature view {name!r} is applied{listed(now.views)}; apply it first")
        if isinstance(view, FeatureView):
            check_same_rows(now.views[name], view)
        return now.views[name], now.tables[name]

    # --- the end

    def close(self) -> None:
        """Let go of all rows; what is called later raises StorageError. Memory is returned when the last read ends."""
        with self._lock:
            self._arena = None
            self._definitions = Definitions({}, {}, {}, {})
            self._plans = {}

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


def listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return f" (there are {text})" if text else ""


# --- definitions, checked


def merged(
    old: Definitions, items: Sequence[Definition]
) -> tuple[dict[str, Entity], dict[str, FeatureView], dict[str, FeatureService]]:
    """The applied definitions with new ones in their places. Raises SchemaError, IncompatibleSchema."""
    entities, views, services = dict(old.entities), dict(old.views), dict(old.services)
    new_views: dict[str, FeatureView] = {}
    new_services: dict[str, FeatureService] = {}
    for item in items:
        if isinstance(item, Entity):
            add_entity(entities, item)
        elif isinstance(item, FeatureView):
            add_entity(entities, item.entity)
            add_once(new_views, item, "feature view")
        elif isinstance(item, FeatureService):
            add_once(new_services, item, "feature service")
        else:
            raise SchemaError(f"apply takes Entity, FeatureView and FeatureService, not {type(item).__name__}")
    for name, view in new_views.items():
        if name in views:
            check_same_rows(views[name], view)
    return entities, {**views, **new_views}, {**services, **new_services}


def add_entity(entities: dict[str, Entity], entity: Entity) -> None:
    applied = entities.get(entity.name, entity)
    if list(applied.join_keys.items()) != list(entity.join_keys.items()):
        raise IncompatibleSchema(
            f"entity {entity.name!r} has join keys {dict(applied.join_keys)}, not {dict(entity.join_keys)}; rows are"
            " stored under them: give the new entity another name"
        )
    entities[entity.name] = entity


def add_once(into: dict[str, Named], item: Named, what: str) -> None:
    if into.setdefault(item.name, item) != item:
        raise SchemaError(f"{what} {item.name!r} is defined twice in one call, and not alike; keep one")


def check_same_rows(applied: FeatureView, view: FeatureView) -> None:
    """Raises IncompatibleSchema where rows of the applied view are not rows of this one."""
    if applied is view:
        return
    old, new = (dict(definition_dict(each), join_keys=list(each.entity.join_keys.items())) for each in (applied, view))
    for part in DURABLE_PARTS:
        if old[part] != new[part]:
            raise IncompatibleSchema(
                f"feature view {view.name!r} differs from that applied in {part}: {difference(old[part], new[part])};"
                " its rows are stored that way: give the new view another name (profile_v2) and load it"
            )


def difference(old: Any, new: Any) -> str:
    """The first part in which two parts of a definition differ, for a message."""
    if isinstance(old, list) and isinstance(new, list):
        for a, b in zip(old, new, strict=False):
            if a != b:
                return f"{a} applied, {b} given"
        longer, who = (old, "applied") if len(old) > len(new) else (new, "given")
        return f"{longer[min(len(old), len(new))]} only in the one {who}"
    return f"{old!r} applied, {new!r} given"


def service_of(name: str, services: Mapping[str, FeatureService]) -> FeatureService:
    if name in services:
        return services[name]
    hint = "; a feature is asked for in a list, ['view:field']" if ":" in name else "; apply it first"
    raise UnknownView(f"no feature service {name!r} is applied{listed(services)}{hint}")


def check_services(services: Iterable[FeatureService], views: Mapping[str, FeatureView]) -> None:
    for service in services:
        check_features(service.features, views, f"feature service {service.name!r}")


def check_features(features: Sequence[Feature], views: Mapping[str, FeatureView], where: str) -> None:
    """Raises UnknownView, UnknownFeature, or SchemaError: views that give one join key two types."""
    types: dict[str, tuple[str, str]] = {}
    for feature in features:
        view = views.get(feature.view)
        if view is None:
            raise UnknownView(
                f"{where} names {feature}, and no feature view {feature.view!r} is applied{listed(views)}"
            )
        if all(field.name != feature.field for field in view.schema):
            known = ", ".join(field.name for field in view.schema)
            raise UnknownFeature(f"{where} names {feature}, and the view has no such field; it has {known}")
        for key, kind in view.entity.join_keys.items():
            first, first_kind = types.setdefault(key, (view.name, kind))
            if kind != first_kind:
                raise SchemaError(
                    f"{where}: join key {key!r} is {first_kind} in view {first!r} and {kind} in view {view.name!r};"
                    " give it one type"
                )
