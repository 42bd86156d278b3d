"""IJB's pairs of templates, scored once for all that is asked of them."""

import numpy as np

from evaluate.protocols.roc import Roc
from evaluate.protocols.scores import error_bound, exact, pair_scores
from evaluate.protocols.templates import Templates


class TemplatePairs:
    """P pairs of ``templates``.

    Attributes:
        first, second: rows of the templates, int32 (P,).
        same: whether they show one person, bool (P,).
        scores: cosines float32 (P,), each within ``error`` of its exact one.
        roc: their curve.
    """

    def __init__(self, templates: Templates, first: np.ndarray, second: np.ndarray, same: np.ndarray) -> None:
        """Args: template ids (P,), (P,), and bool (P,). ``UserError`` names an id that has no image."""
        self.templates, self.same = templates, same
        self.first, self.second = templates.index(first), templates.index(second)
        self.scores = pair_scores(templates.vectors, self.first, self.second)
        self.error = error_bound(templates.vectors.shape[1])
        self.roc = Roc(self.scores, same, self.exact, self.error)

    def exact(self, pairs: np.ndarray) -> np.ndarray:
        """Scores float64 (k,) of the pairs with these indices (k,)."""
        vectors = self.templates.vectors
        return exact(vectors, vectors, self.first[pairs], self.second[pairs])
