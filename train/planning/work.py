"""What a device is given to do: arithmetic, memory traffic and launches, operator by operator."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["product", "convolution", "other"]
Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Work:
    """One operator, or several of a kind.

    Attributes:
        name: what it is a part of, such as ``backbone forward``.
        kind: ``product`` (matrix products and attention), ``convolution``, or ``other``, which moves memory only.
        precision: of the arithmetic's operands.
        flops: floating-point operations of products and convolutions, a multiplication and an addition counted as two.
        bytes: read from the device's memory and written to it.
        kernels: launches by the host.
        seconds: measured, where they are; they count instead of a roofline.
    """

    name: str
    kind: Kind
    precision: Precision
    flops: float
    bytes: float
    kernels: int
    seconds: float | None = None
