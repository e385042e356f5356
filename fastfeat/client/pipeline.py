"""Pipeline: many requests sent together, their answers read together, one round trip in all.

with client.pipeline() as pipe:
    first = pipe.get_feature_vector("scoring", {"user_id": 7})
    second = pipe.get_feature_vector("scoring", {"user_id": 8})
print(first.result(), second.result())
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, FastFeatError, LocalProtocolError, RemoteProtocolError
from ..protocol import Format, columns_of, matrix_of, reply_of
from ..result import Result
from .messages import (
    answer_params,
    answered_result,
    delete_params,
    matrix_format,
    matrix_target,
    push_params,
    replay_params,
    result_of,
    time_us,
)

if TYPE_CHECKING:
    from ..receipts import Receipt
    from ..schema import FeatureService, FeatureView
    from .blocking import Client, Connection
    from .features import Wanted

T = TypeVar("T")


class Pending(Generic[T]):
    """An answer that comes when its pipeline's block ends."""

    def __init__(self, decode: Callable[[Any], T]) -> None:
        self._decode = decode
        self._reply: tuple[FastFeatError | None, object] | None = None

    def result(self) -> T:
        """The answer, or the error that came instead. Raises LocalProtocolError before the block has ended."""
        if self._reply is None:
            raise LocalProtocolError("the answer has not come: read it after the pipeline's `with` block")
        error, result = self._reply
        if error is not None:
            raise error
        return self._decode(result)


class Pipeline:
    """Collects requests on one connection; they go out when the block ends without an error. Nothing is retried.

    With `read_your_writes` its reads see what was written before the block, not what the block itself writes.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._connection: Connection | None = None
        self._frames: list[bytes] = []
        self._pending: dict[int, Pending[Any]] = {}

    def __enter__(self) -> Self:
        self._connection = self._client._checkout()
        try:
            self._connection.after(self._client.position)
        except BaseException:
            self._client._release(self._connection)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._open()
        try:
            if kind is None and self._frames:
                exchange(connection, b"".join(self._frames), self._pending)
        finally:
            self._connection = None
            self._client._release(connection)

    def get_feature_vector(
        self,
        features: FeatureService | str | Sequence[str],
        entity_row: Mapping[str, object],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: NDArray[Any] | None = None,
    ) -> Pending[NDArray[Any]]:
        """As Client.get_feature_vector; `out` is filled when the result is asked for."""
        pending = self._matrix(features, [entity_row], as_of, known_at, out if out is None else out[np.newaxis])
        return self._wrap(pending, lambda matrix: matrix[0] if out is None else out)

    def get_feature_vectors(
        self,
        features: FeatureService | str | Sequence[str],
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: NDArray[Any] | None = None,
    ) -> Pending[NDArray[Any]]:
        """As Client.get_feature_vectors; `out` is filled when the result is asked for."""
        return self._matrix(features, entity_rows, as_of, known_at, out)

    def get_online_features(
        self,
        features: FeatureService | str | Sequence[str],
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        receipt: bool = False,
    ) -> Pending[Result]:
        """As Client.get_online_features."""
        times = time_us(as_of, "as_of"), time_us(known_at, "known_at")
        if receipt:
            return self._answer(self._client._wanted.find(features), entity_rows, times)
        plan, count = self._entities(features, entity_rows)
        request_id = self._open().session.next_id()
        frame = plan.encode(request_id, 0, count, Format.COLUMNS, *times)
        return self._add(request_id, frame, Pending(lambda result: result_of(plan, columns_of(plan, result))))

    def replay(self, receipt: Receipt) -> Pending[Result]:
        """As Client.replay."""
        return self._add(*self._open().session.request("REPLAY", replay_params(receipt)), Pending(answered_result))

    def push(self, view: str | FeatureView, rows: object) -> Pending[int]:
        """As Client.push."""
        pending = Pending(lambda result: self._client._written(result, "PUSH"))
        return self._add(*self._open().session.request("PUSH", push_params(view, rows)), pending)

    def delete(self, view: str | FeatureView, entity_rows: Sequence[Mapping[str, object]]) -> Pending[int]:
        """As Client.delete."""
        pending = Pending(lambda result: self._client._written(result, "DELETE"))
        return self._add(*self._open().session.request("DELETE", delete_params(view, entity_rows)), pending)

    def _open(self) -> Connection:
        if self._connection is None:
            raise LocalProtocolError("the pipeline is not open: use it inside its `with` block")
        return self._connection

    def _entities(self, features: Any, entity_rows: Any) -> tuple[Any, int]:
        plan, per_request = self._open().plan(self._client._wanted.find(features))
        count = plan.entities(entity_rows)
        if count > per_request:
            raise DataError(f"{count} entities in one request of a pipeline, at most {per_request}; split them")
        return plan, count

    def _answer(self, wanted: Wanted, entity_rows: Any, times: tuple[int | None, int | None]) -> Pending[Result]:
        plan, _ = self._open().plan(wanted)
        params = answer_params(wanted, plan, entity_rows, *times)
        return self._add(*self._open().session.request("ANSWER", params), Pending(answered_result))

    def _matrix(self, features: Any, entity_rows: Any, as_of: Any, known_at: Any, out: Any) -> Pending[NDArray[Any]]:
        plan, count = self._entities(features, entity_rows)
        target = matrix_target(plan, count, out)
        times = time_us(as_of, "as_of"), time_us(known_at, "known_at")
        request_id = self._open().session.next_id()
        frame = plan.encode(request_id, 0, count, matrix_format(target), *times)
        return self._add(request_id, frame, Pending(lambda result: filled(result, target)))

    def _add(self, request_id: int, frame: bytes, pending: Pending[T]) -> Pending[T]:
        self._frames.append(frame)
        self._pending[request_id] = pending
        return pending

    def _wrap(self, pending: Pending[NDArray[Any]], view: Callable[[Any], Any]) -> Pending[NDArray[Any]]:
        decode = pending._decode
        pending._decode = lambda result: view(decode(result))
        return pending


def filled(result: object, out: NDArray[Any]) -> NDArray[Any]:
    matrix_of(result, out)
    return out


def exchange(connection: Connection, outgoing: bytes, pending: dict[int, Pending[Any]]) -> None:
    """Sends all and reads all, at the same time: a server that waits for us to read does not read either."""
    unsent = memoryview(outgoing)
    waiting = len(pending)
    connection.is_clean = False
    while waiting:
        unsent = send_some(connection, unsent)
        while (payload := connection.inbox.frame()) is None:
            if unsent:
                wait_for(connection)
                unsent = send_some(connection, unsent)
            if not unsent or is_readable(connection):
                connection.inbox.make_room()
                connection.inbox.filled(connection.receive_into(connection.inbox))
        request_id, error, result = reply_of(payload)
        if request_id is None and error is not None:
            raise error
        if request_id not in pending or pending[request_id]._reply is not None:
            raise RemoteProtocolError(
                f"reply: answers request {request_id}, which was not asked or is answered already"
            )
        pending[request_id]._reply = error, result
        waiting -= 1
    connection.is_clean = True


def send_some(connection: Connection, unsent: memoryview) -> memoryview:
    """What is left after sending as much as the socket takes now."""
    try:
        while unsent:
            unsent = unsent[connection.socket.send(unsent, socket.MSG_DONTWAIT) :]
    except BlockingIOError:
        pass
    except OSError as error:
        raise connection.lost(error) from error
    return unsent


def wait_for(connection: Connection) -> None:
    """Returns when the socket takes or has bytes. Raises Timeout."""
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN | select.POLLOUT)
    if not poll.poll(None if connection.timeout is None else connection.timeout * 1000):
        raise connection.late()


def is_readable(connection: Connection) -> bool:
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN)
    return bool(poll.poll(0))
