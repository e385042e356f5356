"""Computed: a plan with on-demand features: what is stored is read, then functions are called on the whole batch.

    entity_rows --keys--> Plan ------------> columns of stored features --+
                --request fields-----------> columns ---------------------+--function--> columns --function--> ...
                                                                          +--> the features asked, in their order

One `evaluate` computes them all, online, as of a past moment and for training.

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

from ._core.plan import Plan
from .applied import needed
from .dtypes import DType
from .errors import DataError
from .naming import EVENT_TIMESTAMP
from .request_fields import column_of, plain_values, read_request
from .result import Result, python_values
from .status import Status
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
        self._functions = tuple(functions)
        self.features = tuple(features)
        self.request_fields = request_fields(functions)
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
        has_float_form = all(dtype.matrix_columns for dtype in self.dtypes)
        self.matrix_columns = sum(dtype.matrix_columns for dtype in self.dtypes) if has_float_form else 0

    def vector(
        self,
        entity_row: Mapping[str, object],
        as_of: int | None,
        known_at: int | None,
        out: NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """As Plan.vector."""
        matrix = self.matrix([entity_row], as_of, known_at, None)
        if out is None:
            return matrix[0]  # type: ignore[no-any-return]
        check_out(out, (self.matrix_columns,), matrix.dtype)[...] = matrix[0]
        return out

    def matrix(
        self,
        entity_rows: Any,
        as_of: int | None,
        known_at: int | None,
        out: NDArray[Any] | None,
        dtype: Any = "float64",
    ) -> NDArray[Any]:
        """As Plan.matrix."""
        self.check_matrix()
        matrix = self.matrix_of(self.columns(entity_rows, as_of, known_at), dtype)
        if out is None:
            return matrix
        check_out(out, matrix.shape, matrix.dtype)[...] = matrix
        return out

    def matrix_of(self, answer: Answer, dtype: Any = "float64") -> NDArray[Any]:
        """What `columns` gave, as a matrix."""
        return Result(self.features, self.dtypes, self.views, self.view_of, *answer).to_numpy(dtype)

    def check_matrix(self) -> None:
        """Raises DataError: a feature has no float form."""
        for name, kind in zip(self.features, self.dtypes, strict=True):
            if not kind.matrix_columns:
                raise DataError(
                    f"feature {name!r} is {kind}, which a float matrix can't hold; leave it out or read columns"
                )

    def columns(self, entity_rows: Any, as_of: int | None, known_at: int | None, size_max: int | None = None) -> Answer:
        """As Plan.columns."""
        moment = self._clock.now() if as_of is None else to_us(as_of, "as_of")
        request = read_request(self.request_fields, entity_rows)
        stamps: Any = None
        columns: list[Column] = []
        if self._inner is not None:
            *stamps, columns = self._inner.columns(entity_rows, moment, known_at, size_max)
        count = self._count(request, stamps)
        answer = self._answer(request, stamps, columns, count, np.full(count, moment, np.int64))
        check_size(answer[2], size_max)
        return answer

    def columns_at(self, entity_rows: Any, as_of: NDArray[np.int64], known_at: NDArray[np.int64]) -> Answer:
        """As Plan.columns_at."""
        request = read_request(self.request_fields, entity_rows)
        stamps: Any = None
        columns: list[Column] = []
        if self._inner is not None:
            *stamps, columns = self._inner.columns_at(entity_rows, as_of, known_at)
        count = self._count(request, stamps)
        if len(as_of) != count:
            raise DataError(f"as_of has {len(as_of)} times for {count} entities; give one each")
        return self._answer(request, stamps, columns, count, np.asarray(as_of))

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

    def _answer(
        self, request: Mapping[str, Column], stamps: Any, columns: Sequence[Column], count: int, moments: Any
    ) -> Answer:
        stored: dict[str, Typed] = {}
        if self._inner is not None:
            typed = zip(self._inner.dtypes, columns, strict=True)
            stored.update(zip(self._inner.features, typed, strict=True))
        found = evaluate(self._functions, request, stored, moments)
        statuses = np.full((len(self.views), count), Status.PRESENT, np.uint8)
        event_times = np.zeros((len(self.views), count), np.int64)
        if stamps is not None:
            statuses[: len(stamps[0])], event_times[: len(stamps[1])] = stamps
        return statuses, event_times, [found[name][1] for name in self.features]


AnyPlan = Plan | ComputedPlan


def plain_request(plan: AnyPlan, entity_rows: Any) -> dict[str, list[Any]]:
    """The request fields of an answer as plain values, for its receipt."""
    if isinstance(plan, Plan):
        return {}
    columns = read_request(plan.request_fields, entity_rows)
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


def evaluate(
    functions: Sequence[OnDemandFeatureView],
    request: Mapping[str, Column],
    stored: Mapping[str, Typed],
    moments: NDArray[np.int64],
) -> dict[str, Typed]:
    """Call the functions, in this order, on a batch: "view:feature" -> type and column, stored and computed.

    request: of `request_fields(functions)`, by name. moments: of each entity's read, us. Raises DataError.
    """
    count = len(moments)
    found = dict(stored)
    found |= {field.name: (field.dtype, request[field.name]) for field in request_fields(functions)}
    found[EVENT_TIMESTAMP] = MOMENT, (np.ones(count, np.uint8), moments, None)
    for each in functions:
        returned = call(each, Inputs(each.names, found)) if count else {field.name: [] for field in each.schema}
        for field in each.schema:
            what = f"feature '{each.name}:{field.name}'"
            column = column_of(field.dtype, returned[field.name], what)
            if len(column[0]) != count:
                raise DataError(f"{what}: the function returns {len(column[0])} values for {count} entities")
            if not field.nullable and not column[0].all():
                at = int(np.argmin(column[0]))
                raise DataError(f"{what}: entity {at}: the function returns a null, and it is declared nullable=False")
            found[f"{each.name}:{field.name}"] = field.dtype, column
    return found


def call(view: OnDemandFeatureView, inputs: Inputs) -> Mapping[str, Any]:
    """What the function returns, if it is a dict of the fields declared. Raises DataError."""
    where = f"on-demand feature view {view.name!r}"
    names = [field.name for field in view.schema]
    try:
        with np.errstate(all="ignore"):  # nulls are NaN: what comes of them is no fault
            returned = view.function(inputs)
    except (Exception, SystemExit) as error:  # a definition must not end the process that reads it
        raise DataError(
            f"{where}: its function failed over {len(inputs)} inputs, for {', '.join(names)}:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not isinstance(returned, Mapping):
        raise DataError(f"{where}: its function returns {type(returned).__name__}, not a dict of {', '.join(names)}")
    for name in names:
        if name not in returned:
            raise DataError(f"feature '{view.name}:{name}': the function returns no {name!r}, which is in its schema")
    for name in returned:
        if name not in names:
            raise DataError(f"{where}: its function returns {name!r}, which its schema does not have; add it there")
    return returned


class Inputs(Mapping[str, Any]):
    """What a function reads: input -> array with one value per entity, read-only.

    Names are the fields' ("age", or "profile:age" where two inputs have one of that name) and the request fields'.
    A null is NaN in floats, None in strings, bytes and lists, and 0 or False elsewhere; `valid` tells.
    valid: the same names -> bool array, False where there is no value.
    """

    def __init__(self, names: Mapping[str, str], found: Mapping[str, Typed]) -> None:
        self._names = names
        self._found = found
        self._arrays: dict[str, NDArray[Any]] = {}  # those read: a null or a string costs a pass over the column
        self.valid: Mapping[str, NDArray[np.bool_]] = Valid(self)

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
    if data.dtype.kind == "f" and not valid.all():
        is_there = valid.reshape((-1,) + (1,) * (data.ndim - 1)) != 0
        return read_only(np.where(is_there, data, data.dtype.type(np.nan)))
    return read_only(data)


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that a function can't change: other functions and the answer read the same memory."""
    view = array.view()
    view.flags.writeable = False
    return view


def check_out(out: object, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """`out`, if it can take the answer as it is. Raises DataError."""
    if not isinstance(out, np.ndarray) or out.dtype != dtype or out.shape != shape:
        got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise DataError(f"out must be a {dtype} array of shape {shape}, not {got}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise DataError("out must be C-contiguous and writeable")
    return out


def check_size(columns: Sequence[Column], size_max: int | None) -> None:
    """Raises DataError where the values take more than a reply may."""
    size = sum(part.nbytes for _, *parts in columns for part in parts if part is not None)
    if size_max is not None and size > size_max:
        raise DataError(f"the reply needs over {size} B, a frame takes {size_max} B; ask for fewer entities")
