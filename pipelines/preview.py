"""A sheet of pictures that shows an augmentation set: ``python -m pipelines.preview DATA --augment NAME --output PNG``.

A row for each image: the image as it is, then as a training run could see it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.common.command import at_least, run, say
from pipelines.common.files import check_file, replacing
from pipelines.common.sheets import sheet
from pipelines.loading.augment import AUGMENTATIONS
from pipelines.loading.loader import Loader, read_once
from pipelines.sources import open_source
from pipelines.sources.memory import MemorySource
from pipelines.sources.source import Source


def augmented_sheet(
    source: Source, augment: str, *, rows: int = 8, columns: int = 11, image_size: int = 112, seed: int = 0
) -> Image.Image:
    """A row for each of some images from all over the source: the image as it is, then ``columns`` times augmented."""
    rows = min(rows, len(source))
    chosen = np.linspace(0, len(source) - 1, rows).astype(np.int64)
    originals = next(read_once(source, chosen, batch_size=rows, image_size=image_size, dtype=torch.uint8)).images
    encoded, _ = source.read(np.repeat(chosen, columns))
    repeated = MemorySource(encoded, np.zeros(len(encoded), np.int64))
    loader = Loader(
        repeated,
        batch_size=len(encoded),
        seed=seed,
        augment=augment,
        shuffle="none",
        image_size=image_size,
        dtype=torch.uint8,
        prefetch=1,
    )
    augmented = next(loader).images.unflatten(0, (rows, columns))
    loader.close()
    tiles = torch.cat([originals[:, None], augmented], dim=1)  # (rows, columns + 1, 3, h, w)
    return sheet(list(map(list, tiles.permute(0, 1, 3, 4, 2).numpy())), image_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder with train.rec, a .rec file, or a folder identity/*.jpg")
    parser.add_argument("--augment", default="arcface", help=f"one of {', '.join(AUGMENTATIONS)}")
    parser.add_argument("--output", type=Path, default=Path("preview.png"))
    parser.add_argument("--image-size", type=at_least(1), default=112)
    parser.add_argument("--seed", type=at_least(0), default=0)
    arguments = parser.parse_args()
    check_file(arguments.output)
    picture = augmented_sheet(
        open_source(arguments.data), arguments.augment, image_size=arguments.image_size, seed=arguments.seed
    )
    with replacing(arguments.output) as temporary:
        picture.save(temporary, "PNG")
    say(arguments.output)


if __name__ == "__main__":
    run(main)
