"""The decoder's graphs for a GPU, as far as they can be built without one."""

from unittest.mock import Mock

import pytest

from pipelines.loading import decoder
from pipelines.loading.augment import AUGMENTATIONS


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for DALI's operators that decode and that take bytes, which remember what they were asked for."""
    spies = [Mock(wraps=decoder.fn.decoders.image), Mock(wraps=decoder.fn.external_source)]
    monkeypatch.setattr(decoder.fn.decoders, "image", spies[0])
    monkeypatch.setattr(decoder.fn, "external_source", spies[1])
    return spies


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("place", decoder.PLACES)
def test_graphs_for_a_gpu(place, augment, calls):
    augmentation = AUGMENTATIONS[augment]
    pipeline = decoder._graph(
        112,
        augmentation.transform,
        tuple(augmentation.draws),
        flip=augmentation.flip,
        resize=True,
        clean_view=True,
        on_gpu=True,
        decode_on=place,
        hw_decoder_load=0.5,
        batch_size=4,
        num_threads=1,
        device_id=0,
        prefetch_queue_depth=2,
    )
    pipeline._build_graph()
    image, sources = calls[0].call_args.kwargs, [call.kwargs for call in calls[1].call_args_list]
    assert {source["name"]: source.get("no_copy") for source in sources}["encoded"] == (place == "cpu")
    assert (decoder.FLIP in {source["name"] for source in sources}) == augmentation.flip
    if place == "gpu":
        assert image["device"] == "mixed" and image["hw_decoder_load"] == 0.5
        assert image["jpeg_fancy_upsampling"], "else its colours are others than the CPU's"
    else:
        assert image["device"] == "cpu"
