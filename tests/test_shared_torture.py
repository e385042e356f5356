"""One writer, three readers of its memory, and a torturer who kills, stops and forks them while they check every row.

    torturer --SIGKILL, SIGSTOP, SIGCONT, SIGUSR1--> readers (tests/shared_reader.py): torn? backward? lost?
             --SIGKILL, restart--------------------> writer (tests/shared_writer.py): a new generation, none lost

What must hold: no fault in any row; a dead reader's pin is gone within a second; readers answer all the time, also
while the writer is dead; what readers held is used again, whatever happened to them.
"""

from __future__ import annotations

import json
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pytest

from fastfeat.attached import AttachedStore

from .shared_reader import Reader
from .shared_writer import VIEWS, Ledger
from .test_shared import state_of
from .versioned_rows import LATEST, numbers_of

ROOT = Path(__file__).resolve().parent.parent
READERS = 3
SECONDS = 60.0  # after which a test fails rather than hangs
STOP_SECONDS = 3.0  # longer than a reader may hold memory
PIN_SECONDS = 1.0  # that a dead reader may
CATCH_SECONDS = 3.0  # in which a reader is stopped and let go again until it is inside a read
LEVEL_SLACK = 8 << 20  # bytes, of 34 MB that the writer replaces meanwhile: a snapshot of its own holds some, too


class Program:
    """A process that says JSON lines, all of which come to one queue."""

    def __init__(self, heard: queue.Queue[tuple[Program, dict[str, Any]]], module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"tests.{module}", *arguments]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT)
        self.said: dict[str, Any] = {}
        self.is_ended = False  # by us
        self._listener = threading.Thread(target=self._listen, args=(heard,), daemon=True)
        self._listener.start()

    def _listen(self, heard: queue.Queue[tuple[Program, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard.put((self, json.loads(line)))

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.is_ended = True
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self._listener.join(SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@dataclass
class Counts:
    """What happened.

    gap:  the longest between two answers of a reader that was not stopped, in seconds; gap_while_dead: the longest
          between the death of a writer and the moment when all readers have moved to the next one's arena.
    used: bytes of the arena after the last reader's end, and after its rows were replaced a hundred times more.
    """

    rows: int = 0
    kills: int = 0
    killed_inside: int = 0
    stops: int = 0
    stopped_inside: int = 0
    expelled: int = 0
    forks: int = 0
    writer_deaths: int = 0
    pin_seconds: float = 0.0
    recovery_seconds: float = 0.0
    gap_while_dead: float = 0.0
    gap: float = 0.0
    used: list[int] = field(default_factory=list)
    torn: int = 0
    backward: int = 0
    lost: int = 0
    faults: list[str] = field(default_factory=list)


class SharedTorture:
    """The processes, and what is done to them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.shared = f"/dev/shm/fastfeat-torture-{directory.name}-{seed}-{random.SystemRandom().randrange(10**9)}"
        Ledger(str(directory / "ledger"), is_new=True)
        self.heard: queue.Queue[tuple[Program, dict[str, Any]]] = queue.Queue()
        self.programs: list[Program] = []
        self.readers: list[Program] = []
        self.counts = Counts()
        self.caught: set[Program] = set()  # stopped inside a read
        self.rows: dict[int, int] = {}  # by process
        self.bad: dict[int, dict[str, int]] = {}
        self.gaps: list[tuple[int, float, float]] = []  # process, from, to
        self.stops: list[tuple[int, float, float]] = []
        self.outages: list[tuple[float, float]] = []

    def start(self) -> None:
        self.writer = self.start_writer()
        self.watch = AttachedStore(self.shared)
        self.readers = [self.start_reader() for _ in range(READERS)]
        self.listen(lambda: all(reader.said for reader in self.readers))

    def start_program(self, *arguments: str) -> Program:
        program = Program(self.heard, *arguments, str(self.random.randrange(1 << 30)))
        self.programs.append(program)
        return program

    def start_writer(self) -> Program:
        store, ledger = str(self.directory / "store"), str(self.directory / "ledger")
        writer = self.start_program("shared_writer", store, self.shared, ledger)
        self.listen(lambda: "ready" in writer.said)
        self.counts.lost += writer.said["lost"]
        return writer

    def start_reader(self) -> Program:
        return self.start_program("shared_reader", self.shared, str(self.directory / "ledger"))

    # --- hearing

    def listen(self, condition: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Hear what is said until the condition holds. A process that ended by itself, or a fault, ends the torture."""
        deadline = time.monotonic() + seconds
        while not condition():
            try:
                self.hear(*self.heard.get(timeout=0.02))
            except queue.Empty:
                for program in self.programs:
                    code = program.process.poll()
                    assert program.is_ended or code is None, f"a process ended by itself, with {code}"
            assert time.monotonic() < deadline, "what was waited for did not come"
            assert not self.counts.faults, self.counts.faults

    def rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.listen(lambda: time.monotonic() >= until)

    def hear(self, program: Program, words: dict[str, Any]) -> None:
        if "reads" not in words:
            program.said.update(words)
            return
        pid = words["pid"]
        self.rows[pid] = words["reads"]
        self.bad[pid] = {kind: words[kind] for kind in ("torn", "backward", "lost")}
        self.counts.faults += words["faults"]
        gap, ended = words["gap"]
        self.gaps.append((pid, ended - gap, ended))
        if words["is_child"]:
            self.counts.forks += words["is_over"]
        else:
            program.said = words

    @property
    def reads(self) -> int:
        return sum(self.rows.values())

    def pinned(self) -> dict[int, int | None]:
        self.watch.follow()
        return self.watch._open_arena().pinned

    # --- torturing

    def round(self) -> None:
        """One reader stopped for long; meanwhile another killed and replaced, and one that forks."""
        self.random.shuffle(self.readers)
        stopped, killed, forking = self.readers
        stopped_at = self.catch(stopped)
        self.kill(killed)
        self.fork(forking)
        self.rest(max(0.0, stopped_at + STOP_SECONDS - time.monotonic()))
        self.go_on(stopped, stopped_at)

    def catch(self, reader: Program) -> float:
        """Stop it inside a read, where that comes to be; when."""
        deadline = time.monotonic() + CATCH_SECONDS
        while True:
            stopped_at = time.monotonic()
            reader.signal(signal.SIGSTOP)
            self.listen(lambda: state_of(reader.process.pid) == "T")
            pinned = self.pinned()
            if any(slot in pinned for slot in reader.said["slots"]):
                self.caught.add(reader)
                return stopped_at
            if stopped_at > deadline:
                return stopped_at
            reader.signal(signal.SIGCONT)
            self.stops.append((reader.process.pid, stopped_at, time.monotonic()))
            time.sleep(self.random.uniform(2e-3, 20e-3))

    def go_on(self, reader: Program, stopped_at: float) -> None:
        pinned = self.pinned()
        self.counts.stops += 1
        self.counts.stopped_inside += reader in self.caught
        self.caught.discard(reader)
        self.counts.expelled += any(pinned.get(slot, 0) is None for slot in reader.said["slots"])
        reader.said = {}
        reader.signal(signal.SIGCONT)
        self.stops.append((reader.process.pid, stopped_at, time.monotonic()))
        self.listen(lambda: bool(reader.said))

    def kill(self, reader: Program) -> None:
        """Its pin may not stay, as the writer goes on writing; then there is another reader."""
        if self.counts.kills % 2 == 0:
            self.catch(reader)
        reader.kill()
        killed_at = time.monotonic()
        slots = reader.said["slots"]
        stuck = {slot: pin for slot, pin in self.pinned().items() if slot in slots and pin is not None}
        self.counts.killed_inside += bool(stuck)
        while stuck:
            now = self.pinned()
            stuck = {slot: pin for slot, pin in stuck.items() if now.get(slot) == pin}
            seconds = time.monotonic() - killed_at
            assert not stuck or seconds < PIN_SECONDS, f"a dead reader's pin is there after {seconds:.2f} s"
            self.counts.pin_seconds = max(self.counts.pin_seconds, seconds)
            time.sleep(0.005)
        self.counts.kills += 1
        self.readers.remove(reader)
        self.readers.append(self.start_reader())
        self.listen(lambda: bool(self.readers[-1].said))

    def fork(self, reader: Program) -> None:
        forks = self.counts.forks
        reader.signal(signal.SIGUSR1)
        self.listen(lambda: self.counts.forks > forks)

    def kill_writer(self) -> None:
        """Readers answer on, from what it left, and then move to the next one's arena."""
        began = time.monotonic()
        self.writer.kill()
        self.writer = self.start_writer()
        self.counts.recovery_seconds = max(self.counts.recovery_seconds, time.monotonic() - began)
        generation = self.writer.said["ready"]
        self.listen(lambda: all(reader.said["generation"] == generation for reader in self.readers))
        self.outages.append((began, time.monotonic()))
        self.counts.writer_deaths += 1

    def finish(self) -> None:
        """What the last readers held, also those that died or stopped, is used again, and nothing waits for them."""
        self.writer.tell("steady")
        self.round()
        for reader in self.readers:
            reader.is_ended = True
            reader.signal(signal.SIGTERM)
        self.listen(lambda: all(reader.said["is_over"] for reader in self.readers))
        for reader in self.readers:
            assert reader.process.wait(SECONDS) == 0
        self.writer.is_ended = True
        self.writer.tell("stop")
        self.listen(lambda: "levels" in self.writer.said)
        assert self.writer.process.wait(SECONDS) == 0
        before, after = self.counts.used = self.writer.said["levels"]
        assert self.writer.said["is_quiet"], "replaced rows wait for readers that are gone"
        assert after <= before + LEVEL_SLACK, "what readers held is not used again"

    def run(self, seconds: float, reads_min: int, seconds_max: float) -> Counts:
        """Rounds for `seconds`, and longer where fewer rows were read."""
        began = time.monotonic()
        self.start()
        self.rest(0.5)
        while True:
            self.kill_writer()
            passed = time.monotonic() - began
            if (passed >= seconds and self.reads >= reads_min) or passed > seconds_max:
                break
            self.round()
            self.rest(self.random.uniform(0, 0.5))
        self.finish()
        return self.counted()

    def counted(self) -> Counts:
        counts = self.counts
        counts.rows = self.reads
        for kind in ("torn", "backward", "lost"):
            setattr(counts, kind, getattr(counts, kind) + sum(bad[kind] for bad in self.bad.values()))
        for pid, began, ended in self.gaps:
            if any(other == pid and began < to and ended > since for other, since, to in self.stops):
                continue
            if any(began < to and ended > since for since, to in self.outages):
                counts.gap_while_dead = max(counts.gap_while_dead, ended - began)
            else:
                counts.gap = max(counts.gap, ended - began)
        return counts

    def close(self) -> None:
        for program in self.programs:
            program.close()
        if hasattr(self, "watch"):
            self.watch.close()
        shutil.rmtree(self.shared, ignore_errors=True)


@contextmanager
def torture(directory: Path, seed: int) -> Iterator[SharedTorture]:
    torture = SharedTorture(directory, seed)
    try:
        yield torture
    finally:
        torture.close()


def stop_readers_inside(seconds: float) -> None:
    """All of them again and again, for so long that their memory is used anew: what seeded bugs do not survive."""
    with TemporaryDirectory() as directory, torture(Path(directory), seed=4) as shared:
        shared.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            stopped = [(reader, shared.catch(reader)) for reader in shared.readers]
            shared.rest(STOP_SECONDS)
            for reader, at in stopped:
                shared.go_on(reader, at)
            shared.rest(0.2)
        print(shared.counted())


def check_counts(counts: Counts) -> None:
    print(f"\n{counts}")
    assert (counts.torn, counts.backward, counts.lost, counts.faults) == (0, 0, 0, [])
    assert min(counts.kills, counts.stops, counts.forks, counts.writer_deaths) >= 1


@pytest.mark.torture
def test_readers_are_right_whatever_happens_to_them_and_to_the_writer(tmp_path: Path) -> None:
    with torture(tmp_path, seed=1) as shared:
        counts = shared.run(seconds=0.0, reads_min=10_000, seconds_max=20.0)
    check_counts(counts)


@pytest.mark.torture
def test_ten_million_rows_are_right(tmp_path: Path) -> None:
    with torture(tmp_path, seed=2) as shared:
        counts = shared.run(seconds=45.0, reads_min=10_000_000, seconds_max=240.0)
    check_counts(counts)
    assert counts.rows >= 10_000_000
    assert counts.expelled
    assert counts.killed_inside


@pytest.mark.long
def test_a_hundred_million_rows_are_right(tmp_path: Path) -> None:
    with torture(tmp_path, seed=3) as shared:
        counts = shared.run(seconds=300.0, reads_min=100_000_000, seconds_max=2400.0)
    check_counts(counts)
    assert counts.rows >= 100_000_000


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([8.0, 0], ""),
        ([9.0, 0], ""),
        ([8.0, 1], "torn"),
        ([7.0, 0], "backward"),
        ([5.0, 0], "lost"),
        ([np.nan, 0], "lost"),
    ],
)
def test_what_the_readers_look_for_would_be_seen(tmp_path: Path, row: list[float], kind: str) -> None:
    """The checker's control: a reader that has seen version 8 of a key, of which version 6 was said to be there."""
    version, error = row
    reader = Reader(cast(Any, None), Ledger(str(tmp_path / "ledger"), is_new=True), seed=1)
    key, matrix = np.array([5]), numbers_of([5], [version])
    matrix[0, 7] += error
    reader.check(VIEWS.index(LATEST), key, matrix, floor=np.array([8.0]), said=np.array([6]))
    assert [name for name, count in reader.counts.items() if count] == ([kind] if kind else [])
    assert len(reader.faults) == bool(kind)
    assert reader.seen[VIEWS.index(LATEST), 5] == max(8, np.nan_to_num(version))
