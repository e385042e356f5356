class Arena:
    """A mapping of `capacity_bytes`: reserved at once, used page by page; private, or a file's."""

    capacity: int
    is_shared: bool
    is_reader: bool
    generation: int
    has_writer: bool
    superseded: int
    is_removed: bool
    position: int
    catalogue_word: int
    catalogue: bytes
    is_clean: bool
    own_slots: list[int]
    pinned: dict[int, int | None]
    def __init__(
        self,
        capacity_bytes: int | None = None,
        seed: bytes | None = None,
        *,
        fd: int = -1,
        readers_fd: int = -1,
        generation: int = 1,
        is_reader: bool = False,
        is_resumed: bool = False,
    ) -> None: ...
    @property
    def seed(self) -> bytes: ...
    @property
    def used(self) -> int: ...
    def clear(self) -> None: ...
    def populate_ahead(self, size: int) -> int: ...
    def map_pages(self, start: int, size: int) -> int: ...
    def is_current(self, catalogue_word: int) -> bool: ...
    def publish(self, catalogue: bytes) -> None: ...
    def let_go(self) -> None: ...
    def sweep(self, dead_after_s: float = ..., expel_after_s: float = ...) -> tuple[int, int]: ...

def digest_of(data: bytes) -> int: ...
def supersede(fd: int, generation: int) -> None: ...
