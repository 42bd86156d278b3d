"""Runs that are attacked: started in the background, ended in every way, compared with one that nobody touched."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.faults.forked import Attack, Forked, train
from tests.train.support import RUN, curves

# Sections of longer runs on several ranks: small steps, and no margin or sampling that turns rounding into decisions.
SMOOTH = {
    "head": {"margin": "arcface", "sample_rate": 1.0},
    "optim": {"lr": 0.002},
    "verify": {"every_steps": 100},
}
TOLD = ("step", "loss", "lr", "verify/pairs")  # of a line of the log: what does not depend on the machine


def torchrun(*options: str) -> tuple[str, ...]:
    """The launcher of one machine: ``torchrun("--nproc_per_node=2")``."""
    return (sys.executable, "-m", "torch.distributed.run", "--standalone", *options, RUN)


@dataclass(frozen=True)
class Job:
    """A run: its config and its folder. Starting it again is the same command."""

    config: Path
    output: Path

    @property
    def notes(self) -> Path:
        """How names of what it tells begin."""
        return self.config.with_name("notes")

    def fork(self, *overrides: str, attack: Attack | None = None) -> Forked:
        """Start it in a forked process, quickly."""
        return Forked(*self.training(*overrides), self.output, self.notes, attack)

    def training(self, *overrides: str) -> tuple[Callable[[], None], list[str]]:
        """The command and its arguments."""
        return train, ["--config", str(self.config), *overrides]

    def finish(self, *overrides: str) -> str:
        """Run it to its end in a forked process; returns what it printed."""
        run = self.fork(*overrides)
        code = run.wait(600)
        assert code == 0, run.said()
        return run.said()

    @contextlib.contextmanager
    def start(
        self, *overrides: str, launcher: Sequence[str] = (sys.executable, RUN), name: str = "", **options: Any
    ) -> Iterator["Command"]:
        """Start it as a user does; whatever is left of it at the end of the block is killed.

        ``name`` tells apart what several commands of one run print; ``options`` are those of ``Popen``.
        """
        arguments = [*launcher, "--config", str(self.config), *overrides]
        run = Command(arguments, self.notes.with_suffix(f".said{name}"), **options)
        try:
            yield run
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.process.wait()

    def processes(self) -> list[int]:
        """Processes of this run's command, launcher and ranks alike."""
        return [pid for pid in _pids() if str(self.config).encode() in _read(pid, "cmdline")]

    def ranks(self) -> dict[int, int]:
        """The process of each rank that torchrun has started."""
        variables = {pid: _read(pid, "environ").split(b"\0") for pid in self.processes()}
        named = {pid: [v[5:] for v in values if v.startswith(b"RANK=")] for pid, values in variables.items()}
        return {int(rank[0]): pid for pid, rank in named.items() if rank}

    @property
    def checkpoints(self) -> list[str]:
        """Names in the folder of checkpoints."""
        folder = self.output / "checkpoints"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def log(self) -> list[dict]:
        """The lines of the log, as far as they do not depend on the machine; a last one may be in the making."""
        path = self.output / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{name: record[name] for name in TOLD if name in record} for record in records]

    def step(self) -> int:
        """The last step in the log."""
        return max((record["step"] for record in self.log()), default=0)

    def files(self) -> dict[str, tuple[int, int]]:
        """Each file of the run with when it was written and its size, to see that nothing changed but the lock's."""
        found = {path: path.stat() for path in self.output.rglob("*") if path.is_file() and path.name != ".lock"}
        return {str(path.relative_to(self.output)): (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


class Command:
    """A run as a user starts it, in the background; what it prints goes to a file."""

    def __init__(self, arguments: list[str], said: Path, **options: Any) -> None:
        self._said = said
        options["env"] = {"PYTHONUNBUFFERED": "1", **options.get("env", os.environ)}
        with said.open("w") as file:
            self.process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, **options)

    def wait(self, timeout: float = 120) -> int:
        """The exit code, negative for the signal that ended it."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.said()}") from None

    def said(self) -> str:
        """What it has printed."""
        return self._said.read_text()

    def until(self, condition: Callable[[], object], timeout: float = 120) -> None:
        """Wait until the condition holds while it runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"not within {timeout} s:\n{self.said()}"
            time.sleep(0.01)


def gone(job: Job, within: float) -> bool:
    """Whether no process of the run is left after ``within`` seconds at most."""
    deadline = time.monotonic() + within
    while job.processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def same(ours: Job, theirs: Job, within: float = 0.0) -> None:
    """Equal figures and weights: to the last bit, or ``within`` what rounding grows to on other numbers of ranks."""
    ends = [torch.load(job.output / "model.pt", weights_only=True) for job in (ours, theirs)]
    figures = [[(line["step"], line["loss"]) for line in job.log() if "loss" in line] for job in (ours, theirs)]
    assert ends[0].keys() == ends[1].keys()
    if within:
        assert [step for step, _ in figures[0]] == [step for step, _ in figures[1]]
        apart = max(abs(a - b) for (_, a), (_, b) in zip(*figures))
        assert apart < within * figures[1][0][1], f"losses are {apart} apart"
        assert all(torch.allclose(ends[0][name], ends[1][name], atol=within) for name in ends[0])
    else:
        assert ours.log() == theirs.log()
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    for job, lines in zip((ours, theirs), figures):
        if (job.output / "tensorboard").exists():
            assert [step for step, _ in curves(job.output)["loss"]] == [step for step, _ in lines]
    assert [name for name in ours.checkpoints if not name.endswith(".damaged")] == theirs.checkpoints
    assert not list(ours.output.rglob(".*.tmp"))


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is a zombie
        return b""
