"""Arguments that are checked by their annotations, ``Annotated[float, Field(gt=0)]`` for example, as a config is."""

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipelines.common.errors import UserError

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_arguments(function: Callable, given: Mapping[str, Any], of: str) -> None:
    """Raise ``UserError`` for one of the arguments ``given`` to ``function`` that its annotation does not allow.

    ``of``: what is made of them, for the message.
    """
    kinds = _kinds(function)
    for name, value in given.items():
        if name in kinds:
            try:
                kinds[name].validate_python(value)
            except ValidationError as error:
                wrong = error.errors()[0]["msg"].replace("Input should", "must", 1)
                raise UserError(f"{of}: {name} {wrong}, not {value!r}") from None


def checked(constructor: Callable[..., None]) -> Callable[..., None]:
    """The constructor, which now checks its arguments."""
    signature = inspect.signature(constructor)

    @wraps(constructor)
    def check(self: Any, *args: Any, **options: Any) -> None:
        check_arguments(constructor, signature.bind(self, *args, **options).arguments, type(self).__name__)
        constructor(self, *args, **options)

    return check


@lru_cache(1024)  # at the first call, as most things are never made
def _kinds(function: Callable) -> dict[str, TypeAdapter]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return {
        p.name: TypeAdapter(p.annotation, config=_STRICT)
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.annotation is not p.empty
    }
