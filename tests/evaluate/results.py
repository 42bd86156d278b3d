"""Results of small sets as the commands write them."""

import functools

import numpy as np

from evaluate.protocols.folds import verify
from evaluate.reporting.results import write_results
from evaluate.verification import verification_set


def write_set(folder, name=None, accuracy=0.9, **sets):
    """Results on small sets, lfw or others; the accuracy tells them apart."""
    part = small_set().model_copy(update={"accuracy": accuracy})
    write_results(folder, name, sets=dict.fromkeys(sets or ("lfw",), part))
    return folder


@functools.cache
def small_set():
    rng = np.random.default_rng(0)
    same = np.arange(40) % 2 == 0
    return verification_set(verify(rng.standard_normal((80, 1, 8)), same), same)
