"""What learns in a run, and how: backbone, class centres, what the recipe adds, and their optimisers."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evaluate.features.ranks import World
from losses import CentreOptimizer
from pipelines.loading.loader import Batch
from train.build import HALF, build_backbone, build_centre_optimizer, build_head, replicate
from train.config import Config
from train.distributed import average_gradients
from train.ema import WeightAverage
from train.freezing import hold_norms
from train.gate import StepGate
from train.groups import parameters_of, trained_groups
from train.optim import create_optimizer, set_learning_rate
from train.recipes import Recipe, StepResult
from train.sections.auto import settled
from train.state import OptimizerState, Part


class Update(NamedTuple):
    """What a step gives.

    Attributes:
        losses: () each, of its batches.
        metrics: of the last batch, by name.
    """

    losses: list[Tensor]
    metrics: dict[str, Tensor]


class Learner:
    """This process's share of what learns.

    Attributes:
        backbone: the bare network.
        average: the moving average of its weights, with ``optim.ema``.
        recipe, head: what the loss is computed by.
        optimizer, centre_optimizer: of the backbone and of the class centres.
        recipe_optimizer: of what the recipe learns of its own, where it does.
        gate: which steps are taken.
        half: the dtype that autocast computes in, None for float32.
    """

    def __init__(
        self, config: Config, world: World, recipe: Recipe, num_classes: int, *, accumulate: int, fresh: bool
    ) -> None:
        """``fresh``: weights that a checkpoint does not bring are made, or read from where the config says."""
        model, optim = config.model, config.optim
        self._config, self._world, self._accumulate = config, world, accumulate
        self.half = HALF[settled(config.precision)]
        self.recipe = recipe
        self.backbone = build_backbone(
            model,
            recipe,
            config.head.create_margin(),
            world,
            seed=config.seed,
            batch_size=config.data.batch_size,
            fresh=fresh,
        )
        network = recipe.network(self.backbone)
        self.average = WeightAverage(self.backbone, optim.ema) if optim.ema else None
        recipe.to(world.device)
        self.network = replicate(network.to(world.device), world, compile=model.compile, compress=optim.compress)
        self.head = build_head(
            config.head,
            world,
            embedding_size=model.embedding_size,
            num_classes=num_classes,
            entropy=recipe.entropy,
            half=self.half is not None,
            seed=config.seed,
            fresh=fresh,
        )
        groups, of_recipe = trained_groups(self.backbone, recipe, optim)
        self.optimizer = create_optimizer(groups, optim)
        self.recipe_optimizer = create_optimizer(of_recipe, optim) if of_recipe else None
        self.centre_optimizer = build_centre_optimizer(config, self.head)
        self.gate = StepGate(world.device, scaled=config.precision == "fp16")
        # What a step would otherwise list anew, of hundreds of parameters.
        self._of_recipe = parameters_of(of_recipe)
        self._trained = parameters_of(groups + of_recipe)
        self._optimizers = [optimizer for optimizer in (self.optimizer, self.recipe_optimizer) if optimizer]
        self.network.train()  # and so it stays: what evaluates it gives it its modes back
        hold_norms(self.backbone, model)

    @property
    def result(self) -> nn.Module:
        """The network that is verified and saved as the run's: the averaged one where there is one."""
        return self.average.network if self.average else self.backbone

    @property
    def parts(self) -> dict[str, Part]:
        """What a checkpoint holds of it, by its names there."""
        parts: dict[str, Part] = {
            "backbone": self.backbone,
            "optimizer": OptimizerState(self.backbone, self.optimizer),
            "head": self.head,
            "recipe": self.recipe,
            "centre_optimizer": self.centre_optimizer.state_dict(),
            "scaler": self.gate,
            "skipped": self.gate.skipped,
        }
        if self.recipe_optimizer:
            parts["recipe_optimizer"] = OptimizerState(self.recipe, self.recipe_optimizer)
        if self.average:
            parts["ema"] = self.average.network
        return parts

    def update(
        self, batches: Iterator[Batch], step: int, epoch: float, lr: float, before_change: Callable[[], None]
    ) -> Update:
        """One step of all parts from as many batches as are accumulated; all ranks call.

        ``before_change`` is called when the gradients are there and the weights are still as they were.
        """
        for optimizer in self._optimizers:
            set_learning_rate(optimizer, lr)
        self.centre_optimizer.lr = lr * self._config.head.optim.lr
        # A copy: the gate may change the scale before the centres' gradients are divided by it.
        self.centre_optimizer.grad_scale = self.gate.scale.clone() if self.gate.scaled else 1.0
        losses, metrics = [], dict[str, Tensor]()
        for part in range(self._accumulate):
            result = self._forward_backward(next(batches), epoch, last=part + 1 == self._accumulate)
            losses.append(result.loss.detach())
            metrics = result.metrics
        self._change(losses, step, before_change)
        return Update(losses, metrics)

    def _forward_backward(self, batch: Batch, epoch: float, last: bool) -> StepResult:
        network = self.network
        quiet = network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()
        with quiet:
            if self.recipe.views(epoch) == 1:  # other rows are known to the recipe alone
                self.head.prepare(batch.labels)
            with torch.autocast(self._world.device.type, self.half, enabled=self.half is not None):
                result = self.recipe.step(batch, network, self.head, epoch)
            (result.loss * (self.gate.scale / self._accumulate)).backward()
        return result

    def _change(self, losses: list[Tensor], step: int, before_change: Callable[[], None]) -> None:
        average_gradients(self._of_recipe)
        finite = [loss.isfinite() for loss in losses]
        taken = self.gate.decide(self._trained, self._config.optim.clip, *finite, self.centre_optimizer.finite())
        before_change()
        every: list[torch.optim.Optimizer | CentreOptimizer] = [*self._optimizers, self.centre_optimizer]
        for optimizer in every:
            self.gate.step(optimizer, taken)
            optimizer.zero_grad()
        if self.average:
            self.average.update(step, taken)
