"""Values of a config that are found when a run starts."""

from typing import Literal, TypeVar

Auto = Literal["auto"]  # what `train.planning.automatic` finds a value for


Value = TypeVar("Value")


def settled(value: Value | Auto) -> Value:
    """A value that may have been ``auto`` in the file, as it is in a run."""
    assert value != "auto"
    return value
