from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

def matrix_fill(
    out: npt.NDArray[Any],
    columns: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[Any], Any]],
    widths: tuple[int, ...],
) -> None: ...
