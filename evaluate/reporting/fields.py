"""The types of which the classes of results are made: rates, counts, curves."""

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, FiniteFloat, model_validator


def _defined(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_of(key: str) -> float:
    """The number that a key is, which is a text in JSON; NaN if it is none."""
    try:
        return float(key)
    except ValueError:
        return math.nan


def _rate(key: str) -> str:
    if not 0 < number_of(key) <= 1:
        raise ValueError(f"{key!r} is no rate between 0 and 1")
    return key


Count = Annotated[int, Field(ge=0)]
Rate = Annotated[FiniteFloat, Field(ge=0, le=1)]
Number = Annotated[FiniteFloat | None, BeforeValidator(_defined)]
RateKey = Annotated[str, AfterValidator(_rate)]  # a FAR, say, by which figures are kept
Curve = Annotated[list[FiniteFloat], Field(min_length=1)]


class Lengths(BaseModel):
    """Lists that are drawn over each other, which must fit."""

    @model_validator(mode="after")
    def _fit(self) -> "Lengths":
        lengths = {name: len(values) for name, values in self}
        if len({count - (name == "edges") for name, count in lengths.items()}) > 1:
            raise ValueError(f"the lists do not fit each other: {lengths}")
        return self
