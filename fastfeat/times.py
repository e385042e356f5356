"""Time, in one place: int64 microseconds since 1970-01-01 UTC, from year 1 to the end of year 9999.

A datetime without a zone is refused: nobody can say which moment it is. What is finer than a microsecond is floored,
also before 1970, so that a time never moves into the future.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from operator import index
from typing import Final

from .errors import DataError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
TIME_MIN_US: Final = (datetime.min.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
TIME_MAX_US: Final = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND


def to_us(value: object, what: str = "time") -> int:
    """Microseconds since 1970 UTC of an aware datetime or an int that is in microseconds already.

    Raises DataError that begins with `what`: no zone, another type, or outside years 1 to 9999.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise DataError(
                f"{what} {value.isoformat()} has no time zone; give it one, such as value.replace(tzinfo=timezone.utc)"
            )
        # The parts of a difference are floored, also in subclasses that are finer than a microsecond
        # (pandas.Timestamp).
        since = value - EPOCH
        us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    else:
        us = int_us(value, what)
    if not TIME_MIN_US <= us <= TIME_MAX_US:
        raise DataError(f"{what} {us} us is outside years 1 to 9999; times are microseconds since 1970 UTC")
    return us


def int_us(value: object, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)  # type: ignore[arg-type]  # refused below where it is no integer
    except TypeError:
        raise DataError(
            f"{what} must be a datetime with a time zone or int microseconds since 1970 UTC, not {type(value).__name__}"
        ) from None


def from_us(us: int) -> datetime:
    """The aware datetime (UTC) of microseconds since 1970 UTC, within years 1 to 9999."""
    return EPOCH + timedelta(microseconds=us)


def format_us(us: int) -> str:
    """For messages: 2013-01-01T05:00:00Z, with a fraction only where there is one; any int is printed."""
    if not TIME_MIN_US <= us <= TIME_MAX_US:
        return f"{us} us"
    return from_us(us).replace(tzinfo=None).isoformat() + "Z"
