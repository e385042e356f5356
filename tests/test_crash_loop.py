"""The real server killed over and over: what it acknowledged is there, whole and right, after every restart.

    writers --push, load, delete--> server --SIGKILL--> restart --> acknowledged: there    in doubt: whole or absent

A row's values are told by its key and version, so a wrong one shows itself. Each writer has keys of its own and event
times that only grow: reading at a batch's time says which rows of it are there.
A kill leaves the page cache whole; disks that forget are the work of test_crash_images.py.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fastfeat import Client, Status, connect
from fastfeat.errors import TransportError

from .crash_server import CHECKS, Failpoint, Order

ROOT = Path(__file__).resolve().parent.parent
START_US = 1_700_000_000_000_000  # event times count from here, and so does the server's clock, a day later
CLOCK_US = START_US + 86_400_000_000
KEYS = 16  # of one writer
NUMBERS = ["version", *(f"check{i}" for i in range(CHECKS))]
SECONDS = 30.0  # after which a test fails rather than hangs
LIFE_SECONDS = 0.15  # about; of a server between its start and its death
PAUSE_SECONDS = 2e-3  # between two writes of a writer: more of them show nothing more

# What a failpoint stands in front of: a name, an operation, paths.
POINTS: dict[str, tuple[str, str]] = {
    "log write": ("write", r"/log/\d+\.seg$"),
    "log sync": ("sync", r"/log/\d+\.seg$"),
    "segment create": ("open", r"/log/\d+\.seg\.tmp$"),
    "segment allocate": ("allocate", r"/log/"),
    "segment name": ("rename", r"/log/\d+\.seg$"),
    "segment directory": ("sync_directory", r"/log$"),
    "segment drop": ("remove", r"/log/\d+\.seg$"),
    "snapshot part": ("write", r"/snapshots/.*\.arrow"),
    "snapshot part name": ("rename", r"/snapshots/.*\.arrow$"),
    "manifest write": ("write", r"/snapshots/.*manifest"),
    "manifest name": ("rename", r"/snapshots/.*manifest"),
    "manifest directory": ("sync_directory", r"/snapshots/"),
    "snapshot drop": ("remove", r"/snapshots/"),
    "history file": ("write", r"/history/.*\.parquet"),
    "history file name": ("rename", r"/history/.*\.parquet$"),
    "catalog write": ("write", r"/history/.*catalog"),
    "catalog name": ("rename", r"/history/.*catalog"),
    "history drop": ("remove", r"/history/"),
}


def checks_of(keys: Any, versions: Any) -> Any:
    """The matrix [n, 1 + CHECKS] of NUMBERS for rows of these keys and versions."""
    keys, versions = np.asarray(keys, np.float64)[:, np.newaxis], np.asarray(versions, np.float64)[:, np.newaxis]
    return np.hstack([versions, keys * 1_000_003 + versions * 17 + np.arange(CHECKS)])


def text_of(key: int, version: int) -> str:
    return f"{key}:{version}" * (version % 3)


def rows_of(keys: list[int], version: int) -> pa.Table:
    """One row per key, all at the version's time."""
    numbers = checks_of(keys, [version] * len(keys))
    columns: dict[str, Any] = {
        "user_id": pa.array(keys, pa.int64()),
        "event_timestamp": pa.array([START_US + version] * len(keys), pa.timestamp("us", "UTC")),
        "version": pa.array([version] * len(keys), pa.int64()),
        "text": pa.array([text_of(key, version) for key in keys]),
    }
    return pa.table(columns | {f"check{i}": pa.array(numbers[:, 1 + i]) for i in range(CHECKS)})


# --- the server, life after life


class Zygote:
    """The process that has everything imported and becomes a server as often as it is told to."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.crash_server"]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT)
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._life: Life | None = None
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(json.loads(line))

    def begin(self, order: Order) -> Life:
        assert self._process.stdin is not None
        self._process.stdin.write(order.line())
        self._process.stdin.flush()
        self._life = Life(self._said)
        return self._life

    def end_life(self) -> None:
        """Kill the server of a test that failed; the next test needs the zygote."""
        if self._life is not None:
            self._life.kill()
            with suppress(AssertionError):  # what it says was said already
                self._life.until_ended(SECONDS)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._reader.join(SECONDS)
        self._process.stdout.close()
        assert self._process.wait(SECONDS) == 0


class Life:
    """One server process, from its fork to its end."""

    def __init__(self, said: queue.Queue[dict[str, Any]]) -> None:
        self._said = said
        self.status: int | None = None
        self.is_ready = False
        self.pid = 0
        self._wait(lambda: self.pid > 0, SECONDS)

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Hear what is said until the condition holds, the server has ended, or the time is up."""
        deadline = time.monotonic() + seconds
        while not condition() and self.status is None:
            try:
                word = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            assert "failed" not in word, word["failed"]
            self.is_ready |= "ready" in word
            self.pid = word.get("pid", self.pid)
            self.status = word.get("ended", self.status)

    def until_ready(self, seconds: float = SECONDS) -> bool:
        """True once the server takes connections, False where it died before or the time is up."""
        self._wait(lambda: self.is_ready, seconds)
        return self.is_ready

    def until_ended(self, seconds: float) -> bool:
        self._wait(lambda: False, seconds)
        return self.status is not None

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


# --- writers, and what they know


class Writer:
    """Writes batches for keys of its own, one at a time, and knows what the server said of each.

    rows:     batch number -> the keys whose row of it lives; of what was acknowledged, or seen after a restart.
    doubtful: what was asked and not answered when the server died.
    absent:   batches that were not there after a restart, and so must never be.
    """

    def __init__(self, view: str, first_key: int, seed: int) -> None:
        self.view = view
        self.random = random.Random(seed)
        self.keys = list(range(first_key, first_key + KEYS))
        self.number = 0
        self.rows: dict[int, set[int]] = {}
        self.deleted: set[int] = set()
        self.doubtful: list[Doubt] = []
        self.absent: list[Doubt] = []
        self.created_us = 0

    def run(self, client: Client, is_over: threading.Event) -> None:
        """Write until the server is gone."""
        with suppress(TransportError):
            while not is_over.wait(PAUSE_SECONDS):
                self.step(client)

    def step(self, client: Client) -> None:
        """One write; `doubtful` holds it until the answer."""
        raise NotImplementedError

    def batch(self) -> Doubt:
        """The next batch: some of the keys, so that a key's rows come from many batches."""
        self.number += 1
        doubt = Doubt(self.number, self.random.sample(self.keys, self.random.randint(1, KEYS)))
        self.doubtful.append(doubt)
        return doubt

    def acknowledged(self, created_us: int | None = None) -> None:
        for doubt in self.doubtful:
            self.happened(doubt)
        self.doubtful.clear()
        if created_us is not None:
            assert created_us > self.created_us, "a created time went back"
            self.created_us = created_us

    def happened(self, doubt: Doubt) -> None:
        if doubt.is_delete:
            self.deleted |= set(doubt.keys)
            for keys in self.rows.values():
                keys -= set(doubt.keys)
        else:
            self.deleted -= set(doubt.keys)
            self.rows[doubt.number] = set(doubt.keys)

    # --- after a restart

    def check(self, client: Client, sample: int) -> None:
        """Settle what was in doubt; then read now, at the last batches and at `sample` others."""
        self.settle(client)
        self.check_now(client)
        numbers = sorted(self.rows)
        for number in {*numbers[-sample:], *self.random.sample(numbers, min(sample, len(numbers)))}:
            self.check_batch(client, number)
        for doubt in self.random.sample(self.absent, min(sample, len(self.absent))):
            assert not self.seen(client, doubt), f"{doubt} came back"

    def settle(self, client: Client) -> None:
        """What was in doubt is there as a whole or not at all, and nothing behind what is not there."""
        is_there = True
        for doubt in self.doubtful:
            seen = self.seen(client, doubt)
            assert seen in (set(), set(doubt.keys)), f"{self.view}: {len(seen)} of the {len(doubt.keys)} of {doubt}"
            assert is_there or not seen, f"{self.view}: {doubt} is there, and what was written before it is not"
            is_there = bool(seen)
            if is_there:
                self.happened(doubt)
            elif not doubt.is_delete:
                self.absent.append(doubt)
        self.doubtful.clear()

    def seen(self, client: Client, doubt: Doubt) -> set[int]:
        """The keys for which the write has happened."""
        if doubt.is_delete:
            asked = {"user_id": np.array(doubt.keys)}
            statuses = client.get_online_features([f"{self.view}:version"], asked).statuses[self.view]
            return {key for key, status in zip(doubt.keys, statuses, strict=True) if status == Status.DELETED}
        versions = self.read(client, doubt.keys, START_US + doubt.number)
        return {key for key, version in zip(doubt.keys, versions, strict=True) if version == doubt.number}

    def read(self, client: Client, keys: list[int], as_of: int | None) -> list[float]:
        """The versions that the server gives, NaN for none; every value with them is held to its version."""
        asked = {"user_id": np.array(keys, np.int64)}
        matrix = client.get_feature_vectors([f"{self.view}:{name}" for name in NUMBERS], asked, as_of=as_of)
        np.testing.assert_array_equal(matrix, checks_of(keys, matrix[:, 0]))
        return [float(version) for version in matrix[:, 0]]

    def check_now(self, client: Client) -> None:
        features = [f"{self.view}:{name}" for name in ("version", "text")]
        result = client.get_online_features(features, {"user_id": np.array(self.keys)})
        columns, statuses = result.to_dict(), result.statuses[self.view].tolist()
        for i, key in enumerate(self.keys):
            version = max((number for number, keys in self.rows.items() if key in keys), default=None)
            assert columns[features[0]][i] == version, (self.view, key)
            assert columns[features[1]][i] == (None if version is None else text_of(key, version))
            expected = (
                Status.DELETED if key in self.deleted else Status.NOT_FOUND if version is None else Status.PRESENT
            )
            assert statuses[i] == expected, (self.view, key)

    def check_batch(self, client: Client, number: int) -> None:
        versions = self.read(client, self.keys, START_US + number)
        seen = {key for key, version in zip(self.keys, versions, strict=True) if version == number}
        assert seen == self.rows[number], f"{self.view}: of batch {number} {seen} lives, not {self.rows[number]}"


@dataclass(frozen=True)
class Doubt:
    """A write of some keys: a batch by its number, or a delete."""

    number: int
    keys: list[int]
    is_delete: bool = False


class SingleWriter(Writer):
    """One row at a time."""

    def batch(self) -> Doubt:
        self.number += 1
        self.doubtful.append(Doubt(self.number, [self.random.choice(self.keys)]))
        return self.doubtful[-1]

    def step(self, client: Client) -> None:
        doubt = self.batch()
        self.acknowledged(client.push(self.view, rows_of(doubt.keys, doubt.number).to_pylist()))


class BatchWriter(Writer):
    """Whole batches, as dicts and as Arrow."""

    def step(self, client: Client) -> None:
        doubt = self.batch()
        rows = rows_of(doubt.keys, doubt.number)
        self.acknowledged(client.push(self.view, rows if doubt.number % 2 else rows.to_pylist()))


class LoadWriter(Writer):
    """Loads of several batches, acknowledged together."""

    def step(self, client: Client) -> None:
        doubts = [self.batch() for _ in range(self.random.randint(1, 6))]
        report = client.load(self.view, pa.concat_tables(rows_of(doubt.keys, doubt.number) for doubt in doubts))
        assert report.accepted == sum(len(doubt.keys) for doubt in doubts)
        self.acknowledged()


class DeletingWriter(Writer):
    """Batches, and now and then some keys deleted."""

    def step(self, client: Client) -> None:
        if self.random.random() < 0.7:
            doubt = self.batch()
            self.acknowledged(client.push(self.view, rows_of(doubt.keys, doubt.number)))
            return
        living = sorted(set().union(*self.rows.values()) - self.deleted)
        keys = self.random.sample(living, min(len(living), self.random.randint(1, 8)))
        if keys:
            self.doubtful.append(Doubt(0, keys, is_delete=True))
            self.acknowledged(client.delete(self.view, [{"user_id": key} for key in keys]))


# --- the loop


class Loop:
    """One directory, killed over and over."""

    def __init__(self, zygote: Zygote, directory: Path, seed: int) -> None:
        self.zygote = zygote
        self.directory = directory
        self.socket = str(directory.with_suffix(".socket"))
        self.url = f"fastfeat+unix://{self.socket}"
        self.random = random.Random(seed)
        self.clock_us = CLOCK_US
        self.kills = 0
        kinds = [
            (SingleWriter, "all"),
            (SingleWriter, "latest"),
            (BatchWriter, "short"),
            (BatchWriter, "all"),
            (LoadWriter, "all"),
            (LoadWriter, "latest"),
            (DeletingWriter, "all"),
            (DeletingWriter, "latest"),
        ]
        self.writers = [kind(view, 1_000 * i, seed * 100 + i) for i, (kind, view) in enumerate(kinds)]

    def begin(self, failpoint: Failpoint | None = None) -> Life:
        """A new life; its clock begins a second before that of the last, as after a bad step of the machine's clock."""
        self.clock_us -= 1_000_000
        seed = self.random.randrange(1 << 30)
        return self.zygote.begin(Order(str(self.directory), self.socket, self.clock_us, seed, failpoint))

    def ended(self, life: Life) -> None:
        """Wait for the server's end; that it was killed, or stopped in order."""
        assert life.until_ended(SECONDS), "the server did not end"
        assert life.status in (0, -signal.SIGKILL), f"the server ended with {life.status}"
        self.kills += life.status == -signal.SIGKILL

    def live(self) -> None:
        """One life: start, check, write, end by a signal."""
        self._live(self.begin(), self.random.uniform(0, 2 * LIFE_SECONDS))

    def die_at(self, failpoint: Failpoint, seconds: float = SECONDS) -> bool:
        """One life; True where the failpoint ended it within `seconds`, a signal otherwise."""
        return self._live(self.begin(failpoint), seconds)

    def _live(self, life: Life, seconds: float) -> bool:
        """Start, check, write; True where it died before it was killed."""
        died = True
        if life.until_ready():
            with suppress(TransportError), connect(self.url, retries=0, spin_us=0) as client:
                for writer in self.writers:
                    writer.check(client, sample=4)
                died = self.write(client, life, seconds)
        self.ended(life)
        return died

    def write(self, client: Client, life: Life, seconds: float) -> bool:
        """Let the writers write until the server is gone; True where no signal of ours ended it."""
        before = max(writer.created_us for writer in self.writers)
        for writer in self.writers:
            writer.created_us = before  # of all writers: what comes after a restart is later than anything before it
        is_over = threading.Event()
        faults: list[BaseException] = []
        threads = [threading.Thread(target=self._write, args=(w, client, is_over, faults)) for w in self.writers]
        for thread in threads:
            thread.start()
        died = life.until_ended(seconds)
        if not died:
            life.kill(signal.SIGTERM if self.random.random() < 0.1 else signal.SIGKILL)
            if not life.until_ended(self.random.uniform(0, 0.05)):
                life.kill()
        is_over.set()
        for thread in threads:
            thread.join(SECONDS)
        assert not faults, faults
        return died

    def _write(self, writer: Writer, client: Client, is_over: threading.Event, faults: list[BaseException]) -> None:
        try:
            writer.run(client, is_over)
        except BaseException as error:
            faults.append(error)

    def die_starting(self, failpoint: Failpoint | None = None) -> None:
        """Be killed while it recovers, or soon after."""
        life = self.begin(failpoint)
        if not life.until_ended(self.random.uniform(0, 0.06)):
            life.kill()
        self.ended(life)

    def check_everything(self) -> None:
        """One more life, in which every batch ever acknowledged is read."""
        life = self.begin()
        assert life.until_ready()
        with connect(self.url) as client:
            for writer in self.writers:
                writer.check(client, sample=10**9)
        life.kill()
        self.ended(life)


@pytest.fixture
def loop(zygote: Zygote, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Loop]:
    seed = request.node.callspec.params.get("seed", 0)
    yield Loop(zygote, tmp_path / "store", seed)
    zygote.end_life()


def kill_at_random(loop: Loop, kills: int) -> None:
    while loop.kills < kills:
        if loop.random.random() < 0.3:
            loop.die_starting()
        loop.live()


@pytest.mark.parametrize("seed", [99])
def test_nothing_acknowledged_is_lost_to_a_few_kills(loop: Loop, seed: int) -> None:
    kill_at_random(loop, kills=6)
    loop.check_everything()


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_to_kills_at_random_times(loop: Loop, seed: int) -> None:
    kill_at_random(loop, kills=36)
    loop.check_everything()


@pytest.mark.torture
@pytest.mark.parametrize("point", POINTS)
def test_nothing_acknowledged_is_lost_to_kills_at(loop: Loop, point: str) -> None:
    """Before, in the middle of and after the call, soon and later; the next start is killed too."""
    operation, pattern = POINTS[point]
    for when in ("before", "half", "after") if operation == "write" else ("before", "after"):
        for number in (1, 3):
            assert loop.die_at(Failpoint(operation, pattern, when, number)), f"it never came to {point}"
        loop.die_starting(Failpoint(".*", "", "before", loop.random.randint(1, 60)))
    loop.check_everything()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 150))
def test_nothing_acknowledged_is_lost_to_ten_thousand_kills(loop: Loop, seed: int) -> None:
    """A fifth of them at failpoints."""
    while loop.kills < 200:
        kill_at_random(loop, loop.kills + 4)
        operation, pattern = POINTS[loop.random.choice(list(POINTS))]
        when, number = loop.random.choice(["before", "after"]), loop.random.randint(1, 30)
        loop.die_at(Failpoint(operation, pattern, when, number), seconds=1.0)
    loop.check_everything()
