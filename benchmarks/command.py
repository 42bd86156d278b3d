"""Running the project's own commands, as a user would."""

import os
import subprocess
import sys
from pathlib import Path

from pipelines.common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def command(output: Path, *arguments: object) -> None:
    """Run Python on one thread from the repository's root; what it prints is kept in the folder ``output``.

    Raises ``UserError`` with the command's last line where it fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (output / "printed.txt").open("a") as printed:
        line = [sys.executable, *map(str, arguments)]
        code = subprocess.call(line, cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT)
    if code:
        last = Path(printed.name).read_text().strip().rpartition("\n")[2]
        raise UserError(f"{output.name}: {last.removeprefix('error: ')} (see {printed.name})")
