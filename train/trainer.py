"""The training loop: batches in, steps taken, logs, verification and checkpoints at their times."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from fractions import Fraction
from pathlib import Path

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evaluate.features.ranks import World
from evaluate.protocols.folds import VerificationResult
from evaluate.reporting.schema import SetFigures
from evaluate.reporting.tables import accuracy_table
from losses import CentreOptimizer
from pipelines.common.errors import UserError
from pipelines.common.files import replacing
from pipelines.loading.loader import Batch
from pipelines.sources import open_source
from pipelines.sources.source import Source
from train.build import HALF, build_backbone, build_centre_optimizer, build_head, build_loader, replicate
from train.checkpoint import Checkpoints, OptimizerState, Part, save_weights
from train.config import Config
from train.distributed import average_batch_statistics
from train.optim import LearningRate, LossScaler, average_gradients, create_optimizer
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
        self.best = torch.tensor(-1.0, dtype=torch.float64)  # mean accuracy of the best verification
        self.verify_seconds = 0.0
        self.waited = 0.0  # seconds since the last log step that were spent in the loader

        source = open_source(config.data.train)
        num_classes = config.head.num_classes or source.num_classes
        if num_classes < source.num_classes:
            raise UserError(f"head.num_classes is {num_classes}, but {config.data.train} has {source.num_classes}")
        self.verifier = Verifier(config, world, self.half if world.device.type == "cuda" else None)
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.checkpoint.keep)
        self._build(source, num_classes, fresh=not self.checkpoints.all())
        self.steps_per_epoch = Fraction(self.loader.steps_per_epoch, config.optim.accumulate)
        self.learning_rate = LearningRate(config.schedule, config.optim.lr, self.steps_per_epoch)
        self.scaler = LossScaler(config.precision == "fp16")
        self.window = torch.zeros(2, device=world.device)  # sum and number of the losses since the last log step
        self.global_batch = config.data.batch_size * world.size * config.optim.accumulate
        self.meta: dict[str, int | str] = {"global_batch": self.global_batch, "num_classes": num_classes}
        self.meta |= {"images": len(source), "seed": config.seed, "model": config.model.name}
        self._resume()

    def _build(self, source: Source, num_classes: int, fresh: bool) -> None:
        """The parts that are trained, and what feeds and trains them."""
        config, world = self.config, self.world
        model, optim, seed = config.model, config.optim, config.seed
        torch.manual_seed(seed)
        self.recipe = create_recipe(config.recipe.name, **config.recipe.options)
        quarantine = self.output / "quarantine.jsonl"
        self.loader = build_loader(
            config.data, source, self.recipe, world, seed=seed, image_size=model.input_size, quarantine=quarantine
        )
        self.backbone = build_backbone(model, world, seed=seed, batch_size=config.data.batch_size, fresh=fresh)
        network = self.recipe.network(self.backbone)
        self.recipe.to(world.device)
        self.network = replicate(network.to(world.device), world, compile=model.compile, compress=optim.compress)
        self.head = build_head(
            config.head,
            world,
            embedding_size=model.embedding_size,
            num_classes=num_classes,
            entropy=self.recipe.entropy,
            half=self.half is not None,
            seed=seed,
            fresh=fresh,
        )
        self.optimizer = create_optimizer(self.backbone.parameters(), optim)
        others = set(self.backbone.parameters())
        self.recipe_parameters = [p for p in self.recipe.parameters() if p.requires_grad and p not in others]
        self.recipe_optimizer = create_optimizer(self.recipe_parameters, optim) if self.recipe_parameters else None
        self.centre_optimizer = build_centre_optimizer(config, self.head)

    @property
    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds, by its names there: what is listed here is saved and resumed, and nothing else."""
        parts: dict[str, Part] = {
            "backbone": self.backbone,
            "optimizer": OptimizerState(self.backbone, self.optimizer),
            "head": self.head,
            "recipe": self.recipe,
            "centre_optimizer": self.centre_optimizer.state_dict(),
            "scaler": self.scaler,
            "window": self.window,
            "best": self.best,
        }
        if self.recipe_optimizer:
            parts["recipe_optimizer"] = OptimizerState(self.recipe, self.recipe_optimizer)
        return parts

    @property
    def epoch(self) -> float:
        """Epochs behind the step, a whole number to the last bit where one ends."""
        return float(self.step / self.steps_per_epoch)

    # -- the loop ------------------------------------------------------------------------------------------------------

    def fit(self) -> dict[str, VerificationResult]:
        """Train to the end; return the last verification."""
        with ExitStack() as opened:  # closed on every way out: a run's end, its failure, an interrupt
            opened.callback(self.loader.close)
            self.log = self._open_log()
            if self.log:
                opened.callback(self.log.close)
            return self._fit()

    def _fit(self) -> dict[str, VerificationResult]:
        config, total = self.config, self.learning_rate.total
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
        for group in self.recipe_optimizer.param_groups if self.recipe_optimizer else ():
            group["lr"] = lr
        self.centre_optimizer.lr, self.centre_optimizer.grad_scale = lr, self.scaler.scale
        # Dropout and its like: a seed of its own for each step and rank, so that there is no state to save.
        torch.manual_seed(step_seed(self.config.seed, self.step, self.world.rank))
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
        network = self.network
        quiet = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
        with quiet:
            with torch.autocast(device, self.half, enabled=self.half is not None):
                result = self.recipe.step(batch, network, self.head, self.epoch)
            (result.loss * (self.scaler.scale / self.config.optim.accumulate)).backward()
        self.window += torch.stack([result.loss.detach(), torch.ones_like(result.loss)])
        return result.metrics

    def _update(self) -> None:
        average_gradients(self.recipe_parameters)
        optimizers = [optimizer for optimizer in (self.optimizer, self.recipe_optimizer) if optimizer]
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        all_optimizers: list[torch.optim.Optimizer | CentreOptimizer] = [*optimizers, self.centre_optimizer]
        if self.scaler.unscale(parameters):
            if self.config.optim.clip is not None:
                nn.utils.clip_grad_norm_(parameters, self.config.optim.clip, foreach=True)
            for each in all_optimizers:
                each.step()
        for each in all_optimizers:
            each.zero_grad()

    # -- logs, verification, checkpoints -------------------------------------------------------------------------------

    def _open_log(self) -> RunLog | None:
        if not self.world.main:
            return None
        log = RunLog(self.output, self.learning_rate.total, self.step, self.config.log.sinks)
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
        self.best.fill_(max(self.best.item(), mean))
        return results

    def _save(self) -> None:
        began = time.perf_counter()
        average_batch_statistics(self.backbone)
        self.checkpoints.save(self.step, self.parts, self.meta)
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
        self.checkpoints.load(found[-1], self.parts)
        self.step = meta["step"]

    def _finish(self, results: dict[str, VerificationResult]) -> None:
        if not self.log:
            return
        save_weights(self.backbone, self.output / "model.pt")
        if results:
            figures = {name: SetFigures(**result.summary()) for name, result in results.items()}
            self.log.say(accuracy_table(figures))
        seconds = time.perf_counter() - self._began
        share = self.verify_seconds / seconds
        self.log.say(f"trained in {duration(seconds)}, {share:.1%} of it verifying; wrote {self.output / 'model.pt'}")


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a rank's step, in [0, 2^63): neighbours differ, and no ``seed`` below 2^63 is too large for torch."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63


def write_config(config: Config, output: Path) -> None:
    """Keep the resolved config with the run, so that its model can be built again."""
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))


def train(config: Config, world: World) -> dict[str, VerificationResult]:
    """Run a config; returns the last verification."""
    trainer = Trainer(config, world)
    if world.main:
        write_config(config, trainer.output)
    dist.barrier()
    return trainer.fit()
