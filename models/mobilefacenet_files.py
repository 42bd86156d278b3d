"""Published MobileFaceNets of other projects under the names of `models.mobilefacenet`.

They are two projects' on GitHub, Xiaoccer/MobileFaceNet_Pytorch and foamliu/MobileFaceNet.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# Where their numbered bottlenecks lie in ours.
_BOTTLENECKS = [
    "layers.2",
    *(f"layers.3.layers.{i}" for i in range(4)),
    "layers.4",
    *(f"layers.5.layers.{i}" for i in range(6)),
    "layers.6",
    *(f"layers.7.layers.{i}" for i in range(2)),
]

# How a name of theirs begins → how ours does; {} is the place of a numbered bottleneck.
_XIAOCCER = {
    **{
        rf"{theirs}\.{part}\.": f"{ours}.layers.{index}."
        for theirs, ours in (
            *(("conv1", "layers.0"), ("dw_conv1", "layers.1")),
            *(("conv2", "conv_sep"), ("linear7", "features.layers.0")),
        )
        for index, part in enumerate(("conv", "bn", "prelu"))
    },
    **{rf"blocks\.(\d+)\.conv\.{i}\.": f"{{}}.layers.{i // 3}.layers.{i % 3}." for i in range(8)},
    r"linear1\.conv\.": "features.layers.2.",
    r"linear1\.bn\.": "features.layers.3.",
}
_FOAMLIU = {
    r"conv1\.": "layers.0.layers.",
    r"dw_conv\.depthwise\.": "layers.1.0.layers.0.",
    r"dw_conv\.bn1\.": "layers.1.0.layers.1.",
    r"dw_conv\.pointwise\.": "layers.1.1.layers.0.",
    r"dw_conv\.bn2\.": "layers.1.1.layers.1.",
    r"features\.(\d+)\.conv\.0\.": "{}.layers.0.layers.",
    r"features\.(\d+)\.conv\.1\.": "{}.layers.1.layers.",
    r"features\.(\d+)\.conv\.2\.": "{}.layers.2.layers.0.",
    r"features\.(\d+)\.conv\.3\.": "{}.layers.2.layers.1.",
    r"conv2\.": "conv_sep.layers.",
    r"gdconv\.depthwise\.": "features.layers.0.layers.0.",
    r"gdconv\.bn\.": "features.layers.0.layers.1.",
    r"conv3\.": "features.layers.2.",
    r"bn\.": "features.layers.3.",
}

# A tensor that only this project's network has.
_MARKS = {
    "linear7.conv.weight": ("Xiaoccer/MobileFaceNet_Pytorch", _XIAOCCER),
    "dw_conv.depthwise.weight": ("foamliu/MobileFaceNet", _FOAMLIU),
}


def translated(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Tensors of a file, those of such networks under our names, and the project that these come from, if any."""
    found = dict(named)
    origin: str | None = None
    for mark, (project, names) in _MARKS.items():
        for prefix in [name.removesuffix(mark) for name in named if re.search(rf"(^|[./]){re.escape(mark)}$", name)]:
            theirs = {name.removeprefix(prefix): found.pop(name) for name in named if name.startswith(prefix)}
            ours = _with_linear_layer({_renamed(name, names): tensor for name, tensor in theirs.items()})
            found |= {prefix + name: tensor for name, tensor in ours.items()}
            origin = project
    return found, origin


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for pattern, ours in names.items():
        if (match := re.match(pattern, name)) and int((match.groups() or "0")[0]) < len(_BOTTLENECKS):
            return ours.format(*(_BOTTLENECKS[int(index)] for index in match.groups())) + name[match.end() :]
    return name


def _with_linear_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last convolution, on a map of one pixel, as a linear layer without a bias in front of its batch norm."""
    weight, mean = tensors.get("features.layers.2.weight"), tensors.get("features.layers.3.running_mean")
    if weight is not None:
        tensors["features.layers.2.weight"] = weight.flatten(1)
    bias = tensors.pop("features.layers.2.bias", None)
    if bias is not None and mean is not None:
        tensors["features.layers.3.running_mean"] = mean - bias
    return tensors
