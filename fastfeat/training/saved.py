"""Saved sets: a training set as a Parquet file that says what it is of.

    reader --batches--> temporary file --sync, rename--> OUT.parquet    metadata "fastfeat.training": the Origin as JSON

Promise:  the file is there whole or not at all. It can be traced by its origin: the definitions its features were made
          by (and the sha256 of their canonical JSON), and the state of the store: version, position, known.
Errors:   DataError where a file is no saved set; StorageError where it can't be written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from ..applied import Definitions
from ..definitions import Definition, definitions_to_list
from ..errors import DataError, StorageError
from ..files import Files
from ..schema import FeatureView, WindowView
from .joining import Request

KEY: Final = b"fastfeat.training"


@dataclass(frozen=True)
class Origin:
    """What a saved set is of.

    features: the columns that were joined to the labels. known, event_time: as get_historical_features took them.
    definitions: that the features were made by, as plain values; definitions_sha256: of their canonical JSON.
    version: of the store's definitions; position: rows with a smaller sequence were in the store, and no others count.
    Both are None of a store in memory. taken_us: when it was made.
    """

    features: tuple[str, ...]
    known: str
    event_time: str
    definitions: list[dict[str, Any]]
    definitions_sha256: str
    version: int | None
    position: int | None
    taken_us: int
    rows: int = 0


def origin_of(
    request: Request, known: str, event_time: str, version: int | None, position: int | None, taken_us: int
) -> Origin:
    definitions = definitions_to_list(definitions_used(request))
    return Origin(
        tuple(map(str, request.features)),
        known,
        event_time,
        definitions,
        hashlib.sha256(canonical(definitions)).hexdigest(),
        version,
        position,
        taken_us,
    )


def definitions_used(request: Request) -> list[Definition]:
    """Those that the features were made by, whole: entities, views, windows, on-demand views."""
    applied: Definitions = request.definitions
    names = {feature.view for feature in request.stored}
    stored = {join.view.name for join in request.joins}
    views = [view for name, view in applied.views.items() if name in stored]
    windows = [window for name, window in applied.windows.items() if name in names]
    return [*entities_of(views), *views, *windows, *request.functions]


def entities_of(views: Sequence[FeatureView | WindowView]) -> list[Definition]:
    return list({view.entity.name: view.entity for view in views}.values())


def canonical(value: Any) -> bytes:
    """One text for equal plain values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def save(reader: Any, path: Path, origin: Origin) -> Origin:
    """Write the set; the origin as the file has it. Raises StorageError, and what reading the set raises."""
    # Why a name of its own: two that save to one path at once must not write into one file.
    partial, files, rows = path.with_name(f".{path.name}.{uuid4().hex}.partial"), Files(), 0
    try:
        with partial.open("wb") as file:
            with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
                for batch in reader:
                    writer.write_batch(batch)
                    rows += batch.num_rows
                origin = replace(origin, rows=rows)
                writer.add_key_value_metadata({KEY.decode(): json.dumps(asdict(origin))})
            file.flush()
            files.sync(file.fileno())
        files.rename(str(partial), str(path))
        files.sync_directory(str(path.parent))
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error}; look at the disk, or give another place") from error
    finally:
        partial.unlink(missing_ok=True)
    return origin


def read_origin(path: Path | str) -> Origin:
    """What a saved set is of. Raises DataError: the file is none."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        said = json.loads(metadata[KEY])
        return Origin(**{**said, "features": tuple(said["features"])})
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no saved training set: {error!r}; make one by create_saved_dataset") from None
