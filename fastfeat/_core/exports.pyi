from typing import Any

import numpy as np
import numpy.typing as npt

from .plan import Columns
from .table import Table

KeyColumns = list[tuple[npt.NDArray[Any], npt.NDArray[np.uint32] | None]]
Exported = tuple[KeyColumns, npt.NDArray[np.int64], npt.NDArray[np.int64], Columns]

def export_shards(table: Table, low: int, high: int, sequence_end: int) -> Exported: ...
def export_keys(table: Table, entity_rows: Any, sequence_end: int) -> Exported: ...
def shards_of(table: Table) -> int: ...
