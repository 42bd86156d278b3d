"""What a run trains on, and how the images come."""

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_serializer, field_validator

from pipelines.common.errors import UserError
from pipelines.loading.augment import AUGMENTATIONS
from train.section import LocalPath, Section, one_of
from train.sections.auto import Auto


class TrainingSet(Section):
    path: LocalPath = Field(description="as data.train where it is one path")
    weight: PositiveFloat = Field(1.0, description="how often each of its images comes in an epoch")
    labels: LocalPath = Field(
        "apart",
        description="apart: its identities are in no other set; shared: they are the same as those of their names in "
        "the other sets with shared labels; or a file of lines name<TAB>class that says so of some",
    )
    images: LocalPath | None = Field(None, description="file with the numbers of the images that count; null for all")
    identities: LocalPath | None = Field(None, description="file with the names of the identities that count, likewise")


class Data(Section):
    train: list[TrainingSet] = Field(
        min_length=1,
        description="train.rec or its folder, images root/identity/*.jpg, WebDataset shards, Parquet, LMDB; or a list "
        "of such paths and of sections with the keys below",
    )
    changes: list[LocalPath] = Field(
        [], description="files of changed labels, as evaluate.labels writes them, of one of the sets or of all"
    )
    batch_size: PositiveInt = Field(128, description="images a rank takes in a step")
    augment: Annotated[str, one_of("augmentation", AUGMENTATIONS)] = Field(
        "flip", description=f"augmentation set: {', '.join(AUGMENTATIONS)}"
    )
    landmarks: LocalPath | None = Field(
        None, description="landmarks.npy, float32 (images, 5, 2), for backbones that take some; null is the template's"
    )
    shuffle: Literal["global", "block", "none"] = Field(
        "global", description="order of images; block reads runs of records"
    )
    decode: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="where images are decoded for training; on the GPU those below a megapixel, as all aligned faces, "
        "still go half the way on the CPU",
    )
    hw_decoder_load: float = Field(
        0.65,
        ge=0,
        le=1,
        description="with decode: gpu, the share of the images that its JPEG unit takes, if it has one",
    )
    threads: PositiveInt | Auto = Field("auto", description="decoding threads a rank; auto by the machine's cores")
    prefetch: PositiveInt | Auto = Field(3, description="batches decoded ahead; auto by their size")
    max_bad_fraction: float = Field(0.001, ge=0, le=1, description="stop when more images than this cannot be read")

    @field_validator("train", mode="before")
    @classmethod
    def _paths_are_sets(cls, train: Any) -> Any:
        if not isinstance(train, list):
            if not isinstance(train, str | Mapping):
                raise UserError(f"must be a path or a list of data sets, not {brief(train)}")
            train = [train]
        return [{"path": entry} if isinstance(entry, str) else entry for entry in train]

    @field_serializer("train")
    def _short(self, train: list[TrainingSet]) -> Any:
        """As short as a user may write it."""
        sets = [entry.model_dump(exclude_defaults=True) for entry in train]
        paths = [entry["path"] if len(entry) == 1 else entry for entry in sets]
        return paths[0] if len(paths) == 1 else paths

    @property
    def paths_text(self) -> str:
        """The training sets, for messages."""
        return ", ".join(entry.path for entry in self.train)
