"""Bad images and labels on their way through the loader."""

import json

import numpy as np
import pytest
import torch

from pipelines.loading import decoder
from pipelines.loading.loader import Loader
from pipelines.loading.schedule import Schedule
from pipelines.sources.memory import MemorySource
from tests.pipelines.face_source import (
    CLASSES,
    COUNT,
    DAMAGED,
    LABELS,
    FaceSource,
    assert_same,
    face,
    jpeg,
    make,
    take,
)
from tests.pipelines.kinds import foreign

FOREIGN = foreign()


@pytest.mark.parametrize("kind", [*DAMAGED, "unreadable"])
def test_bad_images_are_replaced_and_told_of(kind, tmp_path):
    schedule = Schedule(COUNT, 8, seed=3)
    bad = [int(index) for index in schedule.slice(0, 1)[0][[2, 6]]]
    if kind == "unreadable":
        source = FaceSource(unreadable=tuple(bad))
    else:
        source = FaceSource(dict.fromkeys(bad, DAMAGED[kind]))
    loader = make(source, augment="arcface", max_bad_fraction=0.04, quarantine=tmp_path / "bad.jsonl")
    batches = [next(loader) for _ in range(13)]  # the bad ones come up again in the second epoch and in the third
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == sorted(bad)
    for line in lines:
        assert line["image"] == source.describe(line["index"])
        assert len(line["reason"].splitlines()) == 1
    sound = take(make(augment="arcface"), 13)
    for batch, other in zip(batches, sound):
        bad_rows = np.isin(other.indices, bad)
        assert not np.isin(batch.indices, bad).any()
        assert torch.equal(batch.uniforms, other.uniforms)
        assert torch.equal(batch.images[~bad_rows], other.images[~bad_rows])
        assert torch.equal(batch.indices[~bad_rows], other.indices[~bad_rows])
        assert np.array_equal(batch.labels, LABELS[batch.indices])
    assert loader.replaced == 2
    row = int(np.flatnonzero(sound[1].indices == bad[0])[0])
    candidates = (schedule.substitute(0, 8 + row, attempt) for attempt in range(9))
    assert batches[1].indices[row] == next(index for index in candidates if index not in bad)
    loader.seek(1)
    assert_same(take(loader, 5), batches[1:6])
    assert_same(take(make(source, augment="arcface", max_bad_fraction=0.04, prefetch=1), 8), batches[:8])


def test_ranks_agree_on_substitutes():
    bad = [3, 14, 30]
    source = FaceSource({3: b"", 14: DAMAGED["garbage"]}, unreadable=(30,))
    whole = take(make(source, max_bad_fraction=0.1), 12)
    shares = [take(make(source, batch_size=4, rank=rank, world_size=2, max_bad_fraction=0.1), 12) for rank in (0, 1)]
    for batch, first, second in zip(whole, *shares):
        assert torch.equal(batch.indices, torch.cat([first.indices, second.indices]))
        assert torch.equal(batch.images, torch.cat([first.images, second.images]))
        assert not np.isin(batch.indices, bad).any()


def test_too_many_bad_images_end_it():
    source = FaceSource(dict.fromkeys(range(0, COUNT, 5), b"no image"))
    with pytest.raises(ValueError, match=r"of 50 images are bad.*max_bad_fraction.*memory, image \d+, label") as error:
        take(make(source, max_bad_fraction=0.05), 20)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="50 of 50 images are bad"):
        take(make(FaceSource(dict.fromkeys(range(COUNT), b"none")), max_bad_fraction=1.0), 20)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_outside_the_classes_is_a_bad_image(label, tmp_path):
    labels = LABELS.copy()
    labels[11] = label
    source = FaceSource(labels=labels)
    source.num_classes = CLASSES
    batches = take(make(source, max_bad_fraction=0.02, quarantine=tmp_path / "bad.jsonl"), 12)
    assert not any((batch.indices == 11).any() for batch in batches)
    assert all(torch.equal(batch.labels, torch.from_numpy(labels)[batch.indices]) for batch in batches)
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == f"its label {label} is not in [0, 7); is the class count right?"


def test_a_wrong_class_count_ends_it():
    source = FaceSource()
    source.num_classes = CLASSES - 2
    with pytest.raises(ValueError, match=r"3 of 50 images are bad.*label [56] is not in \[0, 5\); is the class count"):
        take(make(source, max_bad_fraction=0.05), 7)


def test_an_error_that_no_single_image_has_is_raised():
    source = FaceSource()

    def read(indices):
        if len(indices) > 1:
            raise OSError("the disk has gone")
        return MemorySource.read(source, indices)

    source.read = read
    with pytest.raises(OSError, match="the disk has gone"):
        next(make(source))


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_image_in_a_large_batch(kind):
    """Large batches are what ended the process: images behind a bad one were still being decoded."""
    encoded = [jpeg(face(index, 112)) for index in range(64)]
    for _ in range(2):
        source = MemorySource([FOREIGN[kind], *encoded[1:]], np.arange(64))
        loader = Loader(source, batch_size=64, seed=1, shuffle="none", augment="none", max_bad_fraction=0.5)
        batch = next(loader)
        loader.close()
        assert batch.indices[0] != 0 and torch.equal(batch.indices[1:], torch.arange(1, 64))
        assert torch.equal(batch.images[0], batch.images[batch.indices[0]])


@pytest.mark.parametrize("kind", ["huge jpeg", "huge png"])
def test_a_header_of_too_many_pixels_is_bad_before_anything_is_decoded(kind, tmp_path, monkeypatch):
    """Else four bytes take 5 GB of memory and some 12 seconds each time that the image is drawn."""

    def never(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(decoder.Decoder, "_undecodable", never)
    loader = make(FaceSource({5: FOREIGN[kind]}), shuffle="none", max_bad_fraction=0.02, quarantine=tmp_path / "bad")
    take(loader, 7)
    assert json.loads((tmp_path / "bad").read_text())["reason"] == "announces 20000 x 20000 pixels"


def test_a_version_of_dali_that_ends_the_process_is_refused(monkeypatch):
    monkeypatch.setattr(decoder, "__version__", "2.4.0")
    with pytest.raises(
        ValueError, match=r"DALI 2\.4\.0 may end the process.*pip install 'nvidia-dali-cuda120~=2\.1\.0'"
    ):
        make()
