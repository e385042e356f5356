"""Times: what is a time, which moment it is, and how it is printed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

from fastfeat import DataError
from fastfeat.times import TIME_MAX_US, TIME_MIN_US, format_us, from_us, to_us


def test_the_bounds_are_years_1_and_9999() -> None:
    assert from_us(TIME_MIN_US) == datetime(1, 1, 1, tzinfo=UTC)
    assert from_us(TIME_MAX_US) == datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "us"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=1))), -3_600_000_000),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (pd.Timestamp(1_999, unit="ns", tz="UTC"), 1),
        (pd.Timestamp(-1, unit="ns", tz="UTC"), -1),
        (TIME_MAX_US, TIME_MAX_US),
        (np.int64(7), 7),
        (-5, -5),
    ],
)
def test_a_moment_is_microseconds_floored(value: object, us: int) -> None:
    assert to_us(value) == us


@pytest.mark.parametrize("value", [TIME_MIN_US - 1, TIME_MAX_US + 1, 2**70, datetime.min.replace(tzinfo=timezone.max)])
def test_what_is_outside_all_years_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"^as_of -?\d+ us is outside years 1 to 9999"):
        to_us(value, "as_of")


def test_a_datetime_without_a_zone_is_refused_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"as_of 2020-01-01T00:00:00 has no time zone; .*tzinfo=timezone\.utc"):
        to_us(datetime(2020, 1, 1), "as_of")


@pytest.mark.parametrize("value", [True, 1.0, "2020-01-01", None, np.datetime64("2020-01-01"), np.float64(1)])
def test_what_is_no_moment_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=type(value).__name__):
        to_us(value)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (1_357_016_400_000_000, "2013-01-01T05:00:00Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (TIME_MAX_US + 1, "253402300800000000 us"),
    ],
)
def test_times_are_printed_as_iso_texts(us: int, text: str) -> None:
    assert format_us(us) == text
