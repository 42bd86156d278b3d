"""The sections of a report, a function a kind of results: what is drawn, which tables follow, what is compared."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from evaluate.protocols.intervals import Difference
from evaluate.reporting import charts
from evaluate.reporting.breakdown_sections import breakdowns
from evaluate.reporting.page import Page, rows_table
from evaluate.reporting.pictures import Pair, pair_sheet
from evaluate.reporting.rated import bands, cmc, compare, det, rated, roc, scores
from evaluate.reporting.schema import (
    IJB_FAR,
    MEGAFACE_FAR,
    HardPair,
    Identification,
    MegaFace,
    OneToMany,
    OneToOne,
    PairKind,
    Rates,
    TinyFace,
    VerificationSet,
)
from evaluate.reporting.uncertainty import differences, measured_unlike
from evaluate.reporting.words import rate_name, rates_of, search_names, told_of

Models = dict[str, dict]  # results of one kind by model name


def published_rows(page: Page, kind: str, sort: str) -> list[tuple[dict, Mapping[str, float]]]:
    """Published rows that have figures of ``kind``, the best by ``sort`` first."""
    rows = [(row, row[kind]) for row in page.published if kind in row]
    return sorted(rows, key=lambda pair: -pair[1].get(sort, 0))


def ijb(page: Page, models: Models, target: str) -> None:
    """1:1 and 1:N of one target."""
    name = {"IJBB": "IJB-B", "IJBC": "IJB-C"}[target]
    one: dict[str, OneToOne] = {
        model: result["verification"] for model, result in models.items() if "verification" in result
    }
    many: dict[str, OneToMany] = {
        model: result["identification"] for model, result in models.items() if "identification" in result
    }
    if one:
        _verification(page, name, target, one)
    if many:
        _identification(page, name, target, many)
    for model, part in one.items():
        _hardest(page, f"{name}: hardest templates" + (f" · {model}" if len(one) > 1 else ""), part.hardest)


def _verification(page: Page, name: str, target: str, models: Mapping[str, OneToOne]) -> None:
    counts = told_of(models, lambda part: f"{part.genuine:,} genuine and {part.impostor:,} impostor template pairs")
    page.section(
        f"{name} 1:1 verification",
        f"{counts}. True accept rate in percent at fixed false accept rates; in brackets 95 % intervals by "
        "resampling people.",
    )
    fars = rates_of(part.tar for part in models.values())
    page.figures({f"{target}_roc": roc(page, models, fars), **scores(target, models, lambda _: IJB_FAR)})
    columns = {far: rate_name(far) for far in fars}
    having = {model: (part.tar, part) for model, part in models.items()}
    rated(page, "TAR at FAR", columns, having, published_rows(page, target, IJB_FAR))
    breakdowns(page, name, {model: part.by for model, part in models.items()})


def _identification(page: Page, name: str, target: str, models: Mapping[str, OneToMany]) -> None:
    page.section(
        f"{name} 1:N identification",
        "Rates in percent; TPIR at fixed FPIRs. Joint gallery: every probe has a mate. "
        "Open set: probes of the other gallery's subjects have none. "
        "In brackets 95 % intervals by resampling the probes' subjects.",
    )
    joint = {model: part.joint for model, part in models.items()}
    open_set = {model: part.open_set for model, part in models.items()}
    page.figures(
        {
            f"{target}_cmc": cmc(page, "CMC, joint gallery", joint),
            f"{target}_det": det(page, "DET, open set", open_set),
        }
    )
    _rates(page, "Joint gallery", joint)
    _rates(page, "Open set, mean of both galleries", open_set)


def _rates(
    page: Page,
    title: str,
    models: Mapping[str, Identification],
    published: Sequence[tuple[dict, Mapping[str, float]]] = (),
) -> None:
    columns = search_names(rates_of(part.tpir for part in models.values()))
    rated(page, title, columns, {model: (part.rates, part) for model, part in models.items()}, published)


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
    tables = [
        rows_table(
            groups[kind],
            ["cosine"],
            [f"<tr><th>{pair.templates[0]} · {pair.templates[1]}</th><td>{pair.score:.4f}</td></tr>" for pair in pairs],
        )
        for kind, pairs in hardest.items()
    ]
    page.parts.append(f'<div class="charts">{"".join(tables)}</div>')


def _is_face(path: str) -> bool:
    """Whether this is an image of an IJB data set that is here, and not any file that a ``results.json`` may name."""
    return "loose_crop" in Path(os.path.normpath(path)).parts and Path(path).is_file()


def _pictured(pair: HardPair) -> Pair:
    left, right = ([Path(path).read_bytes() for path in side] for side in pair.images)
    return Pair(left, right, f"{pair.templates[0]} · {pair.templates[1]}: {pair.score:.3f}")


def bins(page: Page, models: Models) -> None:
    """Verification sets: one table of all, and curves a set."""
    names = list(dict.fromkeys(name for sets in models.values() for name in sets))
    page.section(
        "Verification sets",
        "10-fold accuracy in percent, mean ± standard deviation over the folds; "
        "in brackets the mean's 95 % interval by resampling the pairs.",
    )
    ours = {model: {name: sets[name].accuracy for name in sets} for model, sets in models.items()}
    spread = {model: {name: sets[name].std for name in sets} for model, sets in models.items()}
    columns = {name: name.upper().replace("_", "-") for name in names}
    rows = [(row, found) for row, found in published_rows(page, "bins", names[0]) if found.keys() & columns.keys()]
    bounds = {
        model: {name: pair for name, part in sets.items() for pair in part.bounds(["accuracy"]).values()}
        for model, sets in models.items()
    }
    unlike = [name for name in names if measured_unlike(sets[name] for sets in models.values() if name in sets)]
    page.table("Accuracy", columns, ours, rows, spread, bounds, unlike=unlike)
    (first, base), *others = models.items()
    gained: dict[str, dict[str, Difference]] = {
        f"{model} − {first}": {
            name: found["accuracy"]
            for name in names
            if name in sets and name in base and (found := _set_differences(sets[name], base[name]))
        }
        for model, sets in others
    }
    page.differences("Difference in points, paired", columns, gained)
    for name in names:
        having = {model: sets[name] for model, sets in models.items() if name in sets}
        curves = {model: (part.roc.far, part.roc.tar) for model, part in having.items()}
        bands = {model: {far: (low, high) for far, (low, high) in part.band.items()} for model, part in having.items()}
        drawn = {f"{name}_roc": charts.roc(f"ROC · {columns[name]}", curves, page.colours, bands=bands)}
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
    for name in names:
        breakdowns(page, columns[name], {model: sets[name].by for model, sets in models.items() if name in sets})


def _set_differences(part: VerificationSet, base: VerificationSet) -> dict[str, Difference]:
    return differences(({"accuracy": part.accuracy}, part), ({"accuracy": base.accuracy}, base))


def megaface(page: Page, models: Models) -> None:
    """Rank-1 by distractors and verification."""
    results: dict[str, MegaFace] = {model: parts["megaface"] for model, parts in models.items()}
    first = next(iter(results.values()))
    counts = told_of(results, lambda part: f"{part.probes:,} FaceScrub probes, up to {part.distractors:,} distractors")
    page.section("MegaFace", f"{counts}.")
    rank1 = {model: ([int(n) for n in part.rank1], list(part.rank1.values())) for model, part in results.items()}
    curves = {model: (part.roc.far, part.roc.tar) for model, part in results.items()}
    shaded = bands(results, {n: int(n) for part in results.values() for n in part.rank1})
    page.figures(
        {
            "megaface_rank1": charts.distractors("Identification", rank1, page.colours, shaded),
            "megaface_roc": charts.roc(
                "Verification", curves, page.colours, [1e-6], bands(results, {MEGAFACE_FAR: float(MEGAFACE_FAR)})
            ),
        }
    )
    most = {model: list(part.rank1)[-1] for model, part in results.items()}
    ours = {model: {"rank1": part.rank1[most[model]], "tar": part.tar[MEGAFACE_FAR]} for model, part in results.items()}
    columns = {"rank1": "rank-1", "tar": "TAR at FAR 1e-6"}
    keys = {model: {most[model]: "rank1", MEGAFACE_FAR: "tar"} for model in results}
    bounds = {
        model: {keys[model][key]: pair for key, pair in part.bounds(keys[model]).items()}
        for model, part in results.items()
    }
    unlike = columns if measured_unlike(results.values()) else ()
    page.table("MegaFace", columns, ours, published_rows(page, "megaface", "rank1"), intervals=bounds, unlike=unlike)
    compare(
        page,
        {n: f"rank-1, {int(n):,}" for n in first.rank1} | {MEGAFACE_FAR: "TAR at FAR 1e-6"},
        {model: ({**part.rank1, **part.tar}, part) for model, part in results.items()},
    )


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def tinyface(page: Page, models: Models) -> None:
    """Ranks among TinyFace's distractors."""
    results: dict[str, TinyFace] = {model: parts["tinyface"] for model, parts in models.items()}
    counts = told_of(
        results,
        lambda part: (
            f"{part.probes:,} probes among {part.mates:,} images of their people and {part.distractors:,} distractors"
        ),
    )
    page.section("TinyFace", f"{counts}. In brackets 95 % intervals by resampling people.")
    columns = {f"rank{k}": f"rank-{k}" for k in (1, 5, 20)}
    rated(page, "TinyFace", columns, {model: (part.rates, part) for model, part in results.items()})


def ijbs(page: Page, models: Models) -> None:
    """IJB-S: a table of each pairing, and what is published of it."""
    page.section(
        "IJB-S",
        "Rates in percent: ranks in both galleries as one, TPIR at fixed FPIRs as the mean of both. "
        "In brackets 95 % intervals by resampling the probes' subjects.",
    )
    for pairing in dict.fromkeys(name for parts in models.values() for name in parts):
        parts: dict[str, Identification] = {name: found[pairing] for name, found in models.items() if pairing in found}
        quoted = [(row, row["ijbs"][pairing]) for row in page.published if pairing in row.get("ijbs", {})]
        _rates(page, pairing.replace("_", " ").capitalize(), parts, sorted(quoted, key=lambda pair: -pair[1]["rank1"]))


def protocols(page: Page, models: Models) -> None:
    """A table of rates for each protocol that has no section of its own."""
    for title in dict.fromkeys(name for parts in models.values() for name in parts):
        parts: dict[str, Rates] = {model: found[title] for model, found in models.items() if title in found}
        columns = {name: name for part in parts.values() for name in part.rates}
        page.section(title, next(iter(parts.values())).text)
        rated(page, title, columns, {model: (part.rates, part) for model, part in parts.items()})
