"""Computed: a plan with on-demand features: what is stored is read, then functions are called on the whole batch.

    entity_rows --keys--> Plan ------------> columns of stored features --+
                --request fields-----------> columns ---------------------+--function--> columns --function--> ...
                                                                          +--> the features asked, in their order

One Computation computes them all, online, as of a past moment and for training. All that it needs to know is found once
per plan: a read of one entity takes microseconds, and each look-up of a name or a type is a part of one.

Promise:     a ComputedPlan answers as a Plan does: the same methods, the same columns. A view without a function is not
             touched by it.
Concurrency: any number of threads; functions are called in the thread that asks, and hold the GIL as NumPy does.
Errors:      those of a Plan; DataError that names the view, and the feature where there is one, for a function that
             raises or returns something else than it declares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ._core.matrix import matrix_fill
from ._core.plan import Plan
from ._core.values import ColumnReader, null_at
from .applied import needed
from .dtypes import DType
from .errors import DataError
from .naming import EVENT_TIMESTAMP
from .request_fields import RequestReader, plain_values, read_column
from .result import python_values
from .times import to_us

if TYPE_CHECKING:
    from ._core.table import Clock, Table
    from .applied import Definitions
    from .ondemand import OnDemandFeatureView
    from .result import Column
    from .schema import Feature

Typed = tuple[DType, "Column"]
Answer = tuple[NDArray[np.uint8], NDArray[np.int64], "list[Column]"]  # statuses, event times, columns

MOMENT: Final = DType("timestamp")
FLOAT64: Final = np.dtype("float64")
FLOAT32: Final = np.dtype("float32")


def compile_plan(
    clock: Clock, definitions: Definitions, wanted: Sequence[Feature], tables: Mapping[str, Table]
) -> AnyPlan:
    """The plan of these features over these tables: native where nothing is to be computed."""
    stored, functions = needed(wanted, definitions.readable)
    if not functions:
        return Plan(clock, definitions.plan_items(wanted, tables))
    inner = Plan(clock, definitions.plan_items(stored, tables)) if stored else None
    return ComputedPlan(clock, [str(each) for each in wanted], inner, functions)


class ComputedPlan:
    """Features of which some are computed; read as a Plan is.

    inner:          reads the stored ones, those asked and those that are only computed from; None where none are.
    functions:      in an order in which each finds what it reads.
    request_fields: what must come with the entities, beside the keys.
    views:          those read, then those computed.
    """

    def __init__(
        self, clock: Clock, features: Sequence[str], inner: Plan | None, functions: Sequence[OnDemandFeatureView]
    ) -> None:
        self._clock = clock
        self._inner = inner
        self._computation = Computation(functions)
        self.features = tuple(features)
        self.request_fields = self._computation.request.fields
        self.key_names: tuple[str, ...] = () if inner is None else inner.key_names
        self.key_types: tuple[str, ...] = () if inner is None else inner.key_types
        read = () if inner is None else inner.views
        names = [name.partition(":")[0] for name in features]
        asked = [each.name for each in functions if each.name in names]
        self.views = (*read, *asked)
        self.view_of = tuple(self.views.index(name) for name in names)
        types = {} if inner is None else dict(zip(inner.features, inner.dtypes, strict=True))
        types |= {f"{each.name}:{field.name}": field.dtype for each in functions for field in each.schema}
        self.dtypes = tuple(types[name] for name in features)
        self._stored = () if inner is None else tuple(zip(inner.features, inner.dtypes, strict=True))
        self._widths = tuple(dtype.matrix_columns for dtype in self.dtypes)
        self.matrix_columns = sum(self._widths) if all(self._widths) else 0

    def vector(
        self,
        entity_row: Mapping[str, object],
        as_of: int | None,
        known_at: int | None,
        out: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """As Plan.vector."""
        self.check_matrix()
        if out is not None:
            check_out(out, (self.matrix_columns,), FLOAT64)
        _, columns = self._read([entity_row], as_of, known_at, None)
        vector = np.empty(self.matrix_columns) if out is None else out
        matrix_fill(vector, columns, self._widths)
        return vector

    def matrix(
        self,
        entity_rows: Any,
        as_of: int | None,
        known_at: int | None,
        out: NDArray[Any] | None,
        dtype: Any = None,
    ) -> NDArray[Any]:
        """As Plan.matrix."""
        self.check_matrix()
        target = float_type(getattr(out, "dtype", FLOAT64) if dtype is None else dtype)
        _, columns = self._read(entity_rows, as_of, known_at, None)
        shape = len(columns[0][0]), self.matrix_columns
        matrix = np.empty(shape, target) if out is None else check_out(out, shape, target)
        matrix_fill(matrix, columns, self._widths)
        return matrix

    def matrix_of(self, columns: Sequence[Column], dtype: Any = "float64") -> NDArray[Any]:
        """The columns that `columns` gave, as a matrix."""
        matrix = np.empty((len(columns[0][0]), self.matrix_columns), float_type(dtype))
        matrix_fill(matrix, columns, self._widths)
        return matrix

    def check_matrix(self) -> None:
        """Raises DataError: a feature has no float form."""
        if self.matrix_columns:
            return
        name, dtype = next(
            (n, d) for n, d, width in zip(self.features, self.dtypes, self._widths, strict=True) if not width
        )
        raise DataError(f"feature {name!r} is {dtype}, which a float matrix can't hold; leave it out or read columns")

    def columns(self, entity_rows: Any, as_of: int | None, known_at: int | None, size_max: int | None = None) -> Answer:
        """As Plan.columns."""
        stamps, columns = self._read(entity_rows, as_of, known_at, size_max)
        if size_max is not None:
            check_size(columns, size_max)
        return *self._stamps(stamps, len(columns[0][0])), columns

    def columns_at(self, entity_rows: Any, as_of: NDArray[np.int64], known_at: NDArray[np.int64]) -> Answer:
        """As Plan.columns_at."""
        request = self._computation.request.read(entity_rows)
        stamps: Any = None
        stored: list[Column] = []
        if self._inner is not None:
            *stamps, stored = self._inner.columns_at(entity_rows, as_of, known_at)
        count = self._count(request, stamps)
        if len(as_of) != count:
            raise DataError(f"as_of has {len(as_of)} times for {count} entities; give one each")
        columns = self._compute(request, stored, count, np.asarray(as_of))
        return *self._stamps(stamps, count), columns

    def _read(
        self, entity_rows: Any, as_of: int | None, known_at: int | None, size_max: int | None
    ) -> tuple[Any, list[Column]]:
        """Statuses and event times of the stored views, None where there are none, and the features' columns."""
        moment = self._clock.now() if as_of is None else to_us(as_of, "as_of")
        request = self._computation.request.read(entity_rows)
        stamps: Any = None
        stored: list[Column] = []
        if self._inner is not None:
            *stamps, stored = self._inner.columns(entity_rows, moment, known_at, size_max)
        return stamps, self._compute(request, stored, self._count(request, stamps), moment)

    def _count(self, request: Mapping[str, Column], stamps: Any) -> int:
        """How many entities are asked. Raises DataError: other fields than keys."""
        if stamps is None:
            return len(next(iter(request.values()))[0])
        count = int(stamps[0].shape[1])
        for name, column in request.items():
            if len(column[0]) != count:
                raise DataError(
                    f"request field {name!r} has {len(column[0])} values for {count} entities; give one each"
                )
        return count

    def _compute(
        self, request: Mapping[str, Column], columns: Sequence[Column], count: int, moments: NDArray[np.int64] | int
    ) -> list[Column]:
        stored = {name: (dtype, column) for (name, dtype), column in zip(self._stored, columns, strict=True)}
        found = self._computation.run(request, stored, count, moments)
        return [found[name][1] for name in self.features]

    def _stamps(self, stamps: Any, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Statuses and event times of all views: what is computed is there, and has no time."""
        statuses = np.zeros((len(self.views), count), np.uint8)  # Status.PRESENT
        event_times = np.zeros((len(self.views), count), np.int64)
        if stamps is not None:
            statuses[: len(stamps[0])], event_times[: len(stamps[1])] = stamps
        return statuses, event_times


AnyPlan = Plan | ComputedPlan


def plain_request(plan: AnyPlan, entity_rows: Any) -> dict[str, list[Any]]:
    """The request fields of an answer as plain values, for its receipt."""
    if isinstance(plan, Plan):
        return {}
    columns = RequestReader(plan.request_fields).read(entity_rows)
    return {each.name: plain_values(each.dtype, columns[each.name]) for each in plan.request_fields}


def request_fields(functions: Sequence[OnDemandFeatureView]) -> tuple[Any, ...]:
    """What callers give, each field once; nullable where it is for every function."""
    fields: dict[str, Any] = {}
    for each in functions:
        for field in each.request:
            is_new = field.name not in fields or not field.nullable
            if is_new and field.name != EVENT_TIMESTAMP:
                fields[field.name] = field
    return tuple(fields.values())


class Computation:
    """Functions, in an order in which each finds what it reads, and how their results are read.

    request: reads the fields that they need with the entities.
    """

    def __init__(self, functions: Sequence[OnDemandFeatureView]) -> None:
        self.request = RequestReader(request_fields(functions))
        self._types = [(field.name, field.dtype) for field in self.request.fields]
        self._calls = [Call(each) for each in functions]
        self._reads_moment = any(EVENT_TIMESTAMP in each.names for each in functions)

    def run(
        self,
        request: Mapping[str, Column],
        stored: Mapping[str, Typed],
        count: int,
        moments: NDArray[np.int64] | int,
    ) -> dict[str, Typed]:
        """Call the functions on a batch of so many: "view:feature" -> type and column, stored and computed.

        moments: of each entity's read, us; a number where they are one. Raises DataError.
        """
        found = dict(stored)
        for name, dtype in self._types:
            found[name] = dtype, request[name]
        if self._reads_moment:
            times = np.full(count, moments) if isinstance(moments, int) else moments
            found[EVENT_TIMESTAMP] = MOMENT, (np.ones(count, np.uint8), times, None)
        for call in self._calls:
            call.run(found, count)
        return found


class Call:
    """One function, and what is the same whenever it is called."""

    def __init__(self, view: OnDemandFeatureView) -> None:
        self._where = f"on-demand feature view {view.name!r}"
        self._inputs = view.names
        self._function = view.function
        self._outputs = [
            (
                field.name,
                f"{view.name}:{field.name}",
                field.nullable,
                ColumnReader(field.dtype, f"feature '{view.name}:{field.name}'"),
            )
            for field in view.schema
        ]

    def run(self, found: dict[str, Typed], count: int) -> None:
        """Add its features to what is found. Raises DataError."""
        returned = self._returned(Inputs(self._inputs, found)) if count else {name: [] for name, *_ in self._outputs}
        for name, feature, nullable, reader in self._outputs:
            column = read_column(reader, returned[name])
            if len(column[0]) != count:
                raise DataError(f"{reader.what}: the function returns {len(column[0])} values for {count} entities")
            if not nullable and (at := null_at(column[0])) >= 0:
                raise DataError(
                    f"{reader.what}: entity {at}: the function returns a null, and it is declared nullable=False"
                )
            found[feature] = reader.dtype, column

    def _returned(self, inputs: Inputs) -> Mapping[str, Any]:
        """What the function returns, if it is a dict of the fields declared. Raises DataError."""
        try:
            with np.errstate(all="ignore"):  # nulls are NaN: what comes of them is no fault
                returned = self._function(inputs)
        except (Exception, SystemExit) as error:  # a definition must not end the process that reads it
            raise DataError(
                f"{self._where}: its function failed over {len(inputs)} inputs, for {self._listed()}:"
                f" {type(error).__name__}: {error}"
            ) from error
        if type(returned) is not dict and not isinstance(returned, Mapping):
            raise DataError(
                f"{self._where}: its function returns {type(returned).__name__}, not a dict of {self._listed()}"
            )
        for name, _, _, reader in self._outputs:
            if name not in returned:
                raise DataError(f"{reader.what}: the function returns no {name!r}, which is in its schema")
        if len(returned) != len(self._outputs):
            names = [name for name, *_ in self._outputs]
            more = next(name for name in returned if name not in names)
            raise DataError(
                f"{self._where}: its function returns {more!r}, which its schema does not have; add it there"
            )
        return returned

    def _listed(self) -> str:
        return ", ".join(name for name, *_ in self._outputs)


class Inputs(Mapping[str, Any]):
    """What a function reads: input -> array with one value per entity, read-only.

    Names are the fields' ("age", or "profile:age" where two inputs have one of that name) and the request fields'.
    A null is NaN in floats, None in strings, bytes and lists, and 0 or False elsewhere; `valid` tells.
    valid: the same names -> bool array, False where there is no value.
    """

    __slots__ = ("_arrays", "_found", "_names")

    def __init__(self, names: Mapping[str, str], found: Mapping[str, Typed]) -> None:
        self._names = names
        self._found = found
        self._arrays: dict[str, NDArray[Any]] = {}  # those read: a null or a string costs a pass over the column

    @property
    def valid(self) -> Mapping[str, NDArray[np.bool_]]:
        return Valid(self)  # not kept: two that know each other are freed by the garbage collector alone

    def column(self, name: str) -> Typed:
        try:
            return self._found[self._names[name]]
        except KeyError:
            raise KeyError(f"no input {name!r}; there are {', '.join(self._names)}") from None

    def __getitem__(self, name: str) -> NDArray[Any]:
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = array_of(*self.column(name))
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Valid(Mapping[str, Any]):
    """Which values of Inputs are there."""

    __slots__ = ("_inputs",)

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return read_only(self._inputs.column(name)[1][0].view(np.bool_))

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)


def array_of(dtype: DType, column: Column) -> NDArray[Any]:
    """A column as a function reads it."""
    valid, data, offsets = column
    if offsets is not None:
        values = np.empty(len(valid), object)
        for i, value in enumerate(python_values(dtype, column, len(valid))):
            values[i] = value
        return read_only(values)
    if dtype.name == "bool":
        return read_only(data.view(np.bool_))
    if data.dtype.kind == "f" and null_at(valid) >= 0:
        is_there = valid.reshape((-1,) + (1,) * (data.ndim - 1)) != 0
        return read_only(np.where(is_there, data, data.dtype.type(np.nan)))
    return read_only(data)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that a function can't change: other functions and the answer read the same memory."""
    view = array.view()
    view.setflags(write=False)
    return view


def check_out(out: object, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """`out`, if it can take the answer as it is. Raises DataError."""
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise DataError(f"out must be a {dtype} array of shape {shape}, not {got}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise DataError("out must be C-contiguous and writeable")
    return out


def float_type(dtype: Any) -> np.dtype[Any]:
    """Raises DataError: not float64 or float32."""
    target = FLOAT64 if dtype == "float64" else np.dtype(dtype)
    if target not in (FLOAT64, FLOAT32):
        raise DataError(f"dtype {dtype!r} is not float64 or float32; read columns for other types")
    return target


def check_size(columns: Sequence[Column], size_max: int) -> None:
    """Raises DataError where the values take more than a reply may."""
    size = sum([data.nbytes if offsets is None else data.nbytes + offsets.nbytes for _, data, offsets in columns])
    if size > size_max:
        raise DataError(f"the reply needs over {size} B, a frame takes {size_max} B; ask for fewer entities")
