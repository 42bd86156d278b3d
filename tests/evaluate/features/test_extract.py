import json
import multiprocessing
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from benchmarks.synthetic_ijb import write_release
from evaluate import ijb
from evaluate.features import extract as module
from evaluate.features.extract import extract, input_of
from evaluate.features.network import Network
from evaluate.protocols.ijb_lists import IJB
from tests.evaluate.networks import write_onnx

CHUNK = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny data set with pictures, and a network."""
    folder = tmp_path_factory.mktemp("data")
    write_release(folder, 0.0001, dimension=4)
    rng = np.random.default_rng(0)
    crops = folder / "IJBC/loose_crop"
    crops.mkdir()
    for name in IJB(folder, "IJBC").images().names:
        pixels = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(tuple(rng.integers(110, 150, 2))).save(crops / name, "JPEG")
    write_onnx(folder / "model.onnx")
    return folder


def run(folder, output, **options):
    found = IJB(folder, "IJBC")
    images = found.images()
    return extract(found, images, folder / "model.onnx", None, output, batch_size=5, threads=1, chunk=CHUNK, **options)


def on_a_rank(folder, output):
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    try:
        return run(folder, output)
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return np.load(run(data, tmp_path_factory.mktemp("whole")))


def test_features_are_those_of_the_aligned_images(data, whole):
    from evaluate.features.network import load_network
    from pipelines.loading.aligned import aligned_images

    found = IJB(data, "IJBC")
    images = found.images()
    paths = [found.image_path(name) for name in images.names]
    chosen = np.array([3, len(paths) - 1])
    ((pixels, _),) = aligned_images(paths, images.landmarks, [chosen], batch_size=2, device="cpu", threads=1)
    model = load_network(data / "model.onnx").model
    with torch.inference_mode():
        expected = torch.cat([model(pixels), model(pixels.flip(3))], 1)
    assert whole.shape == (len(paths), 32) and np.abs(whole).max() > 1
    np.testing.assert_allclose(whole[chosen], expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_extraction_goes_on_where_it_stopped(data, whole, tmp_path, monkeypatch):
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
        run(data, tmp_path)
    assert not (tmp_path / "features.npy").exists()
    done = sorted((tmp_path / "features.partial").glob("*.npy"))
    assert len(done) == 2  # of 8 images each, in batches of 5 and 3
    (tmp_path / "second").touch()
    seen.clear()
    features = np.load(run(data, tmp_path))
    assert min(np.concatenate(seen)) == 2 * CHUNK
    np.testing.assert_allclose(features, whole, rtol=1e-4, atol=1e-4)
    seen.clear()
    run(data, tmp_path)
    assert not seen and not (tmp_path / "features.partial").exists()


def killed_while_writing(folder, output, piece):
    """Extracts until half of a piece is in its file, then is gone like a process that ran out of memory."""

    def save(file, features):
        opened = file.write.__self__
        if f"{piece:06d}.npy" in opened.name:
            file.write(features.tobytes()[: features.nbytes // 2])
            opened.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        np_save(file, features)

    np_save, np.save = np.save, save
    run(folder, output)


def test_a_killed_extraction_goes_on_to_the_same_features(data, whole, tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=killed_while_writing, args=(data, tmp_path, 2))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    partial = tmp_path / "features.partial"
    kept = sorted(path.name for path in partial.iterdir())
    assert re.fullmatch(r"\.000002\.npy\..*\.tmp 000000\.npy 000001\.npy key\.json", " ".join(kept))
    assert not (tmp_path / "features.npy").exists()
    features = np.load(run(data, tmp_path))
    np.testing.assert_array_equal(features, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "features.npy"]


def test_half_precision_is_that_of_the_file_alone(data, whole, tmp_path):
    """And is not taken for features of full precision, nor these for it."""
    halves = np.load(run(data, tmp_path, dtype=np.float16))
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, whole.astype(np.float16))
    assert np.load(run(data, tmp_path)).dtype == np.float32


def test_two_ranks_share_the_work(data, whole, tmp_path, ranks):
    paths = ranks(2, on_a_rank, data, tmp_path)
    assert paths == [tmp_path / "features.npy", None]
    np.testing.assert_allclose(np.load(paths[0]), whole, rtol=1e-4, atol=1e-4)


def test_another_checkpoint_is_not_mixed_in(data, whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    output = tmp_path / "out"
    run(copy, output)
    write_onnx(copy / "model.onnx", seed=1)
    assert np.abs(np.load(run(copy, output)) - whole).max() > 0.1


@pytest.mark.parametrize("name", ["model.pt", "__0_0.distcp"])
def test_weights_in_folders_are_told_apart(data, tmp_path, monkeypatch, name):
    """Features of one folder do not pass for those of another, whichever kind of file it holds."""
    found = IJB(data, "IJBC")
    images, firsts = found.images(), []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / name).write_bytes(folder.name.encode())
        monkeypatch.setattr(module, "load_network", lambda path, *_: Network(Means(path), 112))
        features = extract(found, images, folder, None, tmp_path / "out", batch_size=16, threads=1)
        firsts.append(np.load(features)[0, 0])
    assert firsts[1] == pytest.approx(2 * firsts[0])


class Means(torch.nn.Module):
    """A stand-in for what the folder holds: twice as long embeddings in b."""

    def __init__(self, path):
        super().__init__()
        self.register_buffer("scale", torch.tensor({"a": 1, "b": 2}[path.name]))

    def forward(self, images):
        return images.mean((2, 3)) * self.scale


def write_lists(folder, change):
    """Apply ``change`` to each line, split at blanks, of the lists that name images."""
    for name in ("name_5pts_score.txt", "face_tid_mid.txt"):
        path = folder / f"IJBC/meta/ijbc_{name}"
        lines = [change(number, line.split()) for number, line in enumerate(path.read_text().splitlines(), 1)]
        path.write_text("\n".join(" ".join(line) for line in lines))


def test_images_may_lie_in_folders(data, whole, tmp_path):
    """As NIST names them: img/1.jpg and frames/2.png."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    crops = copy / "IJBC/loose_crop"

    def renamed(number, line):
        name = f"{'img' if number % 2 else 'frames'}/{line[0]}"
        (crops / name).parent.mkdir(exist_ok=True)
        if (crops / line[0]).exists():
            (crops / line[0]).rename(crops / name)
        return [name, *line[1:]]

    write_lists(copy, renamed)
    np.testing.assert_allclose(np.load(run(copy, tmp_path / "out")), whole, rtol=1e-4, atol=1e-4)
    (crops / "frames/2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="^1 of .* the first is frames/2.jpg"):
        run(copy, tmp_path / "out")
    shutil.rmtree(crops / "frames")
    with pytest.raises(FileNotFoundError, match="the first is frames/2.jpg"):
        run(copy, tmp_path / "out")


@pytest.mark.parametrize(
    "value, message", [("nan", "not finite for 2 of"), ("0", "2 of .* lie in one point"), ("-1", "2 of .* lie in one")]
)
def test_landmarks_that_align_nothing_are_named(data, tmp_path, value, message):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)

    def spoilt(number, line):
        return [line[0], *[value] * 10, line[11]] if number in (4, 9) and len(line) > 10 else line

    write_lists(copy, spoilt)
    with pytest.raises(ValueError, match=message + r".*the first is 4\.jpg"):
        run(copy, tmp_path / "out")


def test_a_network_without_numbers_writes_no_features(data, tmp_path, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, images):
            features = images.mean((2, 3))
            return torch.where(torch.arange(len(features))[:, None] == 1, torch.nan, features)

    monkeypatch.setattr(module, "load_network", lambda *_: Network(Broken(), 112))
    with pytest.raises(ValueError, match=r"not finite for 2 of 8 images, the first is 2\.jpg"):
        run(data, tmp_path)
    assert not (tmp_path / "features.npy").exists() and not list((tmp_path / "features.partial").glob("*.npy"))


def test_features_of_another_input_are_not_mixed_in(data, whole, tmp_path):
    path = run(data, tmp_path)
    assert input_of(path) == "RGB in [-1, 1], as the graph normalises nothing"
    again = np.load(run(data, tmp_path, given={"bgr": True}))
    assert input_of(path).startswith("BGR in [-1, 1]")
    assert np.abs(again - whole).max() > 0.1


def test_ijbs_results_say_what_the_network_took(data, tmp_path, monkeypatch):
    words = ["--data", data, "--checkpoint", data / "model.onnx", "--output", tmp_path, "--input-range", "0,1"]
    monkeypatch.setattr(sys, "argv", ["ijb", *map(str, words), "--threads", "1"])
    ijb.main()
    assert json.loads((tmp_path / "results.json").read_text())["input"] == "RGB in [0, 1], set by --input-range"


def test_a_checkpoint_that_is_missing_costs_no_features(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    path = run(copy, tmp_path / "out")
    (copy / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run(copy, tmp_path / "out")
    assert path.exists()


def test_missing_images_are_counted_and_named(data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    (copy / "IJBC/loose_crop/2.jpg").unlink()
    (copy / "IJBC/loose_crop/5.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="^2 of .* the first is 2.jpg"):
        run(copy, tmp_path / "out")
    shutil.rmtree(copy / "IJBC/loose_crop")
    with pytest.raises(FileNotFoundError, match="loose_crop is missing"):
        run(copy, tmp_path / "out")
