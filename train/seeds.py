"""The seed of a step: what is random in it is a function of (seed, step, rank)."""

import torch


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a rank's step, in [0, 2^63): neighbours differ, and no ``seed`` below 2^63 is too large for torch."""
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the random numbers of a step on ``device`` and on the host.

    ``torch.manual_seed`` asks every kind of device that there might be, at a hundred times the cost.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
