"""One self-contained HTML page from results of any evaluation, for one model or several side by side.

``python -m evaluate.report --results RUN/ijb RUN/lfw OTHER/ijb --output report``: results that bear one name, given by
``--name`` or else the folder's, are one model's, unless they have a figure in common. The charts lie as PNG files
beside the page, too.
"""

import argparse
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from evaluate.reporting import charts
from evaluate.reporting.page import Page
from evaluate.reporting.pictures import Pair, pair_sheet
from evaluate.reporting.results import read_results, results_file
from evaluate.reporting.schema import IJB_FAR, MEGAFACE_FAR, HardPair, Identification, MegaFace, PairKind, Results
from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.files import distinct_names, remove_leftovers

Models = dict[str, dict]  # results of one kind by model name


def tiles(models: dict[str, dict[str, dict]]) -> str:
    """The few figures that tell most, large, a row a model."""
    rows = []
    for name, results in models.items():
        figures: dict[str, float | None] = {}
        for target in ("IJBC", "IJBB"):
            found = results.get(target, {})
            if "verification" in found:
                figures[f"{target} TAR at FAR 1e-4"] = found["verification"].tar[IJB_FAR]
            if "identification" in found:
                figures[f"{target} rank-1"] = found["identification"].joint.rank1
        for title, pairs in results.get("sets", {}).items():
            figures[f"{title} accuracy"] = pairs.accuracy
        for part in results.get("megaface", {}).values():
            figures["MegaFace rank-1"] = list(part.rank1.values())[-1]
            figures["MegaFace TAR at FAR 1e-6"] = part.tar[MEGAFACE_FAR]
        cells = "".join(
            f"<div class='tile'><b>{100 * value:.2f}<small>%</small></b><span>{escape(title)}</span></div>"
            for title, value in figures.items()
            if value is not None
        )
        label = f"<h3>{escape(name)}</h3>" if len(models) > 1 else ""
        rows.append(f"{label}<div class='tiles'>{cells}</div>")
    return "".join(rows)


def published_rows(page: Page, kind: str, sort: str) -> list[tuple[dict, Mapping[str, float]]]:
    """Published rows that have figures of ``kind``, the best by ``sort`` first."""
    rows = [(row, row[kind]) for row in page.published if kind in row]
    return sorted(rows, key=lambda pair: -pair[1].get(sort, 0))


def ijb(page: Page, target: str, models: Models) -> None:
    """1:1 and 1:N of one target."""
    name = {"IJBB": "IJB-B", "IJBC": "IJB-C"}[target]
    one = {model: result["verification"] for model, result in models.items() if "verification" in result}
    if one:
        first = next(iter(one.values()))
        page.section(
            f"{name} 1:1 verification",
            f"{first.genuine:,} genuine and {first.impostor:,} impostor template pairs. "
            "True accept rate in percent at fixed false accept rates.",
        )
        curves = {model: (part.roc.far, part.roc.tar) for model, part in one.items()}
        drawn = {f"{target}_roc": charts.roc("ROC", curves, page.colours, [float(x) for x in first.tar])}
        for model, part in one.items():
            title = "Scores" if len(one) == 1 else f"Scores · {model}"
            drawn[f"{target}_scores_{model}"] = charts.histogram(
                title + " (threshold at FAR 1e-4)", "cosine", part.histogram, part.threshold[IJB_FAR]
            )
        page.figures(drawn)
        columns = {far: f"{float(far):.0e}".replace("e-0", "e-") for far in first.tar}
        ours = {model: part.tar for model, part in one.items()}
        page.table("TAR at FAR", columns, ours, published_rows(page, target, IJB_FAR))
    many = {model: result["identification"] for model, result in models.items() if "identification" in result}
    if many:
        page.section(
            f"{name} 1:N identification",
            "Rates in percent; TPIR at fixed FPIRs. Joint gallery: every probe has a mate. "
            "Open set: probes of the other gallery's subjects have none.",
        )
        joint = {model: (range(1, len(part.joint.cmc) + 1), part.joint.cmc) for model, part in many.items()}
        det = {model: (part.open_set.det.fpir, part.open_set.det.fnir) for model, part in many.items()}
        page.figures(
            {
                f"{target}_cmc": charts.cmc("CMC, joint gallery", joint, page.colours),
                f"{target}_det": charts.det("DET, open set", det, page.colours),
            }
        )
        _rates(page, "Joint gallery", {model: part.joint for model, part in many.items()})
        _rates(page, "Open set, mean of both galleries", {model: part.open_set for model, part in many.items()})
    for model, part in one.items():
        _hardest(page, f"{name}: hardest templates" + (f" · {model}" if len(one) > 1 else ""), part.hardest)


def _rates(page: Page, title: str, models: Mapping[str, Identification]) -> None:
    columns = {f"rank{k}": f"rank-{k}" for k in (1, 5, 10)} | {x: f"TPIR {x}" for x in next(iter(models.values())).tpir}
    page.table(title, columns, {model: part.ranks | part.tpir for model, part in models.items()})


def _hardest(page: Page, title: str, hardest: Mapping[PairKind, list[HardPair]]) -> None:
    """The pairs as pictures where their images can be read, else as a table of template ids."""
    groups = {"genuine": "Genuine pairs with the lowest scores", "impostor": "Impostor pairs with the highest scores"}
    page.section(title)
    pictures = {
        groups[kind]: [
            _pictured(pair) for pair in pairs if all(side and all(map(_is_face, side)) for side in pair.images)
        ]
        for kind, pairs in hardest.items()
    }
    if any(pictures.values()):
        page.picture(_png(pair_sheet(pictures, columns=2)), "Up to four images of each template, and the cosine")
        return
    cells = []
    for kind, pairs in hardest.items():
        rows = "".join(
            f"<tr><th>{pair.templates[0]} · {pair.templates[1]}</th><td>{pair.score:.4f}</td></tr>" for pair in pairs
        )
        cells.append(
            f'<div class="table"><table><thead><tr><th>{groups[kind]}</th><th>cosine</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    page.parts.append(f'<div class="charts">{"".join(cells)}</div>')


def _is_face(path: str) -> bool:
    """Whether this is an image of an IJB data set that is here, and not any file that a ``results.json`` may name."""
    return "loose_crop" in Path(os.path.normpath(path)).parts and Path(path).is_file()


def _pictured(pair: HardPair) -> Pair:
    left, right = ([Path(path).read_bytes() for path in side] for side in pair.images)
    return Pair(left, right, f"{pair.templates[0]} · {pair.templates[1]}: {pair.score:.3f}")


def bins(page: Page, models: Models) -> None:
    """Verification sets: one table of all, and curves a set."""
    names = list(dict.fromkeys(name for sets in models.values() for name in sets))
    page.section("Verification sets", "10-fold accuracy in percent, mean ± standard deviation over the folds.")
    ours = {model: {name: sets[name].accuracy for name in sets} for model, sets in models.items()}
    spread = {model: {name: sets[name].std for name in sets} for model, sets in models.items()}
    columns = {name: name.upper().replace("_", "-") for name in names}
    rows = [(row, found) for row, found in published_rows(page, "bins", names[0]) if found.keys() & columns.keys()]
    page.table("Accuracy", columns, ours, rows, spread)
    for name in names:
        having = {model: sets[name] for model, sets in models.items() if name in sets}
        curves = {model: (part.roc.far, part.roc.tar) for model, part in having.items()}
        drawn = {f"{name}_roc": charts.roc(f"ROC · {columns[name]}", curves, page.colours)}
        for model, part in having.items():
            drawn[f"{name}_distances_{model}"] = charts.histogram(
                f"Squared distances · {columns[name]}" + (f" · {model}" if len(having) > 1 else ""),
                "squared L2 distance",
                part.histogram,
                part.threshold,
            )
        page.figures(drawn)
        for model, part in having.items():
            if part.worst:
                page.picture(Path(part.worst).read_bytes(), f"{columns[name]}: the worst pairs of {model}")


def megaface(page: Page, models: Models) -> None:
    """Rank-1 by distractors and verification."""
    results: dict[str, MegaFace] = {model: parts["megaface"] for model, parts in models.items()}
    first = next(iter(results.values()))
    page.section("MegaFace", f"{first.probes:,} FaceScrub probes, up to {first.distractors:,} distractors.")
    rank1 = {model: ([int(n) for n in part.rank1], list(part.rank1.values())) for model, part in results.items()}
    curves = {model: (part.roc.far, part.roc.tar) for model, part in results.items()}
    page.figures(
        {
            "megaface_rank1": charts.distractors("Identification", rank1, page.colours),
            "megaface_roc": charts.roc("Verification", curves, page.colours, [1e-6]),
        }
    )
    ours = {
        model: {"rank1": list(part.rank1.values())[-1], "tar": part.tar[MEGAFACE_FAR]}
        for model, part in results.items()
    }
    columns = {"rank1": "rank-1", "tar": "TAR at FAR 1e-6"}
    page.table("MegaFace", columns, ours, published_rows(page, "megaface", "rank1"))


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def read_models(paths: Sequence[Path]) -> dict[str, dict[str, dict]]:
    """Figures by model, then by target, "sets" or "megaface", from ``results.json`` files or their folders.

    Results that bear one name are one model's, unless they have a figure in common: then each is a model of its own,
    called by its folder.
    """
    folders = [path.parent if path.name == "results.json" else path for path in paths]
    found: dict[str, list[tuple[str, dict]]] = defaultdict(list)
    for place, path in zip(distinct_names(folders), paths):
        results = read_results(path)
        for part in (results.sets or {}).values():
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
        "megaface": {"megaface": results.megaface},
    }
    kinds = {kind: {name: part for name, part in parts.items() if part} for kind, parts in kinds.items()}
    return {kind: parts for kind, parts in kinds.items() if parts}


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

    for target in ("IJBC", "IJBB"):
        if of(target):
            ijb(page, target, of(target))
    if of("sets"):
        bins(page, of("sets"))
    if of("megaface"):
        megaface(page, of("megaface"))
    page.write(args.output / "index.html", tiles(models))
    say(f"written: {args.output / 'index.html'}")


if __name__ == "__main__":
    run(main)
