"""ONNX files as InsightFace's tools expect them: ``data`` (n, 3, h, w), RGB in [-1, 1], to ``embedding`` (n, d).

Those of a network that wants landmarks have a second input, ``landmarks`` (n, 5, 2), in [0, 1].
"""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.agreement import check_agreement, random_inputs, relative_distance
from models.folding import fold_batch_norms
from models.weights import require_finite
from pipelines.common.errors import UserError
from pipelines.common.files import replacing

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# The first opset in which layer normalisation is one node.
OPSET = 17
# Largest distance between onnxruntime's embedding and PyTorch's, relative to the norm.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}


def export_onnx(
    model: nn.Module, path: Path, input_size: int = 112, *, fp16: bool = False, dynamic_batch: bool = False
) -> float:
    """Write ``model`` to ``path``, once onnxruntime has given the same embeddings of random images as PyTorch.

    Args:
        model: a backbone in evaluation mode on the CPU; it is not changed.
        input_size: side of the images.
        fp16: weights and arithmetic in half precision; input and output stay float32.
        dynamic_batch: any number of images at a time instead of one.

    Returns:
        The largest distance between the two, relative to the embedding's norm.

    Raises:
        ValueError: when weights or embeddings are not finite.
        RuntimeError: when the embeddings differ by more than rounding.
    """
    require_finite(model)
    network = copy.deepcopy(model).eval()
    example = random_inputs(model, 3 if dynamic_batch else 1, input_size)
    fold_batch_norms(network, example[0])
    if fp16:
        network = _HalfInside(network.half())
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = ["data", "landmarks"][: len(example)]
    axes = {name: {0: "batch"} for name in (*inputs, "embedding")} if dynamic_batch else None
    with replacing(path) as temporary:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's age, and of shapes it takes for constants, as they are
            torch.onnx.export(
                network,
                example,
                str(temporary),
                input_names=inputs,
                output_names=["embedding"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        other = random_inputs(model, 5, input_size) if dynamic_batch else example  # of another number of images
        error = onnx_error(model, temporary, *other)
        limit, remedy = TOLERANCE[torch.float16 if fp16 else torch.float32], "; do without --fp16" if fp16 else ""
        check_agreement(error, limit, "onnxruntime's", remedy)
    return error


@torch.no_grad()
def onnx_error(model: nn.Module, path: Path, *inputs: Tensor) -> float:
    """The `relative_distance` of onnxruntime's embeddings to those of ``model``."""
    session = quiet_session(str(path))
    theirs = session.run(["embedding"], dict(zip(("data", "landmarks"), (each.numpy() for each in inputs))))[0]
    return relative_distance(torch.from_numpy(theirs), model(*inputs))


Provider = str | tuple[str, dict[str, str]]  # of onnxruntime: its name, or that and its options


def quiet_session(
    model: str | bytes, providers: Sequence[Provider] = ("CPUExecutionProvider",), threads: int | None = None
) -> "InferenceSession":
    """onnxruntime's session of a file or a serialised model; each run is on ``threads``, by default torch's number.

    What fails raises, and nothing is written beside that.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("ONNX needs two packages more: pip install 'facemill[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the decoding wants the cores, too
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


class _HalfInside(nn.Module):
    """A network of half precision between float32 images and float32 embeddings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*(each.half() for each in inputs)).float()
