"""The loader's batches, on a CPU and on a GPU: the schedule's images, whatever the threads, the ranks and the start."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.loading.augment import AUGMENTATIONS
from pipelines.loading.loader import Batch, read_once
from pipelines.loading.schedule import Schedule
from pipelines.sources.memory import MemorySource
from tests.pipelines.face_source import (
    COUNT,
    DAMAGED,
    LABELS,
    SIZE,
    FaceSource,
    assert_same,
    decoded,
    face,
    jpeg,
    make,
    take,
)

HALVED = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]  # colours in half the size


def test_batches_are_the_scheduled_images_normalised_and_mirrored():
    loader = make()
    schedule = Schedule(COUNT, 8, seed=3, num_uniforms=2)
    mirrored = 0
    for step, batch in enumerate(take(loader, 15)):  # two and a half epochs
        indices, uniforms = schedule.slice(*divmod(step, 6))
        assert np.array_equal(batch.indices, indices)
        assert np.array_equal(batch.labels, LABELS[indices])
        assert np.array_equal(batch.uniforms, uniforms[:, 1:])
        assert np.array_equal(batch.mirrored, uniforms[:, 0] < 0.5)
        assert batch.images.shape == (8, 3, SIZE, SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for image, index, flip in zip(batch.images, indices, uniforms[:, 0] < 0.5):
            expected = decoded(index)
            assert (image - (expected.flip(2) if flip else expected)).abs().mean() < 0.02
            mirrored += flip
    assert 40 < mirrored < 80
    assert loader.step == 15
    assert loader.steps_per_epoch == 6


def test_values_are_exactly_normalised():
    flipped = next(make())
    for dtype in (torch.uint8, torch.bfloat16):
        other = next(make(dtype=dtype))
        assert other.images.dtype == dtype
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        pixels = other.images if dtype == torch.uint8 else None
        expected = (pixels.float() - 127.5) / 127.5 if pixels is not None else flipped.images.bfloat16()
        assert torch.equal(expected, flipped.images if pixels is not None else other.images)


def test_without_augmentation_nothing_is_mirrored():
    batch = next(make(augment="none"))
    for image, index in zip(batch.images, batch.indices):
        assert (image - decoded(int(index))).abs().mean() < 0.02


def test_augmentation_has_numbers_of_its_own():
    uniforms = np.concatenate([Schedule(COUNT, 8, seed=3, num_uniforms=9).slice(epoch, 0)[1] for epoch in range(20)])
    loader = make(augment="arcface", dtype=torch.uint8)
    images = []
    for epoch in range(20):
        loader.seek(6 * epoch)
        images.append(next(loader).images)
    loader.close()
    colours = torch.cat(images).int().amax(1) - torch.cat(images).int().amin(1)
    grey = colours.amax((1, 2)) <= 2
    assert np.array_equal(grey, uniforms[:, 1 + list(AUGMENTATIONS["arcface"].draws).index("grey")] < 0.1)
    assert 5 < grey.sum() < 40


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 4}, {"prefetch": 1}, {"prefetch": 5}])
def test_threads_and_prefetching_change_nothing(options):
    assert_same(take(make(augment="arcface", **options), 9), take(make(augment="arcface"), 9))


@pytest.mark.parametrize("shuffle", ["global", "block", "none"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one(world_size, shuffle):
    options = {"augment": "arcface", "shuffle": shuffle}
    whole = take(make(batch_size=8, **options), 7)
    shares = [
        take(make(batch_size=8 // world_size, rank=rank, world_size=world_size, **options), 7)
        for rank in range(world_size)
    ]
    joined = [
        Batch(*(torch.cat(parts) for parts in zip(*(list(vars(batch).values())[:4] for batch in step))))
        for step in zip(*shares)
    ]
    assert_same(joined, whole)


def test_seek_goes_on_exactly():
    straight = take(make(augment="arcface"), 14)
    loader = make(augment="arcface")
    next(loader)
    loader.seek(9)
    assert_same([next(loader) for _ in range(5)], straight[9:])
    loader.seek(2)
    assert_same([next(loader) for _ in range(3)], straight[2:5])
    loader.close()
    assert_same(take(loader, 2), straight[5:7])


def test_batches_stay_as_they_are_while_others_follow():
    loader = make()
    batches = [next(loader) for _ in range(12)]
    copies = [batch.images.clone() for batch in batches]
    batches[0].images.zero_()
    batches[0].indices.zero_()
    for _ in range(12):
        next(loader)
    loader.close()
    del loader
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(batches[1:], copies[1:]))
    assert_same(take(make(), 12)[1:], batches[1:])


def test_images_of_other_sizes_are_resized():
    schedule = Schedule(COUNT, 8, seed=3)
    large = int(schedule.slice(0, 2)[0][5])  # turns up when batches have been delivered and others are under way
    for augment in ("flip", "arcface"):
        source = FaceSource({large: jpeg(face(large, 3 * SIZE))})
        loader = make(source, augment=augment)
        batches = [next(loader) for _ in range(8)]
        image = batches[2].images[5]
        assert min((view - decoded(large)).abs().mean() for view in (image, image.flip(2))) < 0.1
        loader.seek(2)  # now that it knows of the size
        assert_same(take(loader, 6), batches[2:])
        plain = take(make(augment=augment), 8)
        for step, (batch, other) in enumerate(zip(batches, plain)):
            alike = (batch.images == other.images).flatten(1).all(1)
            assert alike.sum() == 8 - (batch.indices == large).sum(), step


def test_no_augmentation_hides_another_size():
    slices = [Schedule(COUNT, 8, seed=3, num_uniforms=2).slice(0, step) for step in range(6)]
    indices, uniforms = (np.stack(parts) for parts in zip(*slices))
    shrinks = 1 + list(AUGMENTATIONS["arcface"].draws).index("shrink")  # the flip has the first column
    step, row = np.argwhere(uniforms[..., shrinks] < 0.1)[-1]  # brought to another size and back
    hidden, plain = int(indices[step, row]), int(indices[0, 0])
    assert step > 0
    large = {index: jpeg(face(index, 3 * SIZE)) for index in (hidden, plain)}
    alone = take(make(FaceSource({hidden: large[hidden]}), augment="arcface"), 6)
    together = take(make(FaceSource(large), augment="arcface"), 6)
    assert torch.equal(alone[step].images[row], together[step].images[row])


@pytest.mark.parametrize("shuffle", ["global", "none"])
def test_the_source_is_told_in_advance(shuffle):
    source = FaceSource()
    loader = make(source, shuffle=shuffle, rank=1, world_size=2, batch_size=4)
    batches = [next(loader) for _ in range(20)]
    shown, told = torch.cat([batch.indices for batch in batches]), np.concatenate(source.hinted)
    assert np.array_equal(shown, told[: len(shown)])
    assert len(told) >= len(shown) + 8 * 4  # eight steps ahead
    source.hinted.clear()
    loader.seek(5)
    assert np.array_equal(next(loader).indices, source.hinted[0][:4])
    loader.close()


def test_closing_ends_the_threads():
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    take(make(threads=2), 1)
    before, python_threads = threads(), threading.active_count()
    for _ in range(3):
        loader = make(threads=6)
        next(loader)
        assert threads() >= before + 6
        loader.close()
        assert threads() <= before + 1
    batches = read_once(FaceSource(), np.arange(COUNT), batch_size=4, image_size=SIZE, threads=6)
    next(batches)
    batches.close()
    assert threads() <= before + 1
    assert threading.active_count() <= python_threads


def test_the_callers_torch_threads_stay():
    threads = torch.get_num_threads()
    try:
        for count in (3, 2):
            torch.set_num_threads(count)
            take(make(), 1)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


def test_wait_is_measured():
    loader = make()
    next(loader)
    assert 0 < loader.take_wait() < 60
    assert loader.take_wait() == 0
    loader.close()


def test_mistakes():
    with pytest.raises(ValueError, match="unknown place to decode at 'gpuu'; did you mean 'gpu'"):
        make(decode_on="gpuu")
    with pytest.raises(ValueError, match="data.decode: gpu needs a GPU; on a CPU it is cpu"):
        make(decode_on="gpu")
    with pytest.raises(ValueError, match="augmentation 'flop'"):
        make(augment="flop")
    with pytest.raises(ValueError, match="global batch of 64"):
        make(batch_size=16, world_size=4)


def test_clean_view_is_the_image_before_augmentation():
    """Mirrored like the other; and asking for it or for more uniforms changes nothing else."""
    loader = make(augment="rsp", clean_view=True, num_uniforms=30, dtype=torch.uint8)
    flipped = make(augment="flip", dtype=torch.uint8)
    alone = make(augment="rsp", dtype=torch.uint8)
    changed = 0
    for batch, plain, same in zip(take(loader, 6), take(flipped, 6), take(alone, 6)):
        assert torch.equal(batch.clean, plain.images)
        assert torch.equal(batch.images, same.images)
        assert torch.equal(batch.uniforms[:, :1], same.uniforms) and batch.uniforms.shape == (len(batch.images), 30)
        changed += (batch.images != batch.clean).flatten(1).any(1).sum().item()
    assert 0 < changed < 30


def levels_apart(images: torch.Tensor, others: torch.Tensor) -> float:
    """The mean difference of two batches of images, in levels of 255."""
    return 127.5 * (images - others).abs().mean().item()


@pytest.mark.gpu
@pytest.mark.parametrize("load", [0.0, 1.0])
def test_gpu_decoding_upsamples_colours_like_the_cpu(load):
    """Colours that change from pixel to pixel, with a fourth of the samples in the file: copied, not interpolated, they
    are levels apart."""
    noise = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    images = [cv2.imencode(".jpg", cv2.blur(image, (3, 3)), HALVED)[1].tobytes() for image in noise]
    source = MemorySource(images, np.zeros(8, np.int64))
    options = dict(batch_size=8, shuffle="none", augment="none")
    ours = take(make(source, device="cuda", decode_on="gpu", hw_decoder_load=load, **options), 1)
    assert levels_apart(ours[0].images.cpu(), take(make(source, **options), 1)[0].images) < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("decode_on", ["gpu", "cpu"])
def test_gpu_batches_are_whole_however_late_they_are_used(decode_on):
    """The step's stream lies far behind: neither bytes, pixels nor labels may be overwritten by later batches."""

    def sums(late: bool) -> list[torch.Tensor]:
        loader = make(device="cuda", decode_on=decode_on, dtype=torch.uint8)
        found = []
        for _ in range(30):
            batch = next(loader)
            if late:
                torch.cuda._sleep(20_000_000)  # cycles
            else:
                torch.cuda.synchronize()
            found.append(torch.cat([batch.images.sum((1, 2, 3)), batch.labels]))
            del batch
        loader.close()
        return [each.cpu() for each in found]

    assert all(torch.equal(*pair) for pair in zip(sums(late=True), sums(late=False)))


@pytest.mark.gpu
@pytest.mark.parametrize("decode_on", ["gpu", "cpu"])
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_gpu_batches_are_close_to_those_of_the_cpu(decode_on, augment):
    ours = take(make(device="cuda", decode_on=decode_on, augment=augment), 10)
    for batch, other in zip(ours, take(make(augment=augment), 10)):
        assert all(tensor.is_cuda for tensor in (batch.images, batch.labels))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert levels_apart(batch.images.cpu(), other.images) < (0.5 if augment in ("none", "flip") else 2.0)
        assert torch.equal(batch.labels.cpu(), other.labels)
        assert torch.equal(batch.uniforms.cpu(), other.uniforms)
        assert torch.equal(batch.indices, other.indices)


@pytest.mark.gpu
def test_gpu_batches_stay_as_they_are_while_others_follow():
    loader = make(device="cuda", dtype=torch.uint8)
    batches = [next(loader) for _ in range(20)]
    copies = [batch.images.cpu() for batch in batches]
    for _ in range(40):
        next(loader).images.float().mean()
    assert all(torch.equal(batch.images.cpu(), copy) for batch, copy in zip(batches, copies))
    loader.close()


@pytest.mark.gpu
@pytest.mark.parametrize("decode_on", ["gpu", "cpu"])
def test_gpu_replaces_bad_images_and_resizes(decode_on):
    source = FaceSource({5: DAMAGED["garbage"], 6: jpeg(face(6, 2 * SIZE))})
    ours = take(make(source, device="cuda", decode_on=decode_on, max_bad_fraction=0.1), 12)
    for batch, other in zip(ours, take(make(source, max_bad_fraction=0.1), 12)):
        assert torch.equal(batch.indices, other.indices)
        assert levels_apart(batch.images.cpu(), other.images) < 0.5


@pytest.mark.parametrize("shuffle", ["global", "block"])
def test_ranks_and_accumulation_split_one_and_the_same_batch(shuffle):
    """2 ranks, 1 rank that takes 2 batches, and both: the samples of a global step and their order are the same."""
    options = {"augment": "arcface", "shuffle": shuffle}
    whole = make(batch_size=8, **options)
    expected = take(whole, 15)
    for world_size, accumulate in ((2, 1), (1, 2), (2, 2), (1, 8)):
        share = 8 // (world_size * accumulate)
        ranks = [
            make(batch_size=share, rank=rank, world_size=world_size, accumulate=accumulate, **options)
            for rank in range(world_size)
        ]
        assert all(rank.steps_per_epoch == whole.steps_per_epoch for rank in ranks)
        batches = [take(rank, 15 * accumulate) for rank in ranks]
        joined = [
            Batch(
                *(
                    torch.cat(parts)
                    for parts in zip(
                        *(
                            list(vars(batches[rank][step * accumulate + part]).values())[:4]
                            for part in range(accumulate)
                            for rank in range(world_size)
                        )
                    )
                )
            )
            for step in range(15)
        ]
        assert_same(joined, expected)
        ranks[-1].seek(7 * accumulate + accumulate - 1)
        assert_same(take(ranks[-1], 3), batches[-1][8 * accumulate - 1 :][:3])


def test_the_source_is_told_of_what_all_parts_of_a_step_will_read():
    source = FaceSource()
    loader = make(source, batch_size=2, accumulate=3, prefetch=1)
    for _ in range(60):
        next(loader)
    loader.close()
    hinted, read = np.concatenate(source.hinted), np.concatenate(source.reads)
    assert np.array_equal(hinted[: len(read)], read)
