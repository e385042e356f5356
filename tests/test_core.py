"""The native core's parts, each against an independent reference or its own promise."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from fastfeat._core.arena import Arena
from fastfeat._core.index import siphash13
from fastfeat._core.layout import check_sizes
from fastfeat._core.plan import Plan
from fastfeat._core.table import Clock, Table
from fastfeat.dtypes import DType
from fastfeat.errors import ArenaFull, DataError

FLOAT64 = DType.parse("float64")
MIB = 1 << 20
IntArray = npt.NDArray[np.integer[Any]]


def make_table(capacity: int = 64 * MIB, fields: int = 2, keep_rows: int | None = None, key: str = "int64") -> Table:
    columns = [(f"f{i}", FLOAT64, True) for i in range(fields)]
    return Table(Arena(capacity), Clock(lambda: 10**15), "v", ["k"], [key], columns, None, keep_rows, None)


def batch_of(keys: Sequence[int] | IntArray, times: Sequence[int] | IntArray, fields: int = 2) -> pa.RecordBatch:
    stamps = pa.array(times, pa.int64())
    names = ["k", "event_time", "created_time", *(f"f{i}" for i in range(fields))]
    values = [pa.array(np.asarray(keys, np.float64) + i) for i in range(fields)]
    return pa.RecordBatch.from_arrays([pa.array(keys, pa.int64()), stamps, stamps, *values], names)


def plan_of(table: Table, fields: int = 2) -> Plan:
    return Plan(Clock(lambda: 10**15), [(table, f"f{i}") for i in range(fields)])


def test_structs_lie_as_drawn() -> None:
    assert check_sizes()["Slot"] == 16


def test_hash_is_siphash_1_3_as_cpython_computes_it() -> None:
    # CPython hashes bytes with SipHash-1-3 since 3.11; PYTHONHASHSEED=0 makes its key all zeros.
    data = [bytes(range(n)) for n in (1, 3, 7, 8, 9, 15, 16, 31, 100)]
    code = f"import sys; assert sys.hash_info.algorithm == 'siphash13'; print([hash(d) for d in {data!r}])"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    )
    expected = [value % 2**64 for value in map(int, run.stdout.strip("[]\n").split(","))]
    assert [siphash13(bytes(16), d) for d in data] == expected


def test_single_integer_keys_hash_as_their_bytes() -> None:
    # Both forms of the hash must agree, or a composite key could never be found again.
    table = make_table()
    composite = Table(
        Arena(MIB * 4), Clock(), "c", ["a", "b"], ["int64", "string"], [("x", FLOAT64, True)], None, None, None
    )
    composite.append_rows([{"a": -5, "b": "é", "event_timestamp": 1, "x": 2.0}], 1)
    table.append_arrow(batch_of([-5], [1]))
    plan = Plan(Clock(lambda: 10), [(composite, "x")])
    assert plan.vector({"a": -5, "b": "é"}, None, None, None)[0] == 2.0
    assert plan_of(table).vector({"k": -5}, None, None, None)[0] == -5.0


def test_a_million_keys_are_found_and_no_other() -> None:
    table = make_table(512 * MIB)
    keys = np.random.default_rng(1).permutation(1_000_000) * 3
    for start in range(0, len(keys), 65_536):
        part = keys[start : start + 65_536]
        table.append_arrow(batch_of(part, np.ones(len(part), np.int64)))
    plan = plan_of(table)
    assert table.entities == table.rows == 1_000_000
    assert np.array_equal(plan.matrix({"k": keys}, None, None, None)[:, 0], keys)
    assert np.isnan(plan.matrix({"k": keys + 1}, None, None, None)).all()


def test_threads_load_what_one_thread_loads() -> None:
    rng = np.random.default_rng(2)
    keys, times = rng.integers(0, 5_000, 40_000), rng.integers(0, 500, 40_000)
    one, two = make_table(), make_table()
    for start in range(0, 40_000, 10_000):
        batch = batch_of(keys[start : start + 10_000], times[start : start + 10_000])
        one.append_arrow(batch)
        two.append_arrow(batch, threads=2)
    ask = {"k": np.arange(5_000)}
    for as_of in (0, 3, 250, 499, None):
        a, b = (plan_of(table).matrix(ask, as_of, None, None) for table in (one, two))
        assert a.tobytes() == b.tobytes()
    assert one.rows == two.rows == 40_000


def test_memory_of_replaced_rows_comes_back() -> None:
    table = make_table(keep_rows=1)
    used = []
    for round_number in range(60):
        table.append_arrow(batch_of(range(2_000), [round_number] * 2_000))
        used.append(table.arena.used)
    assert used[-1] == used[10]


def fill(table: Table, step: int) -> int:
    """Append new entities until the arena is full: how many it took."""
    stored = 0
    while True:
        try:
            table.append_arrow(batch_of(range(stored, stored + step), [5] * step, fields=20))
        except ArenaFull:
            return stored
        stored += step


def test_a_full_arena_refuses_and_keeps_every_answer() -> None:
    table = make_table(2 * MIB, fields=20)
    stored = fill(table, 500)
    with pytest.raises(ArenaFull, match=r"view 'v': the arena is full, \d+ of 2097152 B"):
        table.append_arrow(batch_of(range(stored, stored + 500), [5] * 500, fields=20))
    assert stored > 2_000
    answers = plan_of(table, 20).matrix({"k": np.arange(stored + 500)}, None, None, None)
    assert np.array_equal(answers[:stored, 0], np.arange(stored))
    assert np.isnan(answers[stored:]).all()
    assert table.rows == table.entities == stored


def test_a_full_arena_can_still_forget_and_then_take_new_rows() -> None:
    table = make_table(2 * MIB, fields=20)
    stored = fill(table, 100)
    table.delete({"k": np.arange(stored)}, 10)
    assert table.rows == 0
    assert table.entities == 0
    table.append_arrow(batch_of(range(1_000), [20] * 1_000, fields=20))
    assert np.array_equal(plan_of(table, 20).matrix({"k": np.arange(1_000)}, None, None, None)[:, 0], np.arange(1_000))


def test_an_entity_with_many_rows_takes_late_ones_in_small_steps() -> None:
    table = make_table(256 * MIB)
    table.append_arrow(batch_of([1] * 100_000, list(range(0, 200_000, 2))))
    before = table.arena.used
    for late in range(1, 2_001, 2):
        table.append_arrow(batch_of([1], [late]))
    assert table.rows == 101_000
    # A late row copies one block and the directory, not the 100,000 rows: what is replaced is reused.
    assert table.arena.used - before < 4 * MIB
    plan = plan_of(table)
    assert plan.columns([{"k": 1}], 1_001, None)[1][0, 0] == 1_001
    assert plan.columns([{"k": 1}], 150_001, None)[1][0, 0] == 150_000


def test_one_plan_serves_many_threads() -> None:
    table = make_table()
    keys = np.arange(10_000)
    table.append_arrow(batch_of(keys, np.ones(10_000, np.int64)))
    plan = plan_of(table)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            ask = rng.integers(0, 10_000, 300)
            if not np.array_equal(plan.matrix({"k": ask}, None, None, None)[:, 0], ask):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty(3), r"out must be a float64 array of shape \(2,\), not float64 of shape \(3,\)"),
        (np.empty(2, np.float32), "not float32"),
        (np.empty(4)[::2], "C-contiguous"),
        ([0.0, 0.0], "not list"),
    ],
)
def test_a_buffer_that_cannot_take_the_answer_is_refused(out: object, message: str) -> None:
    table = make_table()
    with pytest.raises(DataError, match=message):
        plan_of(table).vector({"k": 1}, None, None, out)  # type: ignore[arg-type]


def test_a_batch_of_another_shape_is_refused() -> None:
    table = make_table()
    with pytest.raises(DataError, match="3 columns, not 5"):
        table.append_arrow(batch_of([1], [1], fields=0))
    renamed = batch_of([1], [1]).rename_columns(["k", "event_time", "created_time", "f0", "other"])
    with pytest.raises(DataError, match="column 'other' of Arrow format 'g' where 'f1'"):
        table.append_arrow(renamed)
    assert table.rows == 0


class Computed(dict[str, Any]):
    """A row whose key exists only for as long as somebody holds it."""

    def __getitem__(self, name: str) -> Any:
        return f"entity-{super().__getitem__('number'):020d}"


class Untruthful:
    """A column or vector that says it is shorter than it is."""

    def __init__(self, values: Sequence[Any], says: int) -> None:
        self.values, self.says = values, says

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Any:
        return iter(self.values)


def test_keys_that_a_row_makes_when_asked_are_found() -> None:
    table = make_table(fields=1, key="string")
    keys = [f"entity-{i:020d}" for i in range(500)]
    table.append_rows([{"k": key, "f0": float(i), "event_timestamp": 1} for i, key in enumerate(keys)], 5)
    plan = plan_of(table, 1)
    made = plan.matrix([Computed(number=i) for i in range(500)], None, None, None)
    assert made[:, 0].tolist() == [float(i) for i in range(500)]
    alone = [plan.vector(Computed(number=i), None, None, None)[0] for i in range(500)]
    assert alone == [float(i) for i in range(500)]


def test_numbers_of_another_byte_order_are_read_or_refused() -> None:
    table = make_table()
    table.append_arrow(batch_of([1, 2, 3], [1, 1, 1]), 5)
    plan = plan_of(table)
    expected = [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]
    for kind in (">i8", "<i8", ">u4", "<i2"):
        assert plan.matrix({"k": np.array([1, 2, 3], kind)}, None, None, None).tolist() == expected
    with pytest.raises(DataError, match="float64"):
        plan.matrix({"k": [1, 2, 3]}, None, None, np.empty((3, 2), ">f8"))
    with pytest.raises(DataError, match="float64"):
        plan.vector({"k": 1}, None, None, np.empty(2, ">f8"))
    out = np.empty((3, 2), "<f8")
    assert plan.matrix({"k": [1, 2, 3]}, None, None, out) is out
    assert out.tolist() == expected


def test_a_length_that_is_not_true_writes_nowhere() -> None:
    table = make_table(fields=1)
    plan = plan_of(table, 1)
    assert plan.matrix({"k": Untruthful(range(100_000), 1)}, None, None, None).shape == (100_000, 1)
    assert plan.matrix(Untruthful([{"k": 1}] * 100_000, 1), None, None, None).shape == (100_000, 1)
    assert plan.matrix(Untruthful([], 100_000), None, None, None).shape == (0, 1)


def test_a_list_that_grows_while_it_is_read_is_read_as_it_was() -> None:
    rows: list[dict[str, Any]] = []

    class Growing(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            rows.extend({"k": 1} for _ in range(100_000))
            return 1

    rows.append(Growing())
    assert plan_of(make_table(fields=1), 1).matrix(rows, None, None, None).shape == (1, 1)


def test_a_vector_of_another_length_than_it_says_is_refused() -> None:
    fields = [("v", DType.parse("vector<float64, 4>"), True)]
    table = Table(Arena(MIB), Clock(), "v", ["k"], ["int64"], fields, None, None, None)
    with pytest.raises(DataError, match="100000 elements, not 4"):
        table.append_rows([{"k": 1, "v": Untruthful([1.0] * 100_000, 4), "event_timestamp": 1}], 5)


def test_a_load_whose_threads_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneThread:
        def __init__(self, threads: int) -> None: ...

        def __enter__(self) -> OneThread:
            return self

        def __exit__(self, *exception: object) -> None: ...

        def map(self, work: Any, low: Sequence[int], high: Sequence[int]) -> None:
            work(low[0], high[0])
            raise RuntimeError("can't start new thread")

    table = make_table(capacity=256 * MIB)
    table.append_arrow(batch_of(np.arange(100), np.arange(100)))
    with monkeypatch.context() as patched:
        patched.setattr("fastfeat._core.table.ThreadPoolExecutor", OneThread)
        with pytest.raises(RuntimeError, match="can't start"):
            table.append_arrow(batch_of(np.arange(1000, 21_000), np.arange(20_000)), threads=2)
    table.append_arrow(batch_of([100], [100]))
    assert (table.rows, table.entities) == (101, 101)
    assert np.isnan(plan_of(table).matrix({"k": np.arange(1000, 21_000)}, None, None, None)).all()
