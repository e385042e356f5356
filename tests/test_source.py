"""The picture of the source stays true: who may import whom, how modules are named, and how the core's files open."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Module of fastfeat -> the modules of fastfeat that it may import. `errors` and `dtypes` are open to all below them.
TYPES = {"errors", "dtypes", "status"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "dtypes": set(),
    "status": set(),
    "_core": TYPES,
    "naming": {"errors"},
    "durations": {"errors"},
    "aggregation": TYPES | {"durations", "naming", "times"},
    "schema": TYPES | {"aggregation", "durations", "naming"},
    "ondemand": TYPES | {"naming", "schema"},
    "definitions": TYPES | {"aggregation", "durations", "schema", "ondemand"},
    "applied": TYPES | {"_core", "definitions", "schema", "ondemand"},
    "request_fields": TYPES | {"_core", "schema", "times", "result", "casts"},
    "computed": TYPES | {"_core", "naming", "schema", "times", "result", "applied", "ondemand", "request_fields"},
    "times": TYPES,
    "report": set(),
    "cores": set(),
    "casts": TYPES | {"times"},
    "sources": TYPES,
    "arrow": TYPES | {"schema", "times", "casts", "sources", "report"},
    "result": TYPES | {"_core", "schema", "times", "arrow", "receipts"},
    "files": {"errors"},
    "places": {"errors", "files"},
    "ownership": {"errors", "files", "places"},
    "log": {"errors", "files"},
    "snapshot": TYPES | {"places"},
    "history": {"errors", "places"},
    "training": TYPES
    | {
        "files",
        "schema",
        "_core",
        "applied",
        "definitions",
        "casts",
        "sources",
        "result",
        "report",
        "rows",
        "durable",
        "history",
        "computed",
        "ondemand",
        "request_fields",
    },
    "commits": TYPES | {"_core", "log"},
    "loads": {"_core", "commits", "report"},
    "receipts": TYPES | {"times"},
    "durable": TYPES
    | {"schema", "_core", "arrow", "files", "places", "ownership", "log", "snapshot", "history", "commits", "rows"}
    | {"cores", "definitions"},
    "explain": TYPES
    | {"_core", "aggregation", "applied", "computed", "definitions", "ondemand", "result", "rows", "schema", "times"},
    "past": TYPES | {"schema", "_core", "arrow", "history", "durable", "rows", "applied"} | {"computed"},
    "rows": TYPES | {"schema", "result", "_core"},
    "store": TYPES
    | {"schema", "_core", "times", "arrow", "result", "report", "files", "commits", "durable", "past", "receipts"}
    | {
        "history",
        "snapshot",
        "loads",
        "shared",
        "applied",
        "definitions",
        "durations",
        "explain",
        "training",
        "computed",
        "cores",
    },
    "shared": {"errors", "_core"},
    "attached": TYPES | {"schema", "_core", "result", "shared", "store", "applied", "definitions", "computed"},
    "inspection": TYPES | {"schema", "files", "places", "log", "snapshot", "history", "durable"},
    "protocol": {"errors", "dtypes", "status", "_core"},
    "client": TYPES
    | {"schema", "protocol", "times", "result", "receipts", "report", "sources", "_core"}
    | {"attached", "shared", "request_fields"},
}
# cli may import anything of ours; nobody may import it. The server sees what a user sees.
SERVER_MAY_IMPORT = {
    "store",
    "schema",
    "definitions",
    "protocol",
    "errors",
    "dtypes",
    "status",
    "times",
    "result",
    "receipts",
    "sources",
    "client",
    "shared",
    "attached",
    "computed",
    "request_fields",
}
PROTOCOL_MAY_IMPORT_OF_CORE = {"codec", "session", "exchange"}

# Inside _core, a row may cimport or import the rows above it, and its own row where that makes no cycle.
CORE_ORDER = (
    {"checks", "atomics", "status", "layout", "exact", "matrix"},
    {"readers"},
    {"arena", "columns", "codec"},
    {"index", "values", "records"},
    {"timeline", "request", "ordering"},
    {"tiles"},
    {"aggregates"},
    {"windows", "window_views"},
    {"builder", "cells"},
    {"entity"},
    {"writer"},
    {"ids"},
    {"table"},
    {"plan", "exports"},
    {"session", "exchange"},
)
# Inside history, a row may import the rows above it.
HISTORY_ORDER = (
    {"cache", "catalog"},
    {"rowfile"},
    {"merging", "deletes"},
    {"audit"},
    {"history"},
    {"__init__"},
)
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "tools"}
SOURCE_ROOTS = ("fastfeat", "server", "examples", "benchmarks", "tests")
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:home|root|work)/\w")


def sources(*suffixes: str, under: tuple[str, ...] = SOURCE_ROOTS) -> list[Path]:
    found = (path for root in under for path in (ROOT / root).rglob("*"))
    return sorted(path for path in found if path.suffix in suffixes and "__pycache__" not in path.parts)


def package_of(path: Path) -> list[str]:
    """The dotted name of the package that holds the module at `path`, as a list."""
    parts = list(path.relative_to(ROOT).parent.parts)
    return parts[1:] if parts[0] == "server" else parts


def resolve(package: list[str], level: int, module: str) -> str:
    """The absolute name behind `from <level dots><module> import`."""
    if level == 0:
        return module
    return ".".join([*package[: len(package) - level + 1], *([module] if module else [])])


def python_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve(package_of(path), node.level, node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


CYTHON_FROM = re.compile(r"^\s*from\s+(\.*)([\w.]*)\s+c?import\s+\(?([\w, ]*)", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+([\w.]+)", re.MULTILINE)


def cython_imports(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for dots, module, names in CYTHON_FROM.findall(text):
        origin = resolve(package_of(path), len(dots), module)
        yield from (f"{origin}.{name.split()[0]}" for name in names.split(",") if name.strip())
        yield origin
    yield from CYTHON_IMPORT.findall(text)


def imports(path: Path) -> set[str]:
    return set(python_imports(path) if path.suffix in (".py", ".pyi") else cython_imports(path))


def modules_of_fastfeat(path: Path) -> set[str]:
    """First names below `fastfeat` that the module at `path` imports; "" stands for the package's own names."""
    known = {p.stem if p.is_file() else p.name for p in (ROOT / "fastfeat").iterdir()} - {"__init__", "__pycache__"}
    out = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "fastfeat":
            out.add(parts[1] if len(parts) > 1 and parts[1] in known else "")
    return out


def layer_faults() -> list[str]:
    faults = []
    for path in sources(".py", ".pyi", ".pyx", ".pxd", under=("fastfeat", "server")):
        parts = path.relative_to(ROOT).parts
        if parts[:2] == ("fastfeat", "cli") or path == ROOT / "fastfeat/__init__.py":
            continue
        if parts[0] == "server":
            name, allowed = "fastfeat_server", SERVER_MAY_IMPORT | {""}
        else:
            name = Path(parts[1]).stem
            if name not in MAY_IMPORT:
                faults.append(f"{path.relative_to(ROOT)}: module {name!r} has no row in MAY_IMPORT; give it one")
                continue
            allowed = MAY_IMPORT[name] | {name}
        faults += [
            f"{path.relative_to(ROOT)}: {name} may not import {other or 'fastfeat itself'}"
            for other in sorted(modules_of_fastfeat(path) - allowed)
        ]
    return faults


def core_imports(path: Path) -> set[str]:
    names = {p.stem for p in sources(".pyx", ".pxd", under=("fastfeat/_core",))}
    found = {part for name in imports(path) for part in name.split(".") if "fastfeat._core" in name}
    return (found & names) - {path.stem}


def test_modules_import_only_what_their_layer_allows() -> None:
    assert layer_faults() == []


def test_an_import_from_above_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {
        "fastfeat/store.py": "from . import schema\n",
        "fastfeat/schema.py": "from .store import Store\n",
        "fastfeat/_core/table.pyx": "from ..schema import Field\n",
        "fastfeat/client/blocking.py": "import fastfeat.store\n",
        "fastfeat/surprise.py": "",
        "server/fastfeat_server/front.py": "from fastfeat._core.plan import Plan\n",
    }
    for name, text in seeds.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert layer_faults() == [
        "fastfeat/_core/table.pyx: _core may not import schema",
        "fastfeat/client/blocking.py: client may not import store",
        "fastfeat/schema.py: schema may not import store",
        "fastfeat/surprise.py: module 'surprise' has no row in MAY_IMPORT; give it one",
        "server/fastfeat_server/front.py: fastfeat_server may not import _core",
    ]


def test_extensions_that_python_imports_have_stubs() -> None:
    native = {path.stem for path in sources(".pyx", under=("fastfeat/_core",))}
    wanted = {
        name.split(".")[2]
        for path in sources(".py")
        for name in imports(path)
        if name.startswith("fastfeat._core.") and name.split(".")[2] in native
    }
    assert sorted(name for name in wanted if not (ROOT / f"fastfeat/_core/{name}.pyi").exists()) == []


def test_inside_the_core_imports_point_down() -> None:
    rank = {name: i for i, row in enumerate(CORE_ORDER) for name in row}
    edges: dict[str, set[str]] = {}
    for path in sources(".pyx", ".pxd", under=("fastfeat/_core",)):
        assert path.stem in rank, f"_core/{path.name} has no row in CORE_ORDER; give it one"
        edges.setdefault(path.stem, set()).update(core_imports(path))
    faults = [f"{a} imports {b}" for a, others in edges.items() for b in others if rank[b] > rank[a]]
    assert faults == []
    assert find_cycle(edges) == []


def history_faults(order: tuple[set[str], ...] = HISTORY_ORDER) -> list[str]:
    rank = {name: i for i, row in enumerate(order) for name in row}
    faults = []
    for path in sources(".py", under=("fastfeat/history",)):
        inside = {name.split(".")[2] for name in imports(path) if name.startswith("fastfeat.history.")}
        faults += [
            f"{path.stem} imports {name}" for name in sorted(inside & set(rank)) if rank[name] >= rank[path.stem]
        ]
    return faults


def test_inside_history_imports_point_down() -> None:
    assert {path.stem for path in sources(".py", under=("fastfeat/history",))} == set.union(*HISTORY_ORDER)
    assert history_faults() == []
    assert "rowfile imports catalog" in history_faults(HISTORY_ORDER[::-1])


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """The names along one cycle, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if cycle := walk(other, [*path, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(edges) if (cycle := walk(name, []))), [])


def test_the_cycle_finder_finds_a_cycle() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_relative_and_absolute_imports_resolve_alike(tmp_path: Path) -> None:
    assert resolve(["fastfeat", "client"], 2, "errors") == "fastfeat.errors"
    assert resolve(["fastfeat", "client"], 1, "") == "fastfeat.client"
    assert resolve(["fastfeat"], 0, "fastfeat.errors") == "fastfeat.errors"
    text = "from fastfeat._core.arena cimport arena_alloc\nfrom .layout cimport Row, Cell\ncimport cython\n"
    path = tmp_path / "seeded.pyx"
    path.write_text(text, encoding="utf-8")
    assert CYTHON_FROM.findall(text) == [
        ("", "fastfeat._core.arena", "arena_alloc"),
        (".", "layout", "Row, Cell"),
    ]
    assert CYTHON_IMPORT.findall(text) == ["cython"]


def test_the_protocol_sees_only_the_wire_side_of_the_core() -> None:
    path = ROOT / "fastfeat/protocol.py"
    if path.exists():
        of_core = {name.split(".")[2] for name in imports(path) if name.startswith("fastfeat._core.")}
        assert of_core <= PROTOCOL_MAY_IMPORT_OF_CORE


@pytest.mark.parametrize("name", ["fastfeat", "fastfeat.client"])
def test_importing_is_light(name: str) -> None:
    """The client alone must import without what only the server, the store or the command line needs."""
    heavy = ["pyarrow", "pandas", "polars", "uvloop", "aiohttp", "sqlalchemy", "typer", "rich"]
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert run.stdout.strip() == "[]"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [str(p) for p in sources(".py", ".pyx", ".pxd", ".h") if p.stem in VAGUE] == []


def test_no_cython_source_includes_another_as_text() -> None:
    textual = re.compile(r"^\s*include\s+[\"']", re.MULTILINE)
    assert textual.search('include "layout.pxi"\n')
    assert [str(p) for p in sources(".pyx", ".pxd") if textual.search(p.read_text(encoding="utf-8"))] == []
    assert sources(".pxi") == []


def test_every_module_opens_with_a_docstring() -> None:
    opening = re.compile(r'\A(#[^\n]*\n)*\s*"""\S')
    paths = [p for p in sources(".py", ".pyx") if p.stat().st_size]
    assert paths
    missing = [str(p.relative_to(ROOT)) for p in paths if not opening.match(p.read_text(encoding="utf-8"))]
    assert missing == []


def test_nothing_names_the_machine_it_was_written_on() -> None:
    assert MACHINE_PATH.search("see /home/someone/notes")
    assert not MACHINE_PATH.search("docs/work/plan and $HOME/work/x")
    texts = sources(".py", ".pyi", ".pyx", ".pxd", ".h", ".c", ".toml", ".md", ".json", ".sh")
    texts += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile", ROOT / ".ci/run", *(ROOT / "docs").glob("*")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        if path.is_file() and path != Path(__file__).resolve() and path.suffix not in (".png", ".so")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
