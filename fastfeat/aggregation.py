"""Aggregation: one window feature, said in full: which column, which function, which rows.

    rows of the entity --event_time in the window, created_time <= K, where--> values that are not null --function-->

The window at T is [T - delay - window, T - delay) and `closed` says which ends belong to it, in pandas' words. What the
functions mean to the last bit is in docs/SEMANTICS.md, "Windows".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, get_args

from .dtypes import DType
from .durations import check_duration, duration_text, duration_us
from .errors import SchemaError
from .naming import check_name
from .times import to_us

Function = Literal[
    "count", "sum", "mean", "min", "max", "first", "last", "std", "var", "count_distinct", "quantile", "last_n", "top_k"
]
FUNCTIONS: Final[tuple[Function, ...]] = get_args(Function)
OPERATORS: Final = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")
Closed = Literal["left", "right", "both", "neither"]
CLOSED: Final[tuple[Closed, ...]] = get_args(Closed)
N_MAX: Final = 1024  # of last_n and top_k: a feature is a small thing
VALUES_MAX: Final = 64  # of one `in`
MOMENTS: Final = frozenset({"sum", "mean", "std", "var", "quantile"})  # of numbers; a sum of timestamps has no meaning
SCALARS: Final = frozenset({"min", "max", "top_k"})  # of what has an order and one cell

Condition = tuple[str, str, Any]


@dataclass(frozen=True)
class Aggregation:
    """A function of an event view's rows inside a window that ends `delay` before the moment of the read.

    column:   of the event view; None only for count, which then counts rows.
    function: count, sum, mean, min, max, first, last, std, var (sample, n - 1), count_distinct, quantile (with q,
              linear between neighbours), last_n (with n, oldest first), top_k (with n, the largest first). Nulls are
              left out; of no value at all counts are 0, lists empty, everything else null.
    window:   its length, more than nothing.
    delay:    how long before the read it ends.
    closed:   "left" (the default: the event being scored is not in its own window), "right", "both", "neither".
    where:    conditions (column, operator, value) that a row must all meet; operators ==, !=, <, <=, >, >=, in, not in.
              A null meets none.
    name:     of the feature; by default column_function_window, as amount_sum_1h.
    """

    column: str | None
    function: Function
    window: timedelta
    name: str
    delay: timedelta
    closed: Closed
    where: tuple[Condition, ...]
    q: float | None
    n: int | None
    description: str

    def __init__(
        self,
        column: str | None,
        function: Function,
        window: timedelta,
        *,
        name: str | None = None,
        delay: timedelta = timedelta(0),
        closed: Closed = "left",
        where: Sequence[Condition] | Condition = (),
        q: float | None = None,
        n: int | None = None,
        description: str = "",
    ) -> None:
        if function not in FUNCTIONS:
            raise SchemaError(f"aggregation function {function!r} is unknown; it is one of {', '.join(FUNCTIONS)}")
        if column is None and function != "count":
            raise SchemaError(f"aggregation {function!r} needs a column; only count goes without, and counts rows")
        what = f"aggregation {function}({column or ''})"
        if check_duration(window, f"{what}: window") == timedelta(0):
            raise SchemaError(f"{what}: window must be longer than nothing")
        check_duration(delay, f"{what}: delay")
        if closed not in CLOSED:
            raise SchemaError(f"{what}: closed={closed!r} is not one of {', '.join(CLOSED)}")
        check_parameters(what, function, q, n)
        if name is None:
            name = default_name(column, function, window, q, n)
        for key, value in {
            "column": None if column is None else check_name(column, f"{what}: column"),
            "function": function,
            "window": window,
            "name": check_name(name, f"{what}: feature"),
            "delay": delay,
            "closed": closed,
            "where": conditions(what, where),
            "q": None if q is None else float(q),
            "n": n,
            "description": description,
        }.items():
            object.__setattr__(self, key, value)

    @property
    def window_us(self) -> int:
        return duration_us(self.window)

    @property
    def delay_us(self) -> int:
        return duration_us(self.delay)

    @property
    def reach_us(self) -> int:
        """How far before the read its oldest row may lie."""
        return self.window_us + self.delay_us

    def dtype_over(self, dtype: DType | None) -> DType:
        """The feature's type over a column of this type (None: over rows). Raises SchemaError: no such function."""
        if self.function in ("count", "count_distinct"):
            if dtype is not None and self.function == "count_distinct" and dtype.element is not None:
                raise SchemaError(f"feature {self.name!r}: count_distinct is of single values, not of {dtype}")
            return DType("int64")
        assert dtype is not None
        if self.function in MOMENTS:
            if not dtype.is_scalar_number or dtype.name == "timestamp":
                raise SchemaError(f"feature {self.name!r}: {self.function} is of numbers, not of {dtype}")
            return DType("float64")
        if self.function in SCALARS and not dtype.is_scalar_number:
            raise SchemaError(f"feature {self.name!r}: {self.function} is of numbers and timestamps, not of {dtype}")
        if self.function in ("last_n", "top_k"):
            if dtype.element is not None:
                raise SchemaError(f"feature {self.name!r}: {self.function} is a list of single values, not of {dtype}")
            return DType("list", dtype.name)
        return dtype


def check_parameters(what: str, function: str, q: float | None, n: int | None) -> None:
    """Raises SchemaError: q or n where it does not belong, missing, or out of range."""
    if (q is not None) != (function == "quantile"):
        raise SchemaError(f"{what}: q= belongs to quantile, which needs it")
    if (n is not None) != (function in ("last_n", "top_k")):
        raise SchemaError(f"{what}: n= belongs to last_n and top_k, which need it")
    if q is not None and (isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 <= q <= 1):
        raise SchemaError(f"{what}: q={q!r} is not between 0 and 1")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= N_MAX):
        raise SchemaError(f"{what}: n={n!r} is not an integer from 1 to {N_MAX}")


def default_name(column: str | None, function: str, window: timedelta, q: float | None, n: int | None) -> str:
    """amount_sum_1h, count_5m, amount_q95_7d, merchant_last3_1d."""
    if function == "quantile":
        assert q is not None
        percent = q * 100
        if not percent.is_integer():
            raise SchemaError(f"aggregation quantile({column}): q={q} is no whole percent; give the feature a name=")
        function = f"q{int(percent)}"
    elif n is not None:
        function = function.replace("_n", str(n)).replace("_k", str(n))
    return "_".join(part for part in (column, function, duration_text(window)) if part)


def conditions(what: str, where: Sequence[Condition] | Condition) -> tuple[Condition, ...]:
    """Conditions in one form: values of `in` as tuples, moments as int microseconds. Raises SchemaError."""
    if isinstance(where, tuple) and len(where) == 3 and isinstance(where[1], str):
        where = [where]
    if not isinstance(where, Sequence) or isinstance(where, str):
        raise SchemaError(f"{what}: where is a list of (column, operator, value), not {type(where).__name__}")
    return tuple(condition(what, each) for each in where)


def condition(what: str, given: object) -> Condition:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 3:
        raise SchemaError(f"{what}: where has {given!r}, which is not (column, operator, value)")
    column, operator, value = given
    check_name(column, f"{what}: where: column")
    if operator not in OPERATORS:
        raise SchemaError(f"{what}: where: operator {operator!r} is not one of {', '.join(OPERATORS)}")
    if operator in ("in", "not in"):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not 1 <= len(value) <= VALUES_MAX:
            raise SchemaError(f"{what}: where: {operator} needs a list of 1 to {VALUES_MAX} values, not {value!r}")
        return (column, operator, tuple(plain(what, each) for each in value))
    return (column, operator, plain(what, value))


def plain(what: str, value: object) -> Any:
    """A value that a condition may compare with. Raises SchemaError."""
    if hasattr(value, "utcoffset"):
        return to_us(value, f"{what}: where: value")
    if isinstance(value, str) and any("\ud800" <= each <= "\udfff" for each in value):
        raise SchemaError(f"{what}: where: {value!r} is no text that UTF-8 can hold, so no row has it")
    if isinstance(value, (bool, int, str, bytes)) or (isinstance(value, float) and not math.isnan(value)):
        return value
    raise SchemaError(f"{what}: where: a value is a number, a string, bytes or a datetime, not {value!r}")


def aggregation_to_dict(each: Aggregation) -> dict[str, Any]:
    """As plain values that JSON can hold (bytes as {"hex": ...})."""
    return {
        "name": each.name,
        "column": each.column,
        "function": each.function,
        "window_us": each.window_us,
        "delay_us": each.delay_us,
        "closed": each.closed,
        "where": [[column, operator, packed(value)] for column, operator, value in each.where],
        "q": each.q,
        "n": each.n,
        "description": each.description,
    }


def packed(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return [packed(item) for item in value] if isinstance(value, tuple) else value


def unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return [unpacked(item) for item in value] if isinstance(value, list) else value


def aggregation_from_dict(item: dict[str, Any]) -> Aggregation:
    return Aggregation(
        item["column"],
        item["function"],
        timedelta(microseconds=item["window_us"]),
        name=item["name"],
        delay=timedelta(microseconds=item["delay_us"]),
        closed=item["closed"],
        where=[(column, operator, unpacked(value)) for column, operator, value in item["where"]],
        q=item["q"],
        n=item["n"],
        description=item["description"],
    )
