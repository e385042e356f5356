"""Durations: spans of time in definitions, whole microseconds."""

from __future__ import annotations

from datetime import timedelta

from .errors import SchemaError


def check_duration(value: object, what: str) -> timedelta:
    """The duration, if it is a timedelta of no less than nothing. Raises SchemaError."""
    if not isinstance(value, timedelta):
        raise SchemaError(f"{what} must be a datetime.timedelta, not {type(value).__name__}")
    if value < timedelta(0):
        raise SchemaError(f"{what} must not be negative, got {value}")
    return value


def duration_us(value: timedelta) -> int:
    return (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds


UNITS = ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms"), (1, "us"))


def duration_text(value: timedelta) -> str:
    """The shortest name of a duration in one unit: 30d, 24h is 1d, 90s."""
    us = duration_us(value)
    size, unit = next((size, unit) for size, unit in UNITS if us % size == 0)
    return f"{us // size}{unit}"
