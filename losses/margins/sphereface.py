"""SphereFace: a margin that multiplies the angle."""

from losses.margins.combined import CombinedMargin
from losses.margins.options import AngleFactor, Cosine, Gradient, Scale


class SphereFace(CombinedMargin):
    """s·((-1)^k cos(m·θ) - 2k) (Liu et al., CVPR 2017; normalised, with m = 1.7, as in SphereFace revived, 2022).

    Args:
        gradient: ``straight_through`` is the later paper's characteristic gradient detachment, and OpenSphere's code.
    """

    def __init__(
        self,
        s: Scale = 64.0,
        m: AngleFactor = 1.7,
        *,
        gradient: Gradient = "exact",
        interclass_filter: Cosine | None = None,
    ) -> None:
        super().__init__(s, m, 0.0, 0.0, gradient=gradient, interclass_filter=interclass_filter)
