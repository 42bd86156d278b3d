"""Muon for the matrices of a network, AdamW for what is none, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from train.groups import Groups


class MuonAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` (Jordan et al., 2024) for parameters of two axes, ``torch.optim.AdamW`` for the others.

    The matrices are the linear layers' weights; convolutions, embeddings of places, norms and biases are none. One rate
    and one weight decay serve both where Muon's steps have the size of AdamW's (Liu et al., "Muon is scalable", 2025):
    ``adjust_lr_fn`` ``match_rms_adamw``. ``original`` is Jordan's, for rates some ten times as large.

    Args:
        momentum, nesterov, ns_steps, adjust_lr_fn: of Muon.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        groups: Groups,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        of_muon: dict[str, Any] = dict(
            momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn
        )
        matrices, others = _part(groups, matrices=True), _part(groups, matrices=False)
        self._rules: list[torch.optim.Optimizer] = []
        if matrices:
            self._rules.append(torch.optim.Muon(matrices, lr, weight_decay, **of_muon))
        if others:
            self._rules.append(torch.optim.AdamW(others, lr, betas, eps, weight_decay))
        super().__init__([group for rule in self._rules for group in rule.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss is wanted
        """Each rule steps its groups, with the state that is here: loading replaces both."""
        first = 0
        for rule in self._rules:
            rule.param_groups = self.param_groups[first : first + len(rule.param_groups)]
            rule.state = self.state
            rule.step()
            first += len(rule.param_groups)


def _part(groups: Groups, matrices: bool) -> Groups:
    """The groups with their matrices alone, or without them; those that then are empty are left out."""
    parts = [{**group, "params": [p for p in group["params"] if (p.ndim == 2) == matrices]} for group in groups]
    return [group for group in parts if group["params"]]
