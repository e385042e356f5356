"""Casts: an Arrow column of any accepted type into the declared one, and which rows hold a value that does not fit.

    declared          accepted columns                               rows refused one by one
    integers          integers, floats                               out of range, not a whole number
    float64           floats, integers                               integers beyond 2**53
    float32           floats (rounded), integers (rounded)           finite values beyond float32
    bool              bool
    timestamp         timestamps of any unit and zone (none is       outside years 1 to 9999
                      UTC), dates, integers (us); floored to us
    string            string, large_string, string_view              invalid UTF-8
    bytes             binary of any kind
    vector, list      lists of any kind; elements as above           a null inside, a vector of another length

Dictionary, run-end and extension columns count as what they hold; a column of type null is all null. Everything else is
refused as a whole by DataError with a remedy, before any row is read. The text columns of a CSV file are parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .dtypes import DType
from .errors import DataError
from .times import TIME_MAX_US, TIME_MIN_US, to_us

Mask = NDArray[np.bool_]

US_PER_DAY = 86_400_000_000
US_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}
FLOAT64_WHOLE_MAX = 2**53
CSV_NULLS = ("NA", "N/A", "NULL", "null")  # beside the empty field, and not in a string column: NA is a country
FINER_THAN_US = r"\.\d{6}\d*[1-9]"


class Faults:
    """Which rows of a batch can't be taken, counted under the first reason met, and which times lost precision."""

    def __init__(self, rows: int) -> None:
        self.bad: Mask = np.zeros(rows, np.bool_)
        self.reasons: dict[str, int] = {}
        self._floored: list[Mask] = []

    def add(self, reason: str, mask: Mask) -> None:
        fresh = int(np.count_nonzero(mask & ~self.bad))
        if fresh:
            self.reasons[reason] = self.reasons.get(reason, 0) + fresh
            self.bad |= mask

    def add_nulls(self, reason: str, column: Any) -> None:
        if column.null_count:
            self.add(reason, mask_of(column.is_null()))

    def add_floored(self, mask: Mask) -> None:
        self._floored.append(mask)

    @property
    def times_floored(self) -> int:
        """Times that lost precision in rows that are taken (a list of times counts once)."""
        return sum(int(np.count_nonzero(mask & ~self.bad)) for mask in self._floored)


class ElementFaults(Faults):
    """Faults of list elements, told to the rows that hold them."""

    def __init__(self, rows: Faults, lengths: NDArray[np.int64]) -> None:
        self.rows = rows
        self.lengths = lengths

    def add(self, reason: str, mask: Mask) -> None:
        self.rows.add(reason, self._rows_with(mask))

    def add_floored(self, mask: Mask) -> None:
        self.rows.add_floored(self._rows_with(mask))

    def _rows_with(self, mask: Mask) -> Mask:
        rows = np.zeros(len(self.lengths), np.bool_)
        rows[np.repeat(np.arange(len(self.lengths)), self.lengths)[mask]] = True
        return rows


Cast = Callable[[Any, Faults], Any]


def cast_for(source: pa.DataType, target: DType, what: str) -> Cast:
    """The cast of a column of Arrow type `source` to `target`; `what` names the column in reasons and errors.

    Raises DataError where no value of the type could be taken for what is declared.
    """
    if (unwrap := unwrapping(source)) is not None:
        inner, open_ = unwrap
        cast = cast_for(inner, target, what)
        return lambda column, faults: cast(open_(column), faults)
    if pa.types.is_null(source):
        return lambda column, faults: pa.nulls(len(column), target.arrow())
    if target.element is not None:
        return cast_of_lists(source, target, what)
    if target.name == "timestamp":
        return cast_of_times(source, what)
    if target.name == "string" and is_text(source):
        return lambda column, faults: checked_text(column, what, faults)
    if target.name == "bytes" and is_binary(source):
        return lambda column, faults: column.cast(pa.binary())
    if target.name == "bool" and pa.types.is_boolean(source):
        return unchanged
    if target.name not in ("string", "bytes", "bool") and is_number(source):
        return cast_of_numbers(source, target, what)
    raise refusal(source, target, what)


def unchanged(column: Any, faults: Faults) -> Any:
    return column


def unwrapping(source: pa.DataType) -> tuple[pa.DataType, Callable[[Any], Any]] | None:
    """The type behind an encoding and how to get there, or None for a plain type."""
    if isinstance(source, pa.BaseExtensionType):
        return source.storage_type, lambda column: column.storage
    if pa.types.is_dictionary(source):
        return plain(source.value_type), decoded
    if pa.types.is_run_end_encoded(source):
        return source.value_type, pc.run_end_decode
    return None


def plain(source: pa.DataType) -> pa.DataType:
    """string for string_view and binary for binary_view, which Arrow's kernels don't all know; else the type itself."""
    if pa.types.is_string_view(source):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(source) else source


def decoded(column: Any) -> Any:
    return column.dictionary.cast(plain(column.type.value_type)).take(column.indices)


def is_text(source: pa.DataType) -> bool:
    return bool(pa.types.is_string(source) or pa.types.is_large_string(source) or pa.types.is_string_view(source))


def is_binary(source: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(source) for is_kind in kinds)


def is_number(source: pa.DataType) -> bool:
    return bool(pa.types.is_integer(source) or pa.types.is_floating(source))


def refusal(source: pa.DataType, target: DType, what: str) -> DataError:
    if pa.types.is_decimal(source):
        remedy = "a decimal is rounded in a float: cast it yourself, or scale it to an integer"
    elif pa.types.is_floating(source) and target.name == "timestamp":
        remedy = "a float does not hold microseconds exactly: cast it to a timestamp or int64"
    else:
        remedy = f"cast the column to {target.arrow()} before loading, or declare another type"
    return DataError(f"{what} is declared {target} and the column is {source}; {remedy}")


def mask_of(column: Any) -> Mask:
    """A boolean column as a NumPy mask, null as False."""
    mask: Mask = column.fill_null(False).to_numpy(zero_copy_only=False)
    return mask


# --- numbers


def int_range(source: pa.DataType) -> tuple[int, int]:
    bits = source.bit_width
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(source) else (0, 2**bits - 1)


def cast_of_numbers(source: pa.DataType, target: DType, what: str) -> Cast:
    wanted = target.arrow()
    if source.equals(wanted):
        return unchanged
    if pa.types.is_integer(wanted):
        reason = f"{what} is not a whole number that {target} holds"
        if pa.types.is_floating(source):
            return lambda column, faults: whole_floats(column, wanted, reason, faults)
        return lambda column, faults: within(column, *int_range(wanted), reason, faults).cast(wanted, safe=False)
    if pa.types.is_integer(source) and target.name == "float64":
        reason = f"{what} is an integer beyond 2**53, which float64 does not hold exactly"
        limit = FLOAT64_WHOLE_MAX
        return lambda column, faults: within(column, -limit, limit, reason, faults).cast(wanted, safe=False)
    if pa.types.is_integer(source) or source.bit_width <= wanted.bit_width:
        return lambda column, faults: column.cast(wanted, safe=False)
    return lambda column, faults: rounded_floats(column, f"{what} is too large for float32", faults)


def within(column: Any, low: int, high: int, reason: str, faults: Faults) -> Any:
    """The integer column itself; its values outside [low, high] are faults."""
    type_low, type_high = int_range(column.type)
    found = pc.min_max(column).as_py()
    if found["min"] is None or (found["min"] >= low and found["max"] <= high):
        return column
    below = pc.less(column, pa.scalar(max(low, type_low), column.type))
    above = pc.greater(column, pa.scalar(min(high, type_high), column.type))
    faults.add(reason, mask_of(pc.or_(below, above)))
    return column


def whole_floats(column: Any, wanted: pa.DataType, reason: str, faults: Faults) -> Any:
    low, high = int_range(wanted)
    values = column.cast(pa.float64())
    # high + 1 is a power of two and so exact as a float, which high itself is not for 64 bits.
    is_whole = pc.and_(pc.greater_equal(values, float(low)), pc.less(values, float(high + 1)))
    is_whole = pc.and_(is_whole, pc.equal(pc.floor(values), values))
    faults.add(reason, mask_of(pc.invert(is_whole)))
    return pc.if_else(is_whole, values, pa.scalar(0.0)).cast(wanted)


def rounded_floats(column: Any, reason: str, faults: Faults) -> Any:
    single = column.cast(pa.float32(), safe=False)
    too_large = pc.and_(pc.is_inf(single), pc.is_finite(column))
    faults.add(reason, mask_of(too_large))
    return single


# --- times


def cast_of_times(source: pa.DataType, what: str) -> Cast:
    """To timestamp[us, UTC]; a timestamp without a zone is read as UTC."""
    if pa.types.is_timestamp(source):
        scale, divisor = US_PER_UNIT[source.unit], 1_000 if source.unit == "ns" else 1
    elif pa.types.is_date32(source):
        scale, divisor = US_PER_DAY, 1
    elif pa.types.is_date64(source):
        scale, divisor = US_PER_UNIT["ms"], 1
    elif pa.types.is_integer(source):
        scale, divisor = 1, 1
    else:
        raise refusal(source, DType("timestamp"), what)
    low, high = -(-TIME_MIN_US // scale), TIME_MAX_US // scale
    reason = f"{what} is outside years 1 to 9999"

    def cast(column: Any, faults: Faults) -> Any:
        numbers = column if pa.types.is_integer(source) else column.view(f"int{source.bit_width}")
        numbers = within(numbers, low * divisor, high * divisor + divisor - 1, reason, faults)
        numbers = numbers.cast(pa.int64(), safe=False)
        if divisor > 1:
            numbers = floored(numbers, divisor, faults)
        elif scale > 1:
            numbers = pc.multiply(numbers, scale)
        return numbers.view(DType("timestamp").arrow())

    return cast


def floored(numbers: Any, divisor: int, faults: Faults) -> Any:
    """Divided towards the past. Why not pc.divide: it rounds towards zero, which is the future before 1970."""
    missing = mask_of(numbers.is_null())
    values = numbers.fill_null(0).to_numpy()
    quotients = np.floor_divide(values, divisor)
    faults.add_floored(quotients * divisor != values)
    return pa.array(quotients, mask=missing)


# --- text


def checked_text(column: Any, what: str, faults: Faults) -> Any:
    """A string column that is valid UTF-8; Arrow's own readers don't all check."""
    text = column if pa.types.is_string(column.type) else column.cast(pa.binary()).view(pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        is_bad = np.array([not is_utf8(value) for value in text.cast(pa.binary()).to_pylist()], np.bool_)
        faults.add(f"{what} is not valid UTF-8", is_bad)
        return pc.if_else(pa.array(is_bad), pa.scalar(None, pa.binary()), text.cast(pa.binary())).view(pa.string())
    return text


def is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


# --- lists


def cast_of_lists(source: pa.DataType, target: DType, what: str) -> Cast:
    is_fixed = pa.types.is_fixed_size_list(source)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
    if not is_fixed and not any(is_kind(source) for is_kind in kinds):
        raise refusal(source, target, what)
    if is_fixed and target.name == "vector" and source.list_size != target.size:
        raise DataError(f"{what} is declared {target} and the column holds {source.list_size} elements in each row")
    cast_element = cast_for(source.value_type, DType(target.element or ""), f"{what}: an element")
    is_canonical = is_fixed if target.name == "vector" else pa.types.is_list(source)

    def cast(column: Any, faults: Faults) -> Any:
        # Why pc.fill_null first: a null list's length is null, and it has no elements in `flatten` either.
        lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
        elements = column.flatten()
        of_elements = ElementFaults(faults, lengths)
        cells = cast_element(elements, of_elements)
        of_elements.add_nulls(f"{what} holds a null inside", cells)
        missing = mask_of(column.is_null())
        if target.name == "vector":
            faults.add(f"{what} is a vector of another length", ~missing & (lengths != target.size))
        if is_canonical and cells is elements:
            return column
        return (vectors if target.name == "vector" else lists)(target, cells, lengths, missing)

    return cast


def lists(target: DType, cells: Any, lengths: NDArray[np.int64], missing: Mask) -> Any:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), cells, type=target.arrow(), mask=pa.array(missing))


def vectors(target: DType, cells: Any, lengths: NDArray[np.int64], missing: Mask) -> Any:
    """Fixed-size lists of `cells`; rows of another length (faults already) and nulls hold nulls."""
    ends = np.cumsum(lengths)
    picks = (ends - lengths)[:, None] + np.arange(target.size)
    is_absent = np.repeat(lengths != target.size, target.size)
    children = cells.take(pa.array(picks.ravel(), mask=is_absent))
    return pa.FixedSizeListArray.from_arrays(children, type=target.arrow(), mask=pa.array(missing))


# --- the text of a CSV file


def parse_for(target: DType, what: str) -> Cast:
    """The parser of a CSV column (its bytes) to `target`. Raises DataError for types that CSV can't hold."""
    if target.element is not None or target.name == "bytes":
        raise DataError(f"{what} is declared {target}, which a CSV file can't hold; use Parquet or Arrow IPC")

    def parse(column: Any, faults: Faults) -> Any:
        text = checked_text(column, what, faults)
        if target.name == "string":
            return text
        text = pc.utf8_trim_whitespace(text)
        text = pc.if_else(pc.is_in(text, pa.array(CSV_NULLS)), pa.scalar(None, pa.string()), text)
        if target.name == "timestamp":
            return parsed_times(text, what, faults)
        return parsed(text, target.arrow(), parse_number, f"{what} is no {target}", faults)

    return parse


def parsed(text: Any, wanted: pa.DataType, parse_one: Callable[[str, Any], Any], reason: str, faults: Faults) -> Any:
    """The column parsed at once or, where some text is no such value, text by text."""
    try:
        return text.cast(wanted)
    except pa.ArrowInvalid:
        pass
    texts = text.dictionary_encode()
    values = pa.array([parse_one(value, wanted) for value in texts.dictionary.to_pylist()], wanted)
    column = values.take(texts.indices)
    faults.add(reason, mask_of(pc.and_(column.is_null(), text.is_valid())))
    return column


def parse_number(text: str, wanted: pa.DataType) -> Any:
    """The Python value of one text, or None. Whole numbers may be written as 3.0, as pandas does beside nulls."""
    try:
        return pa.scalar(text).cast(wanted).as_py()
    except pa.ArrowInvalid:
        pass
    try:
        return pa.scalar(float(text)).cast(wanted).as_py() if pa.types.is_integer(wanted) else None
    except (ValueError, pa.ArrowInvalid):
        return None


def parsed_times(text: Any, what: str, faults: Faults) -> Any:
    """ISO 8601 texts (no zone is UTC) or integers in us, as timestamp[us, UTC]."""
    for wanted in (pa.int64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return cast_of_times(wanted, what)(text.cast(wanted), faults)
        except pa.ArrowInvalid:
            continue
    faults.add_floored(mask_of(pc.match_substring_regex(text, FINER_THAN_US)))
    numbers = parsed(text, pa.int64(), parse_time, f"{what} is no ISO 8601 time within years 1 to 9999", faults)
    return numbers.view(DType("timestamp").arrow())


def parse_time(text: str, wanted: pa.DataType) -> int | None:
    try:
        if re.fullmatch(r"[+-]?\d+", text):
            return to_us(int(text))
        moment = datetime.fromisoformat(text)
        return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except ValueError:  # DataError is one
        return None
