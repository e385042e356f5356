"""Definitions as code: Entity, Field, FeatureView, FeatureService, in Feast's vocabulary.

    user = Entity("user", join_keys={"user_id": "int64"})
    profile = FeatureView("profile", entity=user, ttl=timedelta(days=90),
                          schema=[Field("age", "int32"), Field("country", "string", nullable=True)])
    scoring = FeatureService("scoring", [profile["age"], profile["country"]])

Everything is checked when it is made: the error names the fault and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from .dtypes import KEY_TYPES, DType
from .errors import SchemaError, UnknownFeature

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
RESERVED = frozenset({"event_timestamp", "created_timestamp", "_sequence"})
ROW_SIZE_MAX = 1 << 20  # bytes of one row; what is larger belongs in an object store
FIELDS_MAX = 4096
JOIN_KEYS_MAX = 8


def check_name(name: object, what: str) -> str:
    """The name, if it is an identifier of at most 128 characters and not reserved."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SchemaError(
            f"{what} name {name!r} is not an identifier; use letters, digits and _, at most 128, no digit first"
        )
    if name in RESERVED:
        raise SchemaError(f"{what} name {name!r} is reserved for the row's own times; choose another")
    return name


def check_duration(value: object, what: str) -> timedelta:
    if not isinstance(value, timedelta):
        raise SchemaError(f"{what} must be a datetime.timedelta, not {type(value).__name__}")
    if value < timedelta(0):
        raise SchemaError(f"{what} must not be negative, got {value}")
    return value


def duration_us(value: timedelta) -> int:
    return (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds


@dataclass(frozen=True)
class Entity:
    """What features describe: a name and its join keys in order.

    join_keys: name -> key type (an integer type or "string"). Keys compare by value: int32 7 is int64 7.
    """

    name: str
    join_keys: Mapping[str, str]
    description: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "entity")
        if not isinstance(self.join_keys, Mapping) or not self.join_keys:
            raise SchemaError(f"entity {self.name!r} needs join_keys such as {{'user_id': 'int64'}}")
        if len(self.join_keys) > JOIN_KEYS_MAX:
            raise SchemaError(f"entity {self.name!r} has {len(self.join_keys)} join keys, at most {JOIN_KEYS_MAX}")
        for key, type_name in self.join_keys.items():
            check_name(key, f"entity {self.name!r}: join key")
            if type_name not in KEY_TYPES:
                raise SchemaError(
                    f"entity {self.name!r}: join key {key!r} has type {type_name!r}; keys are integers or 'string'"
                    " (floats do not compare by value: round them to an integer or format them as a string)"
                )
        object.__setattr__(self, "join_keys", dict(self.join_keys))

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.join_keys.items())))


@dataclass(frozen=True)
class Field:
    """One feature of a view. `nullable=False` refuses rows with a null in it."""

    name: str
    dtype: DType
    nullable: bool = True
    description: str = ""

    def __init__(self, name: str, dtype: str | DType, nullable: bool = True, description: str = "") -> None:
        check_name(name, "field")
        try:
            parsed = DType.parse(dtype)
        except ValueError as error:
            raise SchemaError(f"field {name!r}: {error}") from None
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "dtype", parsed)
        object.__setattr__(self, "nullable", nullable)
        object.__setattr__(self, "description", description)


@dataclass(frozen=True)
class Feature:
    """A field of a view, as a service or a request names it: `view:field`."""

    view: str
    field: str

    def __str__(self) -> str:
        return f"{self.view}:{self.field}"


Keep = Literal["all", "latest"] | int | timedelta


@dataclass(frozen=True)
class FeatureView:
    """A named set of features of one entity that are updated together.

    schema:  the fields, in column order.
    ttl:     a value lives while T - event_time <= ttl (inclusive); None for ever.
    keep:    what stays in memory per entity: "all", "latest", a number of row versions, or a timedelta. Reads that
             need dropped rows raise BeforeHistory.
    delay:   of loaded rows without a created column: created_time = event_time + delay.
    kind:    "state": rows replace one another (point reads).
    """

    name: str
    entity: Entity
    schema: Sequence[Field]
    ttl: timedelta | None = None
    keep: Keep = "all"
    delay: timedelta = timedelta(0)
    kind: Literal["state"] = "state"
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "feature view")
        where = f"feature view {self.name!r}"
        if not isinstance(self.entity, Entity):
            raise SchemaError(f"{where} needs an Entity, not {type(self.entity).__name__}")
        fields = tuple(self.schema)
        if not fields or not all(isinstance(f, Field) for f in fields):
            raise SchemaError(f"{where} needs a schema of one or more Field(name, dtype)")
        if len(fields) > FIELDS_MAX:
            raise SchemaError(f"{where} has {len(fields)} fields, at most {FIELDS_MAX}; split it into views")
        seen: set[str] = set()
        for f in fields:
            if f.name in seen:
                raise SchemaError(f"{where} declares field {f.name!r} twice")
            if f.name in self.entity.join_keys:
                raise SchemaError(f"{where}: field {f.name!r} is a join key of entity {self.entity.name!r}; rename it")
            seen.add(f.name)
        if sum(f.dtype.width for f in fields) > ROW_SIZE_MAX:
            raise SchemaError(f"{where}: a row is wider than {ROW_SIZE_MAX} B; split it into views")
        if self.ttl is not None:
            check_duration(self.ttl, f"{where}: ttl")
        check_duration(self.delay, f"{where}: delay")
        if self.kind != "state":
            raise SchemaError(f"{where}: kind {self.kind!r} is unknown; this version serves kind='state'")
        if isinstance(self.keep, bool) or not (
            self.keep in ("all", "latest")
            or (isinstance(self.keep, int) and self.keep >= 1)
            or (isinstance(self.keep, timedelta) and self.keep >= timedelta(0))
        ):
            raise SchemaError(
                f"{where}: keep={self.keep!r} is not 'all', 'latest', a number of versions (>= 1) or a timedelta"
            )
        object.__setattr__(self, "schema", fields)
        object.__setattr__(self, "tags", dict(self.tags))

    def __hash__(self) -> int:
        return hash((self.name, self.entity, self.schema))

    def __getitem__(self, name: str) -> Feature:
        """The feature `view:name`, for a service's list."""
        if not any(f.name == name for f in self.schema):
            raise UnknownFeature(
                f"feature view {self.name!r} has no field {name!r}; it has {', '.join(f.name for f in self.schema)}"
            )
        return Feature(self.name, name)

    def __iter__(self) -> Iterator[Feature]:
        return (Feature(self.name, f.name) for f in self.schema)

    @property
    def ttl_us(self) -> int | None:
        return None if self.ttl is None else duration_us(self.ttl)

    @property
    def delay_us(self) -> int:
        return duration_us(self.delay)


@dataclass(frozen=True)
class FeatureService:
    """A named list of features that a model reads together, in the order of its columns.

    features: FeatureViews (all their fields), `view["field"]`, or "view:field" strings.
    """

    name: str
    features: Sequence[Feature]
    description: str = ""
    owner: str = ""

    def __init__(
        self,
        name: str,
        features: Sequence[FeatureView | Feature | str],
        description: str = "",
        owner: str = "",
    ) -> None:
        check_name(name, "feature service")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "features", parse_features(features, f"feature service {name!r}"))
        object.__setattr__(self, "description", description)
        object.__setattr__(self, "owner", owner)

    def __hash__(self) -> int:
        return hash((self.name, self.features))


def parse_features(features: object, where: str) -> tuple[Feature, ...]:
    """Features in order, from views, features and "view:field" strings. Raises SchemaError: empty, twice, malformed."""
    if isinstance(features, (str, Feature, FeatureView)):
        features = [features]
    if not isinstance(features, Sequence) or not features:
        raise SchemaError(f"{where} needs a list of features such as ['profile:age']")
    out: list[Feature] = []
    for item in features:
        if isinstance(item, FeatureView):
            out.extend(item)
        elif isinstance(item, Feature):
            out.append(item)
        elif isinstance(item, str) and item.count(":") == 1 and all(item.split(":")):
            view, name = item.split(":")
            out.append(Feature(view, name))
        else:
            raise SchemaError(f"{where}: {item!r} is not a FeatureView, view['field'] or 'view:field'")
    seen: set[Feature] = set()
    for feature in out:
        if feature in seen:
            raise SchemaError(f"{where} names {feature} twice")
        seen.add(feature)
    return tuple(out)


Definition = Entity | FeatureView | FeatureService


def definition_dict(view: FeatureView) -> dict[str, Any]:
    """The view as plain values, for INFO and for comparing definitions."""
    keep = view.keep
    return {
        "name": view.name,
        "entity": view.entity.name,
        "join_keys": dict(view.entity.join_keys),
        "fields": [{"name": f.name, "dtype": str(f.dtype), "nullable": f.nullable} for f in view.schema],
        "ttl_us": view.ttl_us,
        "keep": {"duration_us": duration_us(keep)} if isinstance(keep, timedelta) else keep,
        "delay_us": view.delay_us,
        "kind": view.kind,
        "description": view.description,
        "owner": view.owner,
        "tags": dict(view.tags),
    }


# --- definitions at rest


def definitions_to_list(definitions: Iterable[Definition]) -> list[dict[str, Any]]:
    """Definitions as plain values that JSON can hold, in their order; definitions_from_list makes them again."""
    return [definition_to_dict(each) for each in definitions]


def definition_to_dict(definition: Definition) -> dict[str, Any]:
    if isinstance(definition, Entity):
        return {"type": "entity", **about(definition), "join_keys": list(map(list, definition.join_keys.items()))}
    if isinstance(definition, FeatureService):
        return {"type": "service", **about(definition), "features": [str(feature) for feature in definition.features]}
    return {
        "type": "view",
        **definition_dict(definition),
        "fields": [
            {"name": f.name, "dtype": str(f.dtype), "nullable": f.nullable, "description": f.description}
            for f in definition.schema
        ],
    }


def about(definition: Entity | FeatureService) -> dict[str, str]:
    return {"name": definition.name, "description": definition.description, "owner": definition.owner}


def definitions_from_list(items: Iterable[Mapping[str, Any]]) -> list[Definition]:
    """The definitions that definitions_to_list wrote; an entity comes before the views that name it."""
    entities: dict[str, Entity] = {}
    out: list[Definition] = []
    for item in items:
        common = {"name": item["name"], "description": item["description"], "owner": item["owner"]}
        if item["type"] == "entity":
            entities[item["name"]] = Entity(join_keys=dict(item["join_keys"]), **common)
            out.append(entities[item["name"]])
        elif item["type"] == "service":
            out.append(FeatureService(features=item["features"], **common))
        else:
            out.append(view_from_dict(item, entities[item["entity"]], common))
    return out


def view_from_dict(item: Mapping[str, Any], entity: Entity, common: Mapping[str, str]) -> FeatureView:
    keep = item["keep"]
    return FeatureView(
        entity=entity,
        schema=[Field(f["name"], f["dtype"], f["nullable"], f["description"]) for f in item["fields"]],
        ttl=None if item["ttl_us"] is None else timedelta(microseconds=item["ttl_us"]),
        keep=timedelta(microseconds=keep["duration_us"]) if isinstance(keep, dict) else keep,
        delay=timedelta(microseconds=item["delay_us"]),
        kind=item["kind"],
        tags=item["tags"],
        **common,
    )
