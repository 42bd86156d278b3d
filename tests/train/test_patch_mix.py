"""Amplitude mixing against the published result and against a plain loop over images and patches."""

import numpy as np
import torch

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
    numbers = torch.rand(2, 3, 4, generator=generator)
    chosen = torch.tensor([1, 4])
    out = perturb_patches(images, chosen, weights, numbers, top=3, patch=9)
    expected = images.clone()
    for n, image in enumerate(chosen.tolist()):
        for t, place in enumerate(weights[n].argsort(descending=True)[:3].tolist()):
            share, donor, row, column = numbers[n, t].tolist()
            top, left = int(row * 4) * 9, int(column * 4) * 9
            source = levels[image, :, place // 4 * 9 : place // 4 * 9 + 9, place % 4 * 9 : place % 4 * 9 + 9]
            given = levels[int(donor * 5), :, top : top + 9, left : left + 9]
            mixed = mixed_by_loop(source.permute(1, 2, 0).numpy(), given.permute(1, 2, 0).numpy(), share)
            mixed = torch.tensor(np.floor(mixed)).permute(2, 0, 1)
            expected[image, :, place // 4 * 9 : place // 4 * 9 + 9, place % 4 * 9 : place % 4 * 9 + 9] = (
                (mixed / 255 - 0.5) / 0.5
            ).float()
    assert torch.equal(out[[0, 2, 3]], images[[0, 2, 3]])
    # float32 spectra may fall on the other side of a whole number.
    difference = (out - expected).abs() * 127.5
    assert difference.max() < 1.01 and (difference > 0.5).float().mean() < 0.01
    assert (out[chosen] != images[chosen]).any()
