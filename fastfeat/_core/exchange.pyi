from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray
from typing_extensions import Buffer

from ..dtypes import DType
from ..errors import FastFeatError

def receive_soon(socket: int, buffer: Buffer, patience_ns: int) -> int: ...

class PreparedPlan:
    number: int
    key_names: tuple[str, ...]
    key_types: tuple[str, ...]
    features: tuple[str, ...]
    dtypes: tuple[DType, ...]
    views: tuple[str, ...]
    view_of: tuple[int, ...]
    matrix_columns: int
    request_fields: tuple[tuple[str, DType], ...]
    more_columns: Callable[[int, int], list[object]] | None
    def __init__(self, described: object) -> None: ...
    def entities(self, entity_rows: object) -> int: ...
    def entity(self, entity_row: Mapping[str, object]) -> None: ...
    def encode(
        self, request_id: int, start: int, stop: int, wanted: int, as_of: int | None, known_at: int | None
    ) -> bytes: ...

class Inbox(Buffer):
    frame_size_max: int
    is_stale: bool
    def __init__(self, frame_size_max: int, capacity: int = ...) -> None: ...
    def make_room(self) -> None: ...
    def filled(self, size: int) -> None: ...
    def frame(self) -> bytes | None: ...
    def matrix(self, request_id: int, rows: int, columns: int, out: NDArray[Any]) -> int: ...

def is_stale(payload: bytes) -> bool: ...
def reply_of(payload: bytes) -> tuple[int | None, FastFeatError | None, object]: ...
