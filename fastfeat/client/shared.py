"""Clients of `fastfeat+shm://NAME`: reads from the server's memory, everything else by message.

    get_* ------> AttachedStore ------> the arena that the server writes: about a microsecond, no message
      |  rows that memory no longer has, receipts
      +--------> writer.sock <--------- push, delete, load, replay, snapshot, compact

While the server is gone reads go on, from its last state (`is_stale`); what needs a message raises ConnectFailed.
A push that was answered is visible to the next read of any client on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from .._core.plan import ReadsAtHand
from ..attached import AttachedStore
from ..errors import BeforeHistory, ConnectFailed
from ..shared import writer_socket
from .asynchronous import AsyncClient
from .blocking import Client

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..result import Result
    from ..schema import FeatureService

    FeatureList = FeatureService | str | Sequence[str]
    EntityRows = Sequence[Mapping[str, object]] | Mapping[str, Any]
    Moment = datetime | int | None

SCHEME = "fastfeat+shm://"


def name_in(url: str) -> str:
    """The arena's name, or its directory, of fastfeat+shm://NAME or fastfeat+shm:///path. Raises ConnectFailed."""
    name = unquote(url.removeprefix(SCHEME))
    if not name or ("/" in name and not name.startswith("/")):
        raise ConnectFailed(f"{url!r} is not fastfeat+shm://NAME or fastfeat+shm:///path")
    return name


def socket_url(name: str) -> str:
    """Of the process that writes the arena."""
    return f"fastfeat+unix://{quote(writer_socket(name))}"


class SharedClient(ReadsAtHand, Client):
    """A Client that reads from the server's memory. Options as Client's; raises StorageError: no such arena."""

    def __init__(self, url: str, **options: Any) -> None:
        self.store = AttachedStore(name_in(url))
        self.read_by(self.store.at_hand)
        super().__init__(socket_url(self.store.name), **options)

    def _begin(self) -> None:
        """No connection until one is needed: reads need none."""

    def close(self) -> None:
        """Lets go of the arena and closes the idle connections."""
        super().close()
        self.store.close()

    @property
    def is_stale(self) -> bool:
        """True while the server is gone: reads are of its last state."""
        return self.store.is_stale

    def _vector(
        self,
        features: FeatureList,
        entity_row: Mapping[str, object],
        as_of: Moment,
        known_at: Moment,
        out: NDArray[Any] | None,
    ) -> NDArray[Any]:
        try:
            return self.store.get_feature_vector(features, entity_row, as_of=as_of, known_at=known_at, out=out)
        except BeforeHistory:
            return Client.get_feature_vector(self, features, entity_row, as_of=as_of, known_at=known_at, out=out)

    def _vectors(
        self,
        features: FeatureList,
        entity_rows: EntityRows,
        as_of: Moment,
        known_at: Moment,
        out: NDArray[Any] | None,
    ) -> NDArray[Any]:
        try:
            return self.store.get_feature_vectors(features, entity_rows, as_of=as_of, known_at=known_at, out=out)
        except BeforeHistory:
            return Client.get_feature_vectors(self, features, entity_rows, as_of=as_of, known_at=known_at, out=out)

    def get_online_features(
        self,
        features: FeatureList,
        entity_rows: EntityRows,
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        receipt: bool = False,
    ) -> Result:
        """As Client.get_online_features."""
        if not receipt:
            try:
                return self.store.get_online_features(features, entity_rows, as_of=as_of, known_at=known_at)
            except BeforeHistory:
                pass
        return super().get_online_features(features, entity_rows, as_of=as_of, known_at=known_at, receipt=receipt)

    def info(self) -> dict[str, Any]:
        """Of the server, where it lives; else of its memory."""
        return self.store.info() if self.is_stale else super().info()


class AsyncSharedClient(AsyncClient):
    """An AsyncClient that reads from the server's memory, in the event loop: a read takes microseconds."""

    def __init__(self, url: str, **options: Any) -> None:
        self.store = AttachedStore(name_in(url))
        super().__init__(socket_url(self.store.name), **options)

    async def _begin(self) -> None:
        """No connection until one is needed: reads need none."""

    async def close(self) -> None:
        """Lets go of the arena and closes the connections."""
        await super().close()
        self.store.close()

    @property
    def is_stale(self) -> bool:
        """True while the server is gone: reads are of its last state."""
        return self.store.is_stale

    async def get_feature_vector(
        self,
        features: FeatureList,
        entity_row: Mapping[str, object],
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """As Client.get_feature_vector."""
        try:
            return self.store.get_feature_vector(features, entity_row, as_of=as_of, known_at=known_at, out=out)
        except BeforeHistory:
            return await super().get_feature_vector(features, entity_row, as_of=as_of, known_at=known_at, out=out)

    async def get_feature_vectors(
        self,
        features: FeatureList,
        entity_rows: EntityRows,
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """As Client.get_feature_vectors."""
        try:
            return self.store.get_feature_vectors(features, entity_rows, as_of=as_of, known_at=known_at, out=out)
        except BeforeHistory:
            return await super().get_feature_vectors(features, entity_rows, as_of=as_of, known_at=known_at, out=out)

    async def get_online_features(
        self,
        features: FeatureList,
        entity_rows: EntityRows,
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        receipt: bool = False,
    ) -> Result:
        """As Client.get_online_features."""
        if not receipt:
            try:
                return self.store.get_online_features(features, entity_rows, as_of=as_of, known_at=known_at)
            except BeforeHistory:
                pass
        return await super().get_online_features(features, entity_rows, as_of=as_of, known_at=known_at, receipt=receipt)

    async def info(self) -> dict[str, Any]:
        """Of the server, where it lives; else of its memory."""
        return self.store.info() if self.is_stale else await super().info()
