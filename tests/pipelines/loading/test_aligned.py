import cv2
import numpy as np
import pytest
import torch

from pipelines.common.alignment import TEMPLATE, matrix, relative_template, similarity
from pipelines.loading.aligned import aligned_landmarks, read_aligned, sampling_matrices
from pipelines.sources.lists import ListSource

rng = np.random.default_rng(0)


def umeyama(source, target):
    """The textbook solution by singular value decomposition, for one point set."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    d = np.array([1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(d) @ vt
    scale = (s * d).sum() / np.square(a).sum(1).mean()
    return np.column_stack([scale * rotation, target.mean(0) - scale * rotation @ source.mean(0)])


def transforms(landmarks):
    """The forward matrices (n, 2, 3)."""
    return matrix(*similarity(landmarks[..., 0] + 1j * landmarks[..., 1]))


def test_similarity_is_umeyamas():
    landmarks = rng.uniform(0, 200, (50, 5, 2))
    landmarks[:10] = landmarks[:10] * [-1, 1]  # best fitted by a reflection, which is not allowed
    expected = np.stack([umeyama(points, np.stack([TEMPLATE.real, TEMPLATE.imag], 1)) for points in landmarks])
    np.testing.assert_allclose(transforms(landmarks), expected, atol=1e-9)


def test_landmarks_in_one_point_are_named():
    landmarks = rng.uniform(0, 200, (4, 5, 2))
    landmarks[2] = 7
    with pytest.raises(ValueError, match="image 2"):
        sampling_matrices(landmarks)


@pytest.mark.parametrize("size", [112, 56])
def test_sampling_matrices_lead_from_the_crop_to_the_photograph(size):
    """From a landmark of the template to that of the photograph, where first pixels have their centre at (0.5, 0.5)."""
    landmarks = np.stack([TEMPLATE.real, TEMPLATE.imag], 1) * 3 + [20, 7]  # at whole numbers for pixel centres
    (back,) = sampling_matrices(landmarks[None], size)
    inside = (np.stack([TEMPLATE.real, TEMPLATE.imag], 1) + 0.5) * size / 112
    np.testing.assert_allclose(inside @ back[:, :2].T + back[:, 2], landmarks + 0.5, atol=1e-4)


def test_landmarks_come_to_lie_where_the_matrices_take_them():
    landmarks = rng.uniform(0, 200, (6, 5, 2))
    for points, back, found in zip(landmarks, sampling_matrices(landmarks, 56), aligned_landmarks(landmarks, 56)):
        np.testing.assert_allclose(56 * found @ back[:, :2].T + back[:, 2], points + 0.5, rtol=1e-4, atol=1e-3)
    turned = np.stack([TEMPLATE.real, TEMPLATE.imag], 1)[:, ::-1] * [3, -3]
    np.testing.assert_allclose(aligned_landmarks(turned[None])[0], relative_template(), atol=1e-6)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Loose crops of smooth pictures in several sizes, with turned and scaled landmarks."""
    folder, paths, landmarks = tmp_path_factory.mktemp("loose"), [], []
    for number in range(24):
        height, width = rng.integers(150, 320, 2)
        picture = cv2.resize(
            rng.integers(0, 256, (9, 7, 3), dtype=np.uint8), (int(width), int(height)), interpolation=cv2.INTER_CUBIC
        )
        turn = rng.uniform(0.7, 1.6) * np.exp(1j * rng.uniform(-0.6, 0.6))
        points = turn * (TEMPLATE - 56 - 56j) + complex(width / 2, height / 2)
        landmarks.append(np.stack([points.real, points.imag], 1) + rng.normal(0, 1.5, (5, 2)))
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), picture)
    return paths, np.array(landmarks)


def run(crops, indices, size=112):
    source, landmarks = ListSource([str(path) for path in crops[0]]), crops[1].__getitem__
    batches = read_aligned(source, indices, batch_size=10, image_size=size, threads=2, landmarks=landmarks)
    images = [batch.images for batch in batches]
    assert max(map(len, images)) <= 10
    return torch.cat(images)


def test_crops_are_those_of_opencv(crops):
    order = np.r_[5, 3, 8, 10:20, 0]
    ours = (run(crops, order).permute(0, 2, 3, 1).numpy() + 1) * 127.5
    matrices = transforms(crops[1])
    theirs = np.stack(
        [cv2.warpAffine(cv2.imread(str(crops[0][i])), matrices[i], (112, 112))[..., ::-1] for i in order]
    ).astype(float)
    # OpenCV rounds positions to 1/32 of a pixel; a shift of a tenth of a pixel would fail this.
    assert np.abs(ours - theirs).mean() < 0.15
    shifted = np.stack(
        [
            cv2.warpAffine(cv2.imread(str(crops[0][i])), matrices[i] + [[0, 0, 0.1], [0, 0, 0]], (112, 112))[..., ::-1]
            for i in order
        ]
    )
    assert np.abs(shifted - theirs).mean() > 0.15


def test_another_size_is_the_same_face(crops):
    large = run(crops, np.arange(8), 112)
    small = run(crops, np.arange(8), 56)
    assert small.shape == (8, 3, 56, 56)
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved - small)[..., 16:40, 16:40].abs().mean() < 0.005


def test_an_image_that_does_not_decode_is_named(crops, tmp_path):
    paths, landmarks = crops
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image at all")
    with pytest.raises(ValueError, match="broken.jpg"):
        run(([*paths[:3], broken], landmarks[:4]), np.arange(4))
