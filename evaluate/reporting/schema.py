"""What a report needs of ``results.json``, for files that were made by hand or cut about; they may hold more."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError, model_validator

from pipelines.common.errors import UserError

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[FiniteFloat, Field(ge=0, le=1)]
Curve = Annotated[list[FiniteFloat], Field(min_length=1)]
Pair = Field(min_length=2, max_length=2)


def _with_key(needed: str) -> AfterValidator:
    """Figures by a rate, count or the like, among which is the one that a report puts first."""

    def check(figures: dict[str, object]) -> dict[str, object]:
        for key in figures:
            float(key)
        if needed not in figures:
            raise UserError(f"'{needed}' is missing")
        return figures

    return AfterValidator(check)


class _Lengths(BaseModel):
    """Lists that are drawn over each other, which must fit."""

    @model_validator(mode="after")
    def _fit(self) -> "_Lengths":
        lengths = {name: len(values) for name, values in self}
        if len({count - (name == "edges") for name, count in lengths.items()}) > 1:
            raise UserError(f"the lists do not fit each other: {lengths}")
        return self


class Roc(_Lengths):
    far: Curve
    tar: Curve


class Det(_Lengths):
    fpir: Curve
    fnir: Curve


class Histogram(_Lengths):
    edges: Curve
    genuine: list[FiniteFloat]
    impostor: list[FiniteFloat]


class VerificationSet(BaseModel):
    accuracy: Rate | None
    std: FiniteFloat | None
    threshold: FiniteFloat | None
    roc: Roc
    histogram: Histogram
    worst: str | None = None


class HardPair(BaseModel):
    templates: Annotated[list[int], Pair]
    score: FiniteFloat
    images: Annotated[list[list[str]], Pair] = [[], []]


class OneToOne(BaseModel):
    tar: Annotated[dict[str, Rate | None], _with_key("0.0001")]
    threshold: Annotated[dict[str, FiniteFloat | None], _with_key("0.0001")]
    genuine: Count
    impostor: Count
    roc: Roc
    histogram: Histogram
    hardest: dict[Literal["genuine", "impostor"], list[HardPair]]


class Gallery(BaseModel):
    rank1: Rate | None
    tpir: dict[str, Rate | None]
    cmc: Curve


class OpenSet(Gallery):
    det: Det


class OneToMany(BaseModel):
    joint: Gallery
    open_set: OpenSet


class MegaFace(BaseModel):
    probes: Count
    distractors: Count
    rank1: Annotated[dict[str, Rate], Field(min_length=1)]
    tar: Annotated[dict[str, Rate | None], _with_key("1e-06")]
    roc: Roc


class Results(BaseModel):
    name: Name
    target: Literal["IJBB", "IJBC"] | None = None
    verification: OneToOne | None = None
    identification: OneToMany | None = None
    sets: Annotated[dict[Name, VerificationSet], Field(min_length=1)] | None = None
    megaface: MegaFace | None = None

    @model_validator(mode="after")
    def _any(self) -> "Results":
        if (self.verification or self.identification) and not self.target:
            raise UserError("target is missing: IJBB or IJBC")
        if not (self.verification or self.identification or self.sets or self.megaface):
            raise UserError("there is neither verification, identification, sets nor megaface")
        return self


def check_results(results: dict, path: Path) -> None:
    """Raise a ``ValueError`` that names the file and the field where a report could not show ``results``."""
    try:
        Results.model_validate(results, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is no result that can be shown: {field + ': ' if field else ''}{reason}") from None
