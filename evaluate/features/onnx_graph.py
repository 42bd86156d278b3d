"""Which images an ONNX graph takes, told from the arithmetic at its start."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from models.onnx_file import quiet_session

# Nodes that hand the image on, those that limit or round its values, that scale and shift it, that know its statistics.
_CARRY = {
    *("Cast", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("Slice", "Split", "Gather", "Concat", "Pad", "Dropout"),
}
_LIMIT = {"Clip", "QuantizeLinear", "DequantizeLinear"}
_AFFINE = {"Add", "Sub", "Mul", "Div"}
_STATISTICS = "BatchNormalization"
_RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))
_BLACK, _WHITE = 0, 255  # the values of the two images that show the arithmetic


def files_of(path: Path) -> list[Path]:
    """The ONNX file at ``path``, and those beside it that hold tensors of its graph."""
    model = onnx.load(str(path), load_external_data=False)
    tensors = [tensor for graph in (model.graph, *model.functions) for tensor in _tensors(graph)]
    outside = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    return [path, *(path.parent / name for name in sorted(outside))]


def range_of_start(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> tuple[float, float] | None:
    """The range of values that the file's graph normalises by itself; None where it begins with other work.

    The nodes in front of the first that does more than carry, scale and shift the image are run on a black and a white
    one, which shows what they do whatever form their constants have. A batch norm among them shows by its statistics
    what it was trained on.

    Args:
        path: an ONNX file whose first input are images.
        shape, dtype: of the images that it takes.
    """
    model = onnx.load(str(path), load_external_data=False)
    start = _start(model, path)
    if start is None:
        return None
    session = quiet_session(start.SerializeToString())
    (name,) = (entry.name for entry in session.get_inputs())
    black, white = (
        session.run(None, {name: np.full(shape, value, dtype)})[0].astype(np.float64) for value in (_BLACK, _WHITE)
    )
    return likely_range(black, (white - black) / (_WHITE - _BLACK))


def likely_range(at_zero: np.ndarray, slope: np.ndarray) -> tuple[float, float] | None:
    """Of [-1, 1], [0, 1] and [0, 255] the range that ``at_zero + slope * value`` normalises best; None for no slope.

    The image of a range counts as normalised when it is centred, or at least begins at zero, and when it spans neither
    far less nor far more than the usual [-2, 2]. The two arrays have any shape, the same for both.
    """
    varies = np.isfinite(at_zero) & np.isfinite(slope) & (slope != 0)
    if not varies.any():
        return None
    at_zero, slope = at_zero[varies], slope[varies]

    def fault(low: float, high: float) -> float:
        half = np.abs(slope) * (high - low) / 2
        off_centre = np.abs(at_zero + slope * (low + high) / 2) / half
        too_small, too_large = np.log10(0.25 / half).clip(0), np.log10(half / 3).clip(0)
        return float((off_centre + 4 * (too_small + too_large)).mean())

    return min(_RANGES, key=lambda limits: fault(*limits))


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Those of its nodes, too, and of the graphs in these."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _start(model: onnx.ModelProto, path: Path) -> onnx.ModelProto | None:
    """The first nodes of ``model``, those that normalise the image; None where there is no arithmetic among them."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    image = next(entry for entry in graph.input if entry.name not in constants)
    images, last, nodes, arithmetic = {image.name}, image.name, [], False
    for node in graph.node:
        of_image = [name for name in node.input if name in images]
        if not of_image or node.op_type == "Shape":
            nodes.append(node)
            continue
        last = of_image[0]
        if node.domain not in ("", "ai.onnx") or node.op_type not in _CARRY | _LIMIT | _AFFINE | {_STATISTICS}:
            break
        if node.op_type in _AFFINE and len(of_image) > 1 or node.op_type == "Div" and of_image != [node.input[0]]:
            break
        arithmetic |= node.op_type in _AFFINE | {_STATISTICS}
        nodes += _shown(node)
        images.update(node.output)
        last = node.output[0]
        if node.op_type == _STATISTICS:
            break
    if not arithmetic:
        return None
    nodes = _behind(nodes, last)
    used = {name for node in nodes for name in node.input}
    tensors = [_loaded(tensor, path.parent) for name, tensor in constants.items() if name in used]
    start = onnx.helper.make_graph(nodes, "start", [image], [onnx.ValueInfoProto(name=last)], tensors)
    return onnx.helper.make_model(start, opset_imports=model.opset_import, ir_version=model.ir_version)


def _shown(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """``node`` without what would hide its arithmetic from a black and a white image: limits, learned scale, bias."""
    if node.op_type in _LIMIT:
        return [onnx.helper.make_node("Identity", node.input[:1], node.output[:1])]
    if node.op_type == _STATISTICS:
        image, _, _, mean, variance = node.input
        zeros, ones = f"{node.output[0]}/zeros", f"{node.output[0]}/ones"
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        del bare.input[:], bare.output[1:]
        bare.input.extend([image, ones, zeros, mean, variance])
        make = onnx.helper.make_node
        return [make("Sub", [mean, mean], [zeros]), make("Exp", [zeros], [ones]), bare]
    return [node]


def _behind(nodes: list[onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """Those of the ``nodes``, which are in the order of their work, that the tensor ``name`` depends on."""
    needed, kept = {name}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _loaded(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """``tensor`` with its values, wherever the file keeps them."""
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor, str(folder)), tensor.name)
