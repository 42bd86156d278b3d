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
from evaluate.features import embed as embed_module
from evaluate.features import extract as extract_module
from evaluate.features.embed import Embedder
from evaluate.features.extract import extract, features_key, loose_crops
from evaluate.features.network import Network, load_network
from evaluate.features.ranks import World
from evaluate.protocols.ijb_lists import IJB
from pipelines.common import files
from pipelines.common.errors import UserError
from pipelines.loading.aligned import read_aligned
from tests.evaluate.networks import write_onnx

CHUNK = 8
ALONE = World(torch.device("cpu"))


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


def run(
    folder,
    output,
    *,
    network=None,
    given=None,
    dtype=torch.float32,
    world=ALONE,
    batch_size=4,  # whole ones in a piece: whoever goes on has the same batches
):
    found = IJB(folder, "IJBC")
    images = found.images()
    source, landmarks = loose_crops(found, images)
    network = network or load_network(folder / "model.onnx", given=given)
    options = {"batch_size": batch_size, "threads": 1, "aligned": True, "digest": network.digest()}
    embed = Embedder(network.model, network.input_size, world, **options)
    key = features_key(embed, network.input, images, dtype)
    return extract(embed, source, landmarks, output, key, dtype=dtype, chunk=CHUNK)


def on_a_rank(folder, output):
    return run(folder, output, world=World(torch.device("cpu"), dist.get_rank(), dist.get_world_size()))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return np.load(run(data, tmp_path_factory.mktemp("whole")))


def test_features_are_those_of_the_aligned_images(data, whole):
    found = IJB(data, "IJBC")
    source, landmarks = loose_crops(found, found.images())
    chosen = np.array([3, len(source) - 1])
    (batch,) = read_aligned(source, chosen, batch_size=2, landmarks=landmarks)
    model = load_network(data / "model.onnx").model
    with torch.inference_mode():
        expected = torch.cat([model(batch.images), model(batch.images.flip(3))], 1)
    assert whole.shape == (len(source), 32) and np.abs(whole).max() > 1
    np.testing.assert_allclose(whole[chosen], expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_extraction_goes_on_where_it_stopped(data, whole, tmp_path, monkeypatch):
    seen = []

    def interrupted(source, indices, **options):
        for batch in read_aligned(source, indices, **options):
            if batch.indices[0] >= 20 and not (tmp_path / "second").exists():
                raise KeyboardInterrupt
            seen.append(batch.indices)
            yield batch

    def run_again():
        return run(data, tmp_path, batch_size=5)

    monkeypatch.setattr(embed_module, "read_aligned", interrupted)

    with pytest.raises(KeyboardInterrupt):
        run_again()
    assert not (tmp_path / "features.npy").exists()
    done = sorted((tmp_path / "features.partial").glob("*.npy"))
    assert len(done) == 2  # of 8 images each, of batches of 5
    (tmp_path / "second").touch()
    seen.clear()
    features = np.load(run_again())
    assert min(np.concatenate(seen)) == 2 * CHUNK
    np.testing.assert_allclose(features, whole, rtol=1e-4, atol=1e-4)
    seen.clear()
    run_again()
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


@pytest.mark.parametrize("left", range(1, 4))  # files of the second call that are there when it is killed
def test_features_are_never_taken_for_those_of_a_call_that_was_killed(data, whole, tmp_path, monkeypatch, left):
    """The first call's, of half precision, are dropped for the second's, which is killed at any of its files."""
    other = run(data, tmp_path, dtype=torch.float16)
    replacing, written = files.replacing, []

    def dying(path):
        if len(written) == left:
            raise KeyboardInterrupt
        written.append(path)
        return replacing(path)

    for module in (extract_module, files):
        monkeypatch.setattr(module, "replacing", dying)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path)
    monkeypatch.undo()
    np.testing.assert_array_equal(np.load(run(data, tmp_path)), whole)
    assert np.load(run(data, tmp_path, dtype=torch.float16)).dtype == np.float16
    assert other == tmp_path / "features.npy"


def test_pieces_without_their_stamp_are_made_again(data, whole, tmp_path, monkeypatch):
    """A version before left the mark of its pieces first: features of such ones would be nobody's."""

    def interrupted(source, indices, **options):
        yield from read_aligned(source, indices[: 2 * CHUNK], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(embed_module, "read_aligned", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path)
    monkeypatch.undo()
    (tmp_path / "features.json").unlink()
    assert (tmp_path / "features.partial" / "key.json").exists()
    for _ in range(2):
        np.testing.assert_array_equal(np.load(run(data, tmp_path)), whole)


def test_a_file_of_somebody_else_is_left_alone(data, tmp_path):
    np.save(tmp_path / "features.npy", np.ones(3))
    with pytest.raises(UserError, match=r"features\.npy is not this command's"):
        run(data, tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), np.ones(3))


def test_half_precision_is_that_of_the_file_alone(data, whole, tmp_path):
    """And is not taken for features of full precision, nor these for it."""
    halves = np.load(run(data, tmp_path, dtype=torch.float16))
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, whole.astype(np.float16))
    assert np.load(run(data, tmp_path)).dtype == np.float32


def test_two_ranks_share_the_work(data, whole, tmp_path, ranks):
    paths = ranks(2, on_a_rank, data, tmp_path)
    assert paths == 2 * [tmp_path / "features.npy"]
    np.testing.assert_allclose(np.load(paths[0]), whole, rtol=1e-4, atol=1e-4)


def test_another_checkpoint_is_not_mixed_in(data, whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    output = tmp_path / "out"
    run(copy, output)
    write_onnx(copy / "model.onnx", seed=1)
    assert np.abs(np.load(run(copy, output)) - whole).max() > 0.1


def test_weights_are_told_apart(data, tmp_path):
    """Features of one network do not pass for those of another that takes the same images."""
    firsts = [np.load(run(data, tmp_path, network=Network(Means(scale), 112)))[0, 0] for scale in (1, 2)]
    assert firsts[1] == pytest.approx(2 * firsts[0])


class Means(torch.nn.Module):
    """``scale`` times the means of an image's colours."""

    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))

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


def test_a_network_without_numbers_writes_no_features(data, tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, images):
            features = images.mean((2, 3))
            return torch.where(torch.arange(len(features))[:, None] == 1, torch.nan, features)

    with pytest.raises(ValueError, match=r"not finite for 2 of 8 images, the first is .*/2\.jpg"):
        run(data, tmp_path, network=Network(Broken(), 112))
    assert not (tmp_path / "features.npy").exists() and not list((tmp_path / "features.partial").glob("*.npy"))


def test_features_of_another_input_are_not_mixed_in(data, whole, tmp_path):
    run(data, tmp_path)
    again = np.load(run(data, tmp_path, given={"bgr": True}))
    assert np.abs(again - whole).max() > 0.1


def run_command(monkeypatch, data, output, *options):
    words = ["--data", data, "--checkpoint", data / "model.onnx", "--output", output, "--threads", "1", *options]
    monkeypatch.setattr(sys, "argv", ["ijb", *map(str, words)])
    ijb.main()
    return json.loads((output / "results.json").read_text())


def test_ijbs_results_say_what_the_network_took(data, tmp_path, monkeypatch):
    result = run_command(monkeypatch, data, tmp_path, "--input-range", "0,1")
    assert result["input"] == "RGB in [0, 1], set by --input-range"


def test_figures_from_the_cache_are_those_of_features_in_the_output_folder(data, tmp_path, monkeypatch, capsys):
    expected = run_command(monkeypatch, data, tmp_path / "a")
    count = len(IJB(data, "IJBC").images().names)
    for there, name in ((0, "b"), (count, "c")):
        found = run_command(monkeypatch, data, tmp_path / name, "--name", "a", "--cache", tmp_path / "cache")
        assert found == expected and f"{there} of {count} embeddings are in" in capsys.readouterr().out
        assert [path.name for path in (tmp_path / name).iterdir()] == ["results.json"]
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    write_lists(copy, lambda _, line: [line[0], str(float(line[1]) + 9), *line[2:]] if len(line) > 10 else line)
    run_command(monkeypatch, copy, tmp_path / "d", "--cache", tmp_path / "cache")
    assert f"0 of {count} embeddings are in" in capsys.readouterr().out  # the same images, otherwise aligned
    with pytest.raises(SystemExit):
        run_command(monkeypatch, data, tmp_path / "e", "--cache", tmp_path / "cache", "--half")
    assert "--half is for" in capsys.readouterr().err


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
