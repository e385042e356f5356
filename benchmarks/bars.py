"""Measure the bars: python -m benchmarks.bars [--only PREFIX] [--smoke] [--results DIRECTORY].

    bars.toml --groups--> findings --> results/GROUP.json --> results/bars.json, a table, the exit code

Each group runs in a process of its own and writes a file of its own, which says where and of what commit it is;
bars.json is put together from those files, so that measuring one group again leaves the others as they were.
Exit code 1: a bar fails or was not measured. A smoke run forgives a bar that was not measured where its group says why.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .measure import FULL, SMOKE, Findings, Size
from .programs import CC, HERE, ROOT

# Prefix of bar names -> the function that measures them, in the order of a whole run.
GROUPS = {
    "embedded": "embedded:measure",
    "client": "client:measure",
    "server.echo": "server:measure_echo",
    "server.rps": "server:measure_rps",
    "server.open": "server:measure_open",
    "load": "load:measure",
    "scale": "scale:measure",
    "concurrent": "concurrent:measure",
    "durable": "durable:measure",
    "history": "history:measure",
    "shared.read": "shared:measure_read",
    "shared.restart": "shared:measure_restart",
    "shared.full": "shared:measure_full",
    "workers.load": "workers:measure_load",
    "workers.scale": "workers:measure_scale",
    "windows": "windows:measure",
    "ondemand": "ondemand:measure",
    "training.join": "training:measure_join",
    "training.windows": "training:measure_windows",
    "training.feast": "training:measure_feast",
    "training.memory": "training:measure_memory",
}
SIGNS = {"at_most": "<=", "at_least": ">="}
DISTRIBUTIONS = ("fastfeat", "numpy", "pyarrow", "msgpack", "uvloop", "cython", "redis", "hiredis")


@dataclass(frozen=True)
class Bar:
    """One demanded number; `limit` None is reported only."""

    name: str
    issue: int
    direction: str
    unit: str
    how: str
    limit: float | None = None

    def passed(self, measured: float) -> bool | None:
        if self.limit is None:
            return None
        return measured <= self.limit if self.direction == "at_most" else measured >= self.limit

    @property
    def group(self) -> str:
        return next(group for group in GROUPS if self.name.startswith(f"{group}."))


def read_bars() -> list[Bar]:
    return [Bar(**entry) for entry in tomllib.loads((HERE / "bars.toml").read_text(encoding="utf-8"))["bar"]]


def measure_group(group: str, size: Size) -> Findings:
    module, function = GROUPS[group].split(":")
    found: Findings = getattr(importlib.import_module(f"benchmarks.{module}"), function)(size)
    return found


def measure_apart(group: str, size: Size) -> Findings:
    """In a fresh process, so that no group sees another's memory, pinning or warmth."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure_group, group, size).result()


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    model = next(
        (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": output(CC, "--version").split("\n")[0],
        "redis_server": output(shutil.which("redis-server") or "true", "--version").strip(),
        "packages": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "flags": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith("FASTFEAT_") or name == "CFLAGS"
        },
        "load_average": os.getloadavg()[0],
    }


def cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()


def commit() -> str:
    """The commit measured, with "+changes" where the tree was not clean."""
    head = output("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    changed = output(
        "git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", "fastfeat", "server", "setup.py"
    )
    return head + ("+changes" if changed.strip() else "")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def write_group(folder: Path, group: str, findings: Findings, size: Size, began: datetime, took_s: float) -> None:
    record = {
        "group": group,
        "commit": commit(),
        "measured_at": began.isoformat(timespec="seconds"),
        "took_s": round(took_s, 1),
        "machine": machine(),
        "size": asdict(size),
        **asdict(findings),
    }
    (folder / f"{group}.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_bars(folder: Path, bars: list[Bar]) -> list[dict[str, Any]]:
    """bars.json: every bar that a group file in the folder holds, in the order of bars.toml."""
    measured: dict[str, float] = {}
    for group in GROUPS:
        path = folder / f"{group}.json"
        if path.exists():
            measured |= json.loads(path.read_text(encoding="utf-8"))["bars"]
    entries = [
        {
            "name": bar.name,
            "issue": bar.issue,
            "measured": measured[bar.name],
            "limit": bar.limit,
            "passed": bar.passed(measured[bar.name]),
        }
        for bar in bars
        if bar.name in measured
    ]
    (folder / "bars.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return entries


def print_bars(console: Console, bars: list[Bar], findings: Findings, size: Size) -> None:
    table = Table(title="smoke: the numbers mean nothing" if size.smoke else None, title_justify="left")
    for column in ("bar", "measured", "limit", "unit", "result"):
        table.add_column(column, justify="right" if column in ("measured", "limit") else "left", no_wrap=True)
    for bar in bars:
        value = findings.bars.get(bar.name)
        limit = "" if bar.limit is None else f"{SIGNS[bar.direction]} {bar.limit:,.4g}"
        table.add_row(bar.name, "" if value is None else f"{value:,.4g}", limit, bar.unit, verdict(bar, value, size))
    console.print(table)


def verdict(bar: Bar, value: float | None, size: Size) -> str:
    if value is None:
        return "[red]NOT MEASURED"
    passed = bar.passed(value)
    if passed is None:
        return "reported"
    if size.smoke:
        return "runs"
    return "[green]pass" if passed else "[bold red]FAIL"


def print_details(console: Console, findings: Findings) -> None:
    table = Table()
    for column in ("what", "calls", "p50 us", "p99 us", "p99.9 us"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for name, latency in findings.latencies.items():
        table.add_row(name, f"{latency.count:,}", *(f"{latency.at(p):,.2f}" for p in (50, 99, 99.9)))
    console.print(table)
    for name, numbers in findings.rates.items():
        console.print(name, ", ".join(f"{key} {value:,.4g}" for key, value in numbers.items()))
    for name, value in findings.checksums.items():
        console.print(f"checksum {name} {value}")
    for name, reason in findings.unmeasured.items():
        console.print(f"NOT MEASURED {name}: {reason}", style="bold red", markup=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bars", description="Measure the bars of bars.toml.")
    parser.add_argument(
        "--only", default="", metavar="PREFIX", help="bars whose names begin so, and their whole groups"
    )
    parser.add_argument("--smoke", action="store_true", help="run everything at a tiny size; no limit is judged")
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="where the JSON files go")
    options = parser.parse_args(arguments)
    size = SMOKE if options.smoke else FULL
    bars = read_bars()
    groups = [group for group in GROUPS if any(b.group == group and b.name.startswith(options.only) for b in bars)]
    if not groups:
        parser.error(f"no bar begins with {options.only!r}; bars.toml names them")
    folder = options.results or (ROOT / "build" / "bench-smoke" if options.smoke else HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    return measure_groups(groups, bars, size, folder)


def measure_groups(groups: list[str], bars: list[Bar], size: Size, folder: Path) -> int:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    failed: list[str] = []
    for group in groups:
        began = datetime.now(UTC)
        findings = measure_apart(group, size)
        write_group(folder, group, findings, size, began, (datetime.now(UTC) - began).total_seconds())
        mine = [bar for bar in bars if bar.group == group]
        print_details(console, findings)
        print_bars(console, mine, findings, size)
        failed += [bar.name for bar in mine if is_failure(bar, findings, size)]
    write_bars(folder, bars)
    console.print(f"written to {folder}; " + (f"FAILED: {', '.join(failed)}" if failed else "no bar failed"))
    return 1 if failed else 0


def is_failure(bar: Bar, findings: Findings, size: Size) -> bool:
    value = findings.bars.get(bar.name)
    if value is None:
        return not (size.smoke and bar.name in findings.unmeasured)
    return not size.smoke and bar.passed(value) is False


if __name__ == "__main__":
    sys.exit(main())
