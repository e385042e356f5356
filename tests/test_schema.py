"""Definitions: what is well said is taken, and every fault is named with its remedy when it is made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from fastfeat import Entity, Feature, FeatureService, FeatureView, Field, SchemaError, UnknownFeature
from fastfeat.definitions import Definition, definition_dict, definitions_from_list, definitions_to_list
from fastfeat.dtypes import KIND, SCALAR_WIDTH, DType
from fastfeat.schema import parse_features

USER = Entity("user", {"user_id": "int64"})
AGE = Field("age", "int32")
PROFILE = FeatureView("profile", USER, [AGE, Field("country", "string")])

FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "name is no identifier": (lambda: Entity("a b", {"k": "int64"}), "'a b' is not an identifier; use letters"),
    "name is reserved": (lambda: Field("event_timestamp", "int64"), "reserved for the row's own times"),
    "name is too long": (lambda: Field("x" * 129, "int64"), "at most 128"),
    "entity without keys": (lambda: Entity("e", {}), "needs join_keys such as"),
    "entity with too many keys": (lambda: Entity("e", {f"k{i}": "int64" for i in range(9)}), "9 join keys, at most 8"),
    "float key": (lambda: Entity("e", {"k": "float64"}), "floats do not compare by value"),
    "unknown type": (lambda: Field("x", "int"), "field 'x': unknown type 'int'; write one of bool, int8"),
    "type of no text": (lambda: Field("x", 7), "not int"),  # type: ignore[arg-type]
    "vector of texts": (lambda: Field("x", "vector<string, 2>"), "a vector holds numbers"),
    "vector too long": (lambda: Field("x", "vector<float32, 16385>"), "1 to 16384 elements, not 16385"),
    "list of vectors": (lambda: Field("x", "list<float128>"), "a list holds"),
    "no entity": (lambda: FeatureView("v", "user", [AGE]), "needs an Entity, not str"),  # type: ignore[arg-type]
    "no fields": (lambda: FeatureView("v", USER, []), "needs a schema of one or more Field"),
    "field twice": (lambda: FeatureView("v", USER, [AGE, AGE]), "declares field 'age' twice"),
    "field is key": (lambda: FeatureView("v", USER, [Field("user_id", "int64")]), "is a join key of entity 'user'"),
    "too many fields": (
        lambda: FeatureView("v", USER, [Field(f"f{i}", "bool") for i in range(4097)]),
        "4097 fields, at most 4096",
    ),
    "row too wide": (
        lambda: FeatureView("v", USER, [Field(f"f{i}", "vector<float64, 16384>") for i in range(9)]),
        "a row is wider than 1048576 B; split",
    ),
    "ttl is no duration": (lambda: FeatureView("v", USER, [AGE], ttl=5), "ttl must be a"),  # type: ignore[arg-type]
    "ttl is negative": (lambda: FeatureView("v", USER, [AGE], ttl=timedelta(-1)), "must not be negative"),
    "delay is negative": (lambda: FeatureView("v", USER, [AGE], delay=timedelta(-1)), "delay must not be negative"),
    "keep is nothing": (lambda: FeatureView("v", USER, [AGE], keep=0), "keep=0 is not 'all', 'latest'"),
    "keep is true": (lambda: FeatureView("v", USER, [AGE], keep=True), "keep=True is not"),
    "kind": (lambda: FeatureView("v", USER, [AGE], kind="log"), "is 'state' or 'event'"),  # type: ignore[arg-type]
    "service of nothing": (lambda: FeatureService("s", []), "needs a list of features such as"),
    "service with no feature": (lambda: FeatureService("s", ["age"]), "'age' is not a FeatureView, view['field'] or"),
    "service with one twice": (lambda: FeatureService("s", [PROFILE, "profile:age"]), "names profile:age twice"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_remedy(name: str) -> None:
    make, words = FAULTS[name]
    with pytest.raises(SchemaError, match=re.escape(words)):
        make()


def test_a_feature_that_a_view_lacks_is_named_beside_those_it_has() -> None:
    with pytest.raises(UnknownFeature, match="'profile' has no field 'size'; it has age, country"):
        PROFILE["size"]


def test_a_service_lists_features_in_order_however_they_are_given() -> None:
    wanted = [Feature("profile", "country"), Feature("x", "y"), Feature("profile", "age")]
    given: list[Any] = [PROFILE["country"], "x:y", Feature("profile", "age")]
    assert list(FeatureService("s", given).features) == wanted
    assert parse_features(PROFILE, "here") == (Feature("profile", "age"), Feature("profile", "country"))


def test_equal_definitions_are_equal_and_hash_alike() -> None:
    again = FeatureView("profile", Entity("user", {"user_id": "int64"}), [AGE, Field("country", "string")])
    assert again == PROFILE
    assert hash(again) == hash(PROFILE)
    assert hash(FeatureService("s", [again])) == hash(FeatureService("s", [PROFILE]))


def test_a_definition_is_plain_values() -> None:
    view = FeatureView("v", USER, [AGE], ttl=timedelta(seconds=1), keep=timedelta(days=1), tags={"team": "risk"})
    assert definition_dict(view) == {
        "name": "v",
        "entity": "user",
        "join_keys": {"user_id": "int64"},
        "fields": [{"name": "age", "dtype": "int32", "nullable": True}],
        "ttl_us": 1_000_000,
        "keep": {"duration_us": 86_400_000_000},
        "delay_us": 0,
        "kind": "state",
        "event_id": None,
        "description": "",
        "owner": "",
        "tags": {"team": "risk"},
    }


TYPES = [*SCALAR_WIDTH, "string", "bytes", "vector<float32, 3>", "list<timestamp>", "list<string>"]


@pytest.mark.parametrize("name", TYPES)
def test_a_type_reads_what_it_writes(name: str) -> None:
    dtype = DType.parse(name)
    assert str(dtype) == name
    assert DType.parse(dtype) is dtype


def test_types_have_their_canonical_arrow_and_numpy_forms() -> None:
    forms = {name: (DType.parse(name).arrow(), DType.parse(name).numpy) for name in TYPES}
    assert forms["timestamp"] == (pa.timestamp("us", "UTC"), "int64")
    assert forms["bytes"] == (pa.binary(), "object")
    assert forms["uint16"] == (pa.uint16(), "uint16")
    assert forms["vector<float32, 3>"] == (pa.list_(pa.float32(), 3), "float32")
    assert forms["list<timestamp>"] == (pa.list_(pa.timestamp("us", "UTC")), "int64")


def test_type_numbers_are_never_used_twice() -> None:
    assert len(set(KIND.values())) == len(KIND)
    assert (DType("bool").kind, DType.parse("vector<int8, 2>").element_kind) == (0, 1)


def test_definitions_at_rest_make_the_same_definitions_again() -> None:
    user = Entity("user", {"user_id": "int32", "realm": "string"}, description="who", owner="team")
    fields = [Field("a", "vector<float32, 3>", nullable=False, description="x"), Field("b", "list<string>")]
    views = [
        FeatureView("v", user, fields, ttl=timedelta(days=3, microseconds=1), keep=timedelta(hours=1), owner="o"),
        FeatureView("w", user, fields, keep=3, delay=timedelta(seconds=5), description="d", tags={"k": "v"}),
        FeatureView("x", user, fields, keep="latest"),
    ]
    service = FeatureService("s", [views[0], views[1]["b"]], description="d", owner="o")
    given: list[Definition] = [user, *views, service]
    assert definitions_from_list(json.loads(json.dumps(definitions_to_list(given)))) == given
