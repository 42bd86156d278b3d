"""Pair-relation pooling against a loop over all pairs."""

import pytest
import torch

from models import create_model
from models.inspect import cost
from models.iresnet import IResNet
from models.onnx_file import export_onnx
from models.pooling import PairRelation


def naive(pool, maps, count):
    """The pooling of maps (b, c, h, w) written out pair by pair, for the ``count`` best."""
    state = dict(pool.named_parameters())
    u, v, p = state["attention_u.weight"], state["attention_v.weight"], state["attention_p"]
    vectors = []
    for features in maps.flatten(2).mT:  # of each image, (n, c)
        pairs = [(first, second) for first in features for second in features]
        logits = torch.stack([(p * (u @ first).relu() * (v @ second).relu()).sum() for first, second in pairs])
        attention = logits.exp() / logits.exp().sum()
        best = sorted(range(len(pairs)), key=lambda pair: -attention[pair].item())[:count]
        u2, v2 = state["relation_u.weight"], state["relation_v.weight"]
        relations = [attention[pair] * (u2 @ pairs[pair][0]).relu() * (v2 @ pairs[pair][1]).relu() for pair in best]
        vectors.append(sum(relations))
    return torch.stack(vectors)


@pytest.mark.parametrize(("share", "count"), [(0.1, 4), (1 / 36, 1), (0.5, 18), (1.0, 36)])
def test_pair_relation_is_that_of_a_loop_over_pairs(share, count):
    torch.manual_seed(0)
    pool = PairRelation(5, 7, share).double()
    maps = torch.randn(3, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 7, dtype=torch.float64)
    results = []
    for vectors in (pool(maps), naive(pool, maps, count)):
        gradients = torch.autograd.grad((vectors * weights).sum(), [maps, *pool.parameters()])
        results.append((vectors, *gradients))
    for found, expected in zip(*results, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_pairs_that_tie_with_the_last_are_kept_whatever_their_order():
    """Four places alike: 16 equal pairs, of which one is as good as any other."""
    torch.manual_seed(0)
    maps = torch.randn(1, 5, 1, 1, dtype=torch.float64).expand(-1, -1, 2, 2)
    few, all_ = PairRelation(5, 7, 0.2).double(), PairRelation(5, 7, 1.0).double()
    all_.load_state_dict(few.state_dict())
    assert torch.equal(few(maps), all_(maps))
    place = maps[:, :, 0, 0]  # the mean over all pairs is that of any
    torch.testing.assert_close(few(maps), few.relation_u(place).relu() * few.relation_v(place).relu())
    assert few(maps).any()
    maps = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    turned = maps.flatten(2)[:, :, [2, 0, 3, 1]].unflatten(2, (2, 2))
    torch.testing.assert_close(few(maps), few(turned))
    assert not torch.allclose(few(maps), all_(maps))


def test_onnx_pools_as_torch(tmp_path):
    torch.manual_seed(0)
    model = IResNet((1, 1, 1, 1), 16, 64, pool="pair_relation", pair_rank=24, pair_share=0.3).eval()
    assert export_onnx(model, tmp_path / "model.onnx", 64, dynamic_batch=True) < 1e-4


def test_a_pooled_iresnet_has_the_plain_ones_tensors_up_to_its_head():
    with torch.device("meta"):
        plain, pooled = (create_model("r18", **options).state_dict() for options in ({}, {"pool": "pair_relation"}))
    added = [f"pool.{name}" for name in PairRelation(1, 1, 1.0).state_dict()]
    assert pooled.keys() == plain.keys() | set(added)
    other = {name for name in plain if plain[name].shape != pooled[name].shape}
    assert other == {"fc.weight"} and pooled["fc.weight"].shape == (512, 512)


def test_cost_of_the_pooling():
    """Four products with 49 features, and two of 49 x 49 pairs, take the place of a product with the whole map."""
    plain, pooled = cost(name="r18"), cost(name="r18", pool="pair_relation")
    matrix = 512 * 512
    assert pooled.parameters - plain.parameters == 4 * matrix + 512 - 48 * matrix
    assert pooled.gmac - plain.gmac == pytest.approx((4 * 49 * matrix + 2 * 49**2 * 512 - 48 * matrix) / 1e9)
