"""What `fastfeat bench` loads and reads: 50 float64 features of many entities, the same every time.

fastfeat serve fastfeat.cli.synthetic
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from fastfeat import Entity, FeatureService, FeatureView, Field

FIELDS = 50
SEED = 50

entity = Entity("entity", join_keys={"entity_id": "int64"})
numbers = FeatureView(
    "numbers", entity=entity, schema=[Field(f"f{i}", "float64", nullable=False) for i in range(FIELDS)]
)
everything = FeatureService("everything", [numbers])


def rows(entities: int) -> pa.Table:
    """One row per entity 0 .. entities - 1."""
    values = np.random.default_rng(SEED).random((FIELDS, entities))
    times = np.full(entities, int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000)
    columns = {f"f{i}": values[i] for i in range(FIELDS)}
    return pa.table(
        {"entity_id": np.arange(entities), "event_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")), **columns}
    )
