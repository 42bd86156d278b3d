"""The table "What may import what" of docs/architecture.md, checked against every import in the code.

Imports inside functions count like those at the top of a file.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipelines", "models", "losses", "evaluate", "train", "benchmarks")


class Part(NamedTuple):
    """A row of the table; a module belongs to the longest name that it lies under."""

    name: str
    may_import: list[str]
    never: list[str]


def read_table(text: str) -> dict[str, Part]:
    """The rows under the heading "What may import what", in order."""
    section = re.search(r"^## What may import what$(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    codes = [[re.findall(r"`([\w.]+)`", cell) for cell in row] for row in rows]
    return {name[0]: Part(name[0], may_import, never) for name, _, may_import, never in codes}


TABLE = read_table((ROOT / "docs/architecture.md").read_text())


def within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def part_of(module: str, table: dict[str, Part]) -> Part | None:
    return max((part for part in table.values() if within(module, part.name)), key=lambda p: len(p.name), default=None)


def module_of(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of what is imported: modules, and names out of modules as ``module.name``."""
    package = file.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def imported_module(name: str, root: Path) -> str:
    """Of ``package.module.name`` the part that is a module of this repository."""
    while not (root / name.replace(".", "/")).with_suffix(".py").is_file():
        if (root / name.replace(".", "/")).is_dir() or "." not in name:
            break
        name = name.rpartition(".")[0]
    return name


def files(root: Path) -> list[Path]:
    return sorted(file for room in ROOMS for file in (root / room).rglob("*.py"))


def faults(root: Path, table: dict[str, Part]) -> list[str]:
    """Every import that the table does not allow, as ``file:line: part must not import name``."""
    found = []
    for file in files(root):
        own = part_of(module_of(file, root), table)
        for line, name in imports(file, root):
            module = imported_module(name, root)
            allowed = module.partition(".")[0] not in (*ROOMS, "tests")
            allowed |= part_of(module, table) == own or any(within(module, other) for other in own.may_import)
            if not allowed or any(within(name, never) for never in own.never):
                found.append(f"{file.relative_to(root)}:{line}: {own.name} must not import {name}")
    return found


def test_no_import_goes_where_the_table_does_not_let_it():
    found = faults(ROOT, TABLE)
    assert not found, "\n".join(found)


def test_the_table_names_every_folder_and_nothing_else():
    modules = {module_of(file, ROOT) for file in files(ROOT)}
    wings = {module.rpartition(".")[0] for module in modules if module.count(".") > 1} | set(ROOMS)
    assert set(TABLE) == wings
    for part in TABLE.values():
        assert all(other in modules for other in part.may_import), part


def test_every_row_imports_rows_above_it_and_modules_of_its_room():
    """So the drawing has no circle, and the table reads from the ground floor up."""
    above: list[str] = []
    for part in TABLE.values():
        room, _, wing = part.name.partition(".")
        for other in part.may_import:
            own = wing and within(other, room) and (ROOT / other.replace(".", "/")).with_suffix(".py").is_file()
            assert own or any(within(other, name) for name in above), part
        above.append(part.name)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/new.py", "from losses import PartialFC"),
        ("models/new.py", "import pipelines.loading.loader"),
        ("models/new.py", "from tests import ranks"),
        ("pipelines/new.py", "import models"),
        ("pipelines/sources/new.py", "from pipelines.loading import decoder"),
        ("pipelines/sources/new.py", "from ..loading import decoder"),
        ("pipelines/sources/new.py", "from torch import Tensor"),
        ("losses/margins/new.py", "from losses import PartialFC"),
        ("losses/margins/new.py", "from losses.head.partial_fc import PartialFC"),
        ("losses/auxiliary/new.py", "from losses.head.partial_fc import PartialFC"),
        ("evaluate/protocols/new.py", "from torch import nn"),
        ("evaluate/protocols/new.py", "from evaluate.features.embed import embed"),
        ("evaluate/features/new.py", "from evaluate.verification import main"),
        ("train/recipes/new.py", "from evaluate.protocols import folds"),
        ("train/recipes/new.py", "from models.vit import TransFace"),
        ("train/new.py", "from evaluate.ijb import main"),
        ("train/new.py", "import benchmarks.results"),
    ],
)
def test_a_forbidden_import_is_found_wherever_it_stands(tmp_path, file, line):
    for part in TABLE:
        (tmp_path / part.replace(".", "/")).mkdir(parents=True, exist_ok=True)
    for module in {module_of(path, ROOT) for path in files(ROOT)} - set(TABLE):
        (tmp_path / module.replace(".", "/")).with_suffix(".py").touch()
    path = tmp_path / file
    for text in (line, f"def late():\n    {line}", f"class Late:\n    def call(self):\n        {line}"):
        path.write_text(text)
        assert len(faults(tmp_path, TABLE)) == 1, text
    path.write_text(f"# {line}")
    assert not faults(tmp_path, TABLE)


def test_every_wing_is_in_the_wheel():
    """setuptools finds the rooms' folders by their ``__init__.py``."""
    found = setuptools.find_packages(ROOT, include=included(ROOT))
    wings = {".".join(file.relative_to(ROOT).parent.parts) for file in files(ROOT)}
    assert wings == set(found)


def included(root: Path) -> list[str]:
    """The patterns of packages in ``pyproject.toml``; Python 3.10 has no reader of TOML."""
    section = (root / "pyproject.toml").read_text().partition("[tool.setuptools.packages.find]\n")[2]
    return json.loads(re.match("include = (.*)\n", section)[1])
