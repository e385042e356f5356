"""Result: the answer to one read, as columns, and every form a caller may want it in.

    views    v0      v1            statuses, event_times   one row per view, one column per entity
    features v0:a    v0:b   v1:c   columns                 (valid, data, offsets) per feature, as the core writes them

        kind           data                                                      offsets
        numbers        typed array [n]; bool as uint8, timestamp as int64        None
        vector         typed array [n, size]                                     None
        string, bytes  uint8: all bytes, one after the other                     uint32 [n + 1]
        list           uint8: elements packed; texts: count, lengths, bytes      uint32 [n + 1]

A value that is not valid has zero bytes as data. Nothing is decoded before it is asked for, and Arrow and NumPy forms
share the arrays' memory where their layouts agree. NumPy is all that the import needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._core.matrix import matrix_fill
from .dtypes import DType
from .errors import DataError, UnknownFeature
from .status import Status
from .times import from_us

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from .receipts import Receipt

Column = tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint32] | None]

OFFSET_MAX = 2**31 - 1  # Arrow's string and list types count in int32
REPR_ROWS = 5
REPR_FEATURES = 20


class Result:
    """The features of n entities, in the order asked.

    names:        "view:field" of every feature, the order of columns in every form.
    dtypes:       the features' types.
    statuses:     view -> uint8 [n] of Status (never NULL, which is of a value: `status(feature)`).
    event_times:  view -> int64 [n], microseconds since 1970 UTC of the row that answered or expired; 0 where none is.
    receipt:      of a durable store's answer: `replay` gives it again. None where there is none, or nobody asked.
    views:        that were read. view_of: for each feature, the index of its view.
    columns:      (valid, data, offsets) per feature, as drawn above.
    """

    __slots__ = ("_event_times", "_statuses", "columns", "dtypes", "names", "receipt", "view_of", "views")

    def __init__(
        self,
        features: Sequence[str],
        dtypes: Sequence[DType],
        views: Sequence[str],
        view_of: Sequence[int],
        statuses: NDArray[np.uint8],
        event_times: NDArray[np.int64],
        columns: Sequence[Column],
        receipt: Receipt | None = None,
    ) -> None:
        self.names = tuple(features)
        self.dtypes = tuple(dtypes)
        self.views = tuple(views)
        self.view_of = view_of
        self._statuses = statuses
        self._event_times = event_times
        self.columns = columns
        self.receipt = receipt

    def __len__(self) -> int:
        return int(self._statuses.shape[1])

    @property
    def statuses(self) -> dict[str, NDArray[np.uint8]]:
        return dict(zip(self.views, self._statuses, strict=True))

    @property
    def event_times(self) -> dict[str, NDArray[np.int64]]:
        return dict(zip(self.views, self._event_times, strict=True))

    def status(self, feature: str) -> NDArray[np.uint8]:
        """The Status of every value of one feature, uint8 [n]: its view's, or NULL where the row holds a null."""
        at = self._position(feature)
        of_view = self._statuses[self.view_of[at]]
        is_null = (of_view == Status.PRESENT) & (self.columns[at][0] == 0)
        return np.where(is_null, np.uint8(Status.NULL), of_view)

    def to_numpy(self, dtype: str | np.dtype[Any] | type = "float64") -> NDArray[Any]:
        """A matrix [n, m] of float64 or float32, vectors spread over their size, NaN where there is no value.

        Integers beyond 2**53 (2**24 in float32) are rounded; timestamps are microseconds since 1970 UTC.
        Raises DataError: a feature has no float form (string, bytes, list), or another dtype is asked.
        """
        target = np.dtype(dtype)
        if target not in (np.dtype("float64"), np.dtype("float32")):
            raise DataError(f"to_numpy gives float64 or float32, which can hold NaN for a missing value, not {target}")
        widths = [kind.matrix_columns for kind in self.dtypes]
        for name, kind, width in zip(self.names, self.dtypes, widths, strict=True):
            if width == 0:
                raise DataError(f"feature {name!r} is {kind} and has no float form; leave it out or use to_arrow()")
        matrix = np.empty((len(self), sum(widths)), target)
        matrix_fill(matrix, self.columns, tuple(widths))
        return matrix

    def to_arrow(self) -> Any:
        """A pyarrow.Table: one column per feature in its exact type, null where there is no value."""
        import pyarrow as pa

        arrays = [arrow_array(kind, column) for kind, column in zip(self.dtypes, self.columns, strict=True)]
        return pa.Table.from_arrays(arrays, names=list(self.names))

    def to_dict(self) -> dict[str, list[Any]]:
        """name -> list of Python values: None where there is none, timestamps as aware datetimes, vectors as lists."""
        return {
            name: list(python_values(kind, column, len(self)))
            for name, kind, column in zip(self.names, self.dtypes, self.columns, strict=True)
        }

    def to_pandas(self) -> pd.DataFrame:
        """A pandas.DataFrame on Arrow memory (ArrowDtype): exact types, so an int64 with nulls stays int64."""
        import pandas as pd

        frame: pd.DataFrame = self.to_arrow().to_pandas(types_mapper=pd.ArrowDtype)
        return frame

    def to_polars(self) -> pl.DataFrame:
        """A polars.DataFrame."""
        import polars as pl

        frame = pl.from_arrow(self.to_arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def __repr__(self) -> str:
        return "\n".join(self._repr_lines())

    def _repr_lines(self) -> Iterator[str]:
        yield f"Result: {len(self)} entities x {len(self.names)} features"
        for view, statuses in self.statuses.items():
            counts = [(status.name, int(np.count_nonzero(statuses == status))) for status in Status]
            yield f"  {view}: " + (", ".join(f"{count} {name}" for name, count in counts if count) or "no entities")
        width = max((len(name) for name in self.names[:REPR_FEATURES]), default=0)
        shown = min(len(self), REPR_ROWS)
        for name, kind, column in zip(self.names[:REPR_FEATURES], self.dtypes, self.columns, strict=False):
            values = [short_repr(value) for value in python_values(kind, column, shown)]
            values += ["..."] if len(self) > shown else []
            yield f"  {name:<{width}}  {kind}  [{', '.join(values)}]"
        if len(self.names) > REPR_FEATURES:
            yield f"  ... and {len(self.names) - REPR_FEATURES} more features"

    def _position(self, feature: str) -> int:
        try:
            return self.names.index(feature)
        except ValueError:
            raise UnknownFeature(f"the result has no feature {feature!r}; it has {', '.join(self.names)}") from None


def short_repr(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 32 else text[:29] + "..."


def python_values(dtype: DType, column: Column, rows: int) -> Iterator[Any]:
    """The first `rows` values of a column as Python objects."""
    valid, data, offsets = column
    if offsets is None:
        values = scalar_values(dtype, data[:rows])
    else:
        raw, ends = data.tobytes(), offsets[: rows + 1].tolist()
        values = [cell_value(dtype, raw[ends[i] : ends[i + 1]]) if valid[i] else None for i in range(rows)]
    return (value if is_valid else None for value, is_valid in zip(values, valid[:rows].tolist(), strict=True))


def scalar_values(dtype: DType, data: NDArray[Any]) -> list[Any]:
    if dtype.name == "timestamp":
        return [from_us(us) for us in data.tolist()]
    return list((data.view(np.bool_) if dtype.name == "bool" else data).tolist())


def cell_value(dtype: DType, cell: bytes) -> Any:
    """The value of one string, bytes or list cell."""
    if dtype.name == "bytes":
        return cell
    if dtype.name == "string":
        return cell.decode()
    assert dtype.element is not None
    element = DType(dtype.element)
    if not element.is_variable:
        stored = "uint8" if element.name == "bool" else element.numpy
        return scalar_values(element, np.frombuffer(cell, stored))
    lengths = text_lengths(cell)
    at = 4 + 4 * len(lengths)
    out = []
    for length in lengths.tolist():
        out.append(cell_value(element, cell[at : at + length]))
        at += length
    return out


def text_lengths(cell: bytes | memoryview) -> NDArray[np.uint32]:
    """The lengths of the texts in a list<string> or list<bytes> cell: count, lengths, then the bytes."""
    count = int.from_bytes(cell[:4], "little")
    return np.frombuffer(cell, "<u4", count, 4)


def arrow_array(dtype: DType, column: Column) -> Any:
    """A column as a pyarrow.Array of the type's canonical form."""
    import pyarrow as pa

    valid, data, offsets = column
    n = len(valid)
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    if dtype.name == "list":
        assert offsets is not None
        child, child_offsets = list_child(DType.parse(dtype.element or ""), valid, data, offsets)
        return pa.ListArray.from_buffers(dtype.arrow(), n, [bitmap, offsets_buffer(child_offsets)], children=[child])
    if dtype.name == "vector":
        child = fixed_array(DType.parse(dtype.element or ""), data.reshape(-1), None)
        return pa.FixedSizeListArray.from_buffers(dtype.arrow(), n, [bitmap], children=[child])
    if offsets is not None:
        return pa.Array.from_buffers(dtype.arrow(), n, [bitmap, offsets_buffer(offsets), pa.py_buffer(data)])
    return fixed_array(dtype, data, bitmap)


def fixed_array(dtype: DType, data: NDArray[Any], bitmap: Any) -> Any:
    """A pyarrow.Array of numbers over the array's own memory (bool, which Arrow packs in bits, is copied)."""
    import pyarrow as pa

    packed = np.packbits(data, bitorder="little") if dtype.name == "bool" else aligned(data)
    return pa.Array.from_buffers(dtype.arrow(), len(data), [bitmap, pa.py_buffer(packed)])


def list_child(
    element: DType, valid: NDArray[np.uint8], data: NDArray[np.uint8], offsets: NDArray[np.uint32]
) -> tuple[Any, NDArray[Any]]:
    """The elements of all lists as one pyarrow.Array, and where each list begins in it."""
    if element.is_variable:
        return text_child(element, valid, data, offsets)
    stored = data if element.name == "bool" else data.view(element.numpy)
    return fixed_array(element, stored, None), offsets // element.width


def text_child(
    element: DType, valid: NDArray[np.uint8], data: NDArray[np.uint8], offsets: NDArray[np.uint32]
) -> tuple[Any, NDArray[Any]]:
    import pyarrow as pa

    raw, ends = memoryview(data.tobytes()), offsets.tolist()
    cells = [raw[ends[i] : ends[i + 1]] if valid[i] else memoryview(bytes(4)) for i in range(len(valid))]
    lengths = [text_lengths(cell) for cell in cells]
    texts = b"".join(cell[4 + 4 * len(sizes) :] for cell, sizes in zip(cells, lengths, strict=True))
    text_offsets = running_total(np.concatenate([*lengths, np.empty(0, np.uint32)]))
    buffers = [None, offsets_buffer(text_offsets), pa.py_buffer(texts)]
    child = pa.Array.from_buffers(element.arrow(), len(text_offsets) - 1, buffers)
    return child, running_total(np.array([len(sizes) for sizes in lengths], np.int64))


def running_total(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Offsets of consecutive runs of these lengths: [0, l0, l0 + l1, ...]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def offsets_buffer(offsets: NDArray[Any]) -> Any:
    """The offsets as Arrow's int32. Raises DataError where they do not fit."""
    import pyarrow as pa

    if offsets[-1] > OFFSET_MAX:
        raise DataError(f"a column of {int(offsets[-1])} B is beyond Arrow's 2 GiB; ask for fewer entities at once")
    return pa.py_buffer(aligned(offsets).view(np.int32) if offsets.dtype == np.uint32 else offsets.astype(np.int32))


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself, or a copy where it lies at an odd address (inside a reply): Arrow wants its memory aligned."""
    return np.require(array, requirements=["C", "ALIGNED"])
