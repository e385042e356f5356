"""Ordering: rows side by side, entity by entity, as a plain sort puts them, whatever the partitions and parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeat._core.arena import Arena
from fastfeat._core.ordering import Ordering, scatter
from fastfeat._core.request import keys_batch
from fastfeat._core.table import Clock, Table
from fastfeat.dtypes import DType
from fastfeat.errors import DataError

SEED = bytes(range(16))
INT_KEYS = st.sampled_from([0, 1, -1, 7, 2**63 - 1])
PAIRS = st.tuples(st.sampled_from(["", "a", "ab"]), st.sampled_from([0, 1]))
TIMES = st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1, 2**40, -(2**40)])


def encoded(keys: list[Any]) -> Any:
    if keys and isinstance(keys[0], tuple):
        columns = [pa.array([key[0] for key in keys], pa.string()), pa.array([key[1] for key in keys], pa.int64())]
        return keys_batch(("city", "zone"), ("string", "int64"), pa.record_batch(columns, names=["city", "zone"]))
    return keys_batch(("id",), ("int64",), pa.record_batch([pa.array(keys, pa.int64())], names=["id"]))


@given(
    rows=st.lists(st.tuples(INT_KEYS, TIMES, TIMES), max_size=60)
    | st.lists(st.tuples(PAIRS, TIMES, TIMES), max_size=60),
    bits=st.integers(0, 3),
    parts=st.integers(1, 3),
    has_sequences=st.booleans(),
    data=st.data(),
)
def test_each_entity_is_whole_and_in_order(
    rows: list[Any], bits: int, parts: int, has_sequences: bool, data: st.DataObject
) -> None:
    keys = [key for key, _, _ in rows]
    events, created = (np.array([row[i] for row in rows], np.int64) for i in (1, 2))
    sequences = np.array(data.draw(st.permutations(range(len(rows)))), np.uint64) if has_sequences else None
    ordering = Ordering(encoded(keys), events, created, sequences, SEED, bits, parts)
    for part in range(parts):
        ordering.count(part)
    ordering.settle()
    for part in reversed(range(parts)):
        ordering.place(part)
    places = np.arange(len(rows)) if sequences is None else sequences.astype(np.int64)
    found: dict[Any, list[int]] = {}
    for p in range(1 << bits):
        chosen, begins, stamps = ordering.entities_of(p)
        assert stamps.tolist() == [events[chosen].tolist(), created[chosen].tolist(), places[chosen].tolist()]
        for start, stop in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
            assert len({keys[row] for row in chosen[start:stop]}) == 1
            assert keys[chosen[start]] not in found
            found[keys[chosen[start]]] = chosen[start:stop].tolist()
    wanted: dict[Any, list[int]] = {}
    for row in sorted(range(len(rows)), key=lambda row: (events[row], created[row], places[row])):
        wanted.setdefault(keys[row], []).append(row)
    assert found == wanted


@pytest.mark.parametrize("spread", ["even", "steep", "few", "sorted"])
def test_many_rows_of_one_entity_are_sorted(spread: str) -> None:
    """Times that the first pass spreads well, badly, not at all, and times that need none."""
    rng = np.random.default_rng(3)
    times = {
        "even": rng.integers(0, 10**15, 20_000),
        "steep": np.exp(rng.uniform(0, 43, 20_000)).astype(np.int64),
        "few": rng.integers(0, 3, 20_000),
        "sorted": np.arange(20_000),
    }[spread]
    created = rng.integers(0, 3, len(times))
    ordering = Ordering(encoded([5] * len(times)), times, created, None, SEED, 0)
    ordering.count(0)
    ordering.settle()
    ordering.place(0)
    chosen, begins, _ = ordering.entities_of(0)
    assert begins.tolist() == [0, len(times)]
    assert chosen.tolist() == np.lexsort((np.arange(len(times)), created, times)).tolist()


@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<f8"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_scatter_puts_values_where_they_belong(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(0, 100, (7, *shape)).astype(dtype)
    rows = rng.permutation(10)[:7].astype(np.uint32)
    to = np.zeros((10, *shape), dtype)
    wanted = to.copy()
    wanted[rows] = values
    scatter(values, rows, to)
    assert to.tolist() == wanted.tolist()


def test_scatter_refuses_arrays_that_do_not_fit() -> None:
    rows = np.zeros(2, np.uint32)
    for values, to in ((np.zeros(3), np.zeros(3)), (np.zeros(2), np.zeros(3, "f4")), (np.zeros(4)[::2], np.zeros(3))):
        with pytest.raises(ValueError, match="can't be scattered"):
            scatter(values, rows, to)


def a_table() -> Table:
    return Table(Arena(4 << 20), Clock(), "v", ["id"], ["int64"], [("x", DType("int64"), True)], None, None, None)


def test_ordered_rows_are_refused_where_they_do_not_fit_the_table() -> None:
    fields = pa.record_batch([pa.array([1, 2, 3])], names=["x"])
    stamps = np.zeros((3, 3), np.int64)
    table = a_table()
    for keys, begins in (([5], [0, 2]), ([5, 6], [0, 3]), ([5, 6], [0, 0, 3]), ([5], [1, 3])):
        with pytest.raises(DataError):
            table.append_ordered(encoded(keys), fields, stamps, np.array(begins))
    with pytest.raises(DataError):
        table.append_ordered(encoded([("a", 1)]), fields, stamps, np.array([0, 3]))
    with pytest.raises(DataError):
        table.append_ordered(encoded([5]), fields, stamps[:, :2].copy(), np.array([0, 3]))
    assert table.rows == 0


def test_a_cleared_table_is_empty_and_takes_rows_again() -> None:
    table = a_table()
    fields = pa.record_batch([pa.array([1, 2, 3])], names=["x"])
    stamps = np.arange(9, dtype=np.int64).reshape(3, 3)
    used = table.arena.used
    for _ in range(3):
        table.append_ordered(encoded([5, 6]), fields, stamps, np.array([0, 2, 3]))
        assert (table.rows, table.entities) == (3, 2)
        table.clear()
        assert (table.rows, table.entities, table.arena.used) == (0, 0, used)
