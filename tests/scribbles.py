"""The program of test_safe_reads: reads of every kind while the arena's bytes turn into anything.

    python -m tests.scribbles damage SEED ROUNDS     one damage, every read, the bytes put back; again
    python -m tests.scribbles race SEED SECONDS      a thread scribbles without the GIL while another one reads

It ends with a JSON line of what the reads came to, and with what it can't survive if a read isn't safe. The damage
follows the drawings of layout.pyx; the arena's own header, which belongs to pins and allocators, is left alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np

from fastfeat import Aggregation, Entity, FeatureView, Field, Store, WindowView
from fastfeat._core.codec import pack_frame, unpack
from fastfeat._core.plan import Plan
from fastfeat._core.session import ServerSession
from fastfeat.aggregation import FUNCTIONS
from fastfeat.errors import DataError, StorageError

DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000
NOW_US = START_US + 100 * DAY_US
CAPACITY = (8 << 20) + 4096
MAGIC = 0x5441454654534146
SCRIBBLES_AT = 4096  # the first byte behind the arena's header
SHARD_BITS = 2  # of an arena of this size
FRAME_SIZE_MAX = 64 << 20
BUMP, BACKED = 8, 12  # words of the header
ENTITIES = 96
USER = Entity("user", {"user_id": "int64"})
PLACE = Entity("place", {"city": "string", "zone": "int64"})
VIEWS = [
    FeatureView("numbers", USER, [*(Field(f"f{i}", "float64") for i in range(10)), Field("v", "vector<float32, 300>")]),
    FeatureView(
        "texts",
        USER,
        [
            Field("name", "string"),
            Field("raw", "bytes"),
            Field("small", "int16"),
            Field("ids", "list<int64>"),
            Field("tags", "list<string>"),
        ],
        keep="latest",
    ),
    FeatureView("alone", USER, [Field("score", "float64"), Field("flag", "bool")], ttl=timedelta(days=30)),
    FeatureView("pairs", PLACE, [Field("title", "string"), Field("weight", "float32")], keep=3),
]
EVENTS = FeatureView("events", USER, [Field("shop", "string"), Field("amount", "float64")], kind="event")
NUMBER_WINDOWS = WindowView(
    "sums",
    EVENTS,
    [
        Aggregation("amount", function, timedelta(days=days), name=f"{function}_{days}", q=q)
        for days in (3, 200)
        for function, q in [*((name, None) for name in FUNCTIONS[:10]), ("quantile", 0.5)]
    ],
)
TEXT_WINDOWS = WindowView(
    "shops",
    EVENTS,
    [
        Aggregation("shop", "last", timedelta(days=200)),
        Aggregation("shop", "count_distinct", timedelta(days=200)),
        Aggregation("shop", "last_n", timedelta(days=200), n=5),
        Aggregation("amount", "top_k", timedelta(days=200), n=3),
        Aggregation("amount", "sum", timedelta(days=200), where=[("shop", "in", ["shop 001", "shop 002"])]),
    ],
)
NASTY = [
    *(2**64 - 1, 2**63, 2**63 - 1, 2**48 + 8, 2**32 - 1, 2**31, 65_535, 1, 3, 0),
    *(CAPACITY + n for n in (-4096, -72, -64, -16, -8, -1, 0, 8, 4096)),
    *(-8 % 2**64, -CAPACITY % 2**64, CAPACITY << 8),
]


def filled_store() -> Store:
    """Blocks of one and of many rows, directories, heads of deletes and of keep=, keys of both kinds."""
    store = Store(capacity_bytes=CAPACITY, clock=lambda: NOW_US)
    store.apply([*VIEWS, NUMBER_WINDOWS, TEXT_WINDOWS])
    for user in range(ENTITIES):
        rows = 30 if user % 3 == 0 else 2
        store.push(
            "numbers",
            [
                {"user_id": user, "v": [float(user)] * 300, "event_timestamp": START_US + row * DAY_US}
                | {f"f{i}": float(user + row) for i in range(10)}
                for row in range(rows)
            ],
        )
    users = range(ENTITIES)
    for row in range(3):
        when = START_US + row * DAY_US
        texts = [
            {
                "name": f"user {u:3}" * row,
                "raw": bytes(u & 24),
                "small": u,
                "ids": list(range(u % 5)),
                "tags": ["a", "b"],
            }
            for u in users  # strings and bytes in whole words, so that words of damage meet the lists' counts
        ]
        store.push(
            "texts", [text | {"user_id": u, "event_timestamp": when} for u, text in zip(users, texts, strict=True)]
        )
        for _ in range(2):
            rows_of_pairs = [{"city": f"city {u % 20}", "zone": u, "title": "t" * u, "weight": 0.5} for u in users]
            when += 1
            store.push("pairs", [pair | {"event_timestamp": when} for pair in rows_of_pairs])
    for user in range(ENTITIES):  # blocks with and without tiles; one entity with a directory
        numbers = range(2500 if user == 6 else 40 if user % 2 else 3)
        times = [START_US + n * DAY_US // 20 for n in numbers]
        events = [{"user_id": user, "shop": f"shop {n:3}", "amount": n / 3} for n in numbers]
        store.push("events", [event | {"event_timestamp": us} for event, us in zip(events, times, strict=True)])
    fresh = NOW_US - DAY_US
    store.push("alone", [{"user_id": u, "score": 1.0, "flag": True, "event_timestamp": fresh} for u in users])
    store.delete("numbers", [{"user_id": u} for u in range(1, ENTITIES, 10)])
    return store


# The arena's bytes ---------------------------------------------------------------------------------------------------


def arena_bytes() -> Any:
    """The words of this process's one arena, uint64, to read and to write."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if line.split()[1].startswith("rw") and high - low >= CAPACITY:
            words = np.ctypeslib.as_array((ctypes.c_uint64 * (CAPACITY // 8)).from_address(low))
            if words[0] == MAGIC and words[3] == CAPACITY:
                return words
    raise AssertionError("no mapping of this process is the arena")


def shape_of(words: Any, block: int) -> tuple[int, int, int]:
    """(count, capacity, key_size) of the block there, see layout.pyx."""
    shape = int(words[block + 1])
    return (1, 1, shape >> 48) if shape & 1 else (shape >> 16 & 0xFFFF, shape >> 32 & 0xFFFF, shape >> 48)


def head_of(words: Any, block: int) -> int:
    shape = int(words[block + 1])
    return (shape & 0xFFFF_FFFF_FFFE if shape & 1 else int(words[block])) // 8


class Places:
    """Where every structure lies that readers reach, as indices of words; tables are known by their shards' words."""

    def __init__(self, words: Any) -> None:
        self.used = int(words[BUMP]) // 8
        self.shard_words: list[int] = []
        self.slots: list[int] = []
        self.blocks: list[int] = []
        self.heads: list[int] = []
        self.entries: list[int] = []
        self.heaps: list[int] = []
        for header in range(SCRIBBLES_AT // 8, self.used, 512):
            named = [int(word) for word in words[header : header + (1 << SHARD_BITS)]]
            if words[header + 64] == SHARD_BITS and all(self.is_slots(word) for word in named):
                self.shard_words += range(header, header + (1 << SHARD_BITS))
                for word in named:
                    self.add_slots(words, word >> 6 << 3, 1 << (word & 63))

    def is_slots(self, word: int) -> bool:
        return 8 <= word & 63 < 20 and (word & 4095) < 64 and SCRIBBLES_AT <= word < 8 * self.used

    def add_slots(self, words: Any, at: int, count: int) -> None:
        self.slots += range(at, at + 2 * count, 2)
        for block_at in words[at + 1 : at + 2 * count : 2]:
            if block_at:
                self.add_block(words, int(block_at) // 8)

    def add_block(self, words: Any, block: int) -> None:
        self.blocks.append(block)
        _, capacity, key_size = shape_of(words, block)
        heap_at = int(words[block + 2 + (key_size + 7) // 8 + 3 * capacity + 1])  # row 0's, or some cell
        if SCRIBBLES_AT <= heap_at < 8 * self.used and heap_at % 8 == 0:
            self.heaps.append(heap_at // 8)
        if head := head_of(words, block):
            self.heads.append(head)
            count = int(words[head + 1]) >> 32
            directory = int(words[head]) // 8
            self.entries += range(directory, directory + 2 * count, 2)


class Damage:
    """What can be wrong with an arena: `apply` changes a copy of its words in one of many ways."""

    def __init__(self, words: Any, random_: random.Random) -> None:
        self.places = Places(words)
        self.random = random_
        self.kinds: list[Callable[[Any], None]] = [
            *(self.noise, self.nasty_words, self.shards, self.full_slots, self.slot_targets, self.block_headers),
            *(self.rows, self.heads, self.self_referring, self.ends, self.heaps, self.tiles),
        ]

    def apply(self, words: Any, round_: int) -> None:
        self.kinds[round_ % len(self.kinds)](words)

    def nasty(self) -> int:
        return self.random.choice([*NASTY, self.random.getrandbits(64), 8 * self.random.randrange(CAPACITY // 8)])

    def some(self, places: list[int]) -> list[int]:
        """One to all, mostly few: what is refused at once shows nothing of what comes after."""
        return self.random.sample(places, int(len(places) ** self.random.random()))

    def noise(self, words: Any) -> None:
        for _ in range(self.random.randint(1, 200)):
            at = self.random.randrange(SCRIBBLES_AT // 8, self.places.used)
            garbage = np.frombuffer(self.random.randbytes(8 * self.random.randint(1, 256)), np.uint64)
            end = min(at + len(garbage), self.places.used)
            words[at:end] = garbage[: end - at]

    def nasty_words(self, words: Any) -> None:
        for _ in range(int(20_000 ** self.random.random())):
            words[self.random.randrange(SCRIBBLES_AT // 8, self.places.used)] = self.nasty()

    def shards(self, words: Any) -> None:
        for at in self.some(self.places.shard_words):
            word = int(words[at])
            words[at] = self.random.choice([self.nasty(), word | 63, word & ~63 | 40, CAPACITY - 64 | 8, word & ~63])

    def full_slots(self, words: Any) -> None:
        words[self.places.slots] = 7

    def slot_targets(self, words: Any) -> None:
        for at in self.some(self.places.slots):
            words[at + 1] = self.random.choice([self.nasty(), 8 * self.random.choice(self.places.heads)])

    def block_headers(self, words: Any) -> None:
        for at in self.some(self.places.blocks):
            count, capacity, key_size = shape_of(words, at)
            is_one = self.random.choice([int(words[at + 1]) & 1, 0, 1])
            count = self.random.choice([count, 65_535, 0])
            capacity = self.random.choice([capacity, 65_535, 0])
            key_size = self.random.choice([key_size, key_size, key_size, 65_535])
            words[at + 1] = is_one | count << 16 | capacity << 32 | key_size << 48

    def rows(self, words: Any) -> None:
        for at in self.some(self.places.blocks):
            for _ in range(4):
                words[at + self.random.randrange(3, 24)] = self.nasty()

    def put_head(self, words: Any, at: int, head_at: int) -> None:
        if int(words[at + 1]) & 1:
            words[at + 1] = int(words[at + 1]) & 0xFFFF << 48 | head_at & 0xFFFF_FFFF_FFFF | 1
        else:
            words[at] = head_at

    def heads(self, words: Any) -> None:
        for at in self.some(self.places.blocks):
            self.put_head(words, at, self.nasty())
        for at in self.some(self.places.heads):
            words[at + self.random.randrange(3)] = self.nasty()
        for at in self.some(self.places.entries):
            words[at + 1] = self.nasty()

    def self_referring(self, words: Any) -> None:
        """Heads whose directory is all of the arena, blocks that are their own head, and rows that nobody may know."""
        for at in self.places.heads:
            words[at : at + 3] = [8 * at, 2**32 * (CAPACITY // 16), 2**32 - 1]
            words[at] = 0
        for at in self.some(self.places.blocks):
            self.put_head(words, at, 8 * at)
        for at in self.places.entries:
            words[at : at + 2] = [0, 8 * self.random.choice(self.places.blocks)]

    def ends(self, words: Any) -> None:
        """Blocks and heads that begin inside of the arena and would end outside of it."""
        for at in self.some(self.places.slots):
            words[at + 1] = CAPACITY - 8 * self.random.randint(1, 16)
        for at in self.some(self.places.blocks):
            self.put_head(words, at, CAPACITY - 8 * self.random.randint(1, 16))
        words[-16:] = 65_535 << 32 | 65_535 << 16

    def heaps(self, words: Any) -> None:
        for at in self.some(self.places.heaps):
            for _ in range(4):
                words[at + self.random.randrange(1, 14)] = self.nasty()

    def tiles(self, words: Any) -> None:
        """What lies behind a block's rows: sums, their anchors, created times."""
        for at in self.some(self.places.blocks):
            _, capacity, _ = shape_of(words, at)
            for _ in range(8):
                place = at + self.random.randrange(3, 8 + 8 * capacity)
                if place < self.places.used:
                    words[place] = self.nasty()


# The reads -----------------------------------------------------------------------------------------------------------


class Reads:
    """Every kind of read; an answer is a value to compare, None where a read was refused with an error of ours."""

    def __init__(self, store: Store) -> None:
        numbers = [*(f"numbers:f{i}" for i in range(10)), "numbers:v", "alone:score", "alone:flag", "texts:small"]
        texts = [f"texts:{name}" for name in ("name", "raw", "ids", "tags")]
        users = {"user_id": [*range(ENTITIES), 10_000]}
        places = {"city": [f"city {u % 20}" for u in range(ENTITIES)], "zone": list(range(ENTITIES))}
        self.answered = self.refused = 0
        self.calls: list[Callable[[], object]] = []
        self.session = ServerSession(self.before_history, FRAME_SIZE_MAX, 1000)
        self.session.greet(FRAME_SIZE_MAX)
        times = [(None, None), (START_US + DAY_US, None), (START_US + 7 * DAY_US, NOW_US - 1), (0, None)]
        for plan, keys, formats in (
            (store.plan(numbers), users, range(4)),
            (store.plan([*texts, *numbers]), users, range(2)),
            (store.plan(["pairs:title", "pairs:weight"]), places, range(2)),
            (store.plan([NUMBER_WINDOWS]), users, range(4)),
            (store.plan([TEXT_WINDOWS]), users, range(2)),
        ):
            assert isinstance(plan, Plan)
            number = self.session.add_plan(plan)
            for as_of, known_at in times:
                self.add_native(plan, keys, as_of, known_at)
                columns = [keys[name] for name in plan.key_names]
                for format_ in formats:
                    self.calls.append(self.wire([number, columns, format_, as_of, known_at]))

    def add_native(self, plan: Plan, keys: dict[str, Any], as_of: int | None, known_at: int | None) -> None:
        def columns() -> object:
            statuses, event_times, values = plan.columns(keys, as_of, known_at, FRAME_SIZE_MAX)
            parts = [part.tobytes() for column in values for part in column if part is not None]
            return statuses.tobytes(), event_times.tobytes(), parts

        self.calls.append(columns)
        if plan.matrix_columns:
            first = {name: values[0] for name, values in keys.items()}
            self.calls.append(lambda: plan.vector(first, as_of, known_at, None).tobytes())
            self.calls.append(lambda: plan.matrix(keys, as_of, known_at, None).tobytes())
            self.calls.append(lambda: plan.matrix(keys, as_of, known_at, None, "float32").tobytes())

    def wire(self, params: list[Any]) -> Callable[[], object]:
        frame = pack_frame([0, 1, "GET", params])

        def call() -> object:
            data = self.session.receive(frame)
            assert data is not None
            reply = bytes(data)
            # A string of a damaged row need not be text: what matters is that the reply says whether it is an error.
            if reply[7] == 0xC0:
                return reply
            _, _, error, _ = cast("list[Any]", unpack(reply[4:]))
            assert "internal error" not in error[1], error
            raise StorageError(error[1])

        return call

    def before_history(self, request_id: int, method: str, params: object) -> None:
        self.session.fail(request_id, StorageError(f"{method} reads rows that are gone"))

    def all(self) -> list[object]:
        answers: list[object] = []
        for call in self.calls:
            try:
                answers.append(call())
                self.answered += 1
            except (StorageError, DataError):
                answers.append(None)
                self.refused += 1
        return answers


def damage(words: Any, reads: Reads, random_: random.Random, rounds: int) -> None:
    whole = words.copy()
    damage_ = Damage(whole, random_)
    for round_ in range(rounds):
        damage_.apply(words, round_)
        reads.all()
        words[SCRIBBLES_AT // 8 :] = whole[SCRIBBLES_AT // 8 :]


def race(words: Any, reads: Reads, random_: random.Random, seconds: float) -> None:
    whole = words.copy()
    damage_ = Damage(whole, random_)
    images = [whole.copy() for _ in range(44)]
    for round_, image in enumerate(images):
        damage_.apply(image, round_)
    size = 8 * damage_.places.used - SCRIBBLES_AT
    is_over = threading.Event()

    def put(image: Any) -> None:
        # ctypes lets go of the GIL around memmove: it runs into reads that hold it as well.
        ctypes.memmove(words.ctypes.data + SCRIBBLES_AT, image.ctypes.data + SCRIBBLES_AT, size)

    def scribble() -> None:
        while not is_over.is_set():
            put(random_.choice(images))
            put(whole)

    thread = threading.Thread(target=scribble)
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        reads.all()
    is_over.set()
    thread.join()
    words[SCRIBBLES_AT // 8 :] = whole[SCRIBBLES_AT // 8 :]


def main(kind: str, seed: int, amount: float) -> None:
    store = filled_store()
    words = arena_bytes()
    reads = Reads(store)
    before = reads.all()
    reads.answered = reads.refused = 0
    if kind == "damage":
        damage(words, reads, random.Random(seed), int(amount))
    else:
        race(words, reads, random.Random(seed), amount)
    counts = {"answered": reads.answered, "refused": reads.refused}
    print(json.dumps({**counts, "is_same": reads.all() == before}), flush=True)
    os._exit(0)  # the allocators were scribbled over while they were not looking: nothing may be freed any more


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
