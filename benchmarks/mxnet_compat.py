"""MXNet 1.9.1 on today's numpy. It serves tests as an oracle and benchmarks as a baseline; training does without it."""

import warnings
from types import ModuleType

import numpy as np
import torch

from pipelines.common.errors import UserError


def import_mxnet() -> ModuleType:
    """The ``mxnet`` module; torch keeps its number of threads.

    Raises ``ValueError`` with the remedy where it is missing or cannot be imported.
    """
    # numpy 1.24 dropped this alias, which mxnet looks up while it is imported; numpy 2 has it again, but not the rest.
    if "bool" not in vars(np):
        vars(np)["bool"] = bool
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mxnet
    except (ImportError, AttributeError, OSError) as error:
        raise UserError(f"mxnet cannot be imported ({error}); install it: pip install 'facemill[mxnet]'") from None
    torch.set_num_threads(threads)  # mxnet leaves the OpenMP that both use with one
    return mxnet
