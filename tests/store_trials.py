"""What a durable store promises, as trials that any store on any disk can be put through; seeded bugs must fail them.

    script (seeded: apply, push, load, delete, snapshot, flush, compact, open again) --> Store on a FaultyFiles
    a moment of it --power loss, perhaps another one while it recovers--> Store.open --> the oracle after some prefix

Expected is what may be found after a crash: the oracle after a prefix of the writes that holds all those acknowledged,
each write (a push, one batch of a load, a delete) whole. A store finds that state at every time asked, also where its
memory keeps less, and then goes on from it: the next created times are later than any before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pyarrow as pa

from fastfeat import Entity, FeatureView, Field, Status, Store
from fastfeat.errors import LogFailed, ReadOnly, StorageError

from .faulty_files import ROOT, Crashed, FaultyFiles
from .model import Model
from .strategies import START_US

USER = Entity("user", {"user_id": "int64"})
FIELDS = [Field("number", "int64"), Field("text", "string")]
ALL = FeatureView("all", USER, FIELDS, ttl=timedelta(microseconds=40))
VIEWS = [
    FeatureView("latest", USER, FIELDS, keep="latest"),
    FeatureView("some", USER, FIELDS, keep=2),
    FeatureView("recent", USER, FIELDS, keep=timedelta(microseconds=10), delay=timedelta(microseconds=2)),
    ALL,  # last, so that much happens while a snapshot is on its way to it
]
KEYS = range(4)
STEP_US = 7  # of the clock, between two steps
SETTINGS: dict[str, Any] = {  # one shard, tiny segments, and a keeper that never wakes: the script says when
    "capacity_bytes": 3 << 20,
    "segment_size": 2048,
    "snapshot_seconds": 1e9,
    "flush_bytes": 1 << 50,
}
Atom = Callable[[Model], object]  # one atomic write, on the oracle
Answer = tuple[Any, ...]  # of one entity: status, event time, values; of a view: its ttl, its rows


class Violation(AssertionError):
    """The store broke a promise."""


@dataclass
class Expected:
    """The writes so far, in order. Those after `acknowledged` may be found after a crash or not.

    is_certain: no two prefixes answer alike, as when a delete in doubt finds nothing to delete; what comes later could
                tell them apart, so nothing comes later.
    """

    atoms: list[Atom] = field(default_factory=list)
    acknowledged: int = 0
    serial: int = 0
    now_us: int = START_US
    is_certain: bool = True

    def copy(self) -> Expected:
        return replace(self, atoms=list(self.atoms))

    def model(self, count: int) -> Model:
        """The oracle after that many writes."""
        model = Model()
        for atom in self.atoms[:count]:
            atom(model)
        return model


class Trial:
    """A store, open on a disk, and what is expected of it.

    tolerant: calls of the disk fail, so writes may be refused.
    """

    def __init__(
        self,
        disk: FaultyFiles,
        expected: Expected,
        rng: random.Random,
        cls: type[Store] = Store,
        tolerant: bool = False,
    ) -> None:
        self.disk = disk
        self.expected = expected
        self.rng = rng
        self.cls = cls
        self.tolerant = tolerant
        self.store: Any = None
        self.is_keeping = (
            False  # a snapshot, a flush or a compaction is under way, and nobody looks or writes meanwhile
        )
        self.refusals: list[type[Exception]] = []
        self.is_broken = False  # the log failed: no write is taken until the store is opened again

    # --- opening and closing

    def open(self) -> None:
        """Open the directory, find out which prefix of the writes it holds, and take that as what was written."""
        self.store = self.cls.open(ROOT + "/store", clock=lambda: self.expected.now_us, files=self.disk, **SETTINGS)
        self.is_broken = False
        self.recognize()

    def close(self) -> None:
        store, self.store = self.store, None
        if store is not None:
            store.close()

    def abandon(self) -> None:
        """The process is dead; only its threads are still to be told so."""
        with suppress(Crashed, StorageError):
            self.close()

    def recognize(self) -> None:
        expected = self.expected
        questions = [*self.questions(), *self.telling()]
        answers = self.answers(questions)
        first = expected.acknowledged
        models = [expected.model(count) for count in range(first, len(expected.atoms) + 1)]
        found = [i for i, model in enumerate(models) if answers == model_answers(model, questions, expected.now_us)]
        if not found:
            right = model_answers(models[0], questions, expected.now_us)
            raise Violation(f"after {first} of {len(expected.atoms)} writes: {difference(answers, right)}")
        del expected.atoms[first + found[-1] :]
        expected.acknowledged = first + found[-1]
        expected.is_certain &= len(found) == 1  # for good: created times would tell, and a later look does not

    def telling(self) -> list[tuple[int, int]]:
        """Questions whose answers tell whether writes in doubt have happened: each of their rows at its own times."""
        known = self.expected.model(self.expected.acknowledged).sequence
        entities = self.expected.model(len(self.expected.atoms)).entities.values()
        rows = [row for of_view in entities for entity in of_view.values() for row in entity.rows]
        return [(row.event_us, row.created_us) for row in rows if row.sequence > known]

    def check(self) -> None:
        """The open store is the oracle after what was acknowledged, no more and no less."""
        expected = self.expected
        questions = self.questions()
        right = model_answers(expected.model(expected.acknowledged), questions, expected.now_us)
        answers = self.answers(questions)
        if answers != right:
            raise Violation(f"with {expected.acknowledged} writes: {difference(answers, right)}")

    # --- reading

    def questions(self) -> list[tuple[int | None, int | None]]:
        """Now, and some moments (as_of, known_at) around the rows' times."""
        moments = [self.expected.now_us - self.rng.randrange(0, 120) for _ in range(4)]
        return [
            (None, None),
            *((moment, None) for moment in moments),
            *((moment, moment - self.rng.randrange(0, 20)) for moment in moments[:2]),
            (None, moments[0]),
        ]

    def answers(self, questions: list[tuple[int | None, int | None]]) -> dict[str, list[Answer]]:
        """View -> its answers, every key at every question."""
        return {
            view: [
                (definition["ttl_us"], definition["rows"] if view == "all" else None),
                *(answer for as_of, known_at in questions for answer in self.answer(view, as_of, known_at)),
            ]
            for view, definition in self.store.info()["views"].items()
        }

    def answer(self, view: str, as_of: int | None, known_at: int | None) -> Iterator[Answer]:
        features = [f"{view}:number", f"{view}:text"]
        asked = {"user_id": list(KEYS)}
        result = self.store.get_online_features(features, asked, as_of=as_of, known_at=known_at)
        columns = result.to_dict()
        for i in range(len(KEYS)):
            status, event_us = Status(result.statuses[view][i]), int(result.event_times[view][i])
            yield status, event_us, columns[features[0]][i], columns[features[1]][i]

    # --- writing

    def step(self) -> None:
        """One step of the script."""
        self.expected.now_us += self.rng.randrange(STEP_US)
        names = ["push", "load", "delete", "apply", "snapshot", "flush", "compact", "reopen"]
        name = self.rng.choices(names, [8, 4, 2, 0.5, 1, 1.5, 0.3, 0.7])[0]
        if name in ("push", "load", "delete", "apply"):
            getattr(self, name)()
        elif name == "reopen":
            self.reopen()
        else:
            self.keep(name)

    def reopen(self) -> None:
        """Close and open; where the disk fails at that, again without it failing."""
        try:
            self.close()
            self.open()
        except StorageError as error:
            self.refused(error)
            self.abandon()
            with quiet(self.disk):
                self.open()

    def keep(self, name: str) -> None:
        call = {"snapshot": "snapshot", "flush": "flush_history", "compact": "compact"}[name]
        self.is_keeping = True
        try:
            getattr(self.store, call)()
        except StorageError as error:
            self.refused(error)
        finally:
            self.is_keeping = False

    def meanwhile(self, change: str) -> None:
        """Ahead of a change: now and then a push or a look, where the store keeps itself and lets others go on."""
        if not self.is_keeping or not change.startswith("write") or "/log/" in change:
            return
        self.is_keeping = False
        action = self.rng.random()
        if action < 0.2:
            self.push()
        elif action < 0.3 and (".parquet" in change or ".arrow" in change):
            self.check()
        self.is_keeping = True

    def begin(self) -> None:
        """Make the views known."""

        def apply(model: Model) -> None:
            for view in VIEWS:
                model.apply(view)

        self.write([apply], lambda: self.store.apply(VIEWS))

    def apply(self) -> None:
        """Another ttl."""
        view = replace(ALL, ttl=timedelta(microseconds=self.rng.randrange(20, 80)))
        self.write([lambda model: model.apply(view)], lambda: self.store.apply([view]))

    def rows(self, count_max: int) -> list[dict[str, Any]]:
        rows = []
        for _ in range(self.rng.randint(1, count_max)):
            self.expected.serial += 1
            text = str(self.expected.serial) * self.rng.choice([0, 1, 1, 100])
            event_us = self.expected.now_us + self.rng.randrange(-30, 5)
            number = self.expected.serial
            rows.append({"user_id": self.rng.choice(KEYS), "number": number, "text": text, "event_timestamp": event_us})
        return rows

    def push(self) -> None:
        view, rows, now_us = self.rng.choice(VIEWS).name, self.rows(4), self.expected.now_us
        given = rows if self.rng.random() < 0.5 else table_of(rows)
        plain = [((row["user_id"],), row["event_timestamp"], values_of(row)) for row in rows]
        created: list[int] = []
        self.write(
            [lambda model: created.append(model.push(view, plain, now_us))],
            lambda: self.store.push(view, given),
            created,
        )

    def delete(self) -> None:
        view, now_us = self.rng.choice(VIEWS).name, self.expected.now_us
        keys = self.rng.sample(KEYS, self.rng.randint(1, 3))
        created: list[int] = []
        self.write(
            [lambda model: created.append(model.delete(view, [(key,) for key in keys], now_us))],
            lambda: self.store.delete(view, [{"user_id": key} for key in keys]),
            created,
        )

    def load(self) -> None:
        """Some batches, each of them atomic, in their order."""
        view, now_us = self.rng.choice(VIEWS).name, self.expected.now_us
        batches = [self.rows(3) for _ in range(self.rng.randint(1, 4))]

        def atom(rows: list[dict[str, Any]]) -> Atom:
            plain = [((row["user_id"],), row["event_timestamp"], None, values_of(row)) for row in rows]
            return lambda model: model.load(view, plain, now_us)

        source = pa.concat_tables([table_of(rows) for rows in batches])
        self.write([atom(rows) for rows in batches], lambda: self.store.load(view, source), sizes=[*map(len, batches)])

    def write(
        self,
        atoms: list[Atom],
        call: Callable[[], Any],
        created: list[int] | None = None,
        sizes: list[int] | None = None,
    ) -> None:
        """Try a write; what is refused for good is forgotten, what may have happened is in doubt."""
        expected = self.expected
        before = len(expected.atoms)
        expected.atoms += atoms
        try:
            answer = call()
        except LogFailed as error:
            self.refused(error)
            expected.acknowledged += taken(error, sizes)
            return
        except ReadOnly as error:
            self.refused(error)
            expected.acknowledged += taken(error, sizes)
            del expected.atoms[before + taken(error, sizes) :]
            return
        expected.acknowledged = len(expected.atoms)
        if created is not None:
            expected.model(expected.acknowledged)
            if answer != created[-1]:
                raise Violation(f"created at {answer}, expected {created[-1]}")

    def refused(self, error: Exception) -> None:
        """Take note. The clock moves on, because a refused write may have used up a created time."""
        if not self.tolerant:
            raise error
        self.refusals.append(type(error))
        self.is_broken |= isinstance(error, LogFailed)
        self.expected.now_us += 10


def taken(error: Any, sizes: list[int] | None) -> int:
    """How many batches of a load were durable before its error."""
    accepted = 0 if error.report is None else error.report.accepted
    count = 0
    for size in sizes or ():
        if accepted < size:
            break
        accepted -= size
        count += 1
    return count


def values_of(row: dict[str, Any]) -> dict[str, Any]:
    return {"number": row["number"], "text": row["text"]}


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([row["user_id"] for row in rows], pa.int64()),
            "event_timestamp": pa.array([row["event_timestamp"] for row in rows], pa.timestamp("us", "UTC")),
            "number": pa.array([row["number"] for row in rows], pa.int64()),
            "text": pa.array([row["text"] for row in rows], pa.string()),
        }
    )


def model_answers(model: Model, questions: list[tuple[int | None, int | None]], now_us: int) -> dict[str, list[Answer]]:
    answers: dict[str, list[Answer]] = {}
    for name, view in model.views.items():
        rows = sum(len(entity.visible()) for entity in model.entities[name].values())
        answers[name] = [(view.ttl_us, rows if name == "all" else None)]
    for name, of_view in answers.items():
        for as_of, known_at in questions:
            for key in KEYS:
                right = model.read(name, (key,), as_of, known_at, now_us)
                values = right.values or {"number": None, "text": None}
                of_view.append((right.status, right.event_us, values["number"], values["text"]))
    return answers


def difference(answers: dict[str, list[Answer]], right: dict[str, list[Answer]]) -> str:
    """The first answers that differ, for a message."""
    if answers.keys() != right.keys():
        return f"views are {sorted(answers)}, expected {sorted(right)}"
    for view in answers:
        for i, (got, expected) in enumerate(zip(answers[view], right[view], strict=True)):
            if got != expected:
                question, key = divmod(i - 1, len(KEYS))
                return f"{view}, question {question}, key {key}: got {got}, expected {expected}"
    return "no difference"


# --- a disk that fails


@contextmanager
def quiet(disk: FaultyFiles) -> Iterator[None]:
    """Nothing fails meanwhile."""
    before = disk.fail_at, disk.fail_every, disk.short_every
    disk.fail_at = disk.fail_every = disk.short_every = None
    try:
        yield
    finally:
        disk.fail_at, disk.fail_every, disk.short_every = before


def endure(seed: int, steps: int, disk: FaultyFiles, cls: type[Store] = Store) -> Trial:
    """A script on a disk that fails: after every step the store is what was acknowledged, and at its end it goes on."""
    trial = Trial(disk, Expected(), random.Random(seed), cls, tolerant=True)
    try:
        with quiet(disk):
            trial.open()
            trial.begin()
        for _ in range(steps):
            if not trial.expected.is_certain:
                return trial
            trial.step()
            with quiet(disk):
                trial.check()
                if trial.is_broken:
                    trial.reopen()
        with quiet(disk):
            trial.push()
            trial.reopen()
            trial.check()
    finally:
        trial.abandon()
    return trial


# --- crashes


@dataclass(frozen=True)
class Moment:
    """A disk as a power loss during the script may leave it, and what is expected of it."""

    change: str
    disk: FaultyFiles
    expected: Expected


class Observed(FaultyFiles):
    """A disk that calls `before` ahead of every change."""

    before: Callable[[str], None] | None = None

    def _call(self, name: str, what: str, *, changes: bool = True, partly: Any = None) -> Any:
        if changes and self.before is not None:
            self.before(f"{name} {what}")
        return super()._call(name, what, changes=changes, partly=partly)


def moments(
    seed: int, steps: int, images: int = 1, cls: type[Store] = Store, disks: type[Observed] = Observed
) -> list[Moment]:
    """Power losses before every change of a script, `images` of each."""
    rng = random.Random(seed)
    disk, expected, found = disks(), Expected(), list[Moment]()

    def before(change: str) -> None:
        for i in range(images):
            image = disk.image(seed * 1_000_003 + disk.operations * 11 + i)
            found.append(Moment(change, image, expected.copy()))
        trial.meanwhile(change)

    trial = Trial(disk, expected, rng, cls)
    disk.before = before
    run(trial, steps)
    disk.before = None
    return found


def run(trial: Trial, steps: int) -> None:
    try:
        trial.open()
        if not trial.expected.atoms:
            trial.begin()
        for _ in range(steps):
            if trial.expected.is_certain:
                trial.step()
        trial.close()
    finally:
        trial.abandon()


def survive(moment: Moment, seed: int, cls: type[Store] = Store) -> None:
    """Recover, perhaps after crashes of the recovery itself; go on with the clock set back; open once more."""
    rng = random.Random(seed)
    disk, expected = moment.disk, moment.expected
    for _ in range(rng.choice([0, 0, 1, 2])):
        disk.crash_at = disk.operations + rng.randrange(1, 40)
        trial = Trial(disk, expected, rng, cls)
        with suppress(Crashed):
            run(trial, 2)
        trial.abandon()
        if rng.random() < 0.3:
            disk.restart()
        else:
            disk = disk.image(rng.randrange(1 << 30))
    disk.crash_at = None
    expected.now_us -= rng.choice([0, 50])
    run(Trial(disk, expected, rng, cls), 3)
    trial = Trial(disk, expected, rng, cls)
    try:
        trial.open()
        if expected.acknowledged != len(expected.atoms):
            raise Violation("a clean stop lost something")
    finally:
        trial.abandon()


# --- damage


def damage(seed: int, steps: int, times: int) -> list[type[Exception]]:
    """Stop a store in order and damage one of its files, `times` over; the errors that said so.

    Where none does, the store is the oracle after some prefix of the writes.
    """
    rng = random.Random(seed)
    disk, expected = FaultyFiles(), Expected()
    run(Trial(disk, expected, rng), steps)
    contents = {path: content for path, content in disk.contents().items() if content}
    found: list[type[Exception]] = []
    for _ in range(times):
        path = rng.choice(list(contents))
        hurt = replace(expected.copy(), acknowledged=0)
        trial = Trial(FaultyFiles.holding({**contents, path: spoiled(contents[path], rng)}), hurt, rng)
        try:
            trial.open()
        except StorageError as error:
            found.append(type(error))
        finally:
            trial.abandon()
    return found


def spoiled(content: bytes, rng: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    at = rng.randrange(len(content))
    if rng.random() < 0.3:
        return content[:at]
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
