"""Receipts: what it takes to give an answer again, whatever has arrived since.

    Receipt <--> dict <--> JSON text, or a map on the wire

Promise: a Receipt that exists is well-formed. Whether it is of this store, `Store.replay` finds out; it checks the
         values of the keys, too.
Errors:  DataError that says which part is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from .errors import DataError
from .times import to_us

POSITION_MAX = 2**64 - 1


@dataclass(frozen=True)
class Receipt:
    """Which answer: `store.replay(receipt)` gives it again, after restarts, compaction and late corrections.

    features: a service's name or "view:field" names. version: of the definitions that it was answered under.
    entities: the request's keys and request fields, name -> values. as_of: T, us. known_at: K, us; None: everything.
    position: rows with a smaller sequence were in the store; those that came later do not count.
    """

    features: str | tuple[str, ...]
    version: int
    entities: dict[str, list[Any]]
    as_of: int
    known_at: int | None
    position: int

    def __post_init__(self) -> None:
        if not isinstance(self.features, str) and not is_names(self.features):
            raise fault("features is no service's name and no list of 'view:field'")
        if not is_int(self.version):
            raise fault("version is no integer")
        if not isinstance(self.entities, dict) or not all(is_column(*each) for each in self.entities.items()):
            raise fault("entities is no map from join keys to lists of values")
        if len(set(map(len, self.entities.values()))) > 1:
            raise fault("the lists of entities differ in length")
        if not is_int(self.position) or not 0 <= self.position <= POSITION_MAX:
            raise fault(f"position is no integer from 0 to {POSITION_MAX}")
        for name, moment in (("as_of", self.as_of), ("known_at", 0 if self.known_at is None else self.known_at)):
            if not is_int(moment):
                raise fault(f"{name} is no integer of microseconds")
            to_us(moment, f"the receipt's {name}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; they share this receipt's lists."""
        said = {name: getattr(self, name) for name in NAMES}
        return said | {"features": self.features if isinstance(self.features, str) else list(self.features)}

    @classmethod
    def from_dict(cls, said: object) -> Self:
        """Raises DataError where the value is no receipt."""
        if not isinstance(said, Mapping) or said.keys() != set(NAMES):
            raise fault(f"it is not a map of {', '.join(NAMES)}")
        features = said["features"]
        return cls(**{**said, "features": tuple(features) if isinstance(features, list) else features})

    def to_json(self) -> str:
        """The receipt as text, on one line; of a request field, bytes as {"hex": ...} and NaN as {"float": "nan"}."""
        said = self.to_dict()
        said["entities"] = {name: [packed(value) for value in values] for name, values in self.entities.items()}
        try:
            return json.dumps(said, allow_nan=False)
        except TypeError as error:
            raise fault(str(error)) from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises DataError where the text is no receipt."""
        try:
            said = json.loads(text, object_hook=unpacked)
        except (ValueError, RecursionError) as error:
            raise fault(str(error)) from None
        return cls.from_dict(said)


NAMES = tuple(field.name for field in fields(Receipt))


def packed(value: Any) -> Any:
    """JSON knows no bytes, no NaN and no infinities."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return [packed(item) for item in value] if isinstance(value, list) else value


def unpacked(said: dict[str, Any]) -> Any:
    if len(said) == 1 and isinstance(said.get("hex"), str):
        return bytes.fromhex(said["hex"])
    if len(said) == 1 and isinstance(said.get("float"), str):
        return float(said["float"])
    return said


def fault(why: str) -> DataError:
    return DataError(f"this is no receipt: {why}; give one that an answer carried, or the text of its to_json()")


def is_names(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)


def is_column(name: object, values: object) -> bool:
    return isinstance(name, str) and isinstance(values, list)


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
