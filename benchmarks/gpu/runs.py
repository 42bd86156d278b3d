"""Runs by the command a user types: killed and resumed, told to stop; and how fast a checkpoint is."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.gpu.conduct import end, environment, python
from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.training import QUICKSTART, TINY, group, overrides
from benchmarks.measure import finish
from losses import CentreOptimizer, PartialFC, create_margin
from pipelines.sources import open_source
from train.checkpoint import Checkpoints
from train.state import Part
from train.step_folders import latest_step
from train.stop import Stopped

SHARD = 257_489  # centres of WebFace42M on one of eight ranks
_COMPARED = 5  # steps behind a checkpoint, made before and after the kill
_STOPS_IN = 30.0  # seconds from SIGTERM to the end


def run(report: Report, setting: Setting) -> None:
    """One run that nobody touches beside one that is killed, resumed, stopped, and resumed again."""
    steps = 30 if setting.small else 300
    untouched, attacked = (_Job(setting, name, steps) for name in ("untouched", "attacked"))
    with ExitStack() as opened:
        for job in (untouched, attacked):
            opened.callback(job.close)
            job.start()
        attacked.wait_for(lambda: attacked.step() > 0, setting)
        attacked.kill()
        killed_at, first = attacked.step(), attacked.losses()
        attacked.start()
        attacked.wait_for(lambda: attacked.reached() > killed_at + _COMPARED, setting)
        second = attacked.losses()
        attacked.send(signal.SIGTERM)
        began = time.monotonic()
        code = attacked.wait(setting)
        seconds = time.monotonic() - began
        saved = attacked.step()
        report.at_most("SIGTERM ends a run in", seconds, _STOPS_IN, "s")
        expected = Stopped(signal.SIGTERM).code
        if code == 0:  # it was at its end already
            report.skip("exit code and checkpoint after SIGTERM", "the run ended before")
        else:
            report.holds("its exit code", code == expected, str(code), limit=f"= {expected}")
            report.holds("it leaves a checkpoint of its last step", saved == attacked.logged_step(), f"step {saved}")
        attacked.start()
        codes = [attacked.wait(setting), untouched.wait(setting)]
        report.holds("the run goes on to its end", codes == [0, 0], f"exit codes {codes}")
    again = [step for step in range(killed_at + 1, killed_at + 1 + _COMPARED) if step in first]
    name = "steps made again behind a kill: losses"
    if again:
        change = max(abs(first[step] - second[step]) / first[step] for step in again)
        report.at_most(name, change, 1e-3, "relative", steps=len(again))
    else:
        report.skip(name, "the kill came right behind a checkpoint")
    ours, theirs = attacked.losses(), untouched.losses()
    worst = max((abs(ours[step] - theirs[step]) for step in theirs if step in ours), default=float("nan"))
    report.figure("killed behind the checkpoint of step", killed_at)
    report.holds("no step is missing", ours.keys() == theirs.keys(), f"{len(ours)} of {len(theirs)} steps")
    # On a GPU rounding is not the same twice, and many steps make much of it.
    report.figure("losses against those of the run that nobody touched", worst / theirs[1], "of the first loss")
    _checkpoint_speed(report, setting)


class _Job:
    """A run of ``steps`` steps in a process; starting it again is the same command."""

    def __init__(self, setting: Setting, name: str, steps: int) -> None:
        self.output = setting.scratch / name
        self._said, self._starts = setting.scratch, 0
        more = [*TINY, "optim.lr=0.002", f"checkpoint={{every_steps: {steps // 10}}}"]
        more += ["log={every_steps: 1, sinks: [jsonl]}"]
        steps_an_epoch = len(open_source(setting.data)) // 16
        more.append(f"schedule={{name: constant, epochs: {steps / steps_an_epoch}}}")
        self._command = python("-m", "train.run", "--config", str(QUICKSTART), *overrides(setting, self.output, *more))
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._starts += 1
        self._said = self.output.with_name(f"{self.output.name}_{self._starts}.txt")
        with self._said.open("wb") as file:
            self._process = subprocess.Popen(
                self._command, stdout=file, stderr=file, env=environment(), start_new_session=True
            )

    def step(self) -> int:
        """Of its newest checkpoint."""
        return latest_step(self.output / "checkpoints")

    def losses(self) -> dict[int, float]:
        """By step, as the log has them; of a step that was made twice the later one."""
        path = self.output / "log.jsonl"
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        records = map(json.loads, lines)
        return {record["step"]: record["loss"] for record in records if "loss" in record}

    def reached(self) -> int:
        """The last step that it has told of since it was started."""
        told = re.findall(r"\bstep (\d+)/", self._said.read_text(errors="replace"))
        return int(told[-1]) if told else 0

    def logged_step(self) -> int:
        """The last step in its log."""
        return max(self.losses(), default=0)

    def wait_for(self, condition: Callable[[], bool], setting: Setting) -> None:
        """Until it is true or the run ends; what a run that failed has said is the error."""
        process = self._running()
        while not condition() and process.poll() is None:
            if setting.seconds < 0:
                raise TimeoutError(f"{self.output.name} gets no further: {self._tail()}")
            time.sleep(0.05)
        if process.poll():
            raise ChildProcessError(f"{self.output.name} ended with code {process.returncode}: {self._tail()}")

    def wait(self, setting: Setting) -> int:
        """Its exit code."""
        return self._running().wait(max(1.0, setting.seconds))

    def kill(self) -> None:
        self._running().kill()
        self._running().wait()

    def send(self, number: signal.Signals) -> None:
        self._running().send_signal(number)

    def close(self) -> None:
        if self._process is not None:
            end(self._process)

    def _running(self) -> subprocess.Popen:
        assert self._process is not None, "start comes first"
        return self._process

    def _tail(self) -> str:
        return self._said.read_text(errors="replace")[-2000:]


def _checkpoint_speed(report: Report, setting: Setting) -> None:
    """Save and load a shard of centres with its momentum."""
    classes, size = (2000, 64) if setting.small else (SHARD, 512)
    folder = setting.scratch / "shard"
    with group(setting) as world:
        head = PartialFC(create_margin("arcface"), size, classes, device=world.device)
        optimizer = CentreOptimizer(head, lr=0.1)
        checkpoints = Checkpoints(folder, 1, world.device)
        parts: dict[str, Part] = {"head": head, "centre_optimizer": optimizer.state_dict()}
        gigabytes = 2 * 4 * classes * size / 1e9
        for turn in range(2):  # the first one takes memory for the copy
            finish(world.device)
            began = time.perf_counter()
            checkpoints.save(turn + 1, parts, {})
            checkpoints.copied()
            copied = time.perf_counter() - began
            checkpoints.finish()
            saved = time.perf_counter() - began
        report.figure("copying a shard and its momentum to the host", copied, "s", gigabytes=round(gigabytes, 3))
        report.figure("saving it, on the disk", saved, "s", gigabytes=round(gigabytes, 3))
        report.figure("saving, speed", gigabytes / saved, "GB/s")
        before = head.weight.detach().clone()
        head.weight.data.zero_()
        began = time.perf_counter()
        found = checkpoints.newest()
        assert found is not None, "it was just saved"
        checked = time.perf_counter() - began
        checkpoints.load(found[0], parts)
        finish(world.device)
        loaded = time.perf_counter() - began
        report.figure("checking its checksums", checked, "s")
        report.figure("loading, speed", gigabytes / loaded, "GB/s")
        report.holds("what is loaded is what was saved", bool((head.weight == before).all()))
    shutil.rmtree(folder)
