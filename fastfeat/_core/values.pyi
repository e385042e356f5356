from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DType

TIME_MIN_US: int
TIME_MAX_US: int

def encode_column(
    dtype: DType, values: Iterable[Any], what: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any], npt.NDArray[np.uint32] | None]: ...
