"""ONNX networks in 8 bits: static quantisation by images.

Nagel et al., "A White Paper on Neural Network Quantization" (2021): weights symmetric, a scale a channel; activations
with a scale and a zero point a tensor, from the least and greatest values that images for calibration give.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from evaluate.features.onnx_network import OnnxNetwork
from evaluate.features.preprocessing import Preprocessing
from pipelines.common.errors import UserError, one_line

# Where the arithmetic is. What lies between them (normalisation, activations, sums) stays in float32: it costs little,
# and every change between the two costs digits.
_QUANTISED = ["Conv", "Gemm", "MatMul"]


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantise(
    network: OnnxNetwork, preprocessing: Preprocessing, batches: Iterable[Sequence[Tensor]], output: Path
) -> None:
    """Write the network's file in 8 bits to ``output``: activations uint8, weights int8 (QDQ form).

    Args:
        network: of a file in float32.
        preprocessing: from RGB in [-1, 1] to the images that it takes.
        batches: images (b, 3, h, w), RGB in [-1, 1], and where the network wants them landmarks (b, 5, 2).

    Raises:
        ValueError: the file holds other numbers than float32, or nothing that can be quantised.
    """
    model = onnx.load(network.path)
    operators = {node.op_type for node in model.graph.node}
    if operators & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"}:
        raise UserError(f"{network.path} is in 8 bits already")
    matrices = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1]
    if network.dtype is not np.float32 or onnx.TensorProto.FLOAT16 in matrices:
        raise UserError(f"{network.path} is not in float32: write it without --fp16")
    if not operators & {*_QUANTISED}:
        raise UserError(f"{network.path} has neither convolutions nor products of matrices")
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)  # advice for its own callers, to the root logger
            quantize_static(
                model,
                output,
                _Reader(_feeds(network, preprocessing, batches)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    except (UserError, OSError):
        raise
    except Exception as error:  # onnxruntime raises classes of its own
        raise UserError(f"{network.path} was not quantised: {one_line(error)}") from None
    finally:
        logging.disable(logging.NOTSET)


def _feeds(
    network: OnnxNetwork, preprocessing: Preprocessing, batches: Iterable[Sequence[Tensor]]
) -> Iterator[dict[str, np.ndarray]]:
    """What onnxruntime is given, in batches of the size that the file fixes; a rest that does not fill one is left."""
    names = [entry.name for entry in network.session.get_inputs()]
    for images, *landmarks in batches:
        inputs = network.inputs(preprocessing(images), *(landmarks if network.wants_landmarks else ()))
        size = network.batch or len(images)
        for start in range(0, len(images) - size + 1, size):
            yield {name: values[start : start + size] for name, values in zip(names, inputs)}
