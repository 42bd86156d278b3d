"""What a network takes for images: the range of their values, a normalisation, the order of the channels."""

import argparse
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pipelines.common.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """From RGB images in [-1, 1] to what a network takes: (value in ``input_range`` - mean) / std, RGB or BGR.

    ``mean`` and ``std`` have one number, or three in the order in which the network takes the channels.
    """

    input_range: tuple[float, float] = (-1.0, 1.0)  # the values of black and white
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) for the network, of float images (b, 3, h, w), RGB in [-1, 1]."""
        low, high = self.input_range
        if (low, high) != (-1, 1):
            images = (images + 1) * ((high - low) / 2) + low
        if self.bgr:
            images = images.flip(1)
        if self.mean != (0,) or self.std != (1,):
            mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
            images = (images - mean) / std
        return images

    def __str__(self) -> str:
        text = f"{'BGR' if self.bgr else 'RGB'} in [{', '.join(f'{value:g}' for value in self.input_range)}]"
        for name, values, neutral in (("minus mean", self.mean, (0,)), ("over std", self.std, (1,))):
            if values != neutral:
                text += f" {name} {', '.join(f'{value:g}' for value in values)}"
        return text


class Preprocessed(nn.Module):
    """A model that takes RGB images in [-1, 1], whatever the one inside takes."""

    def __init__(self, preprocessing: Preprocessing, model: nn.Module) -> None:
        super().__init__()
        self.preprocessing, self.model = preprocessing, model
        self.wants_landmarks = getattr(model, "wants_landmarks", False)
        self.splits_batches = getattr(model, "splits_batches", False)

    def forward(self, images: Tensor, *landmarks: Tensor) -> Tensor:
        return self.model(self.preprocessing(images), *landmarks)


def add_input_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what a command needs beside ``--checkpoint`` to say which images the network takes; returns their group."""
    # Up to Python 3.12 argparse takes -1,1 for an option; this is its newer rule.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    group = parser.add_argument_group("network", "what the checkpoint does not tell, or tells wrongly")
    group.add_argument("--input-range", type=_range, metavar="LOW,HIGH", help="black and white: -1,1 or 0,1 or 0,255")
    group.add_argument("--mean", type=_numbers, help="subtracted from values in --input-range: M, or M,M,M by channel")
    group.add_argument("--std", type=_divisors, help="what the difference is divided by: S, or S,S,S by channel")
    group.add_argument(
        "--bgr", action=argparse.BooleanOptionalAction, help="the network takes its channels as blue, green, red"
    )
    return group


def input_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Preprocessing` that the options of `add_input_options` set.

    Raises:
        ValueError: for a mean or std of values whose range is not told.
    """
    given = {name: getattr(args, name) for name in ("input_range", "mean", "std", "bgr")}
    given = {name: value for name, value in given.items() if value is not None}
    if given.keys() & {"mean", "std"} and "input_range" not in given:
        raise UserError("--mean and --std are of values in --input-range: give it too, 0,255 for example")
    return given


def overruled(found: Preprocessing, why: str, given: dict[str, Any]) -> tuple[Preprocessing, str]:
    """What a network takes once ``given`` options replace what was ``found``, and a line that says so."""
    preprocessing = replace(found, **given)
    names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if "input_range" in given:
        why = ""
    return preprocessing, ", ".join(part for part in (str(preprocessing), why, names and f"set by {names}") if part)


def _numbers(text: str) -> tuple[float, ...]:
    values = _split(text)
    if len(values) not in (1, 3) or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is not one number, or three with commas")
    return values


def _divisors(text: str) -> tuple[float, ...]:
    if min(values := _numbers(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above zero")
    return values


def _range(text: str) -> tuple[float, float]:
    values = _split(text)
    if len(values) != 2 or not -math.inf < values[0] < values[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no range LOW,HIGH: two numbers, the lower one first")
    return values[0], values[1]


def _split(text: str) -> tuple[float, ...]:
    """The numbers between commas; none where something else stands there."""
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        return ()
