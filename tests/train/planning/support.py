"""Configs for the planner, and what a step really allocates."""

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from train.config import Config
from train.distributed import joined
from train.trainer import Trainer


class Perceptron(nn.Module):
    """Images to embeddings through one hidden layer, ``(linear, relu, linear)``."""

    def __init__(self, embedding_size=16, input_size=8, hidden=32):
        super().__init__()
        self.first = nn.Linear(3 * input_size**2, hidden, bias=False)
        self.last = nn.Linear(hidden, embedding_size, bias=False)

    def forward(self, images):
        return self.last(self.first(images.flatten(1)).relu())


def config(model, head=(), data=(), **sections):
    """A config of float32 SGD on a CPU without momentum, unless it says otherwise."""
    tree = {
        "data": {"train": "/nowhere/faces", "batch_size": 8, **dict(data)},
        "model": model,
        "head": {"margin": "cosface", **dict(head)},
        "optim": {"name": "sgd", "lr": 0.01},
        "precision": "fp32",
        "device": "cpu",
        "log": {"sinks": []},
        "output": "/nowhere/run",
    }
    return Config.model_validate(tree | sections)


def allocated(config):
    """The most bytes that torch's allocator holds in the second step of a run."""
    with joined("cpu", 60) as world, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer = Trainer(config, world)
        batches = iter(trainer.loader)
        trainer.train_step(batches)
        with record_function("second step"):
            trainer.train_step(batches)
        trainer.loader.close()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == "second step")
    most = now = 0
    for event in events:
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now) if event.start_ns() >= begin else most
    return most
