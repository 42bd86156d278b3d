"""Dominant patch amplitude perturbation (DPAP) of TransFace (Dan et al., ICCV 2023, sec. 3.2), batched."""

import torch
from torch import Tensor

from pipelines.common.pixels import normalise, to_levels

# Far above the rounding of a transform in float64, far below what a published figure could notice.
_WHOLE = 2.0**-20


def mix_amplitudes(patches: Tensor, donors: Tensor, share: Tensor) -> Tensor:
    """Mix the Fourier amplitudes of patches with those of donors and keep the patches' phases.

    Args:
        patches, donors: (n, 3, p, p) float in [0, 255].
        share: (n,) of the donor's amplitude, in [0, 1).

    Returns:
        (n, 3, p, p) float in [0, 255], cut down to whole numbers as the published code does. The cut must not depend on
        how a processor rounds: the transforms are in float64, and a number that was whole stays what it was.
    """
    spectrum = torch.fft.fft2(patches.double())
    amplitude = torch.lerp(spectrum.abs(), torch.fft.fft2(donors.double()).abs(), share.double()[:, None, None, None])
    mixed = torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real
    return (mixed + _WHOLE).floor().clamp(0, 255).to(patches.dtype)


def perturb_patches(images: Tensor, chosen: Tensor, weights: Tensor, uniforms: Tensor, top: int, patch: int) -> Tensor:
    """Perturb the heaviest patches of some images with patches from anywhere in the batch.

    Donor patches are taken from the batch as it comes in, before any of it is changed.

    Args:
        images: (b, 3, h, w) in [-1, 1].
        chosen: (n,) int64, the images to perturb.
        weights: (n, patches) their patches' weights, row by row of the image.
        uniforms: (n, top, 4) random in [0, 1): share, donor image, donor row, donor column.
        top: how many patches of an image; ``patch``: their side in pixels.

    Returns:
        (b, 3, h, w): a new tensor.
    """
    rows, columns = images.shape[2] // patch, images.shape[3] // patch
    pixels = to_levels(images).unfold(2, patch, patch).unfold(3, patch, patch)
    pixels = pixels.permute(0, 2, 3, 1, 4, 5)  # (b, rows, columns, 3, p, p)
    # Gates in half precision are often equal; of equal ones the first are taken, on every device.
    place = weights.argsort(dim=1, descending=True, stable=True)[:, :top]
    row, column = place // columns, place % columns
    image = chosen[:, None].expand_as(place)
    limits = len(images), rows, columns
    uniforms = uniforms[:, : place.shape[1]]  # a small image may have fewer patches
    donor = [(uniform * n).long().clamp(max=n - 1) for uniform, n in zip(uniforms[..., 1:].unbind(-1), limits)]
    mixed = mix_amplitudes(
        pixels[image, row, column].flatten(0, 1), pixels[tuple(donor)].flatten(0, 1), uniforms[..., 0].flatten()
    )
    out = images.clone(memory_format=torch.contiguous_format)
    view = out.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)
    view[image.flatten(), row.flatten(), column.flatten()] = normalise(mixed, out.dtype)
    return out.contiguous(memory_format=torch.channels_last)
