"""The status of an answer: never guessed from a null."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Why a value is there or not. The numbers are part of the core and of the wire format."""

    PRESENT = 0
    NULL = 1  # the row is there and holds a null for this field; a status of one value, never of a whole row
    NOT_FOUND = 2
    EXPIRED = 3  # the last row is older than the view's ttl
    DELETED = 4
