"""Small photographs, folders of them, and files in every format that data sets come in."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(seed, size=112):
    """Smooth random colours: no two seeds look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def jpeg(seed, size=112):
    return encoded(picture(seed, size))


def write_folder(root, counts):
    """``counts`` maps names of identities to numbers of images. Returns {identity: [bytes, ...]}."""
    people, seed = {}, 0
    for name, count in sorted(counts.items()):
        (root / name).mkdir(parents=True)
        people[name] = []
        for number in range(1, count + 1):
            people[name].append(jpeg(seed))
            seed += 1
            (root / name / f"{name}_{number:04d}.jpg").write_bytes(people[name][-1])
    return people


def people_in(source):
    """{identity: [bytes, ...]} of a source."""
    people = {}
    images, labels = source.read(np.arange(len(source)))
    for image, label in zip(images, labels.tolist()):
        people.setdefault(source.identity(label), []).append(image.tobytes())
    return people


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
