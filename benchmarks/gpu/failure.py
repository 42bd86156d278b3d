"""How soon a rank that fails says so, and how soon everything has ended then.

``python -m benchmarks.gpu.failure OVERRIDE...`` is the run whose last rank fails.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.gpu.conduct import end, environment, python
from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.training import QUICKSTART, TINY, overrides
from pipelines.common.command import run as command
from pipelines.common.errors import UserError
from pipelines.loading.loader import Batch
from train.config import load_config
from train.distributed import joined
from train.trainer import Trainer

_AT = 5  # the step that fails
_TELLS_IN, _ENDS_IN = 15.0, 30.0  # seconds
_MARK, _MESSAGE = "fails now", "this step fails on purpose"


def run(report: Report, setting: Setting) -> None:
    """Start the run on all ranks and listen to it."""
    arguments = overrides(setting, setting.scratch / "failing", *TINY, "dist={timeout: 600, start_timeout: 600}")
    process = subprocess.Popen(
        python("-m", "benchmarks.gpu.failure", *arguments, ranks=setting.ranks),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    failed = told = None
    said: list[str] = []
    try:
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            said.append(line)
            if _MARK in line:
                failed = time.monotonic()
            elif _MESSAGE in line and "error" in line and told is None:
                told = time.monotonic()
        code = process.wait()
        ended = time.monotonic()
    finally:
        end(process, 5.0)  # torchrun, which has ranks to end
    if failed is None:
        raise ChildProcessError("the run ended before it was to fail:\n" + "".join(said[-30:]))
    report.figure("ranks", setting.ranks)
    report.holds(
        "the error is told in one line", told is not None, next((s for s in said if _MESSAGE in s), "").strip()
    )
    report.at_most("until it is told", (told or float("inf")) - failed, _TELLS_IN, "s")
    report.at_most("until every process has ended", ended - failed, _ENDS_IN, "s")
    codes = [code]
    if setting.ranks > 1:  # torchrun's own is 1; it tells the rank's in its summary
        codes = [int(number) for number in re.findall(r"exitcode\s*:\s*(-?\d+)", "".join(said))]
    report.holds("exit code of the rank that fails", 2 in codes, str(codes), limit="= 2")


class _Failing(Trainer):
    """A run in which the last rank's step fails, as a full disk or a bad image may make it."""

    def train_step(self, batches: Iterator[Batch]) -> dict:
        """As always, until it fails."""
        if self.step == _AT and self.world.rank == self.world.size - 1:
            print(_MARK, file=sys.stderr, flush=True)
            raise UserError(_MESSAGE)
        return super().train_step(batches)


def main() -> None:
    """Train until the last rank fails."""
    config = load_config(QUICKSTART, sys.argv[1:])
    with joined(config.device, config.dist.start_timeout) as world:
        _Failing(config, world).fit()


if __name__ == "__main__":
    command(main)
