"""The training loop: batches in, steps taken, logs, verification and checkpoints at their times."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from evaluate.features.ranks import World
from evaluate.protocols.folds import VerificationResult
from evaluate.reporting.schema import SetFigures
from evaluate.reporting.tables import accuracy_table
from pipelines.common.errors import UserError
from pipelines.common.progress import duration
from pipelines.loading.loader import Batch
from train.alike import expect_alike
from train.build import build_loader, build_recipe, count_classes, landmarks_of, open_data, place_centres
from train.checkpoint import Checkpoints
from train.config import Config
from train.distributed import agreed, average_batch_statistics, first_of_node, limit_waiting
from train.environment import environment
from train.gate import SoundBuffers
from train.head_schedule import HeadSchedule
from train.learner import Learner
from train.meter import Meter
from train.optim import LearningRate
from train.pictures import batch_sheet, showing_first
from train.planning.automatic import advice, settled_here, settled_values
from train.progress import RunLog, step_line
from train.resume import batches_a_step, blaming, check_resumable, config_changes, same_sets
from train.run_folder import RunFolder
from train.seeds import seed_generators, step_seed
from train.state import Part, save_weights
from train.stop import Signals, Stopped, Votes
from train.timetable import Timetable
from train.verification import Verifier

# A rank that fails has to say so soon, and is needed for the checkpoint under way.
_LAST_SECONDS = 10.0


class Trainer:
    """A run of a config on this process's share of the world.

    Everything random in a step is a function of (seed, step, rank), so a run that is killed and started again goes on
    as if nothing had happened.
    """

    def __init__(self, config: Config, world: World) -> None:
        expect_alike(config.model_dump(mode="json"), world)
        with first_of_node(world):  # it leaves the index of the data to the others
            data = open_data(config.data)
        num_classes = count_classes(config, data.source)
        of_data = {"images": len(data.source), "fingerprint": data.fingerprint()}
        expect_alike(of_data, world)
        given, config = config, settled_here(config, world, num_classes)
        self.config, self.settled, self.world = config, list(settled_values(given, config)), world
        self.output = Path(config.output)
        self.folder = RunFolder(self.output)
        self.step = 0
        self.best = torch.tensor(-1.0, dtype=torch.float64)  # mean accuracy of the best verification
        self.verify_seconds = 0.0

        self.verifier = Verifier(config, world)
        self.folder.claim(world)
        self.checkpoints = Checkpoints(
            self.output / "checkpoints", config.checkpoint.keep, world.device, on_complete=self.folder.note_checkpoint
        )
        known: dict[str, Any] = {
            "num_classes": num_classes,
            "images": of_data["images"],
            "seed": config.seed,
            "model": config.model.name,
        }
        found = self.checkpoints.newest("global_batch", *known)
        self.accumulate = batches_a_step(config, world, found[1] if found else {})
        self.meta = known | {
            "global_batch": self.global_batch,
            "fingerprint": of_data["fingerprint"],
            "trained": config.model.trained,
            "config": given.model_dump(mode="json"),
        }
        self.changes = config_changes(found[1], self.meta["config"]) if found else None
        if found:
            check_resumable(config, *found, self.meta)
        else:
            agreed(self.folder.check_unused)

        torch.manual_seed(config.seed)
        recipe = build_recipe(config, data.source, world)
        self.loader = build_loader(
            config.data,
            data.source,
            recipe,
            world,
            seed=config.seed,
            image_size=config.model.input_size,
            accumulate=self.accumulate,
            quarantine=self.output / "quarantine.jsonl",
            landmarks=landmarks_of(config, data.source),
            shares=data.shares,
        )
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.learner = Learner(config, world, recipe, num_classes, accumulate=self.accumulate, fresh=not found)
        self.learning_rate = LearningRate(config.schedule, config.optim.lr, self.steps_per_epoch)
        self.head_schedule = HeadSchedule(config.head, self.steps_per_epoch)
        self.timetable = Timetable(config, self.learning_rate.total, self.steps_per_epoch)
        self.meter = Meter(world.device, self.global_batch)
        if found:
            path, meta = found
            with blaming(self.changes):
                self.checkpoints.load(path, self.parts)
            self.step = meta["step"]
            if not same_sets(meta.get("config", self.meta["config"]), self.meta["config"]):
                self.best.fill_(-1.0)  # it is of other sets
        else:
            place_centres(config, self.learner.head, self.learner.backbone, data.source, world)
        self.buffers = SoundBuffers(self.learner.backbone, recipe, self.learner.result)

    @property
    def global_batch(self) -> int:
        """Images a step."""
        return self.config.data.batch_size * self.world.size * self.accumulate

    @property
    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds, by its names there: what is listed here is saved and resumed, and nothing else."""
        return {**self.learner.parts, "window": self.meter.window, "best": self.best}

    @property
    def epoch(self) -> float:
        """Epochs behind the step, a whole number to the last bit where one ends."""
        return self.step / self.steps_per_epoch

    # -- the loop ------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, VerificationResult]:
        """Train to the end; return the last verification. Raises ``Stopped`` where a signal ends the run before."""
        with ExitStack() as opened:  # closed on every way out: a run's end, its failure, an interrupt
            opened.callback(self.folder.release)
            opened.callback(self.checkpoints.wait, None if self.world.size == 1 else _LAST_SECONDS)
            opened.callback(self.loader.close)
            finished, *_ = agreed(lambda: self.world.main and self._is_finished())
            if finished:
                return {}
            if self.world.main:
                self.folder.write("config.yaml", yaml.safe_dump(self.config.model_dump(), sort_keys=False))
                made_with = environment(self.world, self.meta)
                self.folder.write("environment.json", json.dumps(made_with, indent=1) + "\n")
            self.log = self._open_log()
            if self.log:
                opened.callback(self.log.close)
            signals = opened.enter_context(Signals())
            return self._fit(signals)

    def _fit(self, signals: Signals) -> dict[str, VerificationResult]:
        total, times = self.learning_rate.total, self.timetable
        self.loader.seek(self.step * self.accumulate)
        batches, votes = iter(self.loader), Votes()
        if self.log and not self.step:
            batches = showing_first(batches, self._show_batch)
        first = self.step
        self.meter.start(first)
        # A checkpoint is from before the verification of its step, so a run that goes on from it begins with that.
        results = self._verify() if self.step and times.verifies(self.step) else {}
        while self.step < total:
            metrics = self.train_step(batches)
            if self.step == first + 1:  # every rank is there, and everything compiled and allocated
                limit_waiting(self.config.dist.timeout)
            if times.logs(self.step):
                self._log_step(metrics)
            is_time = self.world.main and times.asks_to_save(self.step)
            stop, wanted, failed = votes.exchange(signals.received, is_time, self.checkpoints.failed)
            if failed:
                self.checkpoints.finish()
            if stop or wanted or times.saves(self.step):
                self._save()
            if stop:
                self._stop(stop)
            if times.verifies(self.step):
                results = self._verify()
        votes.close()
        self._finish(results)
        return results

    def train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One update of backbone and centres from ``optim.accumulate`` batches."""
        self.head_schedule.apply(self.learner.head, self.step)
        # Dropout and its like: a seed of its own for each step and rank, so that there is no state to save.
        seed_generators(step_seed(self.config.seed, self.step, self.world.rank), self.world.device)
        lr = self.learning_rate(self.step)
        # A checkpoint under way is of the weights as they are.
        update = self.learner.update(batches, self.step, self.epoch, lr, before_change=self.checkpoints.copied)
        for loss in update.losses:
            self.meter.add(loss)
        self.step += 1
        return update.metrics

    # -- logs, verification, checkpoints -------------------------------------------------------------------------------

    def _open_log(self) -> RunLog | None:
        if not self.world.main:
            return None
        log = RunLog(self.output, self.learning_rate.total, self.step, self.config.log.sinks, self.config.log.pictures)
        start = f"resuming at step {self.step}" if self.step else "starting"
        log.say(
            f"{start}: {self.meta['images']} images of {self.meta['num_classes']} identities, "
            f"{self.learning_rate.total} steps of {self.global_batch} images "
            f"on {self.world.size} x {self.world.device.type}"
        )
        if self.settled:
            log.say(f"auto: {', '.join(self.settled)}")
        for note in (advice(self.config, self.world.device), self.changes):
            if note:
                log.say(note)
        return log

    def _show_batch(self, images: Tensor) -> None:
        if self.log:
            self.log.show("batch", 1, partial(batch_sheet, images))

    def _settle(self) -> int:
        """See that what the network keeps of its batches is sound; the number of steps left out so far.

        Raises ``UserError`` where too many of them came one after the other.
        """
        self.buffers.settle(self.meter.spoilt)
        self.meter.spoilt.zero_()
        skipped, in_a_row = self.learner.gate.skipped.tolist()
        if in_a_row >= self.config.optim.max_skipped:
            self.checkpoints.finish()
            good = self.checkpoints.all()
            raise UserError(
                f"the loss or its gradient was not finite in {in_a_row} steps in a row, up to step {self.step}; they "
                "were left out, but the run gets no further: lower optim.lr or lengthen the warm-up. "
                + (f"The last good checkpoint is {good[-1]}" if good else "There is no checkpoint yet")
            )
        return skipped

    def _log_step(self, metrics: dict[str, Tensor]) -> None:
        skipped = self._settle()
        figures, seconds_left = self.meter.read(self.step, self.learning_rate.total, self.loader.take_wait())
        record = {
            "step": self.step,
            "epoch": self.epoch,
            "lr": self.learning_rate(self.step - 1),
            **figures,
            **{name: float(value) for name, value in metrics.items() if value.isfinite()},
        }
        if self.learner.gate.scaled:
            record["loss_scale"] = self.learner.gate.scale.item()
        if skipped:
            record["skipped_steps"] = skipped
        if self.loader.replaced:
            record["replaced_images"] = self.loader.replaced
        if self.log:
            self.log.step(record, step_line(record, self.learning_rate.total, seconds_left))

    def _verify(self) -> dict[str, VerificationResult]:
        if not self.verifier.sets:
            return {}
        began = time.perf_counter()
        self._settle()
        average_batch_statistics(self.learner.result)
        # What is printed last, and lasts, is what evaluation computes; before, the step's own precision is enough.
        last = self.step >= self.learning_rate.total
        exact = last or self.world.device.type == "cpu"
        results = self.verifier(self.learner.result, None if exact else self.learner.half)
        seconds = time.perf_counter() - began
        self.verify_seconds += seconds
        self.meter.leave_out(seconds)  # the next log step's images/s are those of training
        mean = sum(result.accuracy for result in results.values()) / len(results)
        if self.log:
            self.log.verified(self.step, {name: float(result.accuracy) for name, result in results.items()}, seconds)
            if mean > self.best:
                save_weights(self.learner.result, self.output / "best.pt")
            for name, result in results.items() if last else ():
                self.log.show(f"worst/{name}", self.step, partial(self.verifier.worst, name, result))
        self.best.fill_(max(self.best.item(), mean))
        return results

    def _save(self) -> None:
        began = time.perf_counter()
        self._settle()
        average_batch_statistics(self.learner.backbone)
        if self.learner.average:
            average_batch_statistics(self.learner.average.network)
        self.checkpoints.save(self.step, self.parts, self.meta)
        self.timetable.saved()
        self.meter.leave_out(time.perf_counter() - began)

    def _stop(self, number: int) -> None:
        self.checkpoints.finish()
        name = signal.Signals(number).name
        if self.log:
            self.log.say(
                f"stopped by {name} at step {self.step}: wrote {self.checkpoints.all()[-1]}; "
                "the same command goes on from there"
            )
        raise Stopped(number)

    def _is_finished(self) -> bool:
        """Whether there is nothing left to do, which the main rank looks after, as a shared disk may show others less.

        A finished run that is started again changes nothing.
        """
        model, last = self.output / "model.pt", self.checkpoints.all()
        if self.step < self.learning_rate.total or not (last and model.exists()):
            return False
        if model.stat().st_mtime < (last[-1] / "meta.json").stat().st_mtime:  # of a shorter run, before it was extended
            return False
        print(f"{self.output} is finished at step {self.step}: raise schedule.epochs to go on")
        return True

    def _finish(self, results: dict[str, VerificationResult]) -> None:
        self.checkpoints.finish()
        if not self.log:
            return
        save_weights(self.learner.result, self.output / "model.pt")
        if results:
            figures = {name: SetFigures(**result.summary()) for name, result in results.items()}
            self.log.say(accuracy_table(figures))
        seconds = self.meter.seconds
        share = self.verify_seconds / seconds
        self.log.say(f"trained in {duration(seconds)}, {share:.1%} of it verifying; wrote {self.output / 'model.pt'}")


def train(config: Config, world: World) -> dict[str, VerificationResult]:
    """Run a config; returns the last verification."""
    return Trainer(config, world).fit()
