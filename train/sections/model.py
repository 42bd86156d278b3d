"""The backbone, and which of its parameters are trained."""

from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from models.registry import BACKBONES, model_arguments
from pipelines.common.errors import UserError
from train.section import LocalPath, OpenSection, Section, one_of
from train.sections.auto import Auto


class Lora(Section):
    rank: PositiveInt = Field(8, description="of the update of a weight")
    alpha: PositiveFloat = Field(16, description="the update is multiplied by alpha / rank")
    match: list[str] = Field(
        ["*"], min_length=1, description="patterns of the weights' names; linear and ungrouped convolutional layers"
    )


class Model(OpenSection):
    table: ClassVar = BACKBONES

    name: Annotated[str, one_of("backbone", BACKBONES)] = Field(
        description="backbone (models.create_model), or timm/NAME; its options stand beside it"
    )
    embedding_size: PositiveInt = Field(512, description="numbers of an embedding")
    input_size: PositiveInt = Field(112, description="images are decoded to this size")
    init_from: LocalPath | None = Field(
        None, description="weights to start from: any file or folder models.load_weights reads"
    )
    freeze: list[str] = Field(
        [],
        description="parameters that are not trained: norms, biases, or patterns of names, such as layer1.*, or "
        "!fc.weight for all but that; batch norms frozen whole keep their running statistics and normalise by them",
    )
    lora: Lora | None = Field(
        None, description="train updates of low rank instead of the weights; they are part of the saved ones"
    )
    checkpoint_activations: bool | Auto = Field(
        False, description="compute activations again for the gradient; auto where they do not fit into the memory"
    )
    sync_batchnorm: bool = Field(False, description="batch statistics over all ranks (GPU only)")
    compile: bool = Field(False, description="torch.compile the backbone for training")

    @model_validator(mode="after")
    def _lora_freezes(self) -> "Model":
        if self.lora and self.freeze:
            raise UserError("lora freezes the whole backbone: leave out freeze")
        return self

    @model_validator(mode="after")
    def _can_compute_again(self) -> "Model":
        if self.checkpoint_activations is True and not self.can_compute_again:
            raise UserError(f"{self.name} has no option checkpoint_activations")
        return self

    @property
    def can_compute_again(self) -> bool:
        """Whether the backbone knows ``checkpoint_activations``."""
        return "checkpoint_activations" in model_arguments(self.name)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `models.create_model`."""
        own = {"name": self.name, "embedding_size": self.embedding_size, "input_size": self.input_size}
        again = {"checkpoint_activations": True} if self.checkpoint_activations is True else {}
        return own | self.options | again

    @property
    def trained(self) -> str:
        """What of the backbone is trained, as a checkpoint notes it: the parameters of the optimiser depend on it."""
        return f"all but {self.freeze}" if self.freeze else str(self.lora) if self.lora else "all"
