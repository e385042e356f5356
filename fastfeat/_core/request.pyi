from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .table import RowBatch

def keys_batch(names: Sequence[str], types: Sequence[str], source: Any) -> RowBatch: ...
def hash_keys(names: Sequence[str], types: Sequence[str], entity_rows: Any) -> npt.NDArray[np.uint64]: ...
def plain_keys(names: Sequence[str], types: Sequence[str], entity_rows: Any) -> dict[str, list[int | str]]: ...
