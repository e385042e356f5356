"""The README's Python is true: its blocks run in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LINKS = re.findall(r"\]\((?!https?:)([^)#]+)", README)


def test_the_python_blocks_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each from a file: the source of an on-demand feature is its definition."""
    namespace: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        path = tmp_path / f"block_{number}.py"
        path.write_text(block, encoding="utf-8")
        exec(compile(block, path, "exec"), namespace)
    promised = re.findall(r"# (\[.*\])$", BLOCKS[0], re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == promised
    assert len(promised) == 2


def test_the_quickstart_is_short() -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 25


def test_what_the_readme_links_to_exists() -> None:
    assert LINKS
    assert [link for link in LINKS if not (ROOT / link).exists()] == []


def test_the_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"make ([a-z-]+)", README))
    assert named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
