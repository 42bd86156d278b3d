"""Prove on this machine's GPU, in nine minutes, that everything is right and fast.

    python -m benchmarks.gpu [--minutes 9] [--output DIR] [--parts NAME...]
    torchrun --nproc_per_node=N -m benchmarks.gpu        # the parts that regard ranks, on N of them

Each part is a process of its own with a limit of time. The end is a table of what must hold, a JSON file, a page, and
the lines of a config that won here. Without a GPU it runs in small what can be run. The exit code is 1 where something
does not hold.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

if not __package__:  # as a folder, Python looks for modules in it first: the rooms are two folders up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu.parts import PARTS
from pipelines.common.command import run

_MEMORY = Path("/dev/shm")  # where reading is no question of a disk
_NEEDED = 2**30  # bytes there


def main() -> None:
    """Parse the command line before anything slow is imported."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="in which all has to be over")
    parser.add_argument("--output", type=Path, help="folder for JSON and page (default: benchmarks/results)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[], metavar="NAME", help=", ".join(PARTS))
    options = parser.parse_args()
    deadline = time.time() + 60 * options.minutes
    # What an ended part's processes still write while it is removed stays behind.
    shared: dict[str, Any] = dict(prefix="facemill-", ignore_cleanup_errors=True)
    with TemporaryDirectory(**shared) as scratch, TemporaryDirectory(dir=_fast(), **shared) as fast:
        failed = _run(options, deadline, Path(scratch), Path(fast))
    sys.exit(1 if failed else 0)


def _fast() -> str:
    """A folder in memory if there is one with room."""
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _NEEDED:
        return str(_MEMORY)
    return gettempdir()


def _run(options: argparse.Namespace, deadline: float, scratch: Path, fast: Path) -> bool:
    """Everything; returns whether something does not hold."""
    from benchmarks.gpu.conduct import chosen, conduct
    from benchmarks.gpu.part import Setting
    from benchmarks.gpu.summary import Progress, finish
    from evaluate.features.ranks import find_device

    several = "RANK" in os.environ
    device = find_device().type
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if several else 1 if device == "cuda" else 2
    setting = Setting(device, fast / "data", scratch, deadline, ranks, small=device == "cpu")
    parts = chosen(PARTS, options.parts, several)
    if several and os.environ["RANK"] != "0":  # the first rank conducts, prints and writes
        parts = {name: part for name, part in parts.items() if part.everywhere}
        conduct(parts, setting, deadline, lambda *_: None, lambda _: None)
        return False
    with Progress() as progress:
        outcomes = conduct(parts, setting, deadline, progress.tell, progress.done)
    return finish(outcomes, options.output)


if __name__ == "__main__":
    run(main)
