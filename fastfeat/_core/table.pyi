from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..dtypes import DType
from .arena import Arena

class Clock:
    """Now, in microseconds since 1970 UTC: the system's clock, or `function`."""

    def __init__(self, function: Callable[[], int] | None = None) -> None: ...
    def now(self) -> int: ...

class Table:
    """The rows of one view."""

    name: str
    arena: Arena
    def __init__(
        self,
        arena: Arena,
        clock: Clock,
        name: str,
        key_names: Sequence[str],
        key_types: Sequence[str],
        fields: Sequence[tuple[str, DType, bool]],
        ttl_us: int | None,
        keep_rows: int | None,
        keep_us: int | None,
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def entities(self) -> int: ...
    def set_ttl(self, ttl_us: int | None) -> None: ...
    def append_arrow(self, batch: Any, threads: int = 1) -> None: ...
    def append_rows(self, rows: Sequence[Mapping[str, object]], created_us: int) -> None: ...
    def delete(self, entity_rows: Any, created_us: int) -> None: ...
    def reclaim(self) -> None: ...
