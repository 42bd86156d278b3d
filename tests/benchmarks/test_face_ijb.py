"""Faces in the layout of IJB-C: what the lists say of the images."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.face_ijb import write_faces
from evaluate.protocols.ijb_lists import IJB
from pipelines.common.alignment import TEMPLATE
from pipelines.loading.aligned import read_aligned
from pipelines.sources.lists import ListSource


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Six identities of 9 images each, of a colour of their own; one with too few images."""
    folder = tmp_path_factory.mktemp("faces")
    for identity in range(7):
        (folder / "set" / str(identity)).mkdir(parents=True)
        for image in range(9 if identity < 6 else 2):
            pixels = np.full((112, 112, 3), (30 * identity + 20, 240 - 30 * identity, 100), np.uint8)
            for x, y in ((TEMPLATE[k].real, TEMPLATE[k].imag) for k in range(5)):
                pixels[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5] = 255
            Image.fromarray(pixels).save(folder / "set" / str(identity) / f"{image}.png")
    write_faces(folder, folder / "set", seed=3)
    return IJB(folder, "IJBC")


def test_every_image_of_a_template_shows_its_subject(release):
    images, galleries, probes = release.images(), release.galleries(), release.probes()
    lists = [*galleries.values(), probes]
    subject = {t: s for part in lists for t, s in zip(part.template.tolist(), part.subject.tolist())}
    assert len(images.names) == 54 and set(subject) == set(images.template.tolist())
    assert sorted(galleries["g1"].subject.tolist() + galleries["g2"].subject.tolist()) == [1, 2, 3, 4, 5, 6]
    shades: dict[int, list[float]] = {}
    for name, template, eyes in zip(images.names, images.template, images.landmarks[:, :2]):
        x, y = np.rint(eyes.mean(axis=0)).astype(int)  # between the eyes
        pixels = np.asarray(Image.open(io.BytesIO(release.image_path(name).read_bytes()))).astype(int)
        red, green, _ = np.median(pixels[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3), axis=0)
        shades.setdefault(subject[template], []).append(red - green)
    assert all(len(values) == 9 and np.ptp(values) < 30 for values in shades.values())
    assert np.diff(sorted(np.median(values) for values in shades.values())).min() > 40


def test_all_probes_meet_all_galleries(release):
    first, second, same = release.pairs()
    galleries, probes = release.galleries(), release.probes()
    assert len(first) == 6 * len(probes.template) and same.sum() == len(probes.template)
    subject = dict(zip(probes.template.tolist(), probes.subject.tolist()))
    owner = {t: s for part in galleries.values() for t, s in zip(part.template.tolist(), part.subject.tolist())}
    assert all((owner[a] == subject[b]) == c for a, b, c in zip(first.tolist(), second.tolist(), same.tolist()))


def test_landmarks_take_the_faces_back(release):
    images = release.images()
    source = ListSource([str(release.image_path(name)) for name in images.names])
    sharpest = np.argsort(-images.detector)[:4]
    (batch,) = read_aligned(source, sharpest, batch_size=4, landmarks=images.landmarks.__getitem__)
    for image in batch.images:
        marked = [image[:, round(z.imag), round(z.real)].mean().item() for z in TEMPLATE]
        assert min(marked) > 0.6  # white within the face's colour, whose mean lies below


def test_too_few_faces_are_refused(tmp_path):
    (tmp_path / "set/a").mkdir(parents=True)
    Image.new("RGB", (112, 112)).save(tmp_path / "set/a/1.png")
    with pytest.raises(ValueError, match="has 0 identities with 4 images or more"):
        write_faces(tmp_path, tmp_path / "set")
