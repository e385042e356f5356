"""Applied: the definitions of a store as one value, how new ones are put into it, and the checks on the way.

    Definitions + [Entity, FeatureView, WindowView, FeatureService, ...] --merged--> Definitions, or an error

A Definitions is never changed: a reader keeps the one it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .definitions import Definition, definition_dict, definitions_to_list
from .errors import IncompatibleSchema, SchemaError, UnknownFeature, UnknownView
from .schema import Entity, Feature, FeatureService, FeatureView, View, WindowView

if TYPE_CHECKING:
    from ._core.table import Table

Named = TypeVar("Named", FeatureView, WindowView, FeatureService)

DURABLE_PARTS = ("join_keys", "fields", "keep", "kind", "event_id")  # of a definition: what stored rows depend on


@dataclass(frozen=True)
class Definitions:
    """What is applied: a value that is replaced as a whole.

    tables: of each view with rows of its own; empty where nobody reads.
    """

    entities: Mapping[str, Entity] = field(default_factory=dict)
    views: Mapping[str, FeatureView] = field(default_factory=dict)
    windows: Mapping[str, WindowView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    def all(self) -> list[Definition]:
        """Entities first, then views, then windows over them, then services."""
        return [*self.entities.values(), *self.views.values(), *self.windows.values(), *self.services.values()]

    def is_like(self, other: Definitions) -> bool:
        """True where both say the same."""
        return definitions_to_list(self.all()) == definitions_to_list(other.all())

    @property
    def readable(self) -> dict[str, View]:
        """Everything that has features, by name."""
        return {**self.views, **self.windows}

    def stored(self, name: str) -> FeatureView:
        """The view whose rows answer for the view of this name."""
        return self.windows[name].source if name in self.windows else self.views[name]

    def plan_items(self, wanted: Iterable[Feature], tables: Mapping[str, Table]) -> list[Any]:
        """What Plan takes for these features, from the tables of stored views."""
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
        elif isinstance(item, FeatureService):
            add_once(services, item, "feature service")
        else:
            raise SchemaError(
                f"apply takes Entity, FeatureView, WindowView and FeatureService, not {type(item).__name__}"
            )
    for name, source in sources.items():
        check_same_rows(views.setdefault(name, old.views.get(name, source)), source)
    for name, view in views.items():
        if name in old.views:
            check_same_rows(old.views[name], view)
    now = Definitions(
        entities, {**old.views, **views}, {**old.windows, **windows}, {**old.services, **services}, old.tables
    )
    now = replace(
        now, windows={n: replace(each, source=now.views[each.source.name]) for n, each in now.windows.items()}
    )
    for name in now.windows:
        if name in now.views:
            raise SchemaError(f"{name!r} is a feature view and a window view; features are named after it: rename one")
    for service in now.services.values():
        check_features(service.features, now.readable, f"feature service {service.name!r}")
    return now


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


def listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return f" (there are {text})" if text else ""
