"""Architectures told from the names and shapes of tensors."""

import pytest
import torch
from torch import nn

from models import create_model
from models.iresnet import IResNet
from models.registry import BACKBONES
from models.weights import guess_architecture


@pytest.mark.parametrize(
    "options",
    [
        {"name": "r18"},
        {"name": "r50", "se": True, "embedding_size": 256},
        {"name": "r200", "input_size": 64},
        {"name": "r18", "pool": "pair_relation", "pair_rank": 256},
        {"name": "r18", "width": 0.25, "input_size": 64},
        {"name": "ir_101"},
        {"name": "ir_se_50"},
        {"name": "mbf", "width": 0.3125, "input_size": 64},
        {"name": "mbf_large", "embedding_size": 128},
        {"name": "vit_s"},
        {"name": "vit_l", "embedding_size": 64},
        {"name": "vit_t", "registers": 8},
        {"name": "transface_b"},
        {"name": "vit_b_kprpe", "embedding_size": 256},
        {"name": "vit_s_unmasked", "embedding_size": 256},
        {"name": "vit_b_unmasked", "input_size": 96},
    ],
)
def test_architecture_is_told_from_the_tensors(options):
    with torch.device("meta"):
        tensors = create_model(**options).state_dict()
        assert guess_architecture(tensors) == {"embedding_size": 512, "input_size": 112} | options


@pytest.mark.parametrize("name", ["mbf", "r18"])
def test_every_width_is_told_from_the_tensors(name):
    with torch.device("meta"):
        for width in (0.02, 0.1, 0.2, 0.29, 0.3, 0.45, 0.5, 0.77, 1.5):
            tensors = create_model(name, width=width).state_dict()
            again = create_model(**guess_architecture(tensors)).state_dict()
            assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in again.items()}


def test_unknown_architecture():
    with pytest.raises(ValueError, match="no backbone"):
        guess_architecture({"layer1.0.bn1.weight": torch.zeros(64)})


def test_unknown_depths_beside_a_class_in_the_table(monkeypatch):
    """The classes that people add are no partial functions, as the table's own are."""
    monkeypatch.setitem(BACKBONES, "plain", nn.Identity)
    with torch.device("meta"):
        tensors = IResNet((1, 1, 1, 1)).state_dict()
    with pytest.raises(ValueError, match="no backbone"):
        guess_architecture(tensors)
