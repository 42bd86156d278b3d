"""Crops by landmarks: marks painted at the landmarks come to lie at the template's places."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipelines.common.alignment import TEMPLATE, relative_template, similarity
from pipelines.common.errors import UserError
from pipelines.prepare import __main__ as prepare
from pipelines.prepare.align import Align, detector, read_landmarks
from pipelines.sources import open_source
from tests.pipelines.photos import encoded, people_in

SIMILARITY = 2.3 * np.exp(0.4j)  # of the photographs to the template
LANDMARKS = SIMILARITY * TEMPLATE + (40 + 15j)


def photograph(landmarks):
    """A soft white spot at each landmark."""
    x, y = np.meshgrid(np.arange(400), np.arange(380))
    light = sum(np.exp(-(abs(x + 1j * y - point) ** 2) / 30) for point in landmarks)
    return Image.fromarray((255 * np.minimum(light, 1)).astype(np.uint8)).convert("RGB")


def spots(image):
    """Where the light around each place of the template has its middle: complex (5,)."""
    light = np.asarray(image.convert("L"), np.float64)
    x, y = np.meshgrid(np.arange(112), np.arange(112))
    near = [light * (abs(x + 1j * y - point) < 8) for point in TEMPLATE]
    return np.array([((x + 1j * y) * weight).sum() / weight.sum() for weight in near])


def opened(content):
    return Image.open(io.BytesIO(content))


def test_landmarks_come_to_the_template():
    crop = opened(Align(lambda *_: LANDMARKS)(0, encoded(photograph(LANDMARKS), quality=95)))
    assert (crop.size, crop.format) == ((112, 112), "JPEG")
    assert np.abs(spots(crop) - TEMPLATE).max() < 0.15  # pixels


def test_similarity_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    noisy = LANDMARKS + rng.normal(size=5) + 1j * rng.normal(size=5)
    # (x, y) -> (p x - q y + r, q x + p y + s), fitted to ten equations
    equations = np.array([row for z in noisy for row in ([z.real, -z.imag, 1, 0], [z.imag, z.real, 0, 1])])
    p, q, r, s = np.linalg.lstsq(equations, TEMPLATE.view(np.float64), rcond=None)[0]
    np.testing.assert_allclose(similarity(noisy), [p + 1j * q, r + 1j * s], rtol=1e-9)
    picture = encoded(Image.new("RGB", (64, 64)))
    for bad in (np.full(5, 3 + 4j), np.full(5, np.nan + 0j), np.full(5, np.inf + 0j)):
        with pytest.raises(ValueError, match="lie in one point"):
            Align(lambda index, photograph, bad=bad: bad)(0, picture)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare", "align", *map(str, arguments)])
    prepare.main()


def line(path, landmarks):
    return " ".join([path, *(f"{value:.3f}" for value in landmarks.view(np.float64))])


def test_command_with_a_file_of_landmarks(tmp_path, monkeypatch):
    lines = []
    for name, shift in (("ann lee", 0), ("bob", 20 - 9j)):
        (tmp_path / name).mkdir()
        photograph(LANDMARKS + shift).save(tmp_path / name / "1.png")
        lines.append(line(f"{name}/1.png", LANDMARKS + shift))
    lines += ["", line("bob/1.png", np.full(5, 1 + 1j))]
    (tmp_path / "landmarks.txt").write_text("\n".join(lines))
    call(monkeypatch, tmp_path / "landmarks.txt", tmp_path / "out", "--landmarks")
    people = people_in(open_source(tmp_path / "out"))
    assert {name: len(images) for name, images in people.items()} == {"ann lee": 1, "bob": 1}
    for (crop,) in people.values():
        assert np.abs(spots(opened(crop)) - TEMPLATE).max() < 0.15
    landmarks = np.load(tmp_path / "out" / "landmarks.npy")  # not of the photograph that was left out
    assert landmarks.dtype == np.float32 and landmarks.shape == (2, 5, 2)
    np.testing.assert_allclose(landmarks, np.stack([relative_template()] * 2), atol=1e-4)
    assert "lie in one point" in (tmp_path / "out" / "left_out.jsonl").read_text()
    for text in ("a.jpg 1 2 3", "a.jpg nan 1 2 3 4 5 6 7 8 9", "a.jpg 0 1 2 3 4 5 6 7 8 inf"):
        (tmp_path / "landmarks.txt").write_text(text)
        with pytest.raises(ValueError, match="line 1 is not 'path x1 y1"):
            call(monkeypatch, tmp_path / "landmarks.txt", tmp_path / "other", "--landmarks")


def test_landmarks_as_other_systems_write_them(tmp_path):
    """With a mark in front that says UTF-8, and two letters at the end of a line."""
    (tmp_path / "landmarks.txt").write_bytes(b"\xef\xbb\xbfann/1.png 0 1 2 3 4 5 6 7 8 9\r\n\r\n")
    source, landmarks = read_landmarks(tmp_path / "landmarks.txt")
    assert source.place(0) == str(tmp_path / "ann" / "1.png") and landmarks(0, None)[4] == 8 + 9j


@pytest.mark.parametrize("image", ["1.jpg", "./1.jpg", "../1.jpg", "/1.jpg"])
def test_a_photograph_without_a_folder_has_no_identity(tmp_path, monkeypatch, image):
    """Wherever the file of landmarks lies, and however it is called."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks.txt").write_text(f"ann/1.png 0 1 2 3 4 5 6 7 8 9\n{image} 0 1 2 3 4 5 6 7 8 9\n")
    for path in (Path("marks.txt"), tmp_path / "marks.txt"):
        with pytest.raises(UserError, match=rf"marks\.txt, line 2: '{image}' has no identity: write 'identity/image"):
            read_landmarks(path)


def test_command_with_a_detector(tmp_path, monkeypatch):
    """OpenCV's detector is replaced by one that finds a small face and then the right one."""

    class Unreadable(Exception):
        pass

    class Detector:
        @classmethod
        def create(cls, weights, config, size, score):
            if Path(weights).read_bytes() == b"others":
                raise Unreadable("(-2: Unspecified error)\n in function 'readNet'")
            detector = cls()
            detector.size, detector.content = size, Path(weights).read_bytes()
            return detector

        def detect(self, image):
            if self.content != b"weights":
                raise Unreadable("invalid dimension K")
            if not image.any():
                return 1, None
            assert self.size == (400, 380)
            boxes = np.array([[0, 0, 10, 10], [5, 5, 300, 300]], np.float32)
            points = np.stack([np.arange(5) * (1 + 2j), LANDMARKS]).view(np.float64)
            return 1, np.concatenate([boxes, points, np.ones((2, 1))], axis=1).astype(np.float32)

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(FaceDetectorYN=Detector, error=Unreadable))
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    photograph(LANDMARKS).save(tmp_path / "faces" / "ann" / "1.png")
    Image.new("RGB", (400, 380)).save(tmp_path / "faces" / "ann" / "2.png")
    with pytest.raises(FileNotFoundError, match="no weights"):
        call(monkeypatch, tmp_path / "faces", tmp_path / "out", "--detector", tmp_path / "yunet.onnx")
    for content in (b"others", b"a network that fails where it is run"):
        (tmp_path / "yunet.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="OpenCV cannot read .*yunet.onnx: give"):
            call(monkeypatch, tmp_path / "faces", tmp_path / "out", "--detector", tmp_path / "yunet.onnx")
    (tmp_path / "yunet.onnx").write_bytes(b"weights")
    call(monkeypatch, tmp_path / "faces", tmp_path / "out", "--detector", tmp_path / "yunet.onnx")
    (crop,) = people_in(open_source(tmp_path / "out"))["ann"]
    assert np.abs(spots(opened(crop)) - TEMPLATE).max() < 0.15
    assert "no face is found" in (tmp_path / "out" / "left_out.jsonl").read_text()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless"):
        call(monkeypatch, tmp_path / "faces", tmp_path / "other", "--detector", tmp_path / "yunet.onnx")


@pytest.fixture(scope="module")
def find(shared):
    """YuNet with its real weights."""
    pytest.importorskip("cv2")
    weights = shared / "faces" / "weights" / "yunet_n_640_640.onnx"
    if not weights.is_file():
        pytest.skip("no weights of YuNet")
    return detector(weights)


@pytest.fixture(scope="module")
def faces(shared):
    """Aligned faces of three people, 112 x 112."""
    if not (shared / "faces" / "celeba297").is_dir():
        pytest.skip("no faces")
    people = sorted((shared / "faces" / "celeba297").iterdir())[:3]
    return [Image.open(sorted(person.iterdir())[0]).convert("RGB") for person in people]


def test_the_landmarks_of_a_large_face_are_those_of_the_small_one(find, faces):
    """A face of 1 456 pixels, beyond what YuNet was trained for, in a photograph that is not square."""
    for face in faces:
        photograph = Image.new("RGB", (2200, 1600), (90, 90, 90))
        photograph.paste(face.resize((1456, 1456), Image.Resampling.BICUBIC), (370, 70))
        landmarks = (find(0, photograph) - (370 + 70j)) / 13
        assert np.abs(landmarks - TEMPLATE).max() < 10  # pixels of 112; searched at full size they are 27 to 47 away


def test_a_face_that_is_lost_in_a_small_copy_is_found_at_full_size(find, faces):
    photograph = Image.new("RGB", (4000, 800), (90, 90, 90))
    photograph.paste(faces[0].resize((40, 40), Image.Resampling.BOX), (1000, 400))  # 6 of 640 pixels
    landmarks = (find(0, photograph) - (1000 + 400j)) * 112 / 40
    assert np.abs(landmarks - TEMPLATE).max() < 10
