"""The protocol without sockets: what both sides say, and the client's half of a connection.

    client                                         server (its half is `_core.session.ServerSession`)
    HELLO {version, frame_size_max}          -->   its limits
    PREPARE {features} or {service}          -->   plan number, keys, features
    GET [plan, keys, format, as_of, known_at] -->  statuses, event times, values
    ANSWER [features, keys, ...], REPLAY     -->   a receipt, features, statuses, event times, values
    PUSH, DELETE, LOAD, SNAPSHOT, INFO, ...  -->   ...

docs/PROTOCOL.md is the contract; this module and the core's codec, session and exchange are the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._core.codec import FRAME_SIZE_MAX, FrameSplitter, pack_frame
from ._core.exchange import Inbox, PreparedPlan, is_stale, receive_soon, reply_of
from ._core.session import REPLY, REPLY_STALE, ServerSession, answer_frame, reply_head
from .dtypes import DType
from .errors import LocalProtocolError, RemoteProtocolError

__all__ = [
    "DEFAULT_PORT",
    "FRAME_SIZE_MAX",
    "FRAME_SIZE_MIN",
    "REPLY",
    "REPLY_STALE",
    "VERSION",
    "Answer",
    "ClientSession",
    "Column",
    "Columns",
    "Format",
    "FrameSplitter",
    "Inbox",
    "Limits",
    "PreparedPlan",
    "ServerSession",
    "answer_frame",
    "answer_of",
    "columns_of",
    "is_stale",
    "join_columns",
    "matrix_of",
    "pack_frame",
    "receive_soon",
    "reply_head",
    "reply_of",
]

VERSION: Final = 1
DEFAULT_PORT: Final = 7077
FRAME_SIZE_MIN: Final = 4096  # of either side; an error message and a HELLO must always fit

Column = tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint32] | None]
Columns = tuple[NDArray[np.uint8], NDArray[np.int64], list[Column]]


class Format(IntEnum):
    """How a GET's values come back."""

    ROWS = 0
    COLUMNS = 1
    FLOAT64 = 2
    FLOAT32 = 3
    ARROW = 4


@dataclass(frozen=True)
class Limits:
    """What the server allows on this connection."""

    frame_size_max: int
    entities_max: int


class ClientSession:
    """The client's half of one connection: request ids, limits and prepared plans. Bytes go out, replies come in.

    plans: the caller's key of a feature list -> its plan on this connection.
    """

    def __init__(self, frame_size_max: int = FRAME_SIZE_MAX) -> None:
        self.frame_size_max = frame_size_max
        self.limits = Limits(FRAME_SIZE_MIN, 0)
        self.plans: dict[object, PreparedPlan] = {}
        self._last_id = 0

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def request(self, method: str, params: object) -> tuple[int, bytes]:
        """Id and frame of a request. Raises DataError, LocalProtocolError; nothing is to be sent then."""
        request_id = self.next_id()
        return request_id, pack_frame([0, request_id, method, params], self.limits.frame_size_max)

    def hello(self, client: str, **options: bool) -> tuple[int, bytes]:
        """options: `positions`."""
        said = {"version": VERSION, "client": client, "frame_size_max": self.frame_size_max, "flags": True}
        return self.request("HELLO", said | options)

    def greeted(self, result: object) -> None:
        """Takes the answer to HELLO. Raises RemoteProtocolError: another version, or no limits in it."""
        if not isinstance(result, Mapping) or result.get("version") != VERSION:
            raise RemoteProtocolError(f"HELLO was answered with {result!r:.100}; this client speaks version {VERSION}")
        try:
            self.limits = Limits(int(result["frame_size_max"]), int(result["entities_max"]))
        except (KeyError, TypeError, ValueError):
            raise RemoteProtocolError(f"HELLO was answered without limits: {result!r:.100}") from None
        if self.limits.frame_size_max < FRAME_SIZE_MIN or self.limits.entities_max < 1:
            raise RemoteProtocolError(f"HELLO was answered with limits that allow nothing: {self.limits}")

    def entities_per_request(self, plan: PreparedPlan) -> int:
        """How many entities one GET may ask for, so that its reply fits in a frame, and its request fields do."""
        row_size = sum(max(8, dtype.width) for dtype in plan.dtypes) + 9 * len(plan.views)
        if plan.request_fields:
            key_size = 16 * len(plan.key_names)
            row_size = max(row_size, key_size + sum(16 + 2 * dtype.width for _, dtype in plan.request_fields))
        frame_size = min(self.frame_size_max, self.limits.frame_size_max)
        return max(1, min(self.limits.entities_max, (frame_size - 256) // row_size))


class Answer(NamedTuple):
    """What the columns of an ANSWER or REPLAY are, and the receipt as it came."""

    receipt: object
    features: tuple[str, ...]
    dtypes: tuple[DType, ...]
    views: tuple[str, ...]
    view_of: tuple[int, ...]


def answer_of(result: object) -> tuple[Answer, Columns]:
    """The result of ANSWER or REPLAY. Raises RemoteProtocolError: something else."""
    try:
        said: Any = result
        names, kinds = zip(*said["features"], strict=True)
        view_of, views = tuple(said["view_of"]), tuple(said["views"])
        answer = Answer(said["receipt"], names, tuple(map(DType.parse, kinds)), views, view_of)
        if len(view_of) != len(names) or not set(view_of) <= set(range(len(views))):
            raise ValueError("a feature without a view")
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"reply: it is no answer: {error!r:.100}") from None
    return answer, columns_of(answer, said.get("result"))


def part(result: object, count: int) -> list[Any]:
    if not isinstance(result, list) or len(result) != count:
        raise RemoteProtocolError(f"reply: GET's result is not an array of {count}")
    return result


def array_of(data: object, dtype: str, *shape: int) -> NDArray[Any]:
    """The array that these bytes are, without a copy. Raises RemoteProtocolError: another size or no bytes."""
    try:
        return np.frombuffer(data, dtype).reshape(shape)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        raise RemoteProtocolError(f"reply: {type(data).__name__} is not {dtype} of shape {shape}") from None


def columns_of(plan: PreparedPlan | Answer, result: object) -> Columns:
    """Statuses, event times and columns of a GET in format COLUMNS, on the reply's own memory (read-only)."""
    statuses, times, rows, columns = part(result, 4)
    if not isinstance(rows, int) or not isinstance(columns, list) or len(columns) != len(plan.dtypes):
        raise RemoteProtocolError(f"reply: GET's columns are not the {len(plan.dtypes)} of the plan")
    views = len(plan.views)
    return (
        array_of(statuses, "u1", views, rows),
        array_of(times, "<i8", views, rows),
        [column_of(dtype, column, rows) for dtype, column in zip(plan.dtypes, columns, strict=True)],
    )


def column_of(dtype: DType, column: object, rows: int) -> Column:
    if not isinstance(column, list) or len(column) != (3 if dtype.is_variable else 2):
        raise RemoteProtocolError(f"reply: a column of {dtype} has another shape")
    valid = array_of(column[0], "u1", rows)
    if dtype.is_variable:
        return valid, array_of(column[1], "u1", len(column[1])), array_of(column[2], "<u4", rows + 1)
    stored = "uint8" if dtype.name == "bool" else "int64" if dtype.name == "timestamp" else dtype.element or dtype.name
    shape = (rows, dtype.size) if dtype.name == "vector" else (rows,)
    return valid, array_of(column[1], np.dtype(stored).newbyteorder("<").str, *shape), None


def join_columns(plan: PreparedPlan, parts: list[Columns]) -> Columns:
    """One answer of the answers to consecutive entities."""
    if len(parts) == 1:
        return parts[0]
    statuses = np.concatenate([part[0] for part in parts], axis=1)
    times = np.concatenate([part[1] for part in parts], axis=1)
    columns = [join_column([part[2][i] for part in parts]) for i in range(len(plan.dtypes))]
    return statuses, times, columns


def join_column(parts: list[Column]) -> Column:
    valid = np.concatenate([part[0] for part in parts])
    data = np.concatenate([part[1] for part in parts])
    if parts[0][2] is None:
        return valid, data, None
    lengths = np.concatenate([np.diff(part[2]) for part in parts if part[2] is not None])
    offsets = np.zeros(len(lengths) + 1, np.uint64)
    np.cumsum(lengths, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.uint32).max:
        raise LocalProtocolError("a column of the answer is longer than 4 GiB; ask for fewer entities at once")
    return valid, data, offsets.astype(np.uint32)


def matrix_of(result: object, out: NDArray[Any]) -> None:
    """Copies the values of a GET in a matrix format into out. Raises RemoteProtocolError: another shape."""
    _, _, rows, columns, data = part(result, 5)
    if (rows, columns) != out.shape:
        raise RemoteProtocolError(f"reply: a matrix of {rows} x {columns}, not {out.shape}")
    out[...] = array_of(data, out.dtype.newbyteorder("<").str, *out.shape)
