from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DType

TIME_MIN_US: int
TIME_MAX_US: int

Column = tuple[npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[np.uint32] | None]

class ColumnReader:
    """Values of one type as a column of the answer to a read."""

    dtype: DType
    what: str
    def __init__(self, dtype: DType, what: str) -> None: ...
    def read(self, values: Any) -> Column | None: ...
    def read_list(self, values: list[Any]) -> Column: ...

def null_at(valid: npt.NDArray[np.uint8]) -> int: ...
