"""The project's own tests that need a GPU, where pytest is; and whether a training step waits for the device."""

import re
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import cycle

import torch

from benchmarks.command import ROOT
from benchmarks.gpu.conduct import environment, python
from benchmarks.gpu.part import Report, Setting
from benchmarks.gpu.training import TINY, fixed_batches, group, on, trainer
from evaluate.features.ranks import World
from pipelines.loading.read_ahead import THREAD

# Runs and how often a step of each may wait for the device: TopoFR copies what its trees and its mixture are made of.
RECIPES = {
    "plain": (0, ["model={name: r18}", "precision=bf16"]),
    "transface": (0, ["model={name: transface_t}", "recipe={name: transface}", "precision=bf16"]),
    "contraface": (0, ["model={name: r18}", "recipe={name: contraface}", "precision=bf16"]),
    "topofr": (3, ["model={name: r18}", "recipe={name: topofr}", "data.augment=rsp", "precision=bf16"]),
}
_SAYS_SO = "called a synchronizing CUDA operation"  # torch's c10/cuda/CUDAFunctions.cpp
TESTS = {
    "tests marked gpu": ["-m", "gpu and not slow", "tests"],
    "tests of Triton's kernels": ["tests/losses/head/test_tile_triton.py"],
}


def run(report: Report, setting: Setting) -> None:
    """Waiting first: it takes a known time."""
    with group(setting) as world:
        for name, (limit, options) in ({"plain": (0, TINY)} if setting.small else RECIPES).items():
            _waiting(report, setting, world, name, limit, options)
    if setting.device == "cpu":
        report.skip("waiting for the device, and the tests that need a GPU", "no GPU")
        return
    for name, arguments in TESTS.items():
        _tests(report, setting, name, arguments)


def _waiting(report: Report, setting: Setting, world: World, name: str, limit: int, options: list[str]) -> None:
    run = trainer(setting, world, f"waits_{name}", *options)
    feeds = {
        "fed by the loader": iter(run.loader),
        "on batches that are there": cycle([on(b, setting.place) for b in fixed_batches(setting, world, run, 2)]),
    }
    for feed_name, feed in feeds.items():
        for _ in range(2):  # libraries wait when they are first used
            run.train_step(feed)
        with waits(setting.device) as found:
            run.train_step(feed)
        if setting.device == "cuda":
            places = "; ".join(sorted(set(found)))
            report.at_most(f"waits in a step {feed_name}", len(found), limit, recipe=name, at=places)
    run.loader.close()


@contextmanager
def waits(device: str) -> Iterator[list[str]]:
    """Where the step waits for a GPU within the block, as torch notices it: file and line of each time.

    Its backward pass is made by a thread of autograd's; the loader's own waits as it likes.
    """
    found: list[str] = []
    if device == "cpu":
        yield found
        return

    def note(message: Warning | str, category: type[Warning], filename: str, line: int, *_: object) -> None:
        if _SAYS_SO in str(message) and threading.current_thread().name != THREAD:
            found.append(f"{filename.rpartition('/')[2]}:{line}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]  # which takes a file and a line of source, too
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _tests(report: Report, setting: Setting, name: str, arguments: list[str]) -> None:
    if not find_spec("pytest") or not (ROOT / "tests").is_dir():
        report.skip(name, "pytest is not installed" if (ROOT / "tests").is_dir() else "no tests beside the program")
        return
    command = python("-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *arguments)
    seconds = setting.seconds * (0.6 if name == next(iter(TESTS)) else 0.95)
    try:
        ran = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=max(1, seconds)
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        verdict(report, name, said, None)
        return
    verdict(report, name, ran.stdout, ran.returncode)


def verdict(report: Report, name: str, said: str, code: int | None) -> None:
    """What pytest said, and its exit code; None where its time was over."""
    if code is None:
        bars = re.findall(r"^([.sxXFE]+)(?: *\[ *\d+%\])?$", said, re.MULTILINE)
        marks = "".join(bars)
        if "F" in marks or "E" in marks:
            report.holds(name, False, f"{marks.count('.')} passed, {marks.count('F') + marks.count('E')} failed")
        else:
            report.skip(f"{name}: the rest behind {marks.count('.')} that passed", "no time")
        return
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "").strip("= ")
    report.holds(name, code == 0, last if code == 0 else "\n".join(said.splitlines()[-12:]))
