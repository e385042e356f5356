"""Definitions as code: Entity, Field, FeatureView, WindowView, FeatureService, in Feast's vocabulary.

    user = Entity("user", join_keys={"user_id": "int64"})
    profile = FeatureView("profile", entity=user, ttl=timedelta(days=90),
                          schema=[Field("age", "int32"), Field("country", "string", nullable=True)])
    payments = FeatureView("payments", entity=user, kind="event", event_id="payment_id",
                           schema=[Field("payment_id", "string"), Field("amount", "float64")])
    spending = WindowView("spending", source=payments,
                          features=[Aggregation("amount", "sum", window=timedelta(hours=1))])
    scoring = FeatureService("scoring", [profile["age"], profile["country"], spending["amount_sum_1h"]])

Everything is checked when it is made: the error names the fault and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from .aggregation import Aggregation, Condition
from .dtypes import KEY_TYPES, DType
from .durations import check_duration, duration_us
from .errors import SchemaError, UnknownFeature
from .naming import EVENT_TIMESTAMP, RESERVED, check_name

ROW_SIZE_MAX = 1 << 20  # bytes of one row; what is larger belongs in an object store
FIELDS_MAX = 4096
JOIN_KEYS_MAX = 8
EVENT_ID_TYPES = KEY_TYPES | {"bytes"}


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
    """One feature of a view. `nullable=False` refuses rows with a null in it.

    Field("event_timestamp", "timestamp") is for the request of an on-demand feature view alone.
    """

    name: str
    dtype: DType
    nullable: bool = True
    description: str = ""

    def __init__(self, name: str, dtype: str | DType, nullable: bool = True, description: str = "") -> None:
        try:
            parsed = DType.parse(dtype)
        except ValueError as error:
            raise SchemaError(f"field {name!r}: {error}") from None
        is_moment = name == EVENT_TIMESTAMP and parsed.name == "timestamp"
        check_name(name, "field", reserved=RESERVED - {EVENT_TIMESTAMP} if is_moment else RESERVED)
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


class View:
    """What features are read from, by name: `view["field"]` and all fields in their order."""

    name: str
    schema: Sequence[Field]

    def __getitem__(self, name: str) -> Feature:
        """The feature `view:name`, for a service's list."""
        if not any(f.name == name for f in self.schema):
            raise UnknownFeature(
                f"feature view {self.name!r} has no field {name!r}; it has {', '.join(f.name for f in self.schema)}"
            )
        return Feature(self.name, name)

    def __iter__(self) -> Iterator[Feature]:
        return (Feature(self.name, f.name) for f in self.schema)


@dataclass(frozen=True)
class FeatureView(View):
    """A named set of features of one entity that are updated together.

    schema:  the fields, in column order.
    ttl:     a value lives while T - event_time <= ttl (inclusive); None for ever.
    keep:    what stays in memory per entity: "all", "latest", a number of row versions, or a timedelta. Reads that
             need dropped rows raise BeforeHistory.
    delay:   of loaded rows without a created column: created_time = event_time + delay.
    kind:    "state": rows replace one another; "event": rows accumulate, and windows are computed over them.
    event_id: of an event view: the field that names an event. Of an entity's rows with one event_id only that counts
             which was created first: what is sent again changes nothing.
    """

    name: str
    entity: Entity
    schema: Sequence[Field]
    ttl: timedelta | None = None
    keep: Keep = "all"
    delay: timedelta = timedelta(0)
    kind: Literal["state", "event"] = "state"
    event_id: str | None = None
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
            check_name(f.name, f"{where}: field")
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
        if self.kind not in ("state", "event"):
            raise SchemaError(f"{where}: kind {self.kind!r} is unknown; it is 'state' or 'event'")
        self._check_event_id(where, fields)
        if isinstance(self.keep, bool) or not (
            self.keep in ("all", "latest")
            or (isinstance(self.keep, int) and self.keep >= 1)
            or (isinstance(self.keep, timedelta) and self.keep >= timedelta(0))
        ):
            raise SchemaError(
                f"{where}: keep={self.keep!r} is not 'all', 'latest', a number of versions (>= 1) or a timedelta"
            )
        if self.kind == "event" and not (self.keep == "all" or isinstance(self.keep, timedelta)):
            raise SchemaError(
                f"{where}: keep={self.keep!r} would take rows out of windows; an event view keeps 'all' or a timedelta"
            )
        object.__setattr__(self, "schema", fields)
        object.__setattr__(self, "tags", dict(self.tags))

    def _check_event_id(self, where: str, fields: Sequence[Field]) -> None:
        if self.event_id is None:
            return
        if self.kind != "event":
            raise SchemaError(f"{where}: event_id={self.event_id!r} is for kind='event'; rows of a state have none")
        found = next((f for f in fields if f.name == self.event_id), None)
        if found is None:
            raise SchemaError(
                f"{where}: event_id={self.event_id!r} is no field; there are {', '.join(f.name for f in fields)}"
            )
        if str(found.dtype) not in EVENT_ID_TYPES or found.nullable:
            raise SchemaError(
                f"{where}: event_id field {found.name!r} must be a string, bytes or an integer with nullable=False, not"
                f" {found.dtype}{' that may be null' if found.nullable else ''}"
            )

    def __hash__(self) -> int:
        return hash((self.name, self.entity, self.schema))

    @property
    def ttl_us(self) -> int | None:
        return None if self.ttl is None else duration_us(self.ttl)

    @property
    def delay_us(self) -> int:
        return duration_us(self.delay)


@dataclass(frozen=True)
class WindowView(View):
    """Window features over the rows of an event view, computed when they are read: nothing to fill in beforehand.

    source:   the event view, whose rows and entity they are.
    features: Aggregations, in column order.
    """

    name: str
    source: FeatureView
    features: Sequence[Aggregation]
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "window view")
        where = f"window view {self.name!r}"
        if not isinstance(self.source, FeatureView) or self.source.kind != "event":
            raise SchemaError(f"{where} needs a source: a FeatureView with kind='event'")
        features = tuple(self.features)
        if not features or not all(isinstance(each, Aggregation) for each in features):
            raise SchemaError(f"{where} needs features: one or more Aggregation(column, function, window)")
        if len(features) > FIELDS_MAX:
            raise SchemaError(f"{where} has {len(features)} features, at most {FIELDS_MAX}; split it into views")
        seen: set[str] = set()
        for each in features:
            if each.name in seen or each.name in self.source.entity.join_keys:
                raise SchemaError(f"{where} has two features or a join key {each.name!r}; give one another name=")
            seen.add(each.name)
            self._check_feature(where, each)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "tags", dict(self.tags))

    def _check_feature(self, where: str, each: Aggregation) -> None:
        """Its columns are the source's, its function fits, its window is kept in memory."""
        fields = {f.name: f for f in self.source.schema}
        for column in (each.column, *(column for column, _, _ in each.where)):
            if column is not None and column not in fields:
                raise UnknownFeature(
                    f"{where}: feature {each.name!r} is of column {column!r}, and event view {self.source.name!r} has"
                    f" {', '.join(fields)}"
                )
        each.dtype_over(None if each.column is None else fields[each.column].dtype)
        for condition in each.where:
            check_condition(f"{where}: feature {each.name!r}", fields[condition[0]].dtype, condition)
        keep = self.source.keep
        if isinstance(keep, timedelta) and keep < each.window + each.delay:
            raise SchemaError(
                f"{where}: feature {each.name!r} reaches back {each.window + each.delay}, and event view"
                f" {self.source.name!r} keeps {keep} in memory; keep at least as much"
            )

    def __hash__(self) -> int:
        return hash((self.name, self.source, self.features))

    @property
    def entity(self) -> Entity:
        return self.source.entity

    @property
    def schema(self) -> tuple[Field, ...]:  # type: ignore[override]  # it follows from the features
        """What is read: a field per feature."""
        dtypes = {f.name: f.dtype for f in self.source.schema}
        return tuple(
            Field(
                each.name, each.dtype_over(dtypes.get(each.column or "")), nullable=True, description=each.description
            )
            for each in self.features
        )


def check_condition(what: str, dtype: DType, given: Condition) -> None:
    """Raises SchemaError where a column of this type can't be compared with that value."""
    column, operator, value = given
    for each in value if operator in ("in", "not in") else (value,):
        fits = {
            "string": isinstance(each, str),
            "bytes": isinstance(each, bytes),
            "bool": isinstance(each, bool),
        }.get(dtype.name, isinstance(each, (int, float)) and not isinstance(each, bool))
        if dtype.element is not None or not fits:
            raise SchemaError(f"{what}: where {column} {operator} {each!r} does not compare with a column of {dtype}")


@dataclass(frozen=True)
class FeatureService:
    """A named list of features that a model reads together, in the order of its columns.

    features: views (all their fields), `view["field"]`, or "view:field" strings.
    """

    name: str
    features: Sequence[Feature]
    description: str = ""
    owner: str = ""

    def __init__(
        self,
        name: str,
        features: Sequence[View | Feature | str],
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
    if isinstance(features, (str, Feature, View)):
        features = [features]
    if not isinstance(features, Sequence) or not features:
        raise SchemaError(f"{where} needs a list of features such as ['profile:age']")
    out: list[Feature] = []
    for item in features:
        if isinstance(item, View):
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
