"""What a backbone costs: ``python -m models.inspect NAME|FILE``, or without arguments a table of all of them."""

import sys

if not __package__:  # then this folder comes first in the search for modules, and its inspect.py before Python's own
    sys.exit("error: run it as: python -m models.inspect")

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.registry import BACKBONES, create_model, model_names
from models.weights import load_backbone
from pipelines.common.command import at_least, run, say
from pipelines.common.errors import UserError
from pipelines.common.json_output import add_json_option, only_json


@dataclass(frozen=True)
class Cost:
    """Of one image: ``gmac`` in 10⁹ multiply-adds, ``activation_bytes`` kept for the gradient in float32."""

    parameters: int
    gmac: float
    activation_bytes: int


def cost(**options: Any) -> Cost:
    """The cost of ``create_model(**options)``, found without allocating its weights."""
    size = options.get("input_size", 112)
    with torch.device("meta"):
        model = create_model(**options)
        # Two images, as batch norms of one value have no statistics.
        images = torch.empty(2, 3, size, size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, forward_gmac(model.eval(), images), activation_bytes(model.train(), images) // 2)


def forward_gmac(model: nn.Module, images: Tensor) -> float:
    """10⁹ multiply-adds an image of the convolutions, linear layers and attention, in the mode that ``model`` is in.

    A ViT that masks patches does less in training.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 2 / len(images) / 1e9


def activation_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


@dataclass(frozen=True)
class Speed:
    """Images per second in float32, channels-last."""

    forward: float
    training: float | None  # forward and backward; None for one image, of which batch norms have no statistics


def speed(model: nn.Module, input_size: int, device: torch.device, batch_size: int, seconds: float = 2.0) -> Speed:
    """Measure ``model``: the best step of those that fit in ``seconds``, for either way."""
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks memory_format
    images = torch.rand(batch_size, 3, input_size, input_size, device=device) * 2 - 1
    images = images.to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def training() -> None:
        model(images).square().mean().backward()

    model.eval()
    forward_seconds = _best(forward, device, seconds)
    if batch_size == 1:
        return Speed(1 / forward_seconds, None)
    model.train()
    return Speed(batch_size / forward_seconds, batch_size / _best(training, device, seconds))


def _best(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    step()  # warm up
    times: list[float] = []
    while sum(times) < seconds:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.inspect", description="Parameters, multiply-adds, memory and speed of backbones."
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="*",
        help="a backbone's name or a file of weights; of a pattern such as 'timm/*vit_tiny*' a table; default: of ours",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="images at a time when measuring the speed")
    add_json_option(parser, "a list of backbones with parameters, gmac, activation_bytes of an image")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with only_json(args.json) as tell:
        tell(_inspect(args))


def _inspect(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print a table of the backbones; returns what it shows."""
    console = Console()
    table = Table("backbone", "parameters M", "GMAC", "activations MiB/image")
    path = Path(args.model)
    if {"*", "?"} & set(args.model) and not path.exists():
        rows = []
        for name in model_names(args.model):
            try:
                found = cost(name=name)
            except UserError as error:  # what keeps a backbone from images of 112 pixels
                table.add_row(name, str(error))
                rows.append({"backbone": name, "error": str(error)})
            else:
                table.add_row(name, *_cells(found))
                rows.append({"backbone": name, **asdict(found)})
        console.print(table)
        return rows
    ours = args.model in model_names()
    if not ours and (path.exists() or (args.model not in BACKBONES and args.model != path.stem)):  # ours have no / or .
        model, options = load_backbone(path)
        say(f"{path} holds {options}")
    else:
        model, options = create_model(args.model), {"name": args.model, "input_size": 112}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say(f"measuring the speed of steps of {args.batch_size} images (--batch-size)")
    measured = speed(model, options["input_size"], device, args.batch_size)
    kind = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table.add_column(f"images/s on {kind}: forward")
    table.add_column("with backward")
    found = cost(**options)
    training = "–" if measured.training is None else f"{measured.training:.1f}"
    table.add_row(options["name"], *_cells(found), f"{measured.forward:.1f}", training)
    console.print(table)
    speeds = {"images_per_second": asdict(measured), "device": kind}
    return [{"backbone": options["name"], "options": options, **asdict(found), **speeds}]


def _cells(found: Cost) -> tuple[str, str, str]:
    return f"{found.parameters / 1e6:.2f}", f"{found.gmac:.4f}", f"{found.activation_bytes / 2**20:.1f}"


if __name__ == "__main__":
    run(main)
