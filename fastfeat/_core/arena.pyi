class Arena:
    """A private mapping of `capacity_bytes`: reserved at once, used page by page."""

    capacity: int
    def __init__(self, capacity_bytes: int) -> None: ...
    @property
    def used(self) -> int: ...
