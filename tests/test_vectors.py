"""Hashing, searching and copying by vectors: every width that the processor has gives what one by one gives.

A width is chosen when the modules are loaded, so each is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from fastfeat import Entity, FeatureService, FeatureView, Field, Store
from fastfeat._core.cells import copying_bits
from fastfeat._core.index import hashing_bits, searching_bits, siphash13
from fastfeat._core.request import hash_keys

WIDTHS = (128, 256, 512)
COUNTS = (*range(18), 33, 63, 64, 65, 127, 128, 129, 257, 300)  # about each vector and group
FIELDS = (*range(1, 10), 12, 16, 17, 31, 50, 63, 64, 65, 70, 130)  # about each vector, of 1 to 3 null words
ENTITIES = 400
MANY = 20_000
EVENT_US = 1_700_000_000_000_000


@pytest.mark.parametrize("width", WIDTHS)
def test_each_width_answers_alike(width: int) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.test_vectors"],
        env={**os.environ, "FASTFEAT_VECTOR_BITS": str(width)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    if not has_vectors(width):
        pytest.skip(f"this processor has no vectors of {width} bits")
    assert int(run.stdout) == width


def test_a_width_that_there_is_not_is_named() -> None:
    for width in ("", "64", "wide"):
        run = subprocess.run(
            [sys.executable, "-c", "from fastfeat import Store"],
            env={**os.environ, "FASTFEAT_VECTOR_BITS": width},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 1
        assert f"FASTFEAT_VECTOR_BITS is {width!r}; set it to 128, 256 or 512" in run.stderr


def has_vectors(width: int) -> bool:
    """As the system says, so that a choice which is never made is no skip."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return width == 128 or {256: "avx2", 512: "avx512f"}[width] in flags


def check_hashes(random: np.random.Generator) -> None:
    values = random.integers(-(2**63), 2**63, 300, np.int64, endpoint=False)
    values[:4] = 0, -1, 2**63 - 1, -(2**63)
    expected = [siphash13(bytes(16), int(value).to_bytes(8, "little", signed=True)) for value in values]
    for count in COUNTS:
        assert hash_keys(["k"], ["int64"], {"k": values[:count]}).tolist() == expected[:count]


def check_copies(random: np.random.Generator, fields: int) -> None:
    """Of entities with no null, with some, of one that is not there, and of some of the view's columns."""
    names = [f"f{i}" for i in range(fields)]
    user = Entity("user", {"user_id": "int64"})
    view = FeatureView("v", user, [Field(name, "float64", nullable=True) for name in names], keep="latest")
    services = {"all": names, "last": names[-1:], "inner": names[fields // 4 : fields // 2 + 1]}
    values = random.normal(size=(ENTITIES, fields))
    values[random.random(values.shape) < 0.3 / fields] = np.nan
    columns = {name: pa.array(values[:, i], mask=np.isnan(values[:, i])) for i, name in enumerate(names)}
    stamps = pa.array(np.full(ENTITIES, EVENT_US), pa.timestamp("us", "UTC"))
    with Store(1 << 24) as store:
        store.apply(
            [user, view, *(FeatureService(name, [view[field] for field in part]) for name, part in services.items())]
        )
        store.load("v", pa.table({"user_id": np.arange(ENTITIES), "event_timestamp": stamps, **columns}))
        known = np.vstack([values, np.full(fields, np.nan)])  # the entity after the last is not there
        for count in COUNTS:
            keys = random.integers(0, ENTITIES + 1, count)
            check_matrix(store, "all", keys, known[keys])
            check_matrix(store, "last", keys, known[keys, -1:])
            check_matrix(store, "inner", keys, known[keys, fields // 4 : fields // 2 + 1])


def check_matrix(store: Store, service: str, keys: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> None:
    around = np.full((len(keys) + 2, expected.shape[1]), 7.0)  # a line before and one after, which stay as they are
    answered = store.get_feature_vectors(service, {"user_id": keys}, out=around[1:-1])
    assert np.array_equal(answered, expected, equal_nan=True)
    assert (around[0] == 7).all()
    assert (around[-1] == 7).all()


def check_searches(random: np.random.Generator) -> None:
    """Of so many entities that some searches leave their first cache line, and of as many that are not there."""
    with Store(1 << 26) as store:
        view = FeatureView("v", Entity("user", {"user_id": "int64"}), [Field("f", "float64")], keep="latest")
        store.apply([view, FeatureService("s", [view])])
        stamps = pa.array(np.full(MANY, EVENT_US), pa.timestamp("us", "UTC"))
        there = np.arange(MANY)
        store.load("v", pa.table({"user_id": there, "event_timestamp": stamps, "f": there.astype(np.float64)}))
        keys = random.permutation(2 * MANY)
        answered = store.get_feature_vectors("s", {"user_id": keys})[:, 0]
    assert np.array_equal(answered, np.where(keys < MANY, keys, np.nan), equal_nan=True)


def main() -> None:
    random = np.random.default_rng(11)
    check_hashes(random)
    check_searches(random)
    for fields in FIELDS:
        check_copies(random, fields)
    print(min(hashing_bits(), copying_bits(), searching_bits()))


if __name__ == "__main__":
    main()
