"""AsyncClient: as Client, awaited; any number of requests in flight on few connections.

await client.get_feature_vectors(...) --> Link (one connection) --> reply by its id, in whatever order
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    ConnectFailed,
    Disconnected,
    FastFeatError,
    LocalProtocolError,
    RemoteProtocolError,
    Timeout,
    UnknownPlan,
)
from ..protocol import (
    FRAME_SIZE_MAX,
    ClientSession,
    Columns,
    Format,
    FrameSplitter,
    PreparedPlan,
    columns_of,
    is_stale,
    join_columns,
    matrix_of,
    reply_of,
)
from ..report import LoadReport, ignore_rows, load_progress
from ..result import Result
from .address import Address
from .features import Wanted, WantedFeatures
from .loading import CHUNKS_UNANSWERED_MAX, add_report, streams
from .messages import (
    CLIENT_NAME,
    answer_params,
    answered_result,
    delete_params,
    expect_int,
    expect_map,
    matrix_format,
    matrix_target,
    push_params,
    replay_params,
    result_of,
    time_us,
    view_name,
    wait_params,
    written,
)
from .prepared import prepared

if TYPE_CHECKING:
    from ..receipts import Receipt
    from ..schema import FeatureService, FeatureView

T = TypeVar("T")


class Link(asyncio.Protocol):
    """One connection: requests out, replies matched to them by id.

    seen: writes up to this position are visible to it.
    """

    def __init__(self, address: Address, frame_size_max: int) -> None:
        self.address = address
        self.session = ClientSession(frame_size_max)
        self.plans: dict[Wanted, asyncio.Task[tuple[PreparedPlan, int]]] = {}
        self.is_open = False
        self.is_stale = False
        self.seen = 0
        self._splitter = FrameSplitter(frame_size_max)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._transport: asyncio.Transport
        self._may_write = asyncio.Event()
        self._may_write.set()

    # Called by the event loop -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._splitter.feed(data):
                self.is_stale = is_stale(payload)
                self._deliver(*reply_of(payload))
        except FastFeatError as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        reason = error or "the server closed the connection"
        self._fail(Disconnected(f"{self.address}: the connection ended before the answer came: {reason}"))

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    # Requests ---------------------------------------------------------------------------------------------------------

    async def answer(self, request_id: int, frame: bytes) -> Any:
        """Sends a request and waits for its result. A caller that gives up leaves the connection usable."""
        await self._may_write.wait()
        if not self.is_open:
            raise Disconnected(f"{self.address}: the connection ended before the request was sent")
        return await self.send_only(request_id, frame)

    def send_only(self, request_id: int, frame: bytes) -> asyncio.Future[Any]:
        """Sends a request; its answer may be awaited or not."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future
        self._transport.write(frame)
        return future

    async def call(self, method: str, params: object) -> Any:
        return await self.answer(*self.session.request(method, params))

    async def plan(self, wanted: Wanted) -> tuple[PreparedPlan, int]:
        """The plan of this connection and the entities of one GET of it; prepared once, however many ask at a time."""
        task = self.plans.get(wanted)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self.plans[wanted] = asyncio.ensure_future(self._prepare(wanted))
        return await asyncio.shield(task)

    async def _prepare(self, wanted: Wanted) -> tuple[PreparedPlan, int]:
        plan = prepared(await self.call("PREPARE", wanted.prepare))
        return plan, self.session.entities_per_request(plan)

    def close(self) -> None:
        if self.is_open:
            self._fail(Disconnected(f"{self.address}: the client closed the connection"))

    def _deliver(self, request_id: int | None, error: FastFeatError | None, result: object) -> None:
        if request_id is None and error is not None:
            raise error
        future = self._waiting.pop(request_id, None) if request_id is not None else None
        if future is None:
            raise RemoteProtocolError(f"reply: answers request {request_id}, which was not asked")
        if future.done():
            return  # its caller gave up
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _fail(self, error: FastFeatError) -> None:
        """Ends the connection and every request on it."""
        self.is_open = False
        self._may_write.set()
        self._transport.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)


class AsyncClient:
    """A server's features, with the methods and results of a Store, awaited, in one event loop.

    timeout:      seconds for each answer; None waits for ever.
    retries:      how often a read is tried again on a new connection when the old one fails; writes never are.
    connections:  over which requests are spread in turn.
    read_your_writes: as for Client.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = 10.0,
        retries: int = 2,
        connections: int = 1,
        frame_size_max: int = FRAME_SIZE_MAX,
        read_your_writes: bool = False,
    ) -> None:
        self.address = Address.parse(url)
        self.timeout = timeout
        self.retries = retries
        self.frame_size_max = frame_size_max
        self.read_your_writes = read_your_writes
        self.position = 0
        self._links: list[Link | None] = [None] * connections
        self._locks = [asyncio.Lock() for _ in range(connections)]
        self._turn = 0
        self._is_closed = False
        self._wanted = WantedFeatures()

    @property
    def is_stale(self) -> bool:
        """As Client.is_stale; of any of its connections."""
        return any(link is not None and link.is_stale for link in self._links)

    async def _begin(self) -> None:
        """Fail at once where there is no server."""
        await self._link()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; requests in flight get Disconnected."""
        self._is_closed = True
        for link in self._links:
            if link is not None:
                link.close()
        await asyncio.sleep(0)  # lets the transports go before the loop may

    # Reads ------------------------------------------------------------------------------------------------------------

    async def get_feature_vector(
        self,
        features: FeatureService | str | Sequence[str],
        entity_row: Mapping[str, object],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """As Client.get_feature_vector."""
        target = None if out is None else out[np.newaxis]
        matrix = await self.get_feature_vectors(features, [entity_row], as_of=as_of, known_at=known_at, out=target)
        return matrix[0] if out is None else out

    async def get_feature_vectors(
        self,
        features: FeatureService | str | Sequence[str],
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """As Client.get_feature_vectors."""
        wanted = self._wanted.find(features)
        times = time_us(as_of, "as_of"), time_us(known_at, "known_at")

        async def read(link: Link) -> NDArray[Any]:
            plan, per_request = await link.plan(wanted)
            count = plan.entities(entity_rows)
            target = matrix_target(plan, count, out)
            answers = await self._in_parts(link, plan, count, per_request, matrix_format(target), times)
            for start, answer in answers:
                matrix_of(answer, target[start : start + per_request])
            return target

        return await self._read(read)

    async def get_online_features(
        self,
        features: FeatureService | str | Sequence[str],
        entity_rows: Sequence[Mapping[str, object]] | Mapping[str, Any],
        *,
        as_of: datetime | int | None = None,
        known_at: datetime | int | None = None,
        receipt: bool = False,
    ) -> Result:
        """As Client.get_online_features."""
        wanted = self._wanted.find(features)
        times = time_us(as_of, "as_of"), time_us(known_at, "known_at")
        if receipt:
            return await self._read(lambda link: self._answer(link, wanted, entity_rows, times))

        async def read(link: Link) -> tuple[PreparedPlan, Columns]:
            plan, per_request = await link.plan(wanted)
            count = plan.entities(entity_rows)
            answers = await self._in_parts(link, plan, count, per_request, Format.COLUMNS, times)
            return plan, join_columns(plan, [columns_of(plan, answer) for _, answer in answers])

        return result_of(*await self._read(read))

    async def _answer(
        self, link: Link, wanted: Wanted, entity_rows: object, times: tuple[int | None, int | None]
    ) -> Result:
        plan, _ = await link.plan(wanted)
        return answered_result(await link.call("ANSWER", answer_params(wanted, plan, entity_rows, *times)))

    async def replay(self, receipt: Receipt) -> Result:
        """As Client.replay."""
        params = replay_params(receipt)
        return answered_result(await self._read(lambda link: link.call("REPLAY", params)))

    async def _in_parts(
        self,
        link: Link,
        plan: PreparedPlan,
        count: int,
        per_request: int,
        wanted: Format,
        times: tuple[int | None, int | None],
    ) -> list[tuple[int, Any]]:
        """(first entity, answer) of as many GETs as the limits make of one. All are encoded before any is awaited:
        the plan holds one request's entities at a time."""
        frames = []
        for start in range(0, max(count, 1), per_request):
            request_id = link.session.next_id()
            stop = min(start + per_request, count)
            frames.append((start, request_id, plan.encode(request_id, start, stop, wanted, *times)))
        return [(start, await link.answer(request_id, frame)) for start, request_id, frame in frames]

    async def info(self) -> dict[str, Any]:
        """As Client.info."""
        return expect_map(await self._read(lambda link: link.call("INFO", [])), "INFO")

    async def ping(self) -> None:
        """Returns when the server has answered."""
        await self._read(lambda link: link.call("PING", []))

    # Writes -----------------------------------------------------------------------------------------------------------

    async def push(self, view: str | FeatureView, rows: object) -> int:
        """As Client.push."""
        params = push_params(view, rows)
        return self._written(await self._once(lambda link: link.call("PUSH", params)), "PUSH")

    async def delete(self, view: str | FeatureView, entity_rows: Sequence[Mapping[str, object]]) -> int:
        """As Client.delete."""
        params = delete_params(view, entity_rows)
        return self._written(await self._once(lambda link: link.call("DELETE", params)), "DELETE")

    def _written(self, result: object, method: str) -> int:
        created_us, position = written(result, method)
        self.position = max(self.position, position)
        return created_us

    async def load(
        self,
        view: str | FeatureView,
        source: object,
        *,
        event_time: str = "event_timestamp",
        created_time: str | None = None,
        progress: bool = False,
    ) -> LoadReport:
        """As Client.load. The source is read in a thread; `timeout` holds for each chunk."""
        report = LoadReport(view_name(view))
        link = await self._link()
        with load_progress(report.view, source) if progress else nullcontext(ignore_rows) as advance:
            parts = streams(source, event_time, created_time, report, advance)
            while part := await asyncio.to_thread(next, parts, None):
                add_report(report, await self._load_part(link, report.view, *part))
        return report

    async def _load_part(self, link: Link, view: str, options: dict[str, Any], chunks: Iterator[bytes]) -> object:
        load = expect_int(await self._in_time(link.call("LOAD", ["begin", view, options])), "LOAD")
        try:
            await self._send_chunks(link, load, chunks)
        except BaseException:
            if link.is_open:
                link.send_only(*link.session.request("LOAD", ["abort", load]))
            raise
        return await link.call("LOAD", ["end", load])

    async def _send_chunks(self, link: Link, load: int, stream: Iterator[bytes]) -> None:
        """Sends chunks a few ahead of the answers."""
        under_way: deque[asyncio.Task[Any]] = deque()
        try:
            while chunk := await asyncio.to_thread(next, stream, b""):
                under_way.append(asyncio.ensure_future(link.call("LOAD", ["chunk", load, chunk])))
                if len(under_way) >= CHUNKS_UNANSWERED_MAX:
                    await self._in_time(under_way.popleft())
            while under_way:
                await self._in_time(under_way.popleft())
        finally:
            for task in under_way:
                task.cancel()

    # Storage ----------------------------------------------------------------------------------------------------------

    async def snapshot(self) -> dict[str, Any]:
        """As Client.snapshot."""
        return expect_map(await self._once(lambda link: link.call("SNAPSHOT", [])), "SNAPSHOT")

    async def compact(self) -> dict[str, Any]:
        """As Client.compact."""
        return expect_map(await self._once(lambda link: link.call("COMPACT", [])), "COMPACT")

    # Connections ------------------------------------------------------------------------------------------------------

    async def _read(self, call: Callable[[Link], Awaitable[T]]) -> T:
        """Calls with a connection; again with a new one where the connection failed, which a read may."""

        async def read(link: Link) -> T:
            if (position := self.position) > link.seen:
                await link.call("WAIT", wait_params(position, self.timeout))
                link.seen = max(link.seen, position)
            return await call(link)

        attempt = 0
        while True:
            try:
                return await self._once(read if self.position else call)
            except (Disconnected, ConnectFailed, UnknownPlan):
                attempt += 1
                if attempt > self.retries or self._is_closed:
                    raise

    async def _once(self, call: Callable[[Link], Awaitable[T]]) -> T:
        link = await self._link()
        try:
            return await self._in_time(call(link))
        except UnknownPlan:
            link.plans.clear()
            raise

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.timeout):
                return await answer
        except TimeoutError as error:
            if isinstance(error, Timeout):
                raise
            raise Timeout(f"{self.address} did not answer within {self.timeout} s; raise timeout or ask less") from None

    async def _link(self) -> Link:
        """The next connection in turn, made where it is missing or gone."""
        if self._is_closed:
            raise LocalProtocolError("the client is closed; connect again")
        turn = self._turn = (self._turn + 1) % len(self._links)
        link = self._links[turn]
        if link is not None and link.is_open:
            return link
        async with self._locks[turn]:
            link = self._links[turn]
            if link is None or not link.is_open:
                link = self._links[turn] = await self._connect()
        return link

    async def _connect(self) -> Link:
        loop = asyncio.get_running_loop()
        link = Link(self.address, self.frame_size_max)
        try:
            async with asyncio.timeout(self.timeout):
                if self.address.path:
                    await loop.create_unix_connection(lambda: link, self.address.path)
                else:
                    await loop.create_connection(lambda: link, self.address.host, self.address.port)
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(f"no server at {self.address}: {error}; is `fastfeat serve` running there?") from error
        try:
            options = {"positions": True} if self.read_your_writes else {}
            link.session.greeted(await self._in_time(link.answer(*link.session.hello(CLIENT_NAME, **options))))
        except BaseException:
            link.close()
            raise
        return link


async def connect_async(
    url: str,
    *,
    timeout: float | None = 10.0,
    retries: int = 2,
    connections: int = 1,
    frame_size_max: int = FRAME_SIZE_MAX,
    read_your_writes: bool = False,
) -> AsyncClient:
    """An AsyncClient of the server at a URL as `connect` takes. Raises as it does."""
    kind = AsyncClient
    if str(url).startswith("fastfeat+shm:"):
        from .shared import AsyncSharedClient

        kind = AsyncSharedClient
    client = kind(
        url,
        timeout=timeout,
        retries=retries,
        connections=connections,
        frame_size_max=frame_size_max,
        read_your_writes=read_your_writes,
    )
    await client._begin()
    return client
