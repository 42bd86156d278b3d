"""CosFace: a margin on the cosine."""

from losses.margins.combined import CombinedMargin
from losses.margins.options import Cosine, CosineMargin, Scale


class CosFace(CombinedMargin):
    """s·(cos θ - m) (Wang et al., CVPR 2018)."""

    def __init__(self, s: Scale = 64.0, m: CosineMargin = 0.4, interclass_filter: Cosine | None = None) -> None:
        super().__init__(s, 1.0, 0.0, m, interclass_filter=interclass_filter)
