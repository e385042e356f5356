"""Request fields: the values that come with the entities of a read, checked and as columns.

    entity_rows    [{"user_id": 7, "amount": 12.5}, ...] or {"user_id": [...], "amount": [...]}
        --RequestReader, made once per plan--> (valid, data, offsets) per field, as in result.py
        --plain_values--> Python values, for a receipt and for the wire

Promise: the rules of a push hold for Python values and those of a load for Arrow: what would change a value is refused.
         An array of NumPy is taken by its dtype: integers where integers are declared and they fit, floats and integers
         where floats are; datetime64 and integer microseconds where a timestamp is. A masked array's masked are null.
Errors:  DataError that names the field, the entity and the remedy. Also for what functions return (computed.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ._core.values import ColumnReader, null_at
from .dtypes import SCALAR_WIDTH, DType
from .errors import DataError
from .result import python_values
from .times import TIME_MAX_US, TIME_MIN_US

if TYPE_CHECKING:
    from .result import Column
    from .schema import Field

FLOATS: Final = frozenset({"float32", "float64"})
# What an array of integers may hold that becomes a column of the type; float32 rounds, as everywhere.
INTEGERS: Final = {
    "float64": (-(2**53), 2**53),
    "timestamp": (TIME_MIN_US, TIME_MAX_US),
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
STEPS: Final = {"us": 1, "ns": 10**3, "ps": 10**6, "fs": 10**9, "as": 10**12}  # of datetime64, in a microsecond
WIRE: Final = {name: np.dtype(DType(name).numpy).newbyteorder("<") for name in SCALAR_WIDTH}
PLAIN_TIME: Final = "int64"  # a timestamp as plain values have it: microseconds since 1970 UTC


class RequestReader:
    """What callers give for these fields, as columns. Made once per plan: a read is a matter of microseconds."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._readers = [
            (field.name, field.nullable, ColumnReader(field.dtype, f"request field {field.name!r}")) for field in fields
        ]

    def read(self, entity_rows: Any) -> dict[str, Column]:
        """The fields of every entity. Raises DataError: missing, of another type, null where that is not allowed."""
        is_columns = type(entity_rows) is not list and isinstance(entity_rows, Mapping)
        out: dict[str, Column] = {}
        count = -1
        for name, nullable, reader in self._readers:
            values = self._of_columns(name, entity_rows) if is_columns else self._of_rows(name, entity_rows)
            out[name] = column = read_column(reader, values)
            given = len(column[0])
            if given != count and count >= 0:
                raise DataError(
                    f"{reader.what} has {given} values, {self.fields[0].name!r} has {count}; give columns of equal"
                    " length"
                )
            count = given
            if not nullable and (at := null_at(column[0])) >= 0:
                raise DataError(f"{reader.what}: entity {at} is null; it is declared with nullable=False")
        return out

    def _of_columns(self, name: str, columns: Mapping[str, Any]) -> Any:
        if name not in columns:
            raise missing(name, self.fields, "")
        return columns[name]

    def _of_rows(self, name: str, rows: Any) -> list[Any]:
        if type(rows) is not list and (isinstance(rows, (str, bytes)) or not hasattr(rows, "__len__")):
            raise DataError(
                f"entity_rows is {type(rows).__name__}; give a list of dicts or a dict of columns of keys and"
                f" {listed(self.fields)}"
            )
        try:
            return [row[name] for row in rows]
        except (KeyError, TypeError, IndexError):
            raise self._fault(name, rows) from None

    def _fault(self, name: str, entity_rows: Any) -> DataError:
        """Which of the rows does not have the field."""
        for i, row in enumerate(entity_rows):
            if not isinstance(row, Mapping):
                return DataError(f"entity {i} is {type(row).__name__}, not a dict of keys and {listed(self.fields)}")
            if name not in row:
                return missing(name, self.fields, f"entity {i}: ")
        return missing(name, self.fields, "")  # of rows that are not the same twice


def missing(name: str, fields: Sequence[Field], which: str) -> DataError:
    return DataError(
        f"{which}request field {name!r} missing; a function computes from it: give {listed(fields)} beside the keys"
        " (None for a null)"
    )


def listed(fields: Sequence[Field]) -> str:
    return ", ".join(f"{each.name} ({each.dtype})" for each in fields)


def plain_values(dtype: DType, column: Column) -> list[Any]:
    """A column as Python values that JSON and msgpack can hold: None for a null, times in microseconds."""
    if dtype.name == "timestamp":
        dtype = DType(PLAIN_TIME)
    elif dtype.element == "timestamp":
        dtype = DType(dtype.name, PLAIN_TIME, dtype.size)
    return list(python_values(dtype, column, len(column[0])))


# --- the wire


def wire_values(dtype: DType, column: Column, start: int, stop: int) -> list[Any] | bytes:
    """The entities [start, stop) of a column as a GET carries them: packed numbers, or plain values."""
    valid, data, offsets = column
    if dtype.is_scalar_number and null_at(valid[start:stop]) < 0:
        return data[start:stop].tobytes()  # little-endian, as every machine that fastfeat runs on
    part = offsets if offsets is None else offsets[start : stop + 1]
    return plain_values(dtype, (valid[start:stop], data if offsets is not None else data[start:stop], part))


def values_of_wire(dtype: DType, part: Any, what: str) -> Any:
    """What wire_values wrote, as column_of takes it. Raises DataError."""
    if not isinstance(part, bytes):
        return part
    if not dtype.is_scalar_number or len(part) % dtype.width:
        raise DataError(f"{what}: a bin of {len(part)} B is no column of {dtype}")
    if dtype.name != "bool":
        return np.frombuffer(part, WIRE[dtype.name])
    values = np.frombuffer(part, np.uint8)
    if (values > 1).any():
        raise DataError(f"{what}: entity {int(np.argmax(values > 1))}: {values.max()} is not bool; it is 0 or 1")
    return values.view(np.bool_)


# --- columns


def column_of(dtype: DType, values: Any, what: str) -> Column:
    """Values of any form as a column of the type. Raises DataError that begins with `what`."""
    return read_column(ColumnReader(dtype, what), values)


def read_column(reader: ColumnReader, values: Any) -> Column:
    """As column_of; what needs no conversion is read natively."""
    column = reader.read(values)
    if column is not None:
        return column
    dtype, what = reader.dtype, reader.what
    if isinstance(values, np.ndarray):
        return array_column(dtype, values, what)
    if hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_c_stream__"):
        return arrow_column(dtype, values, what)
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise DataError(f"{what}: {type(values).__name__} is not a column; give a list or an array of {dtype}")
    return reader.read_list(list(values))


def array_column(dtype: DType, values: NDArray[Any], what: str) -> Column:
    """A NumPy array, copied: it may be the caller's, and an answer stays as it is."""
    dimensions = 2 if dtype.name == "vector" else 1
    if dtype.is_variable or values.dtype.kind == "O":
        if values.ndim < 1 or (values.ndim > 1 and dtype.element is None):
            raise DataError(f"{what}: an array of {values.ndim} dimensions is not a column of {dtype}")
        return ColumnReader(dtype, what).read_list(unmasked(values))
    if values.ndim != dimensions or (dtype.name == "vector" and values.shape[1] != dtype.size):
        raise DataError(f"{what}: an array of shape {values.shape} is not a column of {dtype}, one value per entity")
    valid = np.ones(len(values), np.uint8)
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        valid[mask.any(axis=1) if dimensions == 2 else mask] = 0
        values = np.ma.getdata(values)
    if values.dtype.kind == "M":
        valid[np.isnat(values)] = 0
    if null_at(valid) >= 0:
        values = np.where(valid.reshape((-1,) + (1,) * (dimensions - 1)) != 0, values, np.zeros(1, values.dtype))
    return valid, number_array(dtype, values, what), None


def unmasked(values: NDArray[Any]) -> list[Any]:
    """The elements as Python values, None where masked."""
    rows = [None if row is np.ma.masked else row for row in values]
    return [row.tolist() if isinstance(row, (np.ndarray, np.generic)) else row for row in rows]


def number_array(dtype: DType, values: NDArray[Any], what: str) -> NDArray[Any]:
    """The array in the stored form of the type. Raises DataError where that would change a value."""
    name, kind = dtype.element or dtype.name, values.dtype.kind
    if name == "bool" and kind == "b":
        return np.array(values, order="C").view(np.uint8)
    if name == "timestamp" and kind == "M" and np.datetime_data(values.dtype)[0] != "generic":
        values, kind = microseconds(values, what), "i"
    if kind not in ("iuf" if name in FLOATS else "iu") or name == "bool":
        raise DataError(
            f"{what}: an array of {values.dtype} is declared {dtype}; convert it, as with .astype(...), or declare"
            " another type"
        )
    if kind in "iu" and name != "float32" and values.size:
        low, high = INTEGERS[name]
        if not low <= int(values.min()) <= int(values.max()) <= high:
            at = next(i for i, value in enumerate(values.ravel().tolist()) if not low <= value <= high)
            raise refusal(what, values, at, f"is outside {low} to {high}, which {name} holds exactly")
    if name != "float32":
        return np.array(values, "int64" if name == "timestamp" else name, order="C")
    with np.errstate(over="ignore"):
        out = np.array(values, np.float32, order="C")
    if (too_large := np.isinf(out) & np.isfinite(values)).any():
        raise refusal(what, values, int(np.argmax(too_large.ravel())), "is too large for float32")
    return out


def microseconds(values: NDArray[Any], what: str) -> NDArray[np.int64]:
    """datetime64 as integers, floored. Raises DataError: outside of our times, where NumPy's cast may wrap around."""
    unit, step = np.datetime_data(values.dtype)
    if step > STEPS.get(unit, 0):  # longer than a microsecond
        first, last = np.array([TIME_MIN_US, TIME_MAX_US], "datetime64[us]").astype(values.dtype)
        if not (fits := (first <= values) & (values <= last)).all():
            at = int(np.argmin(fits))
            given = values[at].view(np.int64)
            raise DataError(f"{what}: entity {at}: {given} of {values.dtype} is outside 0001-01-01 to 9999-12-31")
    return values.astype("datetime64[us]").view(np.int64)


def refusal(what: str, values: NDArray[Any], at: int, why: str) -> DataError:
    return DataError(f"{what}: entity {at * len(values) // values.size}: {values.ravel()[at]} {why}")


def arrow_column(dtype: DType, values: Any, what: str) -> Column:
    """Anything with Arrow inside."""
    import pyarrow as pa

    from .casts import Faults, cast_for

    chunked = (
        pa.chunked_array(values) if hasattr(values, "__arrow_c_stream__") else pa.chunked_array([pa.array(values)])
    )
    array = chunked.combine_chunks()
    faults = Faults(len(array))
    cells = cast_for(array.type, dtype, what)(array, faults)
    if faults.reasons:
        raise DataError(f"entity {int(np.argmax(faults.bad))}: {next(iter(faults.reasons))}")
    if dtype.element == "timestamp":  # which Python's datetime does not reach everywhere in Arrow
        cells = cells.cast(pa.list_(pa.int64()))
    if not dtype.is_scalar_number:
        return ColumnReader(dtype, what).read_list(cells.to_pylist())
    valid = cells.is_valid().to_numpy(zero_copy_only=False).view(np.uint8)
    if dtype.name == "bool":
        return valid, cells.fill_null(False).to_numpy(zero_copy_only=False).view(np.uint8), None
    stored = cells.view("int64") if dtype.name == "timestamp" else cells
    return valid, stored.fill_null(0).to_numpy(zero_copy_only=False), None
