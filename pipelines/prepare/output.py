"""A folder that appears under its name only when all of it is there."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, naming, remove_leftovers, sync

_JOB = "job.json"


@contextmanager
def complete(out: str | Path, job: Mapping[str, object], sample: Mapping[str, str]) -> Iterator[Path]:
    """A folder to write to, ``.<out>.partial``, which becomes ``out`` if the block ends well.

    What an earlier, interrupted run with the same ``job`` (what it was to write) left there is kept for the block to
    go on with, half-written files excepted; what another job left is removed. So is what was made from other images:
    ``sample`` has digests of some of those that can be read, and what is in both runs' samples must be equal. Raises as
    `check_new` does.
    """
    out = Path(out)
    check_new(out)
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists() and not _belongs(partial, job, sample):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    remove_leftovers(partial)
    with naming(partial / _JOB):
        (partial / _JOB).write_text(json.dumps({"job": job, "sample": sample}))
    yield partial
    (partial / _JOB).unlink()
    partial.replace(out)
    sync(out.parent)


def check_new(out: Path) -> None:
    """Raise ``ValueError`` if ``out`` exists and holds anything, ``OSError`` if it could not be made; nothing is made.

    For commands that write after long work.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or name another folder")
    check_folder(out.parent)


def _belongs(folder: Path, job: Mapping[str, object], sample: Mapping[str, str]) -> bool:
    try:
        earlier = json.loads((folder / _JOB).read_text())
        known = earlier["sample"]
        return earlier["job"] == job and all(known.get(image, digest) == digest for image, digest in sample.items())
    except (OSError, ValueError, KeyError, TypeError):  # none, half of one, or one of another version
        return False
