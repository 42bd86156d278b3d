"""A step of the backbone on fake tensors: what its forward and backward pass and its update take, without running it.

It is the network of the config, called as the training loop calls it. Where the run is to be on a GPU and there may be
none here, the tensors say that they are on a CPU, and what a GPU does otherwise is done: its autocast, its PReLU.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models import create_model
from models.layers import PReLU
from models.modes import evaluating
from pipelines.common.errors import UserError, one_line
from train.build import HALF
from train.config import Config
from train.ema import approach, averaged
from train.freezing import hold_norms, restrict
from train.groups import parameters_of, trained_groups
from train.optim import create_optimizer
from train.planning.recording import Phase, Recorder, place
from train.planning.timing import OperatorTimer
from train.recipes import Recipe
from train.recipes.backbones import unfreeze_scale
from train.sections.auto import settled

_UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


@dataclass(frozen=True)
class NetworkTrace:
    """A step of ``batch`` images.

    Attributes:
        phases: ``build``, ``forward``, ``backward`` and ``update``, their memory for ``weights``, ``averaged weights``,
            ``optimiser``, ``gradients``, ``images``, ``activations`` and ``temporaries``.
        parameters: numbers that are trained.
        batch_norms: channels of each batch norm.
    """

    batch: int
    phases: Mapping[str, Phase]
    parameters: int
    batch_norms: tuple[int, ...]


def trace_network(
    config: Config,
    batch: int,
    *,
    gpu: bool,
    keep_gradients: bool = False,
    checkpoint_activations: bool | None = None,
    timer: OperatorTimer | None = None,
) -> NetworkTrace:
    """Trace a step. Raises ``UserError`` where operators, the backbone's or the optimiser's, depend on numbers.

    Args:
        keep_gradients: from step to step, as the buckets of DistributedDataParallel and accumulated batches do.
        checkpoint_activations: what to take instead of the config's.
        timer: for the seconds of operators, on a CPU.
    """
    recipe = config.recipe.create()
    backbone = _backbone(config, recipe, checkpoint_activations)
    with torch.device("meta"):
        network = recipe.network(backbone)
    if gpu:
        for module in network.modules():
            if isinstance(module, PReLU):
                module.__class__ = nn.PReLU  # type: ignore[assignment]  # whose forward pass is what a GPU takes
    try:
        with FakeTensorMode(), Recorder(timer) as recorder:
            trained = _step(config, recipe, backbone, network, batch, recorder, gpu=gpu, keep_gradients=keep_gradients)
    except _UNTRACEABLE as error:
        raise UserError(
            f"{config.model.name} cannot be traced without data, with {config.optim.name} as its optimiser "
            f"({one_line(error)}): it has no plan, and "
            "model.checkpoint_activations must be true or false"
        ) from error
    norms = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    channels = tuple(norm.num_features for norm in norms)
    return NetworkTrace(batch, recorder.phases, sum(p.numel() for p in trained), channels)


def _step(
    config: Config,
    recipe: Recipe,
    backbone: nn.Module,
    network: nn.Module,
    batch: int,
    recorder: Recorder,
    *,
    gpu: bool,
    keep_gradients: bool,
) -> list[nn.Parameter]:
    """Go through the phases of a step; returns what it trains."""
    on_gpu: AbstractContextManager = _GpuAutocast() if gpu else nullcontext()
    half, size = HALF[settled(config.precision)], config.model.input_size
    with recorder.phase("build", "weights"):
        place(network, "cpu")
        place(recipe, "cpu")
        optimizer, trained = _optimizer(config, backbone, recipe, recorder, keep=keep_gradients)
        recorder.use = "averaged weights"
        weights = averaged(backbone) if config.optim.ema else []
        averages = [torch.empty_like(tensor) for tensor in weights]
        recorder.use = "images"
        images = torch.empty(batch, 3, size, size).to(memory_format=torch.channels_last)
    network.train()
    hold_norms(backbone, config.model)
    with recorder.phase("forward", "activations", "backbone forward"), on_gpu:
        with torch.autocast("cpu", half, enabled=half is not None):
            if chosen := round(recipe.second_pass * batch):
                with evaluating(network), torch.no_grad():
                    network(images[:chosen])
            found = network(images)
        outputs = [found] if isinstance(found, Tensor) else [out for out in found if out.requires_grad]
    with recorder.phase("backward", "temporaries", "backbone backward"), on_gpu:
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: recorder.relabel(p.grad, "gradients"))
        del found
        torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        del outputs
    with recorder.phase("update", "temporaries", "backbone update"):
        _update(optimizer, trained, config.optim.clip)
        if not keep_gradients:
            optimizer.zero_grad()
        if averages:
            approach(averages, weights, torch.empty(()))
    return trained


class _GpuAutocast(TorchFunctionMode):
    """Where CUDA's list of functions for autocast differs from the CPU's, as far as backbones call them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if torch.is_autocast_enabled("cpu"):
            if func is F.layer_norm:
                args = (args[0].float(), *args[1:])
            elif func is F.prelu:
                args = tuple(x.to(torch.get_autocast_dtype("cpu")) for x in args)
        return func(*args, **(kwargs or {}))


def _backbone(config: Config, recipe: Recipe, checkpoint_activations: bool | None) -> nn.Module:
    arguments = config.model.arguments
    if checkpoint_activations is not None:
        arguments["checkpoint_activations"] = checkpoint_activations
    with torch.device("meta"):
        backbone = create_model(**arguments)
        unfreeze_scale(backbone, recipe, config.head.create_margin())
        restrict(backbone, config.model)
    return backbone


def _optimizer(
    config: Config, backbone: nn.Module, recipe: Recipe, recorder: Recorder, keep: bool
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """The optimiser behind its first step, and what it trains. The gradients stay if they are to be kept."""
    groups = [group for of_module in trained_groups(backbone, recipe, config.optim) for group in of_module]
    trained = parameters_of(groups)
    recorder.use = "optimiser"
    optimizer = create_optimizer(groups, config.optim)
    recorder.use = "gradients"
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    recorder.use = "optimiser"
    optimizer.step()
    if not keep:
        optimizer.zero_grad()
    return optimizer, trained


def _update(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], clip: float | None) -> None:
    """As ``train.gate.StepGate`` and the loop do it."""
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None], foreach=True)
    if clip is not None:
        nn.utils.clip_grads_with_norm_(trained, clip, norm, foreach=True)
    optimizer.step()
