"""The training step on a CPU: in one process or in one for each core, as it is or compiled, in float32 or bf16.

    python -m benchmarks.processor [--config configs/quickstart.yaml] [section.key=value ...]
    python -m benchmarks.processor section.key=value --ways "one process" "a process a core" --repository OTHER/CHECKOUT

Every way is a run of its own, under torchrun, on a batch that lies ready; runs alternate, figures are medians, and the
images of a step are the same in all. With ``--repository`` every way is run in that checkout too. Where a step's time
goes is measured in one more run, in one process on one thread: shares by kind of operator.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

if not __package__:  # as a script, Python looks for modules beside it first: here they are of the checkout that is run
    sys.path[0] = str(Path.cwd())

from torch.profiler import ProfilerActivity, profile

from benchmarks.results import RESULTS, Row, save, show
from benchmarks.step import race
from evaluate.features.ranks import World
from pipelines.common.command import at_least, run, say
from pipelines.common.cpu import one_thread
from pipelines.common.errors import UserError
from train.build import open_data
from train.config import load_config
from train.distributed import joined
from train.trainer import Trainer

_START = 600.0  # seconds that processes wait for each other
ROOT = Path(__file__).resolve().parents[1]  # not `benchmarks.command`'s, which is of the checkout that is run
CORES = len(os.sched_getaffinity(0))
# Name → processes, overrides.
WAYS: dict[str, tuple[int, list[str]]] = {
    f"{name}{half}{compiled}": (processes, [*of_half, *of_compiled])
    for name, processes in (("one process", 1), ("a process a core", CORES))
    for half, of_half in (("", ["precision=fp32"]), (", bf16", ["precision=bf16"]))
    for compiled, of_compiled in (("", ["model.compile=false"]), (", compiled", ["model.compile=true"]))
}
# What an operator of the profile counts as, by the first of these that its name contains.
KINDS = {
    "convolution": ("convolution",),
    "batch norm": ("batch_norm",),
    "PReLU": ("prelu", "PReLU", "threshold_backward", "relu", "clamp"),
    "compiled loops": ("CompiledFxGraph",),
    "optimiser": ("fused_adam", "fused_sgd", "_foreach"),
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul"),
}


def one_run(arguments: list[str], processes: int, repository: Path) -> float:
    """Images a second of a run of this module's ``--one`` in a checkout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    here = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # as train/run.py sets it
    with TemporaryDirectory() as output:
        found = subprocess.run(
            [*command, str(Path(__file__).resolve()), "--one", *arguments, f"output={output}"],
            cwd=repository,
            env=here,
            stdout=subprocess.PIPE,
        )
    if found.returncode:
        raise UserError(f"a run in {repository} ended with status {found.returncode}: see above")
    return float(json.loads(found.stdout.decode().splitlines()[-1]))


def trainer_of(config: Path, overrides: list[str], world: World) -> Trainer:
    """The trainer of a config, without verification and without charts."""
    return Trainer(load_config(config, [*overrides, "log.sinks=[jsonl]", "verify.bins=[]"]), world)


def step_speed(config: Path, overrides: list[str]) -> None:
    """Print images a second of a run of which this process is one, on a batch that lies ready."""
    with joined("cpu", _START) as world:
        rows = race(trainer_of(config, overrides, world), steps=10, rounds=3)
    if world.main:
        print(rows[1]["images_per_second"])


def shares(config: Path, overrides: list[str]) -> Row:
    """Shares of a step's time by kind of operator, on one thread."""
    with TemporaryDirectory() as output, joined("cpu", _START) as world, one_thread():
        trainer = trainer_of(config, [*overrides, f"output={output}"], world)
        feed = iter([next(iter(trainer.loader))] * 6)
        trainer.loader.close()
        for _ in range(3):
            trainer.train_step(feed)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(3):
                trainer.train_step(feed)
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    found = dict.fromkeys([*KINDS, "all else"], 0.0)
    for event in events:
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "all else")
        found[kind] += event.self_cpu_time_total / total
    return found


def main() -> None:
    options = _parse()
    if options.one:
        return step_speed(options.config, options.overrides)
    repositories = {"": ROOT} | ({", before": options.repository} if options.repository else {})
    settings = load_config(options.config, options.overrides)
    images = settings.data.batch_size
    open_data(settings.data)  # what is wrong with it is told here, in one line
    for entry in settings.data.train:
        entry.path = str(Path(entry.path).resolve())  # not each checkout's own
    overrides = [*options.overrides, f"data.train={json.dumps(settings.data.model_dump()['train'])}"]
    speeds: dict[str, list[float]] = {f"{way}{where}": [] for way in options.ways for where in repositories}
    for turn in range(options.rounds):
        for way in options.ways:
            processes, changes = WAYS[way]
            batch = [f"data.batch_size={images * CORES // processes}"]
            for where, repository in repositories.items():
                arguments = ["--config", str(options.config.resolve()), *overrides, *changes, *batch]
                speeds[f"{way}{where}"].append(one_run(arguments, processes, repository))
                say(f"turn {turn + 1}: {way}{where}: {speeds[f'{way}{where}'][-1]:.0f} images/s")
    first = next(iter(speeds))
    rows: list[Row] = [
        {
            "way": name,
            "images_per_second": median(speed),
            f"of {first}": median(a / b for a, b in zip(speed, speeds[first])),
        }
        for name, speed in speeds.items()
    ]
    show(rows, f"{options.config.stem}: steps of {images * CORES} images on {CORES} cores")
    where_to = shares(options.config, [*overrides, *WAYS["one process"][1]])
    show([{"kind": kind, "share": share} for kind, share in where_to.items()], "where a step's time goes, one thread")
    name = "_".join(["processor", options.config.stem, *([options.name] if options.name else [])])
    say(f"wrote {save(name, rows, options.out, shares=where_to)}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=ROOT / "configs/quickstart.yaml", help="its batch is of a process"
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repository", type=Path, help="another checkout, to be run in turns with this one")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--name", default="", help="ends the name of the file with the figures")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run(main)
