"""Batches of a classification problem, its centres, and comparison, for the tests of the head and the margins."""

import torch


def problem(rows=12, d=16, classes=37, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    embeddings = centres[labels] * spread + torch.randn(rows, d, generator=generator)
    return embeddings, labels, centres


def close(ours, expected, tolerance=2e-5):
    """Within ``tolerance`` of the largest expected magnitude: what float32 can promise of sums."""
    ours, expected = ours.double(), expected.double()
    assert ours.shape == expected.shape
    assert torch.isfinite(ours).all()
    assert (ours - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)


class Lion(torch.optim.Optimizer):
    """Chen et al. (2023), algorithm 2, a number at a time."""

    def __init__(self, parameters, lr, betas, weight_decay):
        super().__init__(parameters, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (fast, slow), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    m, g, w = self.state[parameter].get("m", 0.0), parameter.grad.clone(), parameter.clone()
                    parameter.copy_(w - lr * (torch.sign(fast * m + (1 - fast) * g) + decay * w))
                    self.state[parameter]["m"] = slow * m + (1 - slow) * g


RULES = {
    "sgd": dict(algorithm="sgd", lr=0.1, momentum=0.9, weight_decay=5e-2),
    "adamw": dict(algorithm="adamw", lr=0.01, weight_decay=0.1),
    "lion": dict(algorithm="lion", lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
}
THEIRS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "lion": Lion}
