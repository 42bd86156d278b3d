"""What a run measures of itself from one log step to the next: its loss, its speed, its waiting."""

import time

import torch
from torch import Tensor


class Meter:
    """The mean loss and the images a second since the last log step.

    Attributes:
        window: (2,) float32 on the device, sum and number of the finite losses; part of a checkpoint.
        spoilt: () bool on the device, whether a loss was not finite since it was last set to false.
    """

    def __init__(self, device: torch.device, global_batch: int) -> None:
        self.window = torch.zeros(2, device=device)
        self.spoilt = torch.zeros((), dtype=torch.bool, device=device)
        self._global_batch = global_batch

    def start(self, step: int) -> None:
        """The run begins, or goes on, behind ``step``."""
        self._first = self._last = step
        self._began = self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._began

    def add(self, loss: Tensor) -> None:
        """Count the loss of a batch, ()."""
        finite = loss.isfinite()
        self.window += torch.stack([torch.where(finite, loss, 0.0), finite.to(loss.dtype)])
        self.spoilt |= ~finite

    def leave_out(self, seconds: float) -> None:
        """Do not count ``seconds`` that went into something else than steps."""
        self._since += seconds

    def read(self, step: int, total: int, waited: float) -> tuple[dict[str, float | None], float]:
        """The figures at a log step, and the seconds to the last of ``total`` steps; the next ones count from here.

        ``waited``: seconds in which no batch was there. The loss is None where none was finite.
        """
        loss, count = self.window.tolist()
        self.window.zero_()
        now = time.perf_counter()
        seconds = now - self._since
        figures = {
            "loss": loss / count if count else None,
            "images_per_second": (step - self._last) * self._global_batch / seconds,
            "data_wait": waited / seconds,
        }
        left = (now - self._began) / (step - self._first) * (total - step)
        self._since, self._last = now, step
        return figures, left
