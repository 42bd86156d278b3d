import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from nvidia.dali import fn
from PIL import Image, ImageEnhance
from scipy.stats import ks_2samp

from pipelines.loading import augment, operators
from pipelines.loading.augment import AUGMENTATIONS, find_augmentation
from pipelines.loading.decoder import Decoder
from pipelines.loading.draws import chance, choice, permutation, uniform
from pipelines.preview import augmented_sheet
from pipelines.sources.memory import MemorySource

SIZE = 112
ARCFACE = AUGMENTATIONS["arcface"]
OFF = dict.fromkeys(ARCFACE.draws, 0.999)


def photo(seed: int, size: int = SIZE, cells: int = 7) -> np.ndarray:
    """A colour image, uint8 (size, size, 3) RGB, smooth between ``cells`` x ``cells`` points."""
    noise = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), np.uint8)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


def png(image: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", image[..., ::-1])[1]


def decode(images: list[np.ndarray], augmentation: augment.Augmentation, uniforms: np.ndarray, size: int = SIZE):
    return transformed(images, augmentation, augmentation.parameters(uniforms), size)


def transformed(images: list[np.ndarray], augmentation: augment.Augmentation, parameters, size: int = SIZE):
    decoder = Decoder(
        batch_size=len(images),
        image_size=size,
        device=torch.device("cpu"),
        threads=2,
        transform=augmentation.transform,
        parameters=tuple(augmentation.draws),
    )
    decoder.submit([png(image) for image in images], parameters)
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
    orders, counts = np.unique(permutation(3)(uniforms), axis=0, return_counts=True)
    assert len(orders) == 6 and (np.sort(orders) == [0, 1, 2]).all() and counts.max() - counts.min() <= 1


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


def made(name: str, image: np.ndarray, **parameters) -> np.ndarray:
    """The image after a set with these of its parameters, all others such that nothing happens."""
    augmentation = AUGMENTATIONS[name]
    given = augmentation.parameters(np.full((1, len(augmentation.draws)), 0.999, np.float32))
    given |= {key: np.array([value], given[key].dtype) for key, value in parameters.items()}
    return transformed([image], augmentation, given)[0]


PUBLISHED = json.loads(Path(__file__).with_name("published_augmentation.json").read_text())
KINDS = {
    "nearest": (operators.NEAREST, cv2.INTER_NEAREST),
    "linear": (operators.LINEAR, cv2.INTER_LINEAR),
    "area": (operators.AREA, cv2.INTER_AREA),
    "cubic": (operators.CUBIC, cv2.INTER_CUBIC),
    "lanczos": (operators.LANCZOS, cv2.INTER_LANCZOS4),
}


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: "-".join(str(value) for value in list(case.values())[:-1]))
def test_as_the_published_code(case):
    """AdaFace's dataset/augmenter.py and TopoFR's train.py gave these for the same parameters, at every 16th pixel."""
    case = dict(case)
    name, pixels = case.pop("set"), np.array(case.pop("pixels"))
    if name == "rsp" and "order" in case:
        case["turns"] = np.argsort(case.pop("order"))
    image = (photo(20, cells=16) * 0.6 + 40).astype(np.uint8)
    if "down" in case:
        case |= {"shrink": True, **{key: KINDS[case[key]][0] for key in ("down", "up")}}
    elif name == "adaface":
        case["recolour"] = True
        image = (photo(21) * 0.7 + 75).astype(np.uint8)  # so bright that some is clipped
    found = made(name, image, **case)[8::16, 8::16].ravel()
    moved = np.abs(image[8::16, 8::16].ravel() - pixels).mean()
    assert np.abs(found - pixels).mean() < (max(1, 0.3 * moved) if "down" in case else 0.6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_adaface_recolours_as_pillow_in_any_order(order):
    image = photo(10)
    factors = (1.3, 0.7, 1.4)
    expected = Image.fromarray(image)
    for step in order:
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
        expected = enhance(expected).enhance(factors[step])
    result = made(
        "adaface", image, recolour=True, order=order, **dict(zip(("brightness", "contrast", "saturation"), factors))
    )
    assert difference(result, np.asarray(expected)) < 0.3  # the grey of contrast is no whole number here
    assert difference(result, image) > 5


def test_rsp_blurs_five_pixels_wide_and_nine_high():
    noise = np.random.default_rng(11).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    sigma = 0.1 + 4.9 * 0.6
    expected = cv2.GaussianBlur(noise, (5, 9), sigma, borderType=cv2.BORDER_REFLECT_101)  # columns, rows
    result = chosen("rsp", noise, kind=0.01, sigma=0.6)
    assert difference(result, expected) < 0.6
    assert difference(cv2.GaussianBlur(noise, (9, 5), sigma, borderType=cv2.BORDER_REFLECT_101), expected) > 5


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (0, 1, 2, 3), (2, 1, 3, 0)])
@pytest.mark.parametrize("hue", [-36, 40, 108])
def test_rsp_recolours_in_any_order_with_the_hue_of_hsv(order, hue):
    image = photo(12)

    def mean(pixels):
        return (pixels @ GREY).mean()

    steps = (
        lambda pixels: 0.5 * pixels,
        lambda pixels: 0.6 * pixels + 0.4 * mean(pixels),
        lambda pixels: 0.5 * pixels + 0.5 * (pixels @ GREY)[..., None],
        lambda pixels: hsv_to_rgb((rgb_to_hsv(pixels) + [hue / 360, 0, 0]) % [1, 2, 2]),
    )
    expected = image / 255
    for step in order:
        expected = steps[step](expected)
    turns = np.argsort(order)
    result = made("rsp", image, kind=2, turns=turns, brightness=0.5, contrast=0.6, saturation=0.5, hue=hue)
    assert difference(result, expected * 255) < 0.3


def test_the_hue_of_grey_and_of_pure_colours_is_turned():
    pixels = np.array([[[90, 90, 90], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 0, 0]]], np.uint8)
    image = pixels.repeat(SIZE, 0)[:, np.arange(SIZE) % 6]
    result = made("rsp", image, kind=2, brightness=1, contrast=1, saturation=1, hue=60)
    wanted = [[90, 90, 90], [255, 255, 0], [0, 255, 255], [255, 0, 255], [0, 255, 0], [0, 0, 0]]
    assert np.abs(result[0, :6].astype(int) - wanted).max() <= 1


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
        assert abs((first[free] / (SIZE - size[free])).mean() - 0.5) < 0.03


def test_adaface_makes_low_resolution_before_it_recolours():
    """Pixels of the smaller image are of one colour each; recoloured they stay so."""
    image = photo(13)
    low = {"shrink": True, "shrunk": 0.28, "down": operators.NEAREST, "up": operators.NEAREST}
    colours = {"recolour": True, "order": (1, 2, 0), "brightness": 0.7, "contrast": 0.6, "saturation": 0.8}
    small = made("adaface", image, **low)
    assert len(np.unique(small.reshape(-1, 3), axis=0)) <= int(0.28 * SIZE) ** 2
    assert np.array_equal(made("adaface", image, **low, **colours), made("adaface", small, **colours))


@pytest.mark.parametrize("side", [31, 80])
@pytest.mark.parametrize(
    "kind, off", [("nearest", 0.3), ("linear", 0.4), ("area", 1.7), ("cubic", 1.3), ("lanczos", 1)]
)
def test_adaface_interpolates_as_opencv(side, kind, off):
    """Nearly: Lanczos has six pixels instead of eight, the cubic's slope is another, areas are approximated."""
    image = photo(14)
    ours, theirs = KINDS[kind]
    small = cv2.resize(image, (side, side), interpolation=theirs)
    expected = cv2.resize(small, (SIZE, SIZE), interpolation=theirs)
    result = made("adaface", image, shrink=True, shrunk=(side + 0.9) / SIZE, down=ours, up=ours)
    assert difference(result, expected) < off


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

    @augment.augmentation(kind=choice(0, 1, 2))
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
