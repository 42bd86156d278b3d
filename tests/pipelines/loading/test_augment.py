import cv2
import numpy as np
import pytest
import torch
from nvidia.dali import fn
from scipy.stats import ks_2samp

from pipelines.loading import augment
from pipelines.loading.augment import AUGMENTATIONS, chance, choice, find_augmentation, uniform
from pipelines.loading.decoder import Decoder
from pipelines.preview import augmented_sheet
from pipelines.sources.memory import MemorySource

SIZE = 112
ARCFACE = AUGMENTATIONS["arcface"]
OFF = dict.fromkeys(ARCFACE.draws, 0.999)


def photo(seed: int, size: int = SIZE) -> np.ndarray:
    """A smooth colour image, uint8 (size, size, 3) RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def png(image: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", image[..., ::-1])[1]


def decode(images: list[np.ndarray], augmentation: augment.Augmentation, uniforms: np.ndarray, size: int = SIZE):
    decoder = Decoder(
        batch_size=len(images),
        image_size=size,
        device=torch.device("cpu"),
        threads=2,
        transform=augmentation.transform,
        parameters=tuple(augmentation.draws),
    )
    decoder.submit([png(image) for image in images], augmentation.parameters(uniforms))
    (pixels,) = decoder.result()
    return pixels.numpy()


def arcface(image: np.ndarray, size: int = SIZE, **uniforms: float) -> np.ndarray:
    """The image after arcface's set with these of the schedule's uniforms, all others such that nothing happens."""
    return decode([image], ARCFACE, np.array([list({**OFF, **uniforms}.values())], np.float32), size)[0]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(float) - other.astype(float)).mean()


def test_draws():
    uniforms = np.arange(1000, dtype=np.float32) / 1000
    assert chance(0.2)(uniforms).sum() == 200
    drawn = uniform(-1, 3)(uniforms)
    assert drawn.dtype == np.float32
    assert drawn.min() == -1
    assert 2.99 < drawn.max() < 3
    values, counts = np.unique(choice(3, 5, 9)(uniforms), return_counts=True)
    assert values.tolist() == [3, 5, 9]
    assert counts.max() - counts.min() <= 1
    assert choice(3, 5)(np.array([1 - 2**-24], np.float32))[0] == 5


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="none, flip, arcface"):
        find_augmentation("arcfce")


def test_arcface_draws_as_published():
    uniforms = np.random.default_rng(0).random((20_000, len(ARCFACE.draws)), np.float32)
    drawn = ARCFACE.parameters(uniforms)
    for name, probability in {"shrink": 0.1, "blur": 0.2, "recolour": 0.2, "grey": 0.1}.items():
        assert drawn[name].mean() == pytest.approx(probability, abs=0.01)
    for name, (low, high) in {"shrunk": (0.5, 0.8), "hue": (0, 20), "saturation": (1, 1.2)}.items():
        assert low <= drawn[name].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < drawn[name].max() <= high
    assert set(drawn["window"]) == {3, 5}


def test_arcface_leaves_the_unchosen_as_they_are():
    assert np.array_equal(arcface(photo(0)), photo(0))


def test_arcface_grey():
    image = photo(1)
    grey = arcface(image, grey=0.05).astype(float)
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - luma[..., None]).max() < 2.5


@pytest.mark.parametrize(("number", "window"), [(0.2, 3), (0.7, 5)])
def test_arcface_blur(number, window):
    noise = np.random.default_rng(2).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    sigma = 0.3 * ((window - 1) * 0.5 - 1) + 0.8
    expected = cv2.GaussianBlur(noise, (window, window), sigma, borderType=cv2.BORDER_REFLECT_101)
    assert difference(arcface(noise, blur=0.1, window=number), expected) < 0.6
    assert difference(noise, expected) > 20


def test_arcface_low_resolution():
    noise = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    lost = []
    for number in (0.0, 0.99):
        result = arcface(noise, shrink=0.05, shrunk=number).astype(float)
        assert result.shape == (SIZE, SIZE, 3)
        lost.append(noise.std() - result.std())
        assert abs(result.mean() - noise.mean()) < 1
    assert lost[0] > lost[1] > 15
    assert difference(arcface(photo(3), shrink=0.05, shrunk=0.0), photo(3)) < 3  # smooth ones hardly change


def test_arcface_hue_and_saturation():
    image = photo(4)
    result = arcface(image, recolour=0.1, hue=0.75, saturation=0.5)
    chosen = (image.max(2) < 200) & (image.min(2) > 40) & (np.ptp(image, axis=2) > 60)  # far from what is clipped
    before, after = (cv2.cvtColor(x, cv2.COLOR_RGB2HSV).astype(float) for x in (image, result))
    turned = (after - before)[..., 0][chosen] % 180 * 2
    assert np.median(turned) == pytest.approx(15, abs=5)
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs((result @ luma - image @ luma)[chosen]).mean() < 3


def test_arcface_all_at_once_ends_in_grey():
    everything = arcface(photo(5), shrink=0.05, shrunk=0.5, blur=0.1, window=0.7, recolour=0.1, hue=0.5, grey=0.05)
    assert np.ptp(everything.astype(int), axis=2).max() <= 1


GREY = np.array([0.299, 0.587, 0.114])


def chosen(name: str, image: np.ndarray, **uniforms: float) -> np.ndarray:
    """The image after a set with these of the schedule's uniforms, all others such that nothing happens."""
    augmentation = AUGMENTATIONS[name]
    return decode(
        [image],
        augmentation,
        np.array([list({**dict.fromkeys(augmentation.draws, 0.999), **uniforms}.values())], np.float32),
    )[0]


def jittered(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """torchvision's adjust_saturation, adjust_contrast and adjust_brightness, one after the other, each rounded."""
    grey = (image @ GREY)[..., None]
    image = (grey + saturation * (image - grey)).clip(0, 255).round()
    mean = (image @ GREY).mean()
    image = (mean + contrast * (image - mean)).clip(0, 255).round()
    return (brightness * image).clip(0, 255).round()


@pytest.mark.parametrize("numbers", [(0.1, 0.2, 0.3), (0.9, 0.5, 0.8)])
def test_adaface_recolours_about_the_image_s_own_mean(numbers):
    image = (photo(10) // 3 + 20).astype(np.uint8)  # dark, so that its mean is not 128 and little is clipped
    names = ("brightness", "contrast", "saturation")
    result = chosen("adaface", image, recolour=0.1, **dict(zip(names, numbers)))
    expected = jittered(image, *(0.5 + number for number in numbers))
    assert difference(result, expected) < 1
    assert difference(result, image) > 5


def test_rsp_blurs_five_pixels_wide_and_nine_high():
    noise = np.random.default_rng(11).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    sigma = 0.1 + 4.9 * 0.6
    expected = cv2.GaussianBlur(noise, (5, 9), sigma, borderType=cv2.BORDER_REFLECT_101)  # columns, rows
    result = chosen("rsp", noise, kind=0.01, sigma=0.6)
    assert difference(result, expected) < 0.6
    assert difference(cv2.GaussianBlur(noise, (9, 5), sigma, borderType=cv2.BORDER_REFLECT_101), expected) > 5


def test_rsp_recolours_about_the_image_s_own_mean():
    image = photo(12)
    result = chosen("rsp", image, kind=0.11, brightness=0.9, contrast=0.5, saturation=0.5, hue=0.25)  # hue 0
    assert difference(result, jittered(image, 0.46, 0.45, 0.35)) < 1


def crops_drawn_anew(count):
    """Rows and columns (count, 2) of RandomResizedCrop((.2, 1), (3/4, 4/3)), try by try."""
    generator, found = np.random.default_rng(1), []
    while len(found) < count:
        area, aspect = generator.uniform(0.2, 1), np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        if area <= aspect <= 1 / area:
            found.append((np.sqrt(area / aspect) * SIZE, np.sqrt(area * aspect) * SIZE))
    return np.array(found)


def test_adaface_crops_what_fits():
    """White images: what is left of them, its shape and its place, against crops that are drawn until they fit."""
    names, count = list(AUGMENTATIONS["adaface"].draws), 1500
    uniforms = np.random.default_rng(0).random((count, len(names)), np.float32)
    for name in ("shrink", "recolour"):
        uniforms[:, names.index(name)] = 0.999
    uniforms[:, names.index("crop")] = 0
    white = np.full((SIZE, SIZE, 3), 255, np.uint8)
    kept = decode([white] * count, AUGMENTATIONS["adaface"], uniforms)[..., 0] == 255
    rows, columns = kept.any(2).sum(1), kept.any(1).sum(1)
    assert (kept.sum((1, 2)) == rows * columns).all()
    expected = crops_drawn_anew(20000)
    for ours, theirs in ((rows, expected[:, 0]), (columns, expected[:, 1]), (rows * columns, expected.prod(1))):
        jitter = np.random.default_rng(2).uniform(-0.5, 0.5, count)  # ours are whole numbers
        assert ks_2samp(ours + jitter, theirs).pvalue > 0.01
    top, left = kept.any(2).argmax(1), kept.any(1).argmax(1)
    for first, size in ((top, rows), (left, columns)):
        free = size < SIZE - 8
        assert abs((first / (SIZE - size))[free].mean() - 0.5) < 0.03 if free.any() else False


def test_adaface_makes_low_resolution_before_it_recolours():
    """Pixels of the smaller image are of one colour each; recoloured they stay so."""
    image, low = photo(13), {"shrink": 0.1, "shrunk": 0.1, "average": 0.999, "down": 0.0, "up": 0.0}
    colours = {"recolour": 0.1, "brightness": 0.2, "contrast": 0.1, "saturation": 0.3}
    small = chosen("adaface", image, **low)
    assert len(np.unique(small.reshape(-1, 3), axis=0)) <= round(0.28 * SIZE) ** 2
    assert np.array_equal(chosen("adaface", image, **low, **colours), chosen("adaface", small, **colours))


@pytest.mark.parametrize(
    ("down", "up", "kinds"),
    [
        (0.3, 0.3, (cv2.INTER_LINEAR, cv2.INTER_LINEAR)),
        (0.6, 0.7, (cv2.INTER_CUBIC, cv2.INTER_CUBIC)),
        (0.9, 0.9, (cv2.INTER_LANCZOS4, cv2.INTER_LANCZOS4)),
        (None, 0.5, (cv2.INTER_AREA, cv2.INTER_AREA)),
    ],
)
def test_adaface_interpolates_as_opencv(down, up, kinds):
    """Nearly: Lanczos has six pixels instead of eight, the average of an area is a little softer."""
    image = photo(14)
    how = {"average": 0.1, "down": 0.0} if down is None else {"average": 0.999, "down": down}
    small = cv2.resize(image, (80, 80), interpolation=kinds[0])
    expected = cv2.resize(small, (SIZE, SIZE), interpolation=kinds[1])
    result = chosen("adaface", image, shrink=0.1, shrunk=(80.2 / SIZE - 0.2) / 0.8, up=up, **how)
    assert difference(result, expected) < 1.5


def test_a_sample_does_not_depend_on_its_batch():
    generator = np.random.default_rng(6)
    images = [photo(seed) for seed in range(24)]
    uniforms = generator.random((24, len(ARCFACE.draws)), np.float32)
    uniforms[:, [0, 2, 4, 7]] *= 0.3  # more of each than usual
    together = decode(images, ARCFACE, uniforms)
    assert (together != np.stack(images)).any((1, 2, 3)).sum() > 12
    for row in range(24):
        assert np.array_equal(decode(images[row : row + 1], ARCFACE, uniforms[row : row + 1])[0], together[row])


def test_images_of_another_size_are_resized_before():
    large, uniforms = photo(7, 300), {"grey": 0.05}
    expected = arcface(cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA), 64, **uniforms)
    result = arcface(large, 64, **uniforms)
    assert result.shape == (64, 64, 3)
    assert difference(result, expected) < 1.5


def test_a_new_set_is_one_function(monkeypatch):
    monkeypatch.setattr(augment, "AUGMENTATIONS", dict(AUGMENTATIONS))

    @augment._augmentation(kind=choice(0, 1, 2))
    def test_set(images, image_size, *, kind):
        if kind == 1:
            images = fn.flip(images, horizontal=0, vertical=1)
        elif kind == 2:
            images = fn.rotate(images, angle=180.0, keep_size=True)
        return images

    image = photo(8)
    uniforms = np.array([[0.1], [0.5], [0.9]], np.float32)
    plain, flipped, rotated = decode([image] * 3, find_augmentation("test_set"), uniforms)
    assert np.array_equal(plain, image)
    assert np.array_equal(flipped, image[::-1])
    assert difference(rotated, image[::-1, ::-1]) < 1


def test_augmented_sheet():
    images = [photo(seed) for seed in range(30)]
    source = MemorySource([png(image).tobytes() for image in images])
    sheet = np.asarray(augmented_sheet(source, "arcface", rows=4, columns=9))
    tiles = sheet.reshape(4, SIZE, 10, SIZE, 3).swapaxes(1, 2)
    for row, index in enumerate((0, 9, 19, 29)):
        assert np.array_equal(tiles[row, 0], images[index])
        as_it_is = [
            np.array_equal(tile, images[index]) or np.array_equal(tile[:, ::-1], images[index]) for tile in tiles[row]
        ]
        assert 0 < sum(as_it_is) < 10
