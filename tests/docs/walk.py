"""A page's commands, run in order in a checkout of its own, as a reader would: only paths and sizes are others."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import called
from tests.docs.blocks import ROOT
from tests.docs.commands import Command, Fence, is_ours
from tests.docs.world import World, write_configs

# What a page says, and what is run in its place.
SUBSTITUTIONS = {
    # Places of a user's machine are in the folder of the walk.
    r"(?<![\w.])/(data|shared)/": r"\1/",
    r"first\.machine": "127.0.0.1",
    r"\beth0\b": "lo",
    # Fewer processes, images and networks.
    r"--nproc[-_]per[-_]node=8": "--nproc-per-node=2",
    r"synthetic data/synthetic": r"\g<0> --identities 40 --images-per-identity 6 --held-out 20",
    r"--images 256": "--images 16",
    r"inspect r100": r"\g<0> --batch-size 2",
    r"--identities 300": "--identities 12",
    r"--seeds 2048 1": "--seeds 1",
    r"head\.warmup_epochs=2": "head.warmup_epochs=0.5",  # of one epoch
    # A config of one's own; one more place for several that are trained on one page.
    r"train/run\.py (\.\.\.|--config …)": "train/run.py --config configs/own.yaml output=runs/LINE",
    # Runs side by side do not meet at a port.
    r"torchrun (?=--nproc)": "torchrun --standalone ",
    # The accuracy of a network that has learnt next to nothing changes by more than the gate lets through.
    r"evaluate\.quantise": r"\g<0> --force",
}
ROOMS = ("benchmarks", "evaluate", "losses", "models", "pipelines", "scripts", "train")


def check_out(folder: Path, world: World, given: list[str]) -> None:
    """A checkout whose configs are shrunk, and beside it what a page presupposes."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("results"))
    write_configs(folder / "configs")
    shutil.copy(folder / "configs/glint360k_r100.yaml", folder / "configs/own.yaml")
    (folder / "home").mkdir()
    for name in given:
        world.lay(name, folder)


def steps(fence: Fence) -> list[tuple[int, str]]:
    """The commands of a fence with their lines; a script in brackets is one."""
    return [(fence.line, fence.code)] if fence.code.startswith("(") else fence.lines


def substituted(line: int, step: str) -> str:
    """A command as it is run."""
    for pattern, place in SUBSTITUTIONS.items():
        step = re.sub(pattern, place.replace("LINE", str(line)), step)
    if "--nnodes=2" in step:  # on both machines
        step = f"({step}\n) & ({step}\n) && wait $!"
    return step


def take(line: int, step: str, folder: Path) -> None:
    """Run a command of a page in its folder; fails where it ends with another code than 0.

    What Python alone does is called in this process, which saves the seconds of its imports, but for the benchmarks:
    they call commands themselves, and write beside their own files.
    """
    step = substituted(line, step)
    command = Command(step, folder, line)
    alone = re.match(r"python (-m (?!benchmarks)|train/run\.py)", step) and not re.search(r"[|>$]", step)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("WANDB_MODE", "offline")
        if alone and is_ours(step):
            code, *said = called(command.main, *command.arguments)
        else:
            shell = ["bash", "-o", "pipefail", "-c", step]
            done = subprocess.run(shell, capture_output=True, text=True, timeout=1200)
            code, said = done.returncode, [done.stdout, done.stderr]
    assert code == 0, "\n".join([f"line {line}: {step}", *(text[-3000:] for text in said)])
