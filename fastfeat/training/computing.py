"""Computing: on-demand features of labels, by the functions of every read, from the features joined to them.

    labels' columns: request fields --+
    columns of stored features -------+--Computation, 65,536 labels at a time--> a column per feature, in their order

Promise:  the event_timestamp that a function reads is the label's time, as it is the moment of the read online.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..computed import Computation
from ..dtypes import DType
from ..ondemand import OnDemandFeatureView
from ..request_fields import column_of
from ..result import arrow_array
from ..sources import BATCH_ROWS_MAX


def with_computed(
    names: Sequence[str],
    functions: Sequence[OnDemandFeatureView],
    labels: pa.Table,
    event_us: NDArray[np.int64],
    stored: Mapping[str, tuple[DType, Any]],
) -> list[Any]:
    """An Arrow column per feature named. stored: "view:feature" -> type and Arrow column. Raises DataError."""
    computed = [name for name in names if name not in stored]
    computation = Computation(functions)
    parts = []
    for start in range(0, max(len(event_us), 1), BATCH_ROWS_MAX):
        some = {name: (dtype, column.slice(start, BATCH_ROWS_MAX)) for name, (dtype, column) in stored.items()}
        moments = event_us[start : start + BATCH_ROWS_MAX]
        parts.append(arrays(computed, computation, labels.slice(start, BATCH_ROWS_MAX), moments, some))
    columns = {name: column for name, (_, column) in stored.items()}
    columns |= {name: pa.chunked_array(part) for name, part in zip(computed, zip(*parts, strict=True), strict=True)}
    return [columns[name] for name in names]


def arrays(
    names: Sequence[str],
    computation: Computation,
    labels: pa.Table,
    event_us: NDArray[np.int64],
    stored: Mapping[str, tuple[DType, Any]],
) -> list[Any]:
    """An Arrow array per computed feature, of a few labels."""
    given = {field.name: labels.column(field.name) for field in computation.request.fields}
    request = computation.request.read(given)
    read = {name: (dtype, column_of(dtype, column, name)) for name, (dtype, column) in stored.items()}
    found = computation.run(request, read, len(event_us), event_us)
    return [arrow_array(*found[name]) for name in names]
