"""Applied: the definitions of a store as one value, how new ones are put into it, and the checks on the way.

    Definitions + [Entity, FeatureView, WindowView, OnDemandFeatureView, FeatureService, ...] --merged--> Definitions

A Definitions is never changed: a reader keeps the one it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .definitions import Definition, definition_dict, definitions_to_list
from .errors import IncompatibleSchema, SchemaError, UnknownFeature, UnknownView
from .ondemand import OnDemandFeatureView
from .schema import Entity, Feature, FeatureService, FeatureView, View, WindowView

if TYPE_CHECKING:
    from ._core.table import Table

Named = TypeVar("Named", FeatureView, WindowView, OnDemandFeatureView, FeatureService)

DURABLE_PARTS = ("join_keys", "fields", "keep", "kind", "event_id")  # of a definition: what stored rows depend on


@dataclass(frozen=True)
class Definitions:
    """What is applied: a value that is replaced as a whole.

    tables: of each view with rows of its own; empty where nobody reads.
    """

    entities: Mapping[str, Entity] = field(default_factory=dict)
    views: Mapping[str, FeatureView] = field(default_factory=dict)
    windows: Mapping[str, WindowView] = field(default_factory=dict)
    on_demand: Mapping[str, OnDemandFeatureView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    def all(self) -> list[Definition]:
        """Entities first, then views, then windows over them, then on-demand views, then services."""
        kinds = (self.entities, self.views, self.windows, self.on_demand, self.services)
        return [each for kind in kinds for each in kind.values()]

    def is_like(self, other: Definitions) -> bool:
        """True where both say the same."""
        return definitions_to_list(self.all()) == definitions_to_list(other.all())

    @property
    def readable(self) -> dict[str, View]:
        """Everything that has features, by name."""
        return {**self.views, **self.windows, **self.on_demand}

    def stored(self, name: str) -> FeatureView:
        """The view whose rows answer for the view of this name."""
        return self.windows[name].source if name in self.windows else self.views[name]

    def plan_items(self, wanted: Iterable[Feature], tables: Mapping[str, Table]) -> list[Any]:
        """What Plan takes for these features, none of them on-demand, from the tables of stored views."""
        return [self._plan_item(each, tables) for each in wanted]

    def _plan_item(self, feature: Feature, tables: Mapping[str, Table]) -> Any:
        window = self.windows.get(feature.view)
        if window is None:
            return tables[feature.view], feature.field
        each = next(each for each in window.features if each.name == feature.field)
        dtype = next(field.dtype for field in window.schema if field.name == feature.field)
        return tables[window.source.name], window.name, each, dtype


NOTHING = Definitions()


def merged(old: Definitions, items: Sequence[Definition]) -> Definitions:
    """The applied definitions with new ones in their places; their tables are the old ones.

    Raises SchemaError, UnknownView, UnknownFeature, IncompatibleSchema.
    """
    entities = dict(old.entities)
    views: dict[str, FeatureView] = {}
    windows: dict[str, WindowView] = {}
    on_demand: dict[str, OnDemandFeatureView] = {}
    services: dict[str, FeatureService] = {}
    sources: dict[str, FeatureView] = {}
    for item in items:
        if isinstance(item, Entity):
            add_entity(entities, item)
        elif isinstance(item, FeatureView):
            add_entity(entities, item.entity)
            add_once(views, item, "feature view")
        elif isinstance(item, WindowView):
            add_entity(entities, item.entity)
            add_once(windows, item, "window view")
            sources[item.source.name] = item.source
        elif isinstance(item, OnDemandFeatureView):
            add_once(on_demand, item, "on-demand feature view")
        elif isinstance(item, FeatureService):
            add_once(services, item, "feature service")
        else:
            raise SchemaError(
                "apply takes Entity, FeatureView, WindowView, OnDemandFeatureView and FeatureService, not"
                f" {type(item).__name__}"
            )
    for name, source in sources.items():
        check_same_rows(views.setdefault(name, old.views.get(name, source)), source)
    for name, view in views.items():
        if name in old.views:
            check_same_rows(old.views[name], view)
    now = Definitions(
        entities,
        {**old.views, **views},
        {**old.windows, **windows},
        {**old.on_demand, **on_demand},
        {**old.services, **services},
        old.tables,
    )
    now = replace(
        now, windows={n: replace(each, source=now.views[each.source.name]) for n, each in now.windows.items()}
    )
    check_view_names(now)
    for function in now.on_demand.values():
        check_exist(function.inputs, now.readable, f"on-demand feature view {function.name!r}")
    for function in now.on_demand.values():
        check_features(tuple(function), now.readable, f"on-demand feature view {function.name!r}")
    for service in now.services.values():
        check_features(service.features, now.readable, f"feature service {service.name!r}")
    return now


def check_view_names(now: Definitions) -> None:
    """Raises SchemaError: one name for two things that features are named after."""
    kinds = (
        ("a feature view", now.views),
        ("a window view", now.windows),
        ("an on-demand feature view", now.on_demand),
    )
    seen: dict[str, str] = {}
    for kind, views in kinds:
        for name in views:
            if name in seen:
                raise SchemaError(f"{name!r} is {seen[name]} and {kind}; features are named after it: rename one")
            seen[name] = kind


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


def check_features(features: Sequence[Feature], views: Mapping[str, View], where: str) -> None:
    """Raises UnknownView, UnknownFeature, or SchemaError: what can't be read together.

    That is views that give one join key two types, functions that give one request field two types or the name of a
    join key, and functions that wait for each other.
    """
    check_exist(features, views, where)
    stored, functions = needed(features, views)
    keys: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(each.view for each in stored):
        view = views[name]
        assert isinstance(view, FeatureView | WindowView)
        for key, kind in view.entity.join_keys.items():
            first, first_kind = keys.setdefault(key, (name, kind))
            if kind != first_kind:
                raise SchemaError(
                    f"{where}: join key {key!r} is {first_kind} in view {first!r} and {kind} in view {name!r};"
                    " give it one type"
                )
    fields: dict[str, tuple[str, str]] = {}
    for function in functions:
        for each in function.request:
            first, first_kind = fields.setdefault(each.name, (function.name, str(each.dtype)))
            if each.name in keys:
                raise SchemaError(
                    f"{where}: {each.name!r} is a request field of on-demand view {function.name!r} and a join key of"
                    f" view {keys[each.name][0]!r}; rename the field"
                )
            if str(each.dtype) != first_kind:
                raise SchemaError(
                    f"{where}: request field {each.name!r} is {first_kind} in on-demand view {first!r} and"
                    f" {each.dtype} in {function.name!r}; give it one type"
                )


def check_exist(features: Sequence[Feature], views: Mapping[str, View], where: str) -> None:
    """Raises UnknownView, UnknownFeature."""
    for feature in features:
        view = views.get(feature.view)
        if view is None:
            raise UnknownView(
                f"{where} names {feature}, and no feature view {feature.view!r} is applied{listed(views)}"
            )
        if all(field.name != feature.field for field in view.schema):
            known = ", ".join(field.name for field in view.schema)
            raise UnknownFeature(f"{where} names {feature}, and the view has no such field; it has {known}")


def needed(features: Iterable[Feature], views: Mapping[str, View]) -> tuple[list[Feature], list[OnDemandFeatureView]]:
    """What these features are made of: stored ones, those asked first, and functions, each after those it reads.

    Raises SchemaError: functions that wait for each other.
    """
    wanted = list(features)
    stored = dict.fromkeys(each for each in wanted if not isinstance(views[each.view], OnDemandFeatureView))
    functions: dict[str, OnDemandFeatureView] = {}

    def visit(feature: Feature, path: tuple[str, ...]) -> None:
        view = views[feature.view]
        if not isinstance(view, OnDemandFeatureView):
            stored[feature] = None
        elif view.name in path:
            circle = " -> ".join([*path[path.index(view.name) :], view.name])
            raise SchemaError(f"on-demand feature views wait for each other: {circle}; take one of the inputs out")
        elif view.name not in functions:
            for each in view.inputs:
                visit(each, (*path, view.name))
            functions[view.name] = view

    for feature in wanted:
        visit(feature, ())
    return list(stored), list(functions.values())


def listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return f" (there are {text})" if text else ""
