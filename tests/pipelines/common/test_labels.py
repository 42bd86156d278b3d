"""Images by their labels, against a loop over these."""

import numpy as np
import pytest

from pipelines.common.labels import images_by_label


@pytest.mark.parametrize("labels", [[3, -1, 0, 3, 0, -1, 7], [0], [-1, -1], []])
def test_images_by_label(labels):
    labels = np.array(labels, np.int64)
    wanted = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels) if label >= 0]
    assert [images.tolist() for images in images_by_label(labels)] == wanted
