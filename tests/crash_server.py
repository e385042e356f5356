"""The program that the crash loop kills: the real server over `Store.open`, forked from one that has imported it all.

    test --Order, a JSON line--> zygote --fork--> server: Store.open, serve; snapshots, flushes, compactions meanwhile
         <---------------- "ready", "failed" ----------|
         <--"ended", status--------|

A failpoint is a `Files` that kills its own process before, after or in the middle of one call, so the product has none.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from fastfeat_server import Config, serve

from fastfeat import Entity, FeatureView, Field, Store
from fastfeat.errors import StorageError
from fastfeat.files import Files

USER = Entity("user", {"user_id": "int64"})
CHECKS = 4
FIELDS = [
    Field("version", "int64"),
    *(Field(f"check{i}", "float64") for i in range(CHECKS)),
    Field("text", "string"),
]
VIEWS = [
    FeatureView("all", USER, FIELDS),
    FeatureView("latest", USER, FIELDS, keep="latest"),
    FeatureView("short", USER, FIELDS, keep=3),
]
OPERATIONS = [
    "open",
    "write",
    "allocate",
    "sync",
    "sync_directory",
    "truncate",
    "close",
    "rename",
    "remove",
    "make_directory",
    "remove_directory",
    "list",
    "read",
]
SETTINGS: dict[str, Any] = {  # so small that every path is taken many times in a second
    "capacity_bytes": 31 << 20,
    "segment_size": 32 << 10,
    "flush_bytes": 64 << 10,
    "snapshot_seconds": 0.2,
}


@dataclass(frozen=True)
class Failpoint:
    """Die `when` (before, half, after) the `number`th call of `operation` on a path in which `pattern` is found.

    Both are regular expressions.
    """

    operation: str
    pattern: str
    when: str
    number: int


@dataclass(frozen=True)
class Order:
    """One life of the server. clock_us: where its clock begins."""

    directory: str
    socket: str
    clock_us: int
    seed: int
    failpoint: Failpoint | None = None

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def read(line: str) -> Order:
        given = json.loads(line)
        failpoint = given.pop("failpoint")
        return Order(**given, failpoint=None if failpoint is None else Failpoint(**failpoint))


class KillingFiles(Files):
    """The disk, until the failpoint."""

    def __init__(self, failpoint: Failpoint) -> None:
        self._failpoint = failpoint
        self._left = failpoint.number
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    def around(self, operation: str, call: Callable[..., Any], target: Any, *args: Any, **options: Any) -> Any:
        """One call, or death."""
        path = args[0] if operation == "rename" else self._paths.get(target, "") if type(target) is int else target
        when = self._failpoint.when if self._is_reached(operation, path) else ""
        if when == "before":
            die()
        if when == "half":
            whole = b"".join(args[0]) if isinstance(args[0], list) else bytes(args[0])
            super().write(target, whole[: len(whole) // 2], *args[1:])
            die()
        result = call(self, target, *args, **options)
        if when == "after":
            die()
        if operation == "open":
            self._paths[result] = target
        if operation == "rename":
            self._paths = {fd: args[0] if path == target else path for fd, path in self._paths.items()}
        return result

    def _is_reached(self, operation: str, path: str) -> bool:
        if not re.fullmatch(self._failpoint.operation, operation) or not re.search(self._failpoint.pattern, path):
            return False
        with self._lock:
            self._left -= 1
            return self._left == 0


def killing(operation: str) -> Callable[..., Any]:
    call = getattr(Files, operation)

    def method(self: KillingFiles, target: Any, *args: Any, **options: Any) -> Any:
        return self.around(operation, call, target, *args, **options)

    return method


for name in OPERATIONS:
    setattr(KillingFiles, name, killing(name))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()  # of a thread that still runs


def say(**what: Any) -> None:
    """A line to the test: in one write, so that no death leaves half of it."""
    os.write(1, (json.dumps(what) + "\n").encode())


class Upkeep:
    """Snapshots, flushes and compactions, one after the other at random moments of the server's life."""

    def __init__(self, store: Any, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        work = [self._store.snapshot, self._store.flush_history, self._store.flush_history, self._store.compact]
        while not self._is_over.wait(self._random.uniform(0, 0.02)):
            try:
                self._random.choice(work)()
            except BaseException:
                say(failed=traceback.format_exc())
                os._exit(4)

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()


def live(order: Order) -> None:
    """Serve the directory until a signal; the exit status is 0 after a clean stop."""
    begun = time.monotonic_ns()
    files = Files() if order.failpoint is None else KillingFiles(order.failpoint)
    store = Store.open(
        order.directory,
        clock=lambda: order.clock_us + (time.monotonic_ns() - begun) // 1000,
        files=files,
        **SETTINGS,
    )
    store.apply(VIEWS)
    upkeep = Upkeep(store, order.seed)
    serve(store, Config(host="", unix_socket=order.socket), ready=lambda _: say(ready=True))
    upkeep.stop()
    store.close()


def main() -> None:
    """One life after the other, each in a process of its own."""
    pa.set_cpu_count(1)  # no thread is there when we fork, and few start after
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                live(Order.read(line))
            except StorageError:
                say(failed=traceback.format_exc())
                os._exit(3)
            except BaseException:
                say(failed=traceback.format_exc())
                os._exit(4)
            os._exit(0)
        say(pid=pid)
        say(ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
