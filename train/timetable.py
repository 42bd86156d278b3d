"""When a run logs, verifies and saves: by the number of the step, by epochs, by the clock."""

import time

from train.config import Config


class Timetable:
    """The times of a run of ``total`` steps; all of them come at its last step, too."""

    def __init__(self, config: Config, total: int, steps_per_epoch: int) -> None:
        self.total = total
        self._config, self._steps_per_epoch = config, steps_per_epoch
        self._saved_at = time.monotonic()

    def logs(self, step: int) -> bool:
        """Whether figures are logged behind a step."""
        return self._is_due(step, self._config.log.every_steps)

    def verifies(self, step: int) -> bool:
        """Whether the network is verified behind a step."""
        return self._is_due(step, self._config.verify.every_steps)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due behind a step, by its number."""
        epochs = self._config.checkpoint.every_epochs
        ends_epochs = epochs and step % (epochs * self._steps_per_epoch) == 0
        return self._is_due(step, self._config.checkpoint.every_steps) or bool(ends_epochs)

    def asks_to_save(self, step: int) -> bool:
        """Whether a checkpoint is due behind a step by this process's clock, and none by its number.

        Once: what is asked is done steps later.
        """
        minutes, now = self._config.checkpoint.every_minutes, time.monotonic()
        due = minutes is not None and now - self._saved_at > 60 * minutes and not self.saves(step)
        if due:
            self._saved_at = now
        return due

    def saved(self) -> None:
        """Count the minutes to the next checkpoint from here."""
        self._saved_at = time.monotonic()

    def _is_due(self, step: int, every_steps: int) -> bool:
        return step % every_steps == 0 or step >= self.total
