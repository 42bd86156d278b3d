"""Programs of ``torch.export``: files (``.pt2``) that ``torch.export.load`` runs without this package.

``module = torch.export.load("model.pt2").module()`` takes images (n, 3, side, side), RGB in [-1, 1], for any n, and a
network that wants landmarks also landmarks (n, 5, 2), to embeddings (n, d).
"""

import warnings
from pathlib import Path

import torch
from torch import nn

from models.agreement import check_agreement, random_inputs, relative_distance
from models.modes import evaluating
from models.weights import require_finite
from pipelines.common.errors import UserError
from pipelines.common.files import replacing

TOLERANCE = 1e-5  # largest distance between the program's embedding and the network's, relative to the norm


@torch.no_grad()
def export_program(model: nn.Module, path: Path, input_size: int = 112) -> float:
    """Write ``model`` to ``path``, if the program makes the same embeddings, of more images than it was traced with.

    Args:
        model: a backbone on the CPU; it is not changed.
        input_size: side of the images.

    Returns:
        The largest distance between the two, relative to the embedding's norm.

    Raises:
        ValueError: when weights or embeddings are not finite, or the network has parts that cannot be written so.
        RuntimeError: when the embeddings differ by more than rounding.
    """
    require_finite(model)
    example, other = random_inputs(model, 3, input_size), random_inputs(model, 5, input_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own ageing parts
        batch = torch.export.Dim("batch")
        try:
            program = torch.export.export(model, example, dynamic_shapes=tuple({0: batch} for _ in example))
        except Exception as error:  # of many kinds, and of many lines
            raise UserError(f"torch.export does not take this network: {type(error).__name__}; write .onnx") from error
        with temporary.open("wb") as file:
            torch.export.save(program, file)
        with temporary.open("rb") as written:
            theirs = torch.export.load(written).module()(*other)
        distance = relative_distance(theirs, model(*other))
        check_agreement(distance, TOLERANCE, "the program's")
    return distance
