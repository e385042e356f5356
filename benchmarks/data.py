"""The data every peer serves: 50 seeded float64 features per entity, made chunk by chunk so that any size fits.

    entity k  ->  row k of normal values      chunk c holds entities [c * 100,000, (c + 1) * 100,000)

The first chunk is the whole of the in-cache size, so the small and the large data agree where they overlap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

VIEW = "profile"
SERVICE = "scoring"  # all features of the view
SEED = 20_130_101
FEATURES = 50
FEATURE_NAMES = tuple(f"f{i:02d}" for i in range(FEATURES))
ROW_SIZE = FEATURES * 8  # bytes: what a hand-packed blob of the row takes
CHUNK = 100_000
EVENT_TIME_US = 1_357_000_000_000_000  # 2013-01-01: any moment that has passed


def chunks(entities: int) -> Iterator[tuple[Integers, Floats]]:
    """Keys and rows of every chunk in order."""
    for start in range(0, entities, CHUNK):
        stop = min(start + CHUNK, entities)
        yield np.arange(start, stop, dtype=np.int64), chunk_values(start // CHUNK)[: stop - start]


def chunk_values(chunk: int) -> Floats:
    return np.random.default_rng([SEED, chunk]).standard_normal((CHUNK, FEATURES))


def rows_of(keys: Integers) -> Floats:
    """The rows that any honest peer must answer for these keys, made anew."""
    rows = np.empty((len(keys), FEATURES))
    for chunk in np.unique(keys // CHUNK):
        here = keys // CHUNK == chunk
        rows[here] = chunk_values(int(chunk))[keys[here] % CHUNK]
    return rows


def record_batch(keys: Integers, values: Floats, event_time_us: int = EVENT_TIME_US) -> pa.RecordBatch:
    """The rows as a columnar snapshot has them: key, event_timestamp, then one contiguous column per value."""
    columns = np.ascontiguousarray(values.T)
    times = pa.array(np.full(len(keys), event_time_us)).cast(pa.timestamp("us", "UTC"))
    return pa.record_batch(
        [pa.array(keys), times, *(pa.array(column) for column in columns)],
        names=["user_id", "event_timestamp", *FEATURE_NAMES[: len(columns)]],
    )


def random_keys(entities: int, shape: tuple[int, ...], stream: int) -> Integers:
    """Present keys, uniform, the same for every peer and every run; `stream` separates the uses."""
    return np.random.default_rng([SEED, 1_000_000 + stream]).integers(0, entities, shape)


def checksum(values: Floats) -> str:
    """Of the exact bits, so that no peer gets fast by changing an answer."""
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=8).hexdigest()


def word_sum(values: Floats) -> str:
    """The sum of all 64-bit words, modulo 2**64: what the load generator prints."""
    return f"{int(np.ascontiguousarray(values).view(np.uint64).sum(dtype=np.uint64)):016x}"


def check_equal(peer: str, expected: Floats, answered: Floats) -> str:
    """The checksum of the answer. Raises AssertionError unless it equals the data bit for bit."""
    if answered.shape != expected.shape or answered.dtype != np.float64 or checksum(answered) != checksum(expected):
        raise AssertionError(
            f"{peer} answers {answered.dtype}{answered.shape} {checksum(answered)},"
            f" the data are float64{expected.shape} {checksum(expected)}"
        )
    return checksum(answered)
