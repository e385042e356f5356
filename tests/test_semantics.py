"""docs/SEMANTICS.md is true: every example in it runs, and every section shows something."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "SEMANTICS.md"
SETUP = "The store of the examples"
BEFORE = {"Windows": "Event views"}  # a section -> the one whose examples it goes on with
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> dict[str, str]:
    """Heading -> the code below it."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title: "\n".join(BLOCK.findall(text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def failures(title: str, code: str) -> tuple[int, str]:
    """How many examples of the code fail after the setup, and what they say."""
    said: list[str] = []
    before = sections()[SETUP] + (sections()[BEFORE[title]] if title in BEFORE else "")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL, verbose=False)
    test = doctest.DocTestParser().get_doctest(before + code, {}, title, str(PAGE), 0)
    result = runner.run(test, out=said.append)
    return result.failed, "".join(said)


@pytest.mark.parametrize("title", [title for title in sections() if title != SETUP])
def test_the_section_tells_the_truth(title: str) -> None:
    code = sections()[title]
    examples = doctest.DocTestParser().get_examples(code)
    assert any(example.want for example in examples), "a section shows what it says"
    failed, said = failures(title, code)
    assert failed == 0, said


def test_a_wrong_example_would_be_seen() -> None:
    assert failures("control", ">>> amount()\n101.0\n")[0] == 1
    assert failures("control", ">>> amount(as_of=0)\nTraceback (most recent call last):\nDataError: ...\n")[0] == 1


def test_the_page_says_loudly_where_reads_and_windows_end() -> None:
    assert "**Point reads are `<= T`. Windows are `< T`.**" in PAGE.read_text(encoding="utf-8")
