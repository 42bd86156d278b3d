"""Images of other sizes, brought to the network's."""

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from nvidia.dali.tensors import TensorCPU, TensorListCPU
from PIL import Image

from pipelines.loading.resize import resized, resized_on_host


def photo(side: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))


def by_dali(image: np.ndarray, side: int) -> np.ndarray:
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph():
        return resized(fn.external_source(source=lambda: [image], layout="HWC"), side)

    (pixels,) = graph().run()
    return np.array(pixels.as_tensor())[0]


@pytest.mark.parametrize("sides", [[112] * 3, [112, 56, 40]])
@pytest.mark.parametrize("side", [56, 96])
def test_on_the_host_it_is_what_dali_and_pillow_make(sides, side):
    """The sizes of a batch may differ, and each image is what it is alone."""
    images = [photo(each, seed) for seed, each in enumerate(sides)]
    pixels = resized_on_host(TensorListCPU([TensorCPU(image) for image in images], "HWC", contiguous=False), side)
    assert pixels.shape == (3, side, side, 3) and pixels.dtype == torch.uint8
    assert pixels.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    for image, found in zip(images, pixels.numpy().astype(int)):
        apart = abs(found - by_dali(image, side))
        assert apart.mean() < 0.4 and apart.max() <= 4
        pillows = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
        assert abs(found - pillows).max() <= 1
