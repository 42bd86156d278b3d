"""Names that no table has: the error says the nearest one, and all that there are."""

import numpy as np
import pytest

from pipelines.loading.augment import find_augmentation
from pipelines.loading.schedule import Schedule
from pipelines.prepare.convert import convert
from pipelines.sources.memory import MemorySource


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: find_augmentation("strng"), "unknown augmentation 'strng'; did you mean 'strong'? known: none, "),
        (lambda out: Schedule(9, 3, seed=0, shuffle="blck"), "unknown shuffle 'blck'; did you mean 'block'? known: "),
        (lambda out: convert(MemorySource([b"x"], np.zeros(1)), out, form="record"), "unknown form 'record'; did you "),
    ],
)
def test_the_nearest_name_is_said(tmp_path, call, message):
    with pytest.raises(ValueError) as caught:
        call(tmp_path / "out")
    assert str(caught.value).startswith(message)
