"""What the clients say and hear apart from GET: params from Python values, results to Python values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, RemoteProtocolError
from ..protocol import Columns, Format, PreparedPlan, answer_of
from ..receipts import Receipt
from ..result import Result
from ..times import to_us
from .prepared import entities_of

CLIENT_NAME = "fastfeat-python"
WAIT_SECONDS = 10.0  # for a write of our own to become visible elsewhere

if TYPE_CHECKING:
    from ..schema import FeatureView
    from .features import Wanted


def time_us(value: object, what: str) -> int | None:
    return None if value is None else to_us(value, what)


def view_name(view: str | FeatureView) -> str:
    return view if isinstance(view, str) else view.name


def push_params(view: str | FeatureView, rows: object) -> list[Any]:
    """Rows as maps; anything in Arrow as an Arrow stream."""
    if isinstance(rows, Mapping):
        rows = [rows]
    elif hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
        return [view_name(view), arrow_stream(rows)]
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise DataError(f"rows must be a dict, a list of dicts or Arrow, not {type(rows).__name__}")
    return [view_name(view), [dict(row) if isinstance(row, Mapping) else row for row in rows]]


def delete_params(view: str | FeatureView, entity_rows: object) -> list[Any]:
    if isinstance(entity_rows, Mapping):
        entity_rows = [entity_rows]
    if not isinstance(entity_rows, Sequence) or not all(isinstance(row, Mapping) for row in entity_rows):
        raise DataError("delete takes a list of dicts of join keys, such as [{'user_id': 7}]")
    return [view_name(view), [dict(row) for row in entity_rows]]


def arrow_stream(rows: object) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with reader_of(rows) as reader, pa.ipc.new_stream(sink, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def reader_of(rows: object) -> Any:
    """A RecordBatchReader of anything in Arrow."""
    import pyarrow as pa

    if hasattr(rows, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(rows)
    batch = pa.record_batch(rows)
    return pa.RecordBatchReader.from_batches(batch.schema, [batch])


def expect_int(result: object, method: str) -> int:
    if not isinstance(result, int) or isinstance(result, bool):
        raise RemoteProtocolError(f"reply to {method} is {result!r:.60}, not an integer")
    return result


def written(result: object, method: str) -> tuple[int, int]:
    """Created time and position of a write; 0 where its connection did not ask for positions."""
    if isinstance(result, list) and len(result) == 2:
        return expect_int(result[0], method), expect_int(result[1], method)
    return expect_int(result, method), 0


def wait_params(position: int, timeout: float | None) -> list[Any]:
    """Of WAIT. Half of the client's time: the server's answer that it was too little is to come within it."""
    return [position, WAIT_SECONDS if timeout is None else min(WAIT_SECONDS, timeout / 2)]


def expect_map(result: object, method: str) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise RemoteProtocolError(f"reply to {method} is {type(result).__name__}, not a map")
    return result


def result_of(plan: PreparedPlan, columns: Columns) -> Result:
    return Result(plan.features, plan.dtypes, plan.views, plan.view_of, *columns)


def answer_params(
    wanted: Wanted, plan: PreparedPlan, entity_rows: Any, as_of: int | None, known_at: int | None
) -> list[Any]:
    """Of ANSWER. The plan says which keys there are and of what type."""
    (features,) = wanted.prepare.values()
    return [features, entities_of(plan, entity_rows), as_of, known_at]


def replay_params(receipt: Receipt) -> list[Any]:
    if not isinstance(receipt, Receipt):
        raise DataError(
            f"replay takes a Receipt, not {type(receipt).__name__}; Receipt.from_json makes one of its text"
        )
    return [receipt.to_dict()]


def answered_result(result: object) -> Result:
    """Of ANSWER and REPLAY."""
    answer, columns = answer_of(result)
    try:
        receipt = None if answer.receipt is None else Receipt.from_dict(answer.receipt)
    except DataError as error:
        raise RemoteProtocolError(f"reply: {error}") from None
    return Result(answer.features, answer.dtypes, answer.views, answer.view_of, *columns, receipt)


def check_float_form(plan: PreparedPlan) -> None:
    """Raises DataError where a feature has no float form."""
    for name, dtype in zip(plan.features, plan.dtypes, strict=True):
        if dtype.matrix_columns == 0:
            raise DataError(f"feature {name!r} is {dtype} and has no float form; use get_online_features")


def matrix_target(plan: PreparedPlan, rows: int, out: NDArray[Any] | None) -> NDArray[Any]:
    """The array that takes a matrix: `out` if it fits, else a new one."""
    if plan.matrix_columns == 0:
        check_float_form(plan)
    if out is None:
        return np.empty((rows, plan.matrix_columns))
    if not isinstance(out, np.ndarray) or out.shape != (rows, plan.matrix_columns):
        shape = getattr(out, "shape", type(out).__name__)
        raise DataError(f"out has shape {shape}, the answer has {(rows, plan.matrix_columns)}")
    if out.dtype not in (np.float64, np.float32) or not out.flags.c_contiguous or not out.flags.writeable:
        raise DataError(f"out must be writable, C-contiguous float64 or float32, not {out.dtype}")
    return out


def matrix_format(out: NDArray[Any]) -> Format:
    return Format.FLOAT64 if out.itemsize == 8 else Format.FLOAT32
