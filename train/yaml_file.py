"""YAML as configs use it: no key may be given twice, and what cannot be read is told with the name of the file."""

import re
from pathlib import Path
from typing import Any

import yaml

from pipelines.common.errors import UserError, one_line


class _Loader(yaml.SafeLoader):
    def check_printable(self, data: str) -> None:
        """Bytes that are not UTF-8, which Python gives as surrogates, may be in the name of a file."""
        super().check_printable(re.sub("[\udc80-\udcff]", "x", data))

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # str | None, but a dict in PyYAML's stubs
        """YAML forbids a key given twice; PyYAML takes the last one, and a user wonders where the others are."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):  # refused later: it is no name
                continue
            if key.value in seen:
                raise UserError(f"line {key.start_mark.line + 1} gives the key {key.value} a second time")
            seen.add(key.value)
        return node


def parse(text: str) -> Any:
    """The value of a YAML text. Raises ``ValueError``."""
    try:
        return yaml.load(text, _Loader)
    except UserError:
        raise
    except RecursionError:
        raise UserError("not valid YAML: it is nested too deeply") from None
    except Exception as error:  # beside its own, PyYAML raises whatever int() and the like do
        raise UserError(f"not valid YAML: {one_line(error)}") from None


def read(path: str | Path) -> Any:
    """The value of a YAML file. Raises ``ValueError`` or ``OSError`` that name it."""
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
