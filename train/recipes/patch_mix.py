"""Dominant patch amplitude perturbation (DPAP) of TransFace (Dan et al., ICCV 2023, sec. 3.2), batched."""

import torch
from torch import Tensor


def mix_amplitudes(patches: Tensor, donors: Tensor, share: Tensor) -> Tensor:
    """Mix the Fourier amplitudes of patches with those of donors and keep the patches' phases.

    Args:
        patches, donors: (n, 3, p, p) float in [0, 255].
        share: (n,) of the donor's amplitude, in [0, 1).

    Returns:
        (n, 3, p, p) float in [0, 255], cut to whole numbers as the published code does.
    """
    spectrum = torch.fft.fft2(patches)
    amplitude = torch.lerp(spectrum.abs(), torch.fft.fft2(donors).abs(), share[:, None, None, None])
    mixed = torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real
    return mixed.clamp(0, 255).floor()


def perturb_patches(images: Tensor, chosen: Tensor, weights: Tensor, numbers: Tensor, top: int, patch: int) -> Tensor:
    """Perturb the heaviest patches of some images with patches from anywhere in the batch.

    Donor patches are taken from the batch as it comes in, before any of it is changed.

    Args:
        images: (b, 3, h, w) in [-1, 1].
        chosen: (n,) int64, the images to perturb.
        weights: (n, patches) their patches' weights, row by row of the image.
        numbers: (n, top, 4) uniform random numbers: share, donor image, donor row, donor column.
        top: how many patches of an image; ``patch``: their side in pixels.

    Returns:
        (b, 3, h, w): a new tensor.
    """
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    pixels = ((images.float() * 0.5 + 0.5) * 255).unfold(2, patch, patch).unfold(3, patch, patch)
    pixels = pixels.permute(0, 2, 3, 1, 4, 5)  # (b, rows, columns, 3, p, p)
    place = weights.topk(top, dim=1).indices
    row, column = place // columns, place % columns
    image = chosen[:, None].expand_as(place)
    limits = len(images), rows, columns
    donor = [(uniform * n).long().clamp(max=n - 1) for uniform, n in zip(numbers[..., 1:].unbind(-1), limits)]
    mixed = mix_amplitudes(
        pixels[image, row, column].flatten(0, 1), pixels[tuple(donor)].flatten(0, 1), numbers[..., 0].flatten()
    )
    out = images.clone(memory_format=torch.contiguous_format)
    view = out.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
    view[image.flatten(), row.flatten(), column.flatten()] = ((mixed / 255 - 0.5) / 0.5).to(out.dtype)
    return out.contiguous(memory_format=torch.channels_last)
