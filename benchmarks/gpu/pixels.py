"""Whether the loader's pixels are right and stay so: against Pillow's, while the GPU is late, among bad images."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.material import bad_images, encode, odd_images, picture
from benchmarks.gpu.part import Report, Setting
from benchmarks.measure import finish
from pipelines.common.pillow import decode
from pipelines.loading.loader import Loader
from pipelines.sources import open_source
from pipelines.sources.memory import MemorySource

MOST_DIFFERENT = 0.5  # of 255, on the mean: the same chroma upsampling, and another rounding
_LATE = 1_000_000  # cycles that the GPU sleeps before it looks at a batch: half a millisecond or so
_HELD = 4  # batches that training might hold at a time


def run(report: Report, setting: Setting) -> None:
    """All of it, by each place of decoding."""
    for place in ("cpu", "gpu") if setting.device == "cuda" else ("cpu",):
        _against_pillow(report, setting, place)
        _lifetime(report, setting, place)
        _bad_among_good(report, setting, place)


def _against_pillow(report: Report, setting: Setting, place: str) -> None:
    files = {"4:2:0": encode(picture(1, 1)), **odd_images()}
    for kind, file in files.items():
        source = MemorySource([file] * 4, np.zeros(4, np.int64))
        loader = Loader(source, batch_size=4, seed=0, augment="none", **_options(setting, place))
        ours = next(loader).images[0].permute(1, 2, 0).cpu().numpy().astype(float)
        loader.close()
        image = decode(file)
        if image.size != (112, 112):  # resized by DALI, whose filter is its own; here only the place is looked at
            image = image.resize((112, 112))
        difference = float(np.abs(ours - np.asarray(image, float)).mean())
        limit = MOST_DIFFERENT if kind != "250 pixels" else 4.0
        report.at_most("mean difference to Pillow's pixels", difference, limit, "of 255", image=kind, decode_on=place)


def _lifetime(report: Report, setting: Setting, place: str) -> None:
    """Checksums of batches that are looked at late, others being decoded meanwhile, and at once."""
    source = open_source(setting.data)
    batches = 40 if setting.small else 1500

    def checksums(late: bool) -> tuple[list[int], int]:
        loader = Loader(source, batch_size=32, seed=0, **_options(setting, place))
        next(loader)
        finish(setting.place)
        memory = _used(setting)
        sums = list(_checksums((next(loader).images for _ in range(batches)), late and setting.device == "cuda"))
        values = torch.stack(sums).tolist()
        grown = _used(setting) - memory
        loader.close()
        return values, grown

    (at_once, _), (late, grown) = checksums(False), checksums(True)
    wrong = sum(a != b for a, b in zip(at_once, late))
    report.at_most("batches that changed while they were held", wrong, 0, f"of {batches}", decode_on=place)
    if setting.device == "cuda":
        report.figure("device memory taken meanwhile", grown / 2**20, "MiB", decode_on=place)


def _checksums(batches: Iterator[Tensor], late: bool) -> Iterator[Tensor]:
    """() int64 of each batch, ``_HELD`` batches after it came; the host waits for none where the GPU is ``late``."""
    weights: Tensor | None = None
    held: list[Tensor] = []

    def checksum(images: Tensor) -> Tensor:
        nonlocal weights
        if weights is None:  # a pixel's place counts: exchanged ones must not go unnoticed
            weights = torch.arange(images[0].numel(), device=images.device).view(images.shape[1:]) % 8191
        if late:
            torch.cuda._sleep(_LATE)
        value = (images * weights).sum()
        if not late:
            finish(images.device)
        return value

    for images in batches:
        held.append(images)
        if len(held) >= (_HELD if late else 1):
            yield checksum(held.pop(0))
    yield from map(checksum, held)


def _bad_among_good(report: Report, setting: Setting, place: str) -> None:
    """A stream with every kind of image: bad ones are replaced, and what each of them costs."""
    whole = encode(picture(0, 0))
    bad, odd = list(bad_images().values()), list(odd_images().values())
    cut = len(bad)  # behind them one that ends in the middle of its data: some decoders show what there is of it
    good = [encode(picture(number % 8, number)) for number in range(119 - len(bad) - len(odd))]
    files = [*bad, whole[: len(whole) // 2], *odd, *good]
    path = setting.scratch / f"quarantine_{place}.jsonl"
    path.unlink(missing_ok=True)
    source = MemorySource(files, np.zeros(len(files), np.int64))
    loader = Loader(source, batch_size=8, seed=0, max_bad_fraction=0.5, quarantine=path, **_options(setting, place))
    shown: set[int] = set()
    seconds = []
    for _ in range(2):  # in the second epoch the bad ones are known
        finish(setting.place)
        began = time.perf_counter()
        for _ in range(loader.steps_per_epoch):
            shown.update(next(loader).indices.tolist())
        finish(setting.place)
        seconds.append(time.perf_counter() - began)
    loader.close()
    found = _found(path)
    replaced = found - {cut} == set(range(len(bad))) and not shown & found
    report.holds("bad images are replaced, and the run goes on", replaced, f"{len(found)} replaced", decode_on=place)
    report.figure("an image cut off in the middle is", "replaced" if cut in found else "shown", decode_on=place)
    cost = (seconds[0] - seconds[1]) / max(1, len(found))  # the start of the decoding among it
    report.figure("what a bad image costs, at most", 1e3 * cost, "ms", decode_on=place)


def _found(path: Path) -> set[int]:
    """The indices in a quarantine file."""
    return {json.loads(line)["index"] for line in path.read_text().splitlines()} if path.exists() else set()


def _options(setting: Setting, place: str) -> dict[str, Any]:
    return dict(device=setting.place, dtype=torch.uint8, decode_on=place, threads=2)


def _used(setting: Setting) -> int:
    """Bytes of the device that are taken, by whomever."""
    if setting.device == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info(setting.place)
    return total - free
