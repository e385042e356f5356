"""Naming: what a definition and its parts may be called."""

from __future__ import annotations

import re

from .errors import SchemaError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
EVENT_TIMESTAMP = "event_timestamp"
RESERVED = frozenset({EVENT_TIMESTAMP, "created_timestamp", "_sequence"})


def check_name(name: object, what: str, *, reserved: frozenset[str] = RESERVED) -> str:
    """The name, if it is an identifier of at most 128 characters and not reserved."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SchemaError(
            f"{what} name {name!r} is not an identifier; use letters, digits and _, at most 128, no digit first"
        )
    if name in reserved:
        raise SchemaError(f"{what} name {name!r} is reserved for the row's own times; choose another")
    return name
