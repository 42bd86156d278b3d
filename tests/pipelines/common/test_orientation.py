"""What XMP says about how an image is held, only some readers know: none of ours follows it, as all follow EXIF."""

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.common.pillow import decode
from pipelines.loading.decoder import Decoder
from tests.pipelines.kinds import SIDE, picture

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def encoded(kind: str, **options) -> bytes:
    content = io.BytesIO()
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP)
    else:
        options["xmp"] = XMP.encode()
    Image.fromarray(picture()).save(content, kind, **options)
    return content.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize(
    "kind, options", [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("JPEG", {"exif": exif(3)}), ("PNG", {"exif": exif(3)})]
)
def test_every_reader_holds_it_alike(kind, options):
    image = encoded(kind, **options)
    expected = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    decoder = Decoder(batch_size=1, image_size=SIDE, device=torch.device("cpu"), threads=1)
    decoder.submit([np.frombuffer(image, np.uint8)])
    assert np.array_equal(np.asarray(decode(image), int), expected)
    assert np.array_equal(decoder.result()[0][0].numpy(), expected)
