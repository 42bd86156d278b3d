"""The training loop: batches in, steps taken, logs, verification and checkpoints at their times."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from evaluate.features.ranks import World
from evaluate.protocols.folds import VerificationResult
from evaluate.reporting.schema import SetFigures
from evaluate.reporting.tables import accuracy_table
from pipelines.common.errors import UserError
from pipelines.loading.loader import Batch
from pipelines.sources import open_source
from train.build import HALF, build_backbone, build_centre_optimizer, build_head, build_loader, replicate
from train.checkpoint import Checkpoints, save_weights
from train.config import Config
from train.distributed import average_batch_statistics
from train.optim import LearningRate, LossScaler, create_optimizer
from train.progress import RunLog, duration
from train.recipes import create_recipe
from train.verification import Verifier


class Trainer:
    """A run of a config on this process's share of the world.

    Everything random in a step is a function of (seed, step, rank), so a run that is killed and started again goes on
    as if nothing had happened.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world = config, world
        self.output = Path(config.output)
        self.half = HALF[config.precision]
        self.step = 0
        self.best = -1.0
        self.verify_seconds = 0.0
        self.waited = 0.0  # seconds since the last log step that were spent in the loader

        source = open_source(config.data.train)
        num_classes = config.head.num_classes or source.num_classes
        if num_classes < source.num_classes:
            raise UserError(f"head.num_classes is {num_classes}, but {config.data.train} has {source.num_classes}")
        self.verifier = Verifier(config, world, self.half if world.device.type == "cuda" else None)
        self.recipe = create_recipe(config.recipe.name, **config.recipe.options).to(world.device)
        self.loader = build_loader(config, world, source, self.recipe)
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.checkpoint.keep)
        fresh = not self.checkpoints.all()
        self.backbone = build_backbone(config, world, fresh)
        self.network = replicate(self.recipe.network(self.backbone), config, world)
        self.head = build_head(config, world, num_classes, self.recipe, fresh)
        self.optimizer = create_optimizer(self.backbone, config.optim)
        self.centre_optimizer = build_centre_optimizer(config, self.head)
        self.steps_per_epoch = Fraction(self.loader.steps_per_epoch, config.optim.accumulate)
        self.learning_rate = LearningRate(config.schedule, config.optim.lr, self.steps_per_epoch)
        self.scaler = LossScaler(config.precision == "fp16")
        self.window = torch.zeros(2, device=world.device)  # sum and number of the losses since the last log step
        self.global_batch = config.data.batch_size * world.size * config.optim.accumulate
        self.meta = {"global_batch": self.global_batch, "num_classes": num_classes, "images": len(source)}
        self.meta |= {"seed": config.seed, "model": config.model.name}
        self._resume()

    @property
    def epoch(self) -> float:
        """Epochs behind the step, a whole number to the last bit where one ends."""
        return float(self.step / self.steps_per_epoch)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, VerificationResult]:
        """Train to the end; return the last verification."""
        config, total = self.config, self.learning_rate.total
        self.log = self._open_log()
        self.loader.seek(self.step * config.optim.accumulate)
        batches = iter(self.loader)
        self._since, self.waited, self._last = time.perf_counter(), 0.0, self.step
        self._began, self._first = time.perf_counter(), self.step
        # A checkpoint is from before the verification of its step, so a run that goes on from it begins with that.
        results = self._verify() if self.step and self._due(config.verify.every_steps) else {}
        while self.step < total:
            metrics = self.train_step(batches)
            if self._due(config.log.every_steps):
                self._log_step(metrics)
            if self._due(config.checkpoint.every_steps):
                self._save()
            if self._due(config.verify.every_steps):
                results = self._verify()
        self._finish(results)
        return results

    def _due(self, every_steps: int) -> bool:
        """Whether this step is one for what happens every so many steps and at the end."""
        return self.step % every_steps == 0 or self.step >= self.learning_rate.total

    def train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One update of backbone and centres from ``optim.accumulate`` batches."""
        optim = self.config.optim
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * optim.backbone_lr
        self.centre_optimizer.lr, self.centre_optimizer.grad_scale = lr, self.scaler.scale
        # Dropout and its like: a seed of its own for each step and rank, so that there is no state to save.
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 65_537 + self.world.rank)
        self.network.train()
        metrics: dict[str, Tensor] = {}
        for part in range(optim.accumulate):
            metrics = self._forward_backward(next(batches), last=part + 1 == optim.accumulate)
        self._update()
        self.step += 1
        return metrics

    def _forward_backward(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        self.waited += self.loader.wait
        device = self.world.device.type
        quiet = nullcontext() if last or self.world.size == 1 else self.network.no_sync()
        with quiet:
            with torch.autocast(device, self.half, enabled=self.half is not None):
                result = self.recipe.step(batch, self.network, self.head, self.epoch)
            (result.loss * (self.scaler.scale / self.config.optim.accumulate)).backward()
        self.window += torch.stack([result.loss.detach(), torch.ones_like(result.loss)])
        return result.metrics

    def _update(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.scaler.unscale(parameters):
            if self.config.optim.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.config.optim.clip, foreach=True)
            self.optimizer.step()
            self.centre_optimizer.step()
        self.optimizer.zero_grad()
        self.centre_optimizer.zero_grad()

    # -- logs, verification, checkpoints -------------------------------------------------------------------------------

    def _open_log(self) -> RunLog | None:
        if not self.world.main:
            return None
        log = RunLog(self.output, self.learning_rate.total, self.step, self.config.log.tensorboard)
        start = f"resuming at step {self.step}" if self.step else "starting"
        log.say(
            f"{start}: {self.meta['images']} images of {self.meta['num_classes']} identities, "
            f"{self.learning_rate.total} steps of {self.global_batch} images "
            f"on {self.world.size} x {self.world.device.type}"
        )
        return log

    def _log_step(self, metrics: dict[str, Tensor]) -> None:
        loss = float(self.window[0] / self.window[1])
        self.window.zero_()
        if loss != loss or abs(loss) == float("inf"):
            raise UserError(f"the loss became {loss} before step {self.step}; lower optim.lr or lengthen the warm-up")
        now = time.perf_counter()
        seconds, steps = now - self._since, self.step - self._last
        rate = steps * self.global_batch / seconds
        left = (now - self._began) / (self.step - self._first) * (self.learning_rate.total - self.step)
        record = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": loss,
            "lr": self.learning_rate(self.step - 1),
            "images_per_second": rate,
            "data_wait": self.waited / seconds,
            **{name: float(value) for name, value in metrics.items()},
        }
        if self.scaler.enabled:
            record["loss_scale"] = self.scaler.scale
        if self.loader.replaced:
            record["replaced_images"] = self.loader.replaced
        self._since, self.waited, self._last = now, 0.0, self.step
        if self.log:
            line = f"epoch {record['epoch']:.2f}  step {self.step}/{self.learning_rate.total}  loss {loss:.4f}  "
            line += f"lr {record['lr']:.4g}  {rate:.0f} images/s  waiting {record['data_wait']:.1%}  "
            self.log.step(record, line + f"ETA {duration(left)}")

    def _verify(self) -> dict[str, VerificationResult]:
        if not self.verifier.sets:
            return {}
        began = time.perf_counter()
        average_batch_statistics(self.backbone)
        results = self.verifier(self.backbone)
        seconds = time.perf_counter() - began
        self.verify_seconds += seconds
        self._since += seconds  # the next log step's images/s are those of training
        mean = sum(result.accuracy for result in results.values()) / len(results)
        if self.log:
            record = {"step": self.step, "verify_seconds": seconds}
            record |= {f"verify/{name}": float(result.accuracy) for name, result in results.items()}
            figures = "  ".join(f"{name} {result.accuracy:.2%}" for name, result in results.items())
            self.log.event(record, f"verified at step {self.step}: {figures}  ({seconds:.1f} s)")
            if mean > self.best:
                save_weights(self.backbone, self.output / "best.pt")
        self.best = max(self.best, mean)
        return results

    def _state(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone.state_dict(),
            "optimizer": get_optimizer_state_dict(self.backbone, self.optimizer),
            "head": self.head.state_dict(),
            "recipe": self.recipe.state_dict(),
            "centre_optimizer": self.centre_optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "window": self.window,
            "best": torch.tensor(self.best),
        }

    def _save(self) -> None:
        began = time.perf_counter()
        average_batch_statistics(self.backbone)
        self.checkpoints.save(self.step, self._state(), self.meta)
        self._since += time.perf_counter() - began

    def _resume(self) -> None:
        found = self.checkpoints.all()
        if not found:
            return
        if self.config.checkpoint.resume == "never":
            raise UserError(f"{self.output} holds a run; set checkpoint.resume=auto to go on, or another output")
        meta = self.checkpoints.meta(found[-1], "step", *self.meta)
        for name, value in self.meta.items():
            if meta[name] != value:
                raise UserError(
                    f"cannot resume {found[-1]}: its {name} is {meta[name]}, here it is {value}; "
                    "restore it (the global batch is data.batch_size x processes x optim.accumulate) "
                    "or choose another output"
                )
        state = self._state()
        self.checkpoints.load(found[-1], state)
        self.backbone.load_state_dict(state["backbone"])
        set_optimizer_state_dict(self.backbone, self.optimizer, state["optimizer"])
        self.head.load_state_dict(state["head"])
        self.recipe.load_state_dict(state["recipe"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.step = float(state["best"]), meta["step"]

    def _finish(self, results: dict[str, VerificationResult]) -> None:
        self.loader.close()
        if not self.log:
            return
        save_weights(self.backbone, self.output / "model.pt")
        if results:
            figures = {name: SetFigures(**result.summary()) for name, result in results.items()}
            self.log.say(accuracy_table(figures))
        seconds = time.perf_counter() - self._began
        share = self.verify_seconds / seconds
        self.log.say(f"trained in {duration(seconds)}, {share:.1%} of it verifying; wrote {self.output / 'model.pt'}")
        self.log.close()


def write_config(config: Config, output: Path) -> None:
    """Keep the resolved config with the run, so that its model can be built again."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))


def train(config: Config, world: World) -> dict[str, VerificationResult]:
    """Run a config; returns the last verification."""
    trainer = Trainer(config, world)
    if world.main:
        write_config(config, trainer.output)
    dist.barrier()
    return trainer.fit()
