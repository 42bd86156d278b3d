"""What a checkpoint costs the steps around it: ``[torchrun --nproc_per_node=N -m | python -m] benchmarks.checkpoint``.

Steps without a checkpoint, steps behind which one begins to be written, and steps behind which it is waited for take
turns; the figures are medians over the rounds, and of the ratios to the ordinary step of the same round. "While it is
written" are the steps that follow until it is on the disk.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch.distributed as dist

from benchmarks import results
from benchmarks.command import ROOT
from benchmarks.measure import wall_time
from benchmarks.synthetic import synthetic_data
from pipelines.common.command import run
from pipelines.loading.loader import Batch
from train.config import load_config
from train.distributed import first_of_node, joined
from train.trainer import Trainer


def measure(trainer: Trainer, rounds: int) -> list[results.Row]:
    """Rows {step, seconds, of_ordinary}."""
    device, batches = trainer.world.device, _endless(next(trainer.loader))
    trainer.loader.close()

    def step() -> float:
        return wall_time(lambda: trainer.train_step(batches), device)

    def save(wait: bool) -> None:
        trainer.train_step(batches)
        trainer._save()
        if wait:
            trainer.checkpoints.finish()

    def saving() -> float:
        return wall_time(lambda: save(wait=False), device)

    def waiting() -> float:
        return wall_time(lambda: save(wait=True), device)

    trainer.meter.start(0)
    waiting()  # memory for the copies, and what else is made at the first time
    times: dict[str, list[list[float]]] = {
        name: [] for name in ("ordinary", "that saves", "behind it", "while it is written", "that waits for the disk")
    }
    for _ in range(rounds):
        times["ordinary"].append([step(), step()])
        times["that saves"].append([saving()])
        times["behind it"].append([step()])  # it waits for the copy before it moves anything
        following = []
        while not _everywhere(trainer):
            following.append(step())
        times["while it is written"].append(following or [float("nan")])
        times["that waits for the disk"].append([waiting()])
    ordinary = [statistics.median(turn) for turn in times["ordinary"]]
    return [
        {
            "step": name,
            "seconds": statistics.median(map(statistics.median, turns)),
            "of_ordinary": statistics.median(statistics.median(turn) / base for turn, base in zip(turns, ordinary)),
        }
        for name, turns in times.items()
    ]


def _endless(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def _everywhere(trainer: Trainer) -> bool:
    """Whether the checkpoint is on the disk, as the main rank sees it."""
    written = [trainer.checkpoints._written is None or trainer.checkpoints._written.done()]
    dist.broadcast_object_list(written)
    return written[0]


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument("--network", default="r18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where checkpoints lie for the time being")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as folder, joined("auto", 1800) as world:
        with first_of_node(world):
            data = synthetic_data()
        paths = [folder]
        dist.broadcast_object_list(paths)
        settings = [
            f"data.train={data}", f"data.batch_size={options.batch}", f"output={paths[0]}/run", "log.sinks=[jsonl]",
            f"model={{name: {options.network}, embedding_size: 512}}", f"head.num_classes={options.identities}",
            "optim={name: sgd, lr: 0.01}", "verify.bins=[]", "checkpoint.keep=1",
        ]  # fmt: skip
        trainer = Trainer(load_config(ROOT / "configs/quickstart.yaml", settings), world)
        rows = measure(trainer, options.rounds)
        if world.main:
            title = f"{options.network}, {world.size} x {options.batch} images, {options.identities:,} x 512 centres"
            results.show(rows, f"steps around a checkpoint: {title}")
            print(results.save(f"checkpoint_{world.size}", rows, options.output))


if __name__ == "__main__":
    run(main)
