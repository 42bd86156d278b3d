"""Amplitude mixing against the published result and against a plain loop over images and patches."""

import numpy as np
import pytest
import torch

from models.vit import TransFace as TransFaceNetwork
from pipelines.loading.batch import Batch
from train.recipes import create_recipe
from train.recipes.patch_mix import mix_amplitudes, perturb_patches


def mixed_by_loop(source, donor, share):
    """(9, 9, 3) patches, one at a time, in float64."""
    a, b = np.fft.fft2(source, axes=(0, 1)), np.fft.fft2(donor, axes=(0, 1))
    amplitude = share * np.abs(b) + (1 - share) * np.abs(a)
    return np.real(np.fft.ifft2(amplitude * np.exp(1j * np.angle(a)), axes=(0, 1))).clip(0, 255)


def test_reference(shared):
    data = np.load(shared / "reference/losses/transface_fft.npz")
    source, donor = (torch.tensor(data[name]).double().permute(2, 0, 1)[None] for name in ("in_a", "in_b"))
    out = mix_amplitudes(source, donor, torch.tensor([float(data["in_lam"])], dtype=torch.float64))[0].permute(1, 2, 0)
    assert np.array_equal(out.numpy(), data["out_mix"])


def test_perturbs_the_heaviest_patches_of_the_chosen_images():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (5, 3, 36, 36), generator=generator)
    images = (levels / 255 - 0.5) / 0.5
    weights = torch.rand(2, 16, generator=generator)
    uniforms = torch.rand(2, 3, 4, generator=generator)
    chosen = torch.tensor([1, 4])
    out = perturb_patches(images, chosen, weights, uniforms, top=3, patch=9)
    expected = images.clone()
    for n, image in enumerate(chosen.tolist()):
        for t, place in enumerate(weights[n].argsort(descending=True)[:3].tolist()):
            share, donor, row, column = uniforms[n, t].tolist()
            top, left = int(row * 4) * 9, int(column * 4) * 9
            source = levels[image, :, place // 4 * 9 : place // 4 * 9 + 9, place % 4 * 9 : place % 4 * 9 + 9]
            given = levels[int(donor * 5), :, top : top + 9, left : left + 9]
            mixed = mixed_by_loop(source.permute(1, 2, 0).numpy(), given.permute(1, 2, 0).numpy(), share)
            mixed = torch.tensor(np.floor(mixed)).permute(2, 0, 1)
            expected[image, :, place // 4 * 9 : place // 4 * 9 + 9, place % 4 * 9 : place % 4 * 9 + 9] = (
                (mixed / 255 - 0.5) / 0.5
            ).float()
    assert torch.equal(out[[0, 2, 3]], images[[0, 2, 3]])
    assert torch.allclose(out, expected, atol=1e-6)
    assert (out[chosen] != images[chosen]).any()


def test_whole_numbers_survive_the_round_trip():
    """Of an unmixed patch nothing changes, however many are transformed at a time; a bare cut loses some."""
    generator = torch.Generator().manual_seed(5)
    for count, side in ((1, 6), (7, 9), (64, 8), (200, 16)):
        patches = torch.randint(0, 256, (count, 3, side, side), generator=generator).float()
        donors = torch.randint(0, 256, patches.shape, generator=generator).float()
        assert torch.equal(mix_amplitudes(patches, donors, torch.zeros(count)), patches)
        assert torch.equal(mix_amplitudes(patches, patches, torch.full((count,), 0.3)), patches)


def test_fractions_are_still_cut_down():
    """A mean of 200 mixed half and half with one of 101 is 150.5 everywhere, which is cut to 150."""
    flat, other = torch.full((1, 3, 8, 8), 200.0), torch.full((1, 3, 8, 8), 101.0)
    assert torch.equal(mix_amplitudes(flat, other, torch.tensor([0.5])), torch.full((1, 3, 8, 8), 150.0))


def test_unmixed_patches_come_back_to_the_bit():
    pixels = torch.randint(0, 256, (2, 3, 18, 18), generator=torch.Generator().manual_seed(0))
    images = (pixels.float() - 127.5) / 127.5
    uniforms = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))
    uniforms[..., 0] = 0
    out = perturb_patches(images, torch.tensor([0, 1]), torch.rand(2, 9), uniforms, top=3, patch=6)
    assert torch.equal(out, images)


def test_of_equal_weights_the_first_patches_are_taken():
    images = torch.linspace(-1, 1, 2 * 3 * 24 * 24).reshape(2, 3, 24, 24)
    uniforms = torch.full((1, 3, 4), 0.99)
    weights = torch.full((1, 16), 0.5)
    weights[0, 5] = 0.75
    out = perturb_patches(images, torch.tensor([0]), weights, uniforms, top=3, patch=6)
    changed = (out != images).any(1)[0].unfold(0, 6, 6).unfold(1, 6, 6).flatten(2).any(2).flatten()
    assert changed.nonzero()[:, 0].tolist() == [0, 1, 5]


@pytest.mark.parametrize("size", [21, 60, 71, 80, 112])
def test_the_patches_are_the_networks(size):
    """Also where the image has a margin that is in none, and where it has fewer patches than are perturbed."""
    torch.manual_seed(0)
    backbone = TransFaceNetwork(8, 2, 16, size).eval()
    recipe = create_recipe("transface", probability=1.0)
    recipe.network(backbone)
    images, side = torch.rand(2, 3, size, size) * 2 - 1, size // 9
    last = torch.zeros(2, side**2)
    last[:, -1] = 1  # the heaviest, and alone among the first
    backbone.forward_patches = lambda images: (None, last, None)
    uniforms = torch.rand(2, 2 + 4 * 7)
    uniforms[:, 1] = 0  # all are chosen
    uniforms[:, 2], uniforms[:, 6::4] = 0.9, 0  # the first patch alone takes of its donor
    changed = (recipe._perturbed(Batch(images, torch.zeros(2).long(), torch.arange(2), uniforms)) - images).abs() > 0.05
    rows = changed.any(dim=(0, 1, 3)).nonzero()[:, 0].tolist()
    assert rows and min(rows) >= 9 * (side - 1) and max(rows) < 9 * side
