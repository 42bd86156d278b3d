"""Processes of the suite's own: forked from one that has imported what takes seconds, so that each begins at once."""

import multiprocessing
from multiprocessing import forkserver

# What ranks and commands import when they begin, and what the loader, the first optimizer and the log do later on.
PRELOADED = (
    "nvidia.dali.fn",
    "nvidia.dali.types",
    "pipelines.prepare.__main__",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "train.trainer",
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))


def start_server() -> None:
    """Start the process that all others are forked from, with the environment of now."""
    forkserver.ensure_running()
