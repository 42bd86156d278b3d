import numpy as np
import pytest
import torch
import torch.distributed as dist

from evaluate.features.embed import Embedder
from evaluate.features.ranks import World
from evaluate.features.sums import embedding_sums
from evaluate.protocols.embeddings import normalised
from pipelines.common.errors import UserError
from pipelines.sources.memory import MemorySource
from tests.evaluate.features.test_embed import Means, encoded, run

GROUP = np.arange(11) % 3


def sums(count=11, norm="keep", rank=0, size=1):
    embed = Embedder(Means(), 32, World(torch.device("cpu"), rank, size), batch_size=4, threads=1, flip=False)
    return embedding_sums(embed, MemorySource(encoded(count)), GROUP[:count], 4, norm)


def on_a_rank(count):
    return sums(count, rank=dist.get_rank(), size=dist.get_world_size())


@pytest.mark.parametrize("norm", ["keep", "normalise"])
def test_are_those_of_all_embeddings(norm):
    features = run(11, flip=False)[:, 0].astype(np.float64)
    features = normalised(features) if norm == "normalise" else features
    found = sums(norm=norm)
    np.testing.assert_allclose(found[:3], [features[k == GROUP].sum(axis=0) for k in range(3)], rtol=1e-12)
    assert not found[3].any()


@pytest.mark.parametrize("count", [1, 11])  # fewer images than ranks, unequal shares
def test_every_rank_has_all_sums(ranks, count):
    alone = sums(count)
    for found in ranks(2, on_a_rank, count):
        np.testing.assert_allclose(found, alone, rtol=1e-12)


def test_no_images():
    with pytest.raises(UserError, match="there are no images to embed"):
        sums(0)
