"""How figures are called and read, alike in every table and chart."""

from collections.abc import Iterable, Sequence


def rate_name(rate: float | str) -> str:
    """A rate that is asked for, such as a FAR: 1e-4, 2.5e-3, 1."""
    digits, exponent = f"{float(rate):.5e}".split("e")
    return f"{float(digits):g}" + (f"e{int(exponent)}" if int(exponent) else "")


def tar_names(fars: Iterable[str]) -> dict[str, str]:
    """What figures by the FAR that is asked for are called."""
    return {far: f"TAR at FAR {rate_name(far)}" for far in fars}


def search_names(fpirs: Iterable[str]) -> dict[str, str]:
    """What the figures of `evaluate.reporting.schema.Identification` are called."""
    return {f"rank{k}": f"rank-{k}" for k in (1, 5, 10)} | {fpir: f"TPIR at FPIR {rate_name(fpir)}" for fpir in fpirs}


def percent(rate: float | None, std: float | None = None, digits: str = ".2f") -> str:
    """A rate in percent, perhaps with its standard deviation; – where it is not defined."""
    if rate is None:
        return "–"
    return f"{100 * rate:{digits}}" + (f" ± {100 * std:{digits}}" if std is not None else "")


def bracket(bounds: Sequence[float], digits: str = ".2f") -> str:
    """An interval (low, high) in percent."""
    return f"[{100 * bounds[0]:{digits}}, {100 * bounds[1]:{digits}}]"
