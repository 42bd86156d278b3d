import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from benchmarks.synthetic_ijb import write_release
from evaluate import extract as module
from evaluate import ijb
from evaluate.extract import extract, input_of
from evaluate.release import Release
from tests.evaluate.networks import write_onnx

CHUNK = 8


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A tiny release with pictures, and a network."""
    folder = tmp_path_factory.mktemp("release")
    write_release(folder, 0.0001, dimension=4)
    rng = np.random.default_rng(0)
    crops = folder / "IJBC/loose_crop"
    crops.mkdir()
    for name in Release(folder, "IJBC").images().names:
        pixels = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(tuple(rng.integers(110, 150, 2))).save(crops / name, "JPEG")
    write_onnx(folder / "model.onnx")
    return folder


def run(folder, output, **options):
    found = Release(folder, "IJBC")
    images = found.images()
    return extract(found, images, folder / "model.onnx", None, output, batch_size=5, threads=1, chunk=CHUNK, **options)


def on_a_rank(folder, output):
    import os

    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    try:
        return run(folder, output)
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]


@pytest.fixture(scope="module")
def whole(release, tmp_path_factory):
    return np.load(run(release, tmp_path_factory.mktemp("whole")))


def test_features_are_those_of_the_aligned_images(release, whole):
    from evaluate.align import aligned_images
    from evaluate.checkpoint import load_network

    found = Release(release, "IJBC")
    images = found.images()
    paths = [found.image_path(name) for name in images.names]
    chosen = np.array([3, len(paths) - 1])
    (pixels,) = aligned_images(paths, images.landmarks, [chosen], batch_size=2, device="cpu", threads=1)
    model = load_network(release / "model.onnx").model
    with torch.inference_mode():
        expected = torch.cat([model(pixels), model(pixels.flip(3))], 1)
    assert whole.shape == (len(paths), 32) and np.abs(whole).max() > 1
    np.testing.assert_allclose(whole[chosen], expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_extraction_goes_on_where_it_stopped(release, whole, tmp_path, monkeypatch):
    real, seen = module.aligned_images, []

    def counting(paths, landmarks, batches, **options):
        def counted():
            for batch in batches:
                seen.append(batch)
                yield batch

        for number, images in enumerate(real(paths, landmarks, counted(), **options)):
            if number == 5 and not (tmp_path / "second").exists():
                raise KeyboardInterrupt
            yield images

    monkeypatch.setattr(module, "aligned_images", counting)
    with pytest.raises(KeyboardInterrupt):
        run(release, tmp_path)
    assert not (tmp_path / "features.npy").exists()
    done = sorted((tmp_path / "features.partial").glob("*.npy"))
    assert len(done) == 2  # of 8 images each, in batches of 5 and 3
    (tmp_path / "second").touch()
    seen.clear()
    features = np.load(run(release, tmp_path))
    assert min(np.concatenate(seen)) == 2 * CHUNK
    np.testing.assert_allclose(features, whole, rtol=1e-4, atol=1e-4)
    seen.clear()
    run(release, tmp_path)
    assert not seen and not (tmp_path / "features.partial").exists()


def test_two_ranks_share_the_work(release, whole, tmp_path, ranks):
    paths = ranks(2, on_a_rank, release, tmp_path)
    assert paths == [tmp_path / "features.npy", None]
    np.testing.assert_allclose(np.load(paths[0]), whole, rtol=1e-4, atol=1e-4)


def test_another_checkpoint_is_not_mixed_in(release, whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    output = tmp_path / "out"
    run(copy, output)
    write_onnx(copy / "model.onnx", seed=1)
    assert np.abs(np.load(run(copy, output)) - whole).max() > 0.1


def test_features_of_another_input_are_not_mixed_in(release, whole, tmp_path):
    path = run(release, tmp_path)
    assert input_of(path) == "RGB in [-1, 1], as the graph normalises nothing"
    again = np.load(run(release, tmp_path, given={"bgr": True}))
    assert input_of(path).startswith("BGR in [-1, 1]")
    assert np.abs(again - whole).max() > 0.1


def test_ijbs_results_say_what_the_network_took(release, tmp_path, monkeypatch):
    words = ["--data", release, "--checkpoint", release / "model.onnx", "--output", tmp_path, "--input-range", "0,1"]
    monkeypatch.setattr(sys, "argv", ["ijb", *map(str, words), "--threads", "1"])
    ijb.main()
    assert json.loads((tmp_path / "results.json").read_text())["input"] == "RGB in [0, 1], set by --input-range"


def test_a_checkpoint_that_is_missing_costs_no_features(release, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    path = run(copy, tmp_path / "out")
    (copy / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run(copy, tmp_path / "out")
    assert path.exists()


def test_missing_images_are_counted_and_named(release, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    (copy / "IJBC/loose_crop/2.jpg").unlink()
    (copy / "IJBC/loose_crop/5.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="^2 of .* the first is 2.jpg"):
        run(copy, tmp_path / "out")
    shutil.rmtree(copy / "IJBC/loose_crop")
    with pytest.raises(FileNotFoundError, match="loose_crop is missing"):
        run(copy, tmp_path / "out")
