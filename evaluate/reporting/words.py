"""How figures are called and read, alike in every table and chart."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Part = TypeVar("Part")
RANKS = (1, 5, 10)  # k of the rates of mates among the first k entries of a gallery


def rate_name(rate: float | str) -> str:
    """A rate that is asked for, such as a FAR: 1e-4, 2.5e-3, 1."""
    digits, exponent = f"{float(rate):.5e}".split("e")
    return f"{float(digits):g}" + (f"e{int(exponent)}" if int(exponent) else "")


def rates_of(figures: Iterable[Iterable[str]]) -> list[str]:
    """The rates that any of the figures are by, rising."""
    return sorted({rate for keys in figures for rate in keys}, key=float)


def told_of(models: Mapping[str, Part], tell: Callable[[Part], str]) -> str:
    """What there is to ``tell`` of each model: once where it is the same of all, else with its name behind."""
    texts = {name: tell(part) for name, part in models.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{text} ({name})" for name, text in texts.items())


def tar_names(fars: Iterable[str]) -> dict[str, str]:
    """What figures by the FAR that is asked for are called."""
    return {far: f"TAR at FAR {rate_name(far)}" for far in fars}


def search_names(fpirs: Iterable[str]) -> dict[str, str]:
    """What the figures of `evaluate.reporting.schema.Identification` are called."""
    return {f"rank{k}": f"rank-{k}" for k in RANKS} | {fpir: f"TPIR at FPIR {rate_name(fpir)}" for fpir in fpirs}


def percent(rate: float | None, std: float | None = None, digits: str = ".2f") -> str:
    """A rate in percent, perhaps with its standard deviation; – where it is not defined."""
    if rate is None:
        return "–"
    return f"{100 * rate:{digits}}" + (f" ± {100 * std:{digits}}" if std is not None else "")


def bracket(bounds: Sequence[float], digits: str = ".2f") -> str:
    """An interval (low, high) in percent."""
    return f"[{100 * bounds[0]:{digits}}, {100 * bounds[1]:{digits}}]"
