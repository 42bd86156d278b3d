"""A new folder, and whether what an interrupted run left of it is gone on with."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.common.files import naming, remove_leftovers
from pipelines.common.new_folder import clear, new_folder

_JOB = "job.json"


@contextmanager
def complete(out: str | Path, job: Mapping[str, object], sample: Mapping[str, str]) -> Iterator[Path]:
    """A folder to write to, which becomes ``out`` if the block ends well, see `new_folder`.

    What an earlier, interrupted run with the same ``job`` (what it was to write) left there is kept for the block to
    go on with, half-written files excepted; what another job left is removed. So is what was made from other images:
    ``sample`` has digests of some of those that can be read, and what is in both runs' samples must be equal.
    """
    with new_folder(Path(out)) as partial:
        if not _belongs(partial, job, sample):
            clear(partial)
        remove_leftovers(partial)
        with naming(partial / _JOB):
            (partial / _JOB).write_text(json.dumps({"job": job, "sample": sample}))
        yield partial
        (partial / _JOB).unlink()


def _belongs(folder: Path, job: Mapping[str, object], sample: Mapping[str, str]) -> bool:
    try:
        earlier = json.loads((folder / _JOB).read_text())
        known = earlier["sample"]
        return earlier["job"] == job and all(known.get(image, digest) == digest for image, digest in sample.items())
    except (OSError, ValueError, KeyError, TypeError):  # none, half of one, or one of another version
        return False
