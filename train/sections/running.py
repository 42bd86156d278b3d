"""What happens beside the steps: verification, checkpoints, waiting, the log."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipelines.common.errors import UserError
from train.progress import SINKS
from train.section import LocalPath, Section, one_of


class Verify(Section):
    bins: list[LocalPath] = Field(
        [], description="verification sets: paths, or names of .bin files beside the training data"
    )
    every_steps: PositiveInt = Field(2000, description="steps from one verification to the next")
    batch_size: PositiveInt = Field(256, description="images a rank embeds at a time")


class Checkpoint(Section):
    every_steps: PositiveInt = Field(5000, description="steps from one checkpoint to the next")
    every_epochs: PositiveInt | None = Field(None, description="also at the end of every N epochs")
    every_minutes: PositiveFloat | None = Field(None, description="also N minutes after the last one")
    keep: PositiveInt = Field(3, description="newest checkpoints to keep")
    resume: Literal["auto", "never"] = Field("auto", description="go on where the output folder's run stopped")


class Dist(Section):
    timeout: PositiveFloat = Field(600, description="seconds that a rank waits for the others before the run ends")
    start_timeout: PositiveFloat = Field(1800, description="the same until the first step is made")


class Log(Section):
    every_steps: PositiveInt = Field(50, description="steps from one line of figures to the next")
    sinks: list[Annotated[str, one_of("log sink", SINKS)]] = Field(
        ["jsonl", "tensorboard"], description="where the figures go beside the terminal"
    )
    pictures: list[Annotated[str, one_of("log sink", SINKS)]] = Field(
        ["tensorboard"],
        description="those of the sinks that get pictures of faces, too: the first batch as it is augmented, and the "
        "worst pairs of the last verification",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_tensorboard(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and "tensorboard" in tree:
            raise UserError("the key tensorboard has become sinks: [jsonl, tensorboard], or [jsonl] for none")
        return tree
