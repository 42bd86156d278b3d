"""Small networks for tests: fast, and with embeddings that tell images apart."""

from pathlib import Path

import numpy as np
import pytest


def write_onnx(path: Path, seed: int = 0, size: int = 112, embedding_size: int = 16) -> Path:
    """An ONNX network that averages over 8 x 8 pixels and maps the result linearly; images in [-1, 1]."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    pooled = 3 * (size // 8) ** 2
    weights = np.random.default_rng(seed).standard_normal((pooled, embedding_size)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["embeddings"]),
        ],
        "network",
        [helper.make_tensor_value_info("images", 1, ["n", 3, size, size])],
        [helper.make_tensor_value_info("embeddings", 1, ["n", embedding_size])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
