"""What the options of margins may be: annotations of a constructor, by which its arguments and a config are checked."""

import inspect
import math
from collections.abc import Callable
from functools import cache, wraps
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipelines.common.errors import UserError

Scale = Annotated[float, Field(gt=0)]
AngleMargin = Annotated[float, Field(ge=0, lt=math.pi)]
AngleFactor = Annotated[float, Field(ge=1)]
CosineMargin = Annotated[float, Field(ge=0, le=2)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Norm = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Gradient = Literal["exact", "straight_through"]

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def checked(constructor: Callable[..., None]) -> Callable[..., None]:
    """The constructor, which now raises ``UserError`` for an argument that its annotation does not allow."""
    signature = inspect.signature(constructor)

    @cache  # at the first call, as most margins are never made
    def kinds() -> dict[str, TypeAdapter]:
        hints = get_type_hints(constructor, include_extras=True)
        single = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {name: TypeAdapter(hints[name], config=_STRICT) for name in single if name in hints}

    @wraps(constructor)
    def check(self: Any, *args: Any, **options: Any) -> None:
        given = signature.bind(self, *args, **options).arguments
        for name, kind in kinds().items():
            if name in given:
                try:
                    kind.validate_python(given[name])
                except ValidationError as error:
                    wrong = error.errors()[0]["msg"].replace("Input should", "must", 1)
                    raise UserError(f"{type(self).__name__}: {name} {wrong}, not {given[name]!r}") from None
        constructor(self, *args, **options)

    return check
