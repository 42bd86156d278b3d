"""What won, as lines of a config."""

from collections.abc import Sequence
from statistics import geometric_mean

from benchmarks.gpu.decode import WANTED
from benchmarks.gpu.part import Row

_ALIKE = 1.0  # percent of a step between which ways of decoding count as alike: then fewer cores win
_WORTH = 1.05  # a network has to be so much faster compiled
_KERNELS = {"fused": "torch", "triton": "triton"}  # the head's methods and what a config calls them


def choose(rows: Sequence[Row]) -> list[str]:
    """From the rows of all parts, each with its ``part``, to lines to paste; what was not measured is left out."""
    return [line for line in (_decode(rows), _kernels(rows), *_compile(rows)) if line]


def _values(rows: Sequence[Row], part: str, name: str) -> list[tuple[dict, float]]:
    found = [row for row in rows if row["part"] == part and row["name"] == name and row["kind"] == "figure"]
    return [(row.get("of", {}), row["value"]) for row in found if isinstance(row["value"], (int, float))]


def _decode(rows: Sequence[Row]) -> str:
    """The way that slows a step down least at any batch size; of those alike the one that keeps fewest cores busy."""

    def by_way(name: str) -> dict[tuple, list[float]]:
        ways: dict[tuple, list[float]] = {}
        for of, value in _values(rows, "decode", name):
            way = tuple((key, of[key]) for key in of if key != "batch")
            ways.setdefault(way, []).append(value)
        return ways

    slowed, cores, speeds = (by_way(name) for name in ("step slowed down by", "cores used", "loader alone"))
    if not slowed:
        return ""
    # Beside a step everything may be hidden that one faster network would show.
    fast = [way for way in slowed if min(speeds[way]) >= WANTED] or list(slowed)
    least = min(max(0.0, *slowed[way]) for way in fast)
    alike = [way for way in fast if max(slowed[way]) <= least + _ALIKE]
    winner = min(alike, key=lambda way: max(cores[way]))
    best = dict(winner)
    load = f", hw_decoder_load: {best['hw_decoder_load']:g}" if best["decode_on"] == "gpu" else ""
    return f"data: {{decode: {best['decode_on']}{load}, threads: {best['threads']}}}"


def _kernels(rows: Sequence[Row]) -> str:
    """The kernels whose steps are the shorter ones, on the geometric mean over what both were measured at."""
    times: dict[str, dict[str, float]] = {name: {} for name in _KERNELS}
    for of, value in _values(rows, "head", "step of the head"):
        if of["method"] in times:
            times[of["method"]][str({key: of[key] for key in of if key != "method"})] = value
    both = times["fused"].keys() & times["triton"].keys()
    wrong = [
        row
        for row in rows
        if row["part"] == "head"
        and row["kind"] == "check"
        and not row["passed"]
        and row.get("of", {}).get("kernels") == "triton"
    ]
    if not both or wrong:
        return ""
    means = {name: geometric_mean(found[at] for at in both) for name, found in times.items()}
    return f"head: {{kernels: {_KERNELS[min(means, key=means.__getitem__)]}}}"


def _compile(rows: Sequence[Row]) -> list[str]:
    """Whether to compile, a line where all networks agree, and one each where they do not."""
    wins = {of["network"]: value >= _WORTH for of, value in _values(rows, "compile", "compiled over eager")}
    if len(set(wins.values())) <= 1:
        return [f"model: {{compile: {str(any(wins.values())).lower()}}}"] if wins else []
    return [f"model: {{compile: {str(win).lower()}}}  # {network}" for network, win in wins.items()]
