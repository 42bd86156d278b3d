"""Each message that docs/troubleshooting.md explains is one that the program has."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

import pytest

from tests.docs.blocks import ROOT
from tests.test_architecture import ROOMS

PAGE = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## By message")[2], re.MULTILINE)


@lru_cache
def texts() -> list[str]:
    """All texts of the product, … for what is filled in."""
    return [text for room in ROOMS for file in (ROOT / room).rglob("*.py") for text in texts_of(file.read_text())]


def texts_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_says_it(message):
    for part in filter(None, (part.strip() for part in message.split("…"))):
        assert any(part in text for text in texts()), part


def test_all_messages_are_looked_at():
    assert len(MESSAGES) > 15 and not any("no such message" in text for text in texts())
