"""What may reach DALI: images with a sound header, and in a form that DALI decodes to the pixels that others get.

Bytes that are no image are sorted out beforehand. DALI says so too, but since 2.2 it goes on decoding the images before
the bad one in memory that is gone, which ends the process.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.common.errors import one_line
from pipelines.common.header import HeaderReader
from pipelines.common.pillow import decode, to_jpeg, to_ppm

STAND_IN = np.frombuffer(to_jpeg(Image.new("RGB", (112, 112))), np.uint8)  # takes the place of a bad image in a batch


class Admission:
    """Looks at the header of each image of a batch, less than a microsecond where it begins like others before.

    JPEG, PNG, BMP and WebP mostly pass as they are. What DALI cannot read or reads in its own way (TIFF, PNM, JPEG
    2000, transparency in WebP, EXIF's orientation, CMYK without Adobe's marker) Pillow decodes, and it passes as PPM.
    """

    def __init__(self) -> None:
        self._headers = HeaderReader()

    def admit(self, encoded: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[int, str]]:
        """A batch for DALI, each uint8 (bytes,), and why some rows hold a black image instead of their own."""
        admitted, bad = list(encoded), {}
        for row, image in enumerate(encoded):
            try:
                if not self._headers.read(image).plain:
                    admitted[row] = np.frombuffer(to_ppm(decode(image)), np.uint8)
            except Exception as error:  # Pillow's decoders raise almost any class
                admitted[row], bad[row] = STAND_IN, one_line(error) if len(image) else "is empty"
        return admitted, bad
