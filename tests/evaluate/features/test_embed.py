import io
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from evaluate.features import embed as embed_module
from evaluate.features.embed import Embedder, embed_batches
from evaluate.features.ranks import World
from models.modes import evaluating
from pipelines.common.alignment import relative_template
from pipelines.sources.memory import MemorySource


def encoded(count, seed=0, size=32):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(data, "PNG")
        images.append(data.getvalue())
    return images


class Means(nn.Module):
    """Embeds an image as the mean of its left third and of the whole, by channel; drops out when training."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, images):
        return self.dropout(torch.cat([images[..., :10].mean((2, 3)), images.mean((2, 3))], 1))


def run(count, rank=0, size=1, **options):
    embed = Embedder(Means(), 32, World(torch.device("cpu"), rank, size), batch_size=4, threads=1, **options)
    return embed(MemorySource(encoded(count)))


def on_a_rank(count):
    with pytest.MonkeyPatch.context() as patch:  # the process goes on to other tests
        patch.setattr(embed_module, "_GATHERED", 3)
        return run(count, dist.get_rank(), dist.get_world_size())


def test_original_then_mirrored_in_order():
    features = run(11)
    assert features.dtype == np.float32 and features.shape == (11, 2, 6)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded(11)]) / 127.5 - 1
    np.testing.assert_allclose(features[:, 0, :3], pixels[:, :, :10].mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(features[:, 1, :3], pixels[:, :, -10:].mean((1, 2)), atol=1e-5)
    np.testing.assert_array_equal(run(11, flip=False), features[:, :1])


def test_embeddings_are_not_held_twice():
    """Each batch is let go before the next but one is made: a GPU holds two, however many images there are."""
    held = []

    class Watched(Embedder):
        def batches(self, *arguments):
            for batch in super().batches(*arguments):
                held.append(weakref.ref(batch))
                yield batch
                del batch
                assert sum(kept() is not None for kept in held) <= 2

    embed = Watched(Means(), 32, World(torch.device("cpu")), batch_size=4, threads=1)
    np.testing.assert_array_equal(embed(MemorySource(encoded(20))), run(20))
    assert len(held) == 5


@pytest.mark.parametrize("count", [1, 7, 8])  # fewer images than ranks, unequal and equal shares
def test_every_rank_has_all_features(ranks, count):
    alone = run(count)
    assert len(alone) == count
    for features in ranks(2, on_a_rank, count):
        np.testing.assert_array_equal(features, alone)


def test_a_network_sees_one_shape():
    """Short batches are filled up behind their images, whose features do not change."""
    seen = []

    def means(images):
        seen.append(tuple(images.shape))
        return images.mean((2, 3))

    batches = torch.randn(11, 3, 8, 8).to(memory_format=torch.channels_last).split(4)
    for features, images in zip(embed_batches(Gives(means), batches), batches, strict=True):
        torch.testing.assert_close(features, torch.stack([images.mean((2, 3))] * 2, 1))
    assert seen == [(8, 3, 8, 8)] * 3


def test_a_cpu_takes_a_part_of_a_batch_at_a_time():
    seen = []

    def means(images):
        seen.append(len(images))
        return images.mean((2, 3))

    batches = torch.randn(70, 3, 8, 8).split(40)
    for features, images in zip(embed_batches(Gives(means), batches), batches, strict=True):
        torch.testing.assert_close(features, torch.stack([images.mean((2, 3)), images.flip(3).mean((2, 3))], 1))
    assert sum(seen) == 2 * 2 * 40 and max(seen) <= 16 * torch.get_num_threads()
    network = Gives(means)
    network.splits_batches = True
    seen.clear()
    list(embed_batches(network, batches))
    assert seen == [80, 80]


def test_modes_are_restored_module_by_module():
    model = Means().train()
    model.frozen.eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not model.dropout.training
        raise RuntimeError
    assert model.training and model.dropout.training and not model.frozen.training


def test_autocast_computes_in_bfloat16_and_returns_float32():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    images = torch.randn(3, 3, 4, 4)
    (exact,) = embed_batches(model, [images])
    (rough,) = embed_batches(model, [images], autocast=torch.bfloat16)
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.05


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no images"):
        run(0)


class Gives(nn.Module):
    """Whatever a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.zeros(147 * len(x), 1),  # a detector's rows
        lambda x: torch.zeros(len(x), 1),  # one score an image
        lambda x: torch.zeros(len(x), 0),
        lambda x: torch.zeros(len(x), 4, 7, 7),  # a feature map
        lambda x: torch.zeros(2 * len(x), 4),
        lambda x: torch.zeros(4, len(x) + 1),
        lambda x: torch.zeros(len(x)),
        lambda x: (torch.zeros(len(x), 4), torch.zeros(len(x), 1)),
    ],
)
def test_a_network_that_does_not_embed_is_told(function):
    with pytest.raises(ValueError, match="none that embeds faces: for 6 images it gives"):
        list(embed_batches(Gives(function), [torch.zeros(3, 3, 8, 8)]))


def test_one_by_one_maps_are_embeddings():
    images = torch.randn(3, 3, 8, 8)
    (flat,) = embed_batches(Gives(lambda x: x.mean((2, 3))), [images])
    (maps,) = embed_batches(Gives(lambda x: x.mean((2, 3), keepdim=True)), [images])
    assert maps.shape == (3, 2, 3) and torch.equal(maps, flat)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_counted_and_named(value):
    """The 9th to 11th of 11 images, of which one has it in its mirrored view alone."""
    calls = []

    def network(x):
        calls.append(len(x))
        features = torch.randn(len(x), 4)
        if len(calls) == 3:
            features[[0, 1, 6], 2] = value  # of 3 images, filled up to 4, and their mirrored ones
        return features

    source = MemorySource(encoded(11), name="lfw.bin")
    with pytest.raises(ValueError, match=r"not finite for 3 of 11 images, the first is lfw\.bin, image 8$"):
        Embedder(Gives(network), 32, World(torch.device("cpu")), batch_size=4, threads=1)(source)
    assert calls == [8, 8, 8]


def fails_on_a_rank(value):
    """The bad image is in the share of the second rank."""
    rank = dist.get_rank()
    network = Gives(lambda x: torch.full((len(x), 4), value if rank else 1.0))
    with pytest.raises(ValueError, match=r"not finite for 3 of 7 images, the first is lfw\.bin, image 4$"):
        Embedder(network, 32, World(torch.device("cpu"), rank, 2), threads=1)(MemorySource(encoded(7), name="lfw.bin"))
    return rank


def test_all_ranks_hear_of_embeddings_that_are_not_finite(ranks):
    assert ranks(2, fails_on_a_rank, float("nan")) == [0, 1]


class Places(nn.Module):
    """Embeds an image as its landmarks."""

    wants_landmarks = True

    def forward(self, images, landmarks):
        return landmarks.flatten(1)


def test_landmarks_are_mirrored_with_their_images():
    images, landmarks = torch.rand(5, 3, 8, 8), torch.rand(5, 5, 2)
    batches = [(images[:3], landmarks[:3]), (images[3:], landmarks[3:])]
    features = torch.cat(list(embed_batches(Places(), batches))).unflatten(2, (5, 2))
    torch.testing.assert_close(features[:, 0], landmarks)
    torch.testing.assert_close(features[:, 1, :, 0], 1 - landmarks[:, [1, 0, 2, 4, 3], 0])
    torch.testing.assert_close(features[:, 1, :, 1], landmarks[:, [1, 0, 2, 4, 3], 1])
    (alone,) = embed_batches(Places(), batches[:1], flip=False)
    torch.testing.assert_close(alone[:, 0], landmarks[:3].flatten(1))


def test_images_without_landmarks_have_the_templates():
    (features,) = embed_batches(Places(), [torch.rand(2, 3, 8, 8)])
    expected = torch.from_numpy(relative_template())
    torch.testing.assert_close(features[1, 0].view(5, 2), expected)
    assert features[1, 1, 0] == 1 - expected[1, 0]
    (others,) = embed_batches(
        Gives(lambda images: images.mean((2, 3))), [(torch.rand(2, 3, 8, 8), torch.rand(2, 5, 2))]
    )
    assert others.shape == (2, 2, 3)


def test_landmarks_go_with_the_images_of_a_source():
    landmarks = np.random.default_rng(0).random((11, 5, 2)).astype(np.float32)
    embed = Embedder(Places(), 32, World(torch.device("cpu"), 0, 1), batch_size=4, threads=1, flip=False)
    found = embed(MemorySource(encoded(11)), lambda indices: landmarks[indices])
    np.testing.assert_array_equal(found[:, 0], landmarks.reshape(11, 10))
