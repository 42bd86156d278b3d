"""The Python blocks of a Markdown file, as code to run."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_HEADING_OR_FENCE = re.compile(
    r"^##+ (?P<heading>[^\n]*)$"
    r"|^(?:<!-- needs (?P<needs>[\w.]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block ```` ```python ````; ``needs`` is what a comment ``<!-- needs module.name -->`` right before it says."""

    section: str
    code: str
    file: Path
    line: int  # before its first line of code
    needs: str | None

    def run(self, namespace: dict[str, Any]) -> None:
        """Errors point at the line of the Markdown file."""
        exec(compile("\n" * self.line + self.code, str(self.file), "exec"), namespace)

    @property
    def needed(self) -> Any:
        """What the block needs; None where it needs nothing, or where the code does not have it."""
        module, _, name = (self.needs or "").rpartition(".")
        return getattr(import_module(module), name, None) if module else None

    @property
    def runnable(self) -> bool:
        """Whether all that the block needs is there."""
        return self.needs is None or self.needed is not None


def blocks(file: Path) -> list[Block]:
    """All Python blocks of a file, in order."""
    found, section, text = [], "", file.read_text()
    for match in _HEADING_OR_FENCE.finditer(text):
        if match["language"] is None:
            section = match["heading"]
        elif match["language"] == "python":
            found.append(Block(section, match["code"], file, text.count("\n", 0, match.start("code")), match["needs"]))
    return found
