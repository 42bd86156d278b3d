"""One self-contained HTML page from results of any evaluation, for one model or several side by side.

``python -m evaluate.report --results RUN/ijb RUN/lfw OTHER/ijb --output report``: results that bear one name, given by
``--name`` or else the folder's, are one model's, unless they have a figure in common. The charts lie as PNG files
beside the page, too.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path

from evaluate.reporting import charts, own_people, sections
from evaluate.reporting.breakdown_sections import breakdowns
from evaluate.reporting.page import Page
from evaluate.reporting.results import read_results, results_file
from evaluate.reporting.schema import IJB_FAR, MEGAFACE_FAR, Results, Thresholds, VerificationSet
from evaluate.reporting.sections import Models
from evaluate.reporting.uncertainty import Uncertain
from evaluate.reporting.words import bracket, rate_name
from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names, remove_leftovers


def tiles(models: dict[str, dict[str, dict]]) -> str:
    """The few figures that tell most, large, a row a model."""
    rows = []
    for name, results in models.items():
        figures: dict[str, tuple[float | None, Uncertain, str]] = {}  # value, what has its interval, its name there
        for target in ("IJBC", "IJBB"):
            found = results.get(target, {})
            if "verification" in found:
                one = found["verification"]
                figures[f"{target} TAR at FAR 1e-4"] = one.tar[IJB_FAR], one, IJB_FAR
            if "identification" in found:
                joint = found["identification"].joint
                figures[f"{target} rank-1"] = joint.rank1, joint, "rank1"
        for title, pairs in results.get("sets", {}).items():
            figures[f"{title} accuracy"] = pairs.accuracy, pairs, "accuracy"
        for part in results.get("megaface", {}).values():
            most = list(part.rank1)[-1]
            figures["MegaFace rank-1"] = part.rank1[most], part, most
            figures["MegaFace TAR at FAR 1e-6"] = part.tar[MEGAFACE_FAR], part, MEGAFACE_FAR
        own = results.get("own", {})
        if "pairs" in own:
            least = min(own["pairs"].tar, key=float)
            figures[f"own people: TAR at FAR {rate_name(least)}"] = own["pairs"].tar[least], own["pairs"], least
        ranked = {
            "TinyFace rank-1": results.get("tinyface", {}).get("tinyface"),
            "IJB-S rank-1, surveillance to booking": results.get("ijbs", {}).get("surveillance_to_booking"),
            "own people: rank-1": own.get("gallery"),
        }
        figures |= {title: (part.rank1, part, "rank1") for title, part in ranked.items() if part}
        for title, part in results.get("protocols", {}).items():
            key, value = next(iter(part.rates.items()))
            figures[f"{title} {key}"] = value, part, key
        cells = "".join(
            f"<div class='tile'><b>{100 * value:.2f}<small>%</small></b>"
            + "".join(f"<span class='ci'>{bracket(pair)}</span>" for pair in part.bounds([key]).values())
            + f"<span>{escape(title)}</span></div>"
            for title, (value, part, key) in figures.items()
            if value is not None
        )
        label = f"<h3>{escape(name)}</h3>" if len(models) > 1 else ""
        rows.append(f"{label}<div class='tiles'>{cells}</div>")
    return "".join(rows)


def read_models(paths: Sequence[Path]) -> dict[str, dict[str, dict]]:
    """Figures of ``results.json`` by model, then by target, "sets", "rfw", "megaface", "tinyface", "ijbs", "own" or
    "protocols".

    Results that bear one name are one model's, unless they have a figure in common: then each is a model of its own,
    called by its folder.
    """
    folders = [path.parent if path.name == "results.json" else path for path in paths]
    found: dict[str, list[tuple[str, dict]]] = defaultdict(list)
    for place, path in zip(distinct_names(folders), paths):
        results = read_results(path)
        pictured: list[VerificationSet | Thresholds | None] = [results.own_pairs, results.own_gallery]
        for part in (*pictured, *(results.sets or {}).values()):
            if part:
                part.worst = _own_file(results_file(path).parent, part.worst)
        found[results.name].append((place, _by_kind(results)))
    models: dict[str, dict[str, dict]] = defaultdict(dict)
    for name, several in found.items():
        figures = [(kind, part) for _, kinds in several for kind, parts in kinds.items() for part in parts]
        apart = len(set(figures)) < len(figures)
        for place, kinds in several:
            label = name
            if apart:
                label = place if place.split("/")[-1] == name else f"{name} ({place})"
            if apart and label in models:
                raise UserError(f"two models are called {label}: evaluate with --name")
            for kind, parts in kinds.items():
                models[label][kind] = models[label].get(kind, {}) | parts
    return models


def _own_file(folder: Path, name: str | None) -> str | None:
    """The path of a file in a results' folder; None where there is none, or it is another file of this machine."""
    path = (folder / (name or ".")).resolve()
    return str(path) if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _by_kind(results: Results) -> dict[str, dict]:
    kinds: dict[str, dict] = {
        results.target or "": {"verification": results.verification, "identification": results.identification},
        "sets": results.sets or {},
        "rfw": {"rfw": results.rfw},
        "megaface": {"megaface": results.megaface},
        "tinyface": {"tinyface": results.tinyface},
        "ijbs": results.ijbs or {},
        "own": {"pairs": results.own_pairs, "gallery": results.own_gallery},
        "protocols": results.protocols or {},
    }
    kinds = {kind: {name: part for name, part in parts.items() if part} for kind, parts in kinds.items()}
    return {kind: parts for kind, parts in kinds.items() if parts}


def _rfw(page: Page, models: Models) -> None:
    breakdowns(page, "RFW", {name: found["rfw"] for name, found in models.items()})


def _own(page: Page, models: Models) -> None:
    own_people.pairs(page, {name: parts["pairs"] for name, parts in models.items() if "pairs" in parts})
    own_people.gallery(page, {name: parts["gallery"] for name, parts in models.items() if "gallery" in parts})


# By what `_by_kind` calls them, in their order.
_SECTIONS: dict[str, Callable[[Page, Models], None]] = {
    "IJBC": partial(sections.ijb, target="IJBC"),
    "IJBB": partial(sections.ijb, target="IJBB"),
    "sets": sections.bins,
    "rfw": _rfw,
    "megaface": sections.megaface,
    "tinyface": sections.tinyface,
    "ijbs": sections.ijbs,
    "own": _own,
    "protocols": sections.protocols,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="results.json files or their folders")
    parser.add_argument("--output", type=Path, required=True, help="folder for index.html and the charts")
    args = parser.parse_args()
    models = read_models(args.results)
    args.output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(args.output)
    page = Page(args.output, {name: charts.colour(place) for place, name in enumerate(models)})

    def of(kind: str) -> Models:
        return {name: results[kind] for name, results in models.items() if kind in results}

    for kind, draw in _SECTIONS.items():
        if of(kind):
            draw(page, of(kind))
    page.write(args.output / "index.html", tiles(models))
    say(f"written: {args.output / 'index.html'}")


if __name__ == "__main__":
    run(main)
