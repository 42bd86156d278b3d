"""What changes in the head from step to step: how much of the margin is in force, and which share of the classes."""

from losses import PartialFC
from train.sections.head import Head


class HeadSchedule:
    """A pure function of the step, like the learning rate, so that a resumed run goes on with the same.

    The margin grows linearly, from none at step 0 to the whole after ``head.warmup_epochs`` (see ``Margin.own``).
    ``head.stages`` change ``sample_rate``, as the stages of LVFace do (You et al., ICCV 2025): few classes first, for a
    ViT to find its way from random weights, in the end all. LVFace's penalty by the mean embedding of each class, which
    sets in between, is not here.
    """

    def __init__(self, config: Head, steps_per_epoch: int) -> None:
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._warmup = round(config.warmup_epochs * steps_per_epoch)

    def margin_share(self, step: int) -> float:
        """How much of the margin is in force in step 0, 1, …"""
        return min(1.0, step / self._warmup) if self._warmup else 1.0

    def sample_rate(self, step: int) -> float:
        """Share of the classes that take part in a step."""
        epoch = step / self._steps_per_epoch  # rounded once, as for the milestones of the learning rate
        begun = [stage.sample_rate for stage in self._config.stages if epoch >= stage.epoch]
        return begun[-1] if begun else self._config.sample_rate

    def apply(self, head: PartialFC, step: int) -> None:
        """Prepare the head for a step, before ``PartialFC.prepare``."""
        head.margin.share, head.sample_rate = self.margin_share(step), self.sample_rate(step)
