"""The decoder's graphs for a GPU, as far as they can be built without one."""

import pytest

from pipelines.loading import decoder
from pipelines.loading.augment import AUGMENTATIONS


@pytest.fixture
def calls(monkeypatch):
    """What DALI is asked for: the arguments of its operators that decode and that take bytes."""
    found = {}
    for module, name in ((decoder.fn.decoders, "image"), (decoder.fn, "external_source")):
        operator = getattr(module, name)

        def spy(*inputs, operator=operator, name=name, **options):
            if name == "image" or options["name"] == "encoded":
                found[name] = options
            return operator(*inputs, **options)

        monkeypatch.setattr(module, name, spy)
    return found


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("place", decoder.PLACES)
def test_graphs_for_a_gpu(place, augment, calls):
    augmentation = AUGMENTATIONS[augment]
    pipeline = decoder._graph(
        112,
        augmentation.transform,
        tuple(augmentation.draws),
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
    assert calls["external_source"]["no_copy"] == (place == "cpu")
    if place == "gpu":
        assert calls["image"]["device"] == "mixed" and calls["image"]["hw_decoder_load"] == 0.5
        assert calls["image"]["jpeg_fancy_upsampling"], "else its colours are others than the CPU's"
    else:
        assert calls["image"]["device"] == "cpu"
