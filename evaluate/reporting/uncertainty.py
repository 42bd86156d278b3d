"""What files keep of resampled figures: intervals to read, and the resamples to compare models in pairs."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat

from evaluate.protocols.intervals import Difference, difference, interval

Interval = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]


def _unpack(text: str) -> np.ndarray:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (binascii.Error, ValueError):
        raise ValueError("it is no list of 32-bit numbers in base64") from None


def _numbers(text: str) -> str:
    _unpack(text)
    return text


class Resamples(BaseModel):
    """Resampled figures by their names or keys, float32 (B,) in base64.

    Attributes:
        of: what was resampled: subjects, identities or pairs.
        units: how many of them.
        key: equal where two models were resampled alike, so that their differences can be taken.
        values: NaN where a resample has no such figure.
    """

    of: str
    units: int = Field(ge=0)
    key: str
    values: dict[str, Annotated[str, AfterValidator(_numbers)]]


class Uncertain(BaseModel):
    """Figures with 95 % ``interval``s (low, high) by their names or keys; null where they are not defined."""

    interval: dict[str, Interval | None] | None = None
    resamples: Resamples | None = None

    @property
    def searched(self) -> tuple[int, ...]:
        """How many images of each kind there are that are searched and not resampled, such as distractors."""
        return ()

    def bounds(self, keys: Iterable[str]) -> dict[str, tuple[float, float]]:
        """The intervals of those of ``keys`` that have one."""
        found = self.interval or {}
        return {key: (pair[0], pair[1]) for key in keys if (pair := found.get(key))}


def measured_unlike(parts: Iterable[Uncertain]) -> bool:
    """Whether some of these were surely measured on other people or pairs than the rest, or searched among others."""
    parts = list(parts)
    keys = {part.resamples.key for part in parts if part.resamples}
    return len(keys) > 1 or len({part.searched for part in parts}) > 1


def uncertainty(
    rates: Mapping[str, float | None],
    resampled: Mapping[str, np.ndarray],
    of: str,
    unit: np.ndarray,
    signs: np.ndarray,
    units: Mapping[str, int] = MappingProxyType({}),
    who: Iterable[object] = (),
) -> dict[str, Any]:
    """The fields of ``Uncertain`` for figures with ``resampled`` values (B,).

    Args:
        rates: the figures themselves; only those with resamples are taken.
        resampled: their values (B,).
        of: what was resampled, in the plural.
        unit: of each observation, (n,): how many different ones there are limits what is known at 0 and 1.
        signs: (B, u), by which they were resampled.
        units: how many of these a figure rests on, where it is not on all: TAR on genuine pairs, ranks on the people
            who are in the gallery.
        who: whom the observations show, in any form whose text tells one from another: models on other people are not
            compared. Without it their number and order alone are noticed.
    """
    count = len(np.unique(unit))
    bounds = {}
    for name, values in resampled.items():
        rate = rates[name]
        bounds[name] = interval(np.nan if rate is None else rate, values, units.get(name, count))
    key = hashlib.blake2b(np.ascontiguousarray(unit, np.int64).tobytes(), digest_size=8)
    key.update(signs.tobytes())
    key.update("\n".join(map(str, who)).encode(errors="surrogateescape"))
    packed = {
        name: base64.b64encode(np.asarray(values, "<f4").tobytes()).decode() for name, values in resampled.items()
    }
    return {
        "interval": {name: found and list(found) for name, found in bounds.items()},
        "resamples": Resamples(of=of, units=count, key=key.hexdigest(), values=packed),
    }


def differences(
    first: tuple[Mapping[str, float | None], Uncertain], second: tuple[Mapping[str, float | None], Uncertain]
) -> dict[str, Difference]:
    """By how much the figures of the first exceed those of the second, for all that were resampled alike.

    Each is the figures by name, and what has their resamples. Empty where these are missing or `measured_unlike`.
    """
    (rates, one), (others, other) = first, second
    if one.resamples is None or other.resamples is None or measured_unlike((one, other)):
        return {}
    found: dict[str, Difference] = {}
    for name in one.resamples.values.keys() & other.resamples.values.keys():
        values = _unpack(one.resamples.values[name]), _unpack(other.resamples.values[name])
        a, b = rates.get(name), others.get(name)
        if a is not None and b is not None and len(values[0]) == len(values[1]):
            taken = difference((a, b), values, one.resamples.units)
            if taken:
                found[name] = taken
    return found
