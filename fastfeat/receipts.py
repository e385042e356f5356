"""Receipts: what it takes to give an answer again, whatever has arrived since."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from .errors import DataError


@dataclass(frozen=True)
class Receipt:
    """Which answer: `store.replay(receipt)` gives it again, after restarts, compaction and late corrections.

    features: a service's name or "view:field" names. version: of the definitions that it was answered under.
    entities: the request's keys, join key -> values. as_of: T, us. known_at: K, us; None: everything.
    position: rows with a smaller sequence were in the store; those that came later do not count.
    """

    features: str | tuple[str, ...]
    version: int
    entities: dict[str, list[int | str]]
    as_of: int
    known_at: int | None
    position: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises DataError where the text is no receipt."""
        try:
            said: dict[str, Any] = json.loads(text)
            features = said["features"]
            if not isinstance(features, str):
                features = tuple(features)
            return cls(**{**said, "features": features})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"this is no receipt: {error}; give the text that to_json() made") from None
