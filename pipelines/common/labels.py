"""Images by their labels."""

import numpy as np


def images_by_label(labels: np.ndarray) -> list[np.ndarray]:
    """The images of each label of int64 (n,), both rising: int64 (k,) each. Those without a label, -1, are left out."""
    order = np.argsort(labels, kind="stable")
    order = order[np.searchsorted(labels[order], 0) :]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
