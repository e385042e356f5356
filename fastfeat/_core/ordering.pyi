from typing import Any

import numpy as np
import numpy.typing as npt

from .table import RowBatch

class Ordering:
    """Rows by partition."""

    def __init__(
        self,
        keys: RowBatch,
        event_times: npt.NDArray[np.int64],
        created_times: npt.NDArray[np.int64],
        sequences: npt.NDArray[np.uint64] | None,
        seed: bytes,
        bits: int,
        parts: int = 1,
    ) -> None: ...
    def count(self, part: int) -> None: ...
    def settle(self) -> None: ...
    def place(self, part: int) -> None: ...
    def entities_of(
        self, partition: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...

def scatter(values: npt.NDArray[Any], rows: npt.NDArray[np.uint32], to: npt.NDArray[Any]) -> None: ...
