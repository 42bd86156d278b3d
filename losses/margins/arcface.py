"""ArcFace: a margin on the angle."""

from losses.margins.combined import CombinedMargin
from losses.margins.options import AngleMargin, Cosine, Gradient, Scale


class ArcFace(CombinedMargin):
    """s·cos(θ + m) (Deng et al., CVPR 2019)."""

    def __init__(
        self,
        s: Scale = 64.0,
        m: AngleMargin = 0.5,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, 1.0, m, 0.0, gradient=gradient, interclass_filter=interclass_filter)
