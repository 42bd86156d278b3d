import numpy as np
import pytest

from evaluate.features.files import load_features


def views(count=60, d=32, mirror=0.4, seed=0, shift=0.0):
    """Views (n, 2, d) of images that point anywhere about ``shift``, the second like the first."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((count, 1, d)) + shift
    return np.concatenate([first, first + mirror * rng.standard_normal(first.shape)], axis=1).astype(np.float32)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_floating_point_of_any_kind(tmp_path, dtype):
    both = views().astype(dtype)
    np.save(tmp_path / "f.npy", both.reshape(60, -1))
    np.testing.assert_array_equal(load_features(tmp_path / "f.npy", 60), both)


def test_three_axes_tell_the_views(tmp_path):
    for both in (views(), views()[:, :1]):
        np.save(tmp_path / "f.npy", both)
        np.testing.assert_array_equal(load_features(tmp_path / "f.npy", 60), both)
        with pytest.raises(ValueError, match=f"not {3 - both.shape[1]} views"):
            load_features(tmp_path / "f.npy", 60, 3 - both.shape[1])


@pytest.mark.parametrize("shift", [0, 2, 20])  # embeddings of a poor network all point one way
@pytest.mark.parametrize("people", [60, 6])
def test_halves_of_one_view_are_told_from_two_views(tmp_path, shift, people):
    centres = views(people, 64, seed=1, shift=shift)[:, 0].repeat(60 // people, axis=0)
    rng = np.random.default_rng(2)
    one = (centres + 0.5 * rng.standard_normal(centres.shape)) * rng.uniform(0.2, 3, (60, 1))
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "two.npy", np.concatenate([one, one + 0.4 * rng.standard_normal(one.shape)], axis=1))
    assert load_features(tmp_path / "two.npy", 60).shape == (60, 2, 64)
    with pytest.raises(ValueError, match=r"\(60, 64\).*--views 1; .*--views 2"):
        load_features(tmp_path / "one.npy", 60)
    assert load_features(tmp_path / "one.npy", 60, 1).shape == (60, 1, 64)
    assert load_features(tmp_path / "one.npy", 60, 2).shape == (60, 2, 32)


def test_archives(tmp_path):
    both = views()
    path = tmp_path / "f.npz"
    np.savez(path, both)
    np.testing.assert_array_equal(load_features(path, 60), both)
    np.savez_compressed(path, embs=both[:, 0], embs_f=both[:, 1], scores=np.ones(60))
    np.testing.assert_array_equal(load_features(path, 60), both)
    np.savez(path, embs=both[:, 0], embs_f=[])
    np.testing.assert_array_equal(load_features(path, 60), both[:, :1])
    np.savez(path, a=both, b=both)
    with pytest.raises(ValueError, match="one array, or embs and embs_f; it holds a, b"):
        load_features(path, 60)


def damaged(path, kind):
    if kind == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif kind == "cut":
        np.savez_compressed(path.with_suffix(".npz"), views(600))
        path.write_bytes(path.with_suffix(".npz").read_bytes()[:-500])
    elif kind == "spoilt":
        np.savez_compressed(path.with_suffix(".npz"), views(600))
        content = bytearray(path.with_suffix(".npz").read_bytes())
        content[3000:3100] = bytes(100)
        path.write_bytes(content)
    elif kind == "bracket":
        np.save(path, views(60))
        path.write_bytes(path.read_bytes().replace(b"}", b"{", 1))
    else:
        path.write_bytes({"empty": b"", "text": b"1 2 3\n" * 50, "head": b"\x93NUMPY\x01\x00"}[kind])


@pytest.mark.parametrize("kind", ["empty", "text", "head", "bracket", "pickle", "cut", "spoilt"])
def test_other_files_are_one_line(tmp_path, kind):
    damaged(tmp_path / "f.npy", kind)
    with pytest.raises(ValueError, match="f.npy is no sound .npy or .npz file of numbers"):
        load_features(tmp_path / "f.npy", 60)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((7, 16), np.float32),
        np.zeros((60, 16), np.int64),
        np.zeros((60, 16), np.complex64),
        np.float32(1),
        np.zeros((60, 3, 8), np.float32),
        np.zeros((60, 2, 1), np.float32),
        np.zeros((60, 0), np.float32),
        np.zeros((60, 2, 4, 4), np.float32),
        np.ones((60, 15), np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_features_that_do_not_fit(tmp_path, array):
    np.save(tmp_path / "f.npy", array)
    with pytest.raises(ValueError, match="f.npy"):
        load_features(tmp_path / "f.npy", 60)


def test_an_odd_row_is_not_two_views(tmp_path):
    np.save(tmp_path / "f.npy", np.ones((60, 15), np.float32))
    with pytest.raises(ValueError, match="--views 1"):
        load_features(tmp_path / "f.npy", 60, 2)
    assert load_features(tmp_path / "f.npy", 60, 1).shape == (60, 1, 15)
