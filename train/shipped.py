"""The configs that come with Facemill: ``python -m train.shipped`` lists them, ``… NAME`` prints one to be changed.

They lie in ``configs/``, in a checkout as in an installation.
"""

import argparse
from itertools import takewhile
from pathlib import Path

from pipelines.common.command import run
from pipelines.common.errors import UserError, unknown

_FOLDER = Path(__file__).resolve().parents[1] / "configs"


def shipped() -> dict[str, Path]:
    """The files by their names without ``.yaml``, in order."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.yaml"))}


def find_config(config: str | Path) -> Path:
    """The file at a path; for a name without folder and suffix, where there is no such file, the shipped config.

    Raises ``UserError`` where there is neither.
    """
    path, known = Path(config), shipped()
    if path.is_file():
        return path
    if path.name == str(config) and not path.suffix:
        if path.name not in known:
            raise unknown("config", path.name, known)
        return known[path.name]
    if path.stem in known:
        raise UserError(f"there is no {path}; the config that comes with Facemill is --config {path.stem}")
    return path


def described(config: str) -> str:
    """What the comment at the head of a config's text says, to the end of the sentence that its first line is in."""
    lines = [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), config.splitlines())]
    if not lines:
        return ""
    text = " ".join(lines)
    end = text.find(". ", len(lines[0]) - 1)
    return text if end < 0 else text[: end + 1]


def main() -> None:
    """List the configs with what they are, or print one."""
    parser = argparse.ArgumentParser(description="The configs that come with Facemill: a list, or one of them.")
    parser.add_argument("name", nargs="?", help="print this one, to be changed: … NAME > my.yaml")
    name = parser.parse_args().name
    known = shipped()
    if name is None:
        width = max(map(len, known), default=0)
        for stem, path in known.items():
            print(f"{stem:{width}}  {described(path.read_text())}")
    elif name not in known:
        raise unknown("config", name, known)
    else:
        print(known[name].read_text(), end="")


if __name__ == "__main__":
    run(main)
