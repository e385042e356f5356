"""The oracle of windows: which rows of an event view a window holds, and what each function makes of them.

    rows in order --event_id--> rows that count --window at T, where--> values that are not null --function--> value

Sums are fractions and are rounded once, at the end: what the store must match to the last bit.
Source: docs/SEMANTICS.md, "Windows".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from fastfeat.aggregation import Aggregation, Condition
from fastfeat.schema import WindowView

if TYPE_CHECKING:
    from .model import Row

ROOT_BITS = 64  # of a root before it is rounded: more than a double holds, so that one sticky bit decides

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda cell, value: cell == value,
    "!=": lambda cell, value: cell != value,
    "<": lambda cell, value: cell < value,
    "<=": lambda cell, value: cell <= value,
    ">": lambda cell, value: cell > value,
    ">=": lambda cell, value: cell >= value,
    "in": lambda cell, values: any(cell == value for value in values),
    "not in": lambda cell, values: all(cell != value for value in values),
}


def counting_rows(rows: Iterable[Row], event_id: str | None) -> list[Row]:
    """The rows that count: of those with one event id the one that was created first."""
    if event_id is None:
        return list(rows)
    first: dict[Hashable, Row] = {}
    for row in sorted(rows, key=lambda row: (row.created_us, row.sequence)):
        first.setdefault(row.values[event_id], row)
    return list(first.values())


def window_us(each: Aggregation, t: int) -> tuple[int, int]:
    """Where the window at T begins and ends."""
    return t - each.reach_us, t - each.delay_us


def is_inside(each: Aggregation, event_us: int, t: int) -> bool:
    start, end = window_us(each, t)
    begins = event_us >= start if each.closed in ("left", "both") else event_us > start
    ends = event_us <= end if each.closed in ("right", "both") else event_us < end
    return begins and ends


def meets(row: Row, where: Sequence[Condition]) -> bool:
    """True where the row meets all conditions; a null meets none."""
    return all(
        row.values[column] is not None and COMPARE[operator](row.values[column], value)
        for column, operator, value in where
    )


def window_values(view: WindowView, rows: Iterable[Row], t: int) -> dict[str, Any]:
    """Each feature of the view at T, from the rows that are known."""
    ordered = sorted(rows, key=lambda row: row.place)
    return {each.name: window_value(each, ordered, t) for each in view.features}


def window_value(each: Aggregation, ordered: Sequence[Row], t: int) -> Any:
    inside = [row for row in ordered if is_inside(each, row.event_us, t) and meets(row, each.where)]
    if each.column is None:
        return len(inside)
    return aggregate(each, [row.values[each.column] for row in inside if row.values[each.column] is not None])


def aggregate(each: Aggregation, values: Sequence[Any]) -> Any:
    """The function of these values, in row order, none of them null."""
    if each.function == "count":
        return len(values)
    if each.function == "count_distinct":
        return len({"nan" if is_nan(value) else ("value", value) for value in values})
    if each.function == "last_n":
        return list(values[-(each.n or 0) :])
    if each.function == "top_k":
        return [quiet(value) for value in sorted(values, key=order, reverse=True)[: each.n]]
    if not values:
        return None
    if each.function in ("first", "last"):
        return values[0 if each.function == "first" else -1]
    if each.function in ("min", "max"):
        return extreme(each.function, values)
    if each.function == "quantile":
        return quantile([float(value) for value in values], each.q or 0.0)
    return moment(each.function, values)


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def quiet(value: Any) -> Any:
    """The value, and for any NaN the one that has no payload."""
    return float("nan") if is_nan(value) else value


def order(value: Any) -> tuple[bool, Any, float]:
    """NaN above everything, -0.0 below 0.0."""
    if is_nan(value):
        return (True, 0, 0.0)
    return (False, value, math.copysign(1.0, value))


def extreme(function: str, values: Sequence[Any]) -> Any:
    if any(is_nan(value) for value in values):
        return float("nan")
    return (min if function == "min" else max)(values, key=order)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between neighbours that differ; one of no weight does not count, not even an infinite one."""
    if any(is_nan(value) for value in values):
        return float("nan")
    ordered = sorted(values, key=order)
    h = (len(ordered) - 1) * q
    low = math.floor(h)
    if h == low or ordered[low] == ordered[low + 1]:
        return ordered[low]
    return float(quiet(ordered[low] + (h - low) * (ordered[low + 1] - ordered[low])))


def moment(function: str, values: Sequence[Any]) -> float | None:
    """sum, mean, var or std: exact, and rounded once."""
    n = len(values)
    is_spread = function in ("var", "std")
    if is_spread and n < 2:
        return None
    odd = [value for value in values if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        return float(quiet(math.nan if is_spread else sum(odd)))  # one infinity; of both, or of NaN, a NaN
    exact = [Fraction(value) for value in values]
    total = sum(exact, Fraction(0))
    if function == "sum":
        return rounded(total)
    if function == "mean":
        return rounded(total / n)
    variance = (n * sum(value * value for value in exact) - total * total) / (n * (n - 1))
    return rounded(variance) if function == "var" else rounded_root(variance)


def rounded(exact: Fraction) -> float:
    """The nearest double, to even between two; too large is an infinity."""
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def rounded_root(exact: Fraction) -> float:
    """The double nearest to the square root, from integers: the root of a rounded value could be another."""
    size = exact.numerator.bit_length() - exact.denominator.bit_length()
    shift = max(0, ROOT_BITS - size // 2)
    scaled = (exact.numerator << 2 * shift) // exact.denominator
    root = math.isqrt(scaled)
    is_exact = root * root == scaled and scaled * exact.denominator == exact.numerator << 2 * shift
    return rounded(Fraction(2 * root + (not is_exact), 2 << shift))
