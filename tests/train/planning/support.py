"""Configs for the planner, and a network that is summed up by hand."""

from torch import nn

from train.config import Config


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
