"""Traces of networks, which take seconds, made once."""

import pytest

from train.planning import step
from train.planning.network import trace_network

TRACES = {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """A step's network is traced once for all tests. Of data and head, the batch and the margin's kind decide it."""

    def traced(config, batch, *, timer=None, **arguments):
        if timer is not None:
            return trace_network(config, batch, timer=timer, **arguments)
        kind = config.head.create_margin().trains_scale
        key = (config.model_dump_json(exclude={"data", "head"}), kind, batch, *sorted(arguments.items()))
        if key not in TRACES:
            TRACES[key] = trace_network(config, batch, **arguments)
        return TRACES[key]

    monkeypatch.setattr(step, "trace_network", traced)
