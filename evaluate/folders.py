"""Your own people, 1:1 or 1:N, and thresholds for wanted rates of false accepts: ``python -m evaluate.folders DIR``.

DIR holds ``identity/image.jpg``: all pairs are compared. Where the names of some images have "gallery" in them, these
are references, and only a reference and another image make a pair. Or DIR holds ``gallery/identity/image.jpg``,
``probe/identity/image.jpg`` and, of people who are not in the gallery, ``unknown/image.jpg`` or
``unknown/identity/image.jpg``: each probe searches the gallery.

Images are aligned faces, or photographs with ``--align``.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.features.embed import Embedder
from evaluate.features.options import add_name_option, add_network_options, load_embedder
from evaluate.features.ranks import World, take_device
from evaluate.protocols.all_pairs import EDGES, FARS, AllPairs, compare
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.identification import (
    RANKS,
    Search,
    best_mates,
    cmc,
    limit_at,
    resampled_limits,
    resampled_open_set,
    resampled_ranks,
    search,
    tpir_at,
)
from evaluate.protocols.resampling import draw, rates_above
from evaluate.reporting.pictures import Pair, pair_sheet, save_figure
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import Confusion, OwnGallery, OwnPairs, Thresholds
from evaluate.reporting.tables import print_rates, print_thresholds
from evaluate.reporting.uncertainty import uncertainty
from evaluate.reporting.words import rate_name, search_names, tar_names
from pipelines.common.command import run, say
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError, brief
from pipelines.common.files import check_folder
from pipelines.common.formats import IMAGE_SUFFIXES
from pipelines.common.json_output import add_json_option, only_json
from pipelines.loading.landmarks import template_landmarks
from pipelines.prepare.align import Align, Landmarks, detector
from pipelines.prepare.reading import read_all
from pipelines.sources.folder import FolderSource
from pipelines.sources.identities import number_names
from pipelines.sources.lists import ListSource
from pipelines.sources.memory import MemorySource
from pipelines.sources.source import FileSource, Source

FPIRS = (0.0001, 0.001, 0.01, 0.1)
REFERENCE = "gallery"  # in a file's name
_SHOWN = 12  # confusions of each kind
_LETTERS = 14  # of a name in a picture


@dataclass(frozen=True)
class Faces:
    """Images of people: ``paths`` (n), ``names`` (n) of whom they show, unit ``vectors`` float64 (n, d)."""

    paths: list[str]
    names: list[str]
    vectors: np.ndarray


def own_pairs(faces: Faces, fars: Sequence[float] = FARS) -> OwnPairs:
    """1:1 figures of all pairs, or of references with the others."""
    _, person = np.unique(faces.names, return_inverse=True)
    reference = np.array([REFERENCE in Path(path).name.lower() for path in faces.paths])
    found = compare(faces.vectors, person, reference if reference.any() else None, fars)
    points = {f"{far:g}": found.at(far) for far in found.fars}
    tar = {far: point.tar for far, point in points.items()}
    threshold = {far: point.threshold for far, point in points.items()}
    signs = draw(person.max() + 1)
    limits = found.resampled_limits(signs)
    values = rates_above(found.genuine, person[found.first], limits, signs)
    curve = found.curve()
    return OwnPairs(
        images=len(person),
        people=int(person.max()) + 1,
        genuine=len(found.genuine),
        impostor=found.impostors,
        tar=tar,
        far={far: point.far for far, point in points.items()},
        threshold=threshold,
        threshold_interval=threshold_intervals(threshold, limits),
        roc={"far": curve[0].tolist(), "tar": curve[1].tolist()},
        histogram={
            "edges": EDGES.tolist(),
            "genuine": np.histogram(found.genuine, EDGES)[0].tolist(),
            "impostor": found.counts.tolist(),
        },
        confusions=_confused_pairs(faces, found),
        **uncertainty(tar, dict(zip(tar, values.T)), "people", person[found.first], signs),
    )


def own_gallery(gallery: Faces, probes: Faces, unknown: Faces | None, fpirs: Sequence[float] = FPIRS) -> OwnGallery:
    """1:N figures. Of a person's images in the gallery the most similar counts; TPIR needs ``unknown`` people."""
    others = unknown or Faces([], [], np.empty((0, gallery.vectors.shape[1])))
    # Nobody unknown is somebody of the gallery, whatever a folder's name is.
    names = [*probes.names, *(f"unknown/{name}" for name in others.names)]
    _, subject = np.unique(names, return_inverse=True)
    _, person = np.unique([*gallery.names, *probes.names], return_inverse=True)
    person, whose = np.split(person, [len(gallery.names)])
    if not np.isin(whose, person).all():
        lost = sorted(set(probes.names) - set(gallery.names))
        raise UserError(f"{len(lost)} people of probe/ are not in gallery/: {brief(lost)}; unknown/ is for such")
    mate = np.concatenate([best_mates(probes.vectors, gallery.vectors, whose, person), np.full(len(others.names), -1)])
    found = search(np.concatenate([probes.vectors, others.vectors]), gallery.vectors, mate)
    told = [fpir for fpir in fpirs if fpir * len(others.names) * (1 + 1e-12) >= 1]
    mated = found.rank[found.mated]
    tpir = {f"{fpir:g}": tpir_at(found, fpir) for fpir in told}
    threshold = {f"{fpir:g}": limit_at(found, fpir) for fpir in told}
    signs = draw(subject.max() + 1)
    if told:
        resampled = resampled_open_set([found], subject, signs, told)
        limits = resampled_limits(found, subject, signs, told)
        axis = np.geomspace(1 / len(others.names), 1, 81)
        det = {"fpir": axis.tolist(), "fnir": [1 - tpir_at(found, fpir) for fpir in axis]}
    else:
        resampled, limits, det = resampled_ranks(mated, subject[found.mated], signs), np.empty((len(signs), 0)), None
    ranks = {f"rank{k}": float((mated < k).mean()) for k in RANKS}
    return OwnGallery(
        gallery=len(gallery.names),
        people=len(set(gallery.names)),
        probes=len(probes.names),
        unknown=len(others.names),
        **ranks,
        tpir=tpir,
        threshold=threshold,
        threshold_interval=threshold_intervals(threshold, limits),
        cmc=cmc(mated),
        det=det,
        confusions=_confused_searches(gallery, probes, others, found, person, whose),
        **uncertainty(ranks | tpir, resampled, "people", subject, signs),
    )


def threshold_intervals(threshold: Mapping[str, float], limits: np.ndarray) -> dict[str, list[float]]:
    """95 % intervals of thresholds, from their resampled values (B, k): the percentiles."""
    return {
        rate: [min(value, float(low)), max(value, float(high))]
        for (rate, value), column in zip(threshold.items(), limits.T)
        for low, high in [np.percentile(column, [2.5, 97.5])]
    }


def _confused_pairs(faces: Faces, found: AllPairs) -> dict[str, list[Confusion]]:
    """The most similar strangers, two people once, and the least similar images of a person, a person once."""
    order = np.argsort(found.genuine, kind="stable")
    kinds = {
        "Most similar strangers": (found.top_first, found.top_second, found.top),
        "Least similar images of one person": (found.first[order], found.second[order], found.genuine[order]),
    }
    confusions = {}
    for title, (first, second, scores) in kinds.items():
        people = np.sort(np.stack([found.person[first], found.person[second]]), axis=0)
        _, places = np.unique(people[0] * (found.person.max() + 1) + people[1], return_index=True)
        confusions[title] = [
            Confusion(
                people=[faces.names[image] for image in (first[place], second[place])],
                images=[faces.paths[image] for image in (first[place], second[place])],
                score=float(scores[place]),
            )
            for place in np.sort(places)[:_SHOWN]
        ]
    return confusions


def _confused_searches(
    gallery: Faces, probes: Faces, unknown: Faces, found: Search, person: np.ndarray, whose: np.ndarray
) -> dict[str, list[Confusion]]:
    """The probes that find somebody else first, and the unknown ones that are most like somebody."""
    names, paths = [*probes.names, *unknown.names], [*probes.paths, *unknown.paths]
    vectors, whose = np.concatenate([probes.vectors, unknown.vectors]), np.r_[whose, np.full(len(unknown.names), -1)]
    groups = {"Probes that find somebody else": found.rank > 0, "Unknown people most like somebody": found.rank < 0}
    confusions: dict[str, list[Confusion]] = {}
    for title, which in groups.items():
        rows = np.flatnonzero(which)
        for row in rows[np.argsort(-found.best_other[rows], kind="stable")][:_SHOWN]:
            scores = np.where(person == whose[row], -np.inf, gallery.vectors @ vectors[row])
            other = int(scores.argmax())
            confusion = Confusion(
                people=[names[row], gallery.names[other]],
                images=[paths[row], gallery.paths[other]],
                score=float(scores[other]),
            )
            confusions.setdefault(title, []).append(confusion)
    return confusions


def open_folder(folder: Path) -> FileSource:
    """The images ``identity/image``, or, where none lies in a folder, each of a person of their own."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    flat = sorted(str(path) for path in folder.iterdir() if path.name.lower().endswith(IMAGE_SUFFIXES))
    if not flat or any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir()):
        return FolderSource(folder)
    return ListSource(flat, *number_names([Path(path).name for path in flat]))


def read_faces(folder: Path, embed: Embedder, align: Landmarks | None, crops: dict[str, np.ndarray]) -> Faces:
    """The faces of a folder, aligned by ``align``, whose crops are put into ``crops`` by the photographs' paths."""
    source = open_folder(folder)
    images: Source = source
    kept = np.arange(len(source))
    landmarks: Callable[[np.ndarray], np.ndarray] = template_landmarks
    if align:
        places = np.zeros((len(source), 5, 2), np.float32)
        reads = [read for some in read_all(source, kept, transform=Align(align, places=places)) for read in some]
        good, bad = ([read for read in reads if bool(read.reason) == wrong] for wrong in (False, True))
        if bad:
            first = f"{source.place(bad[0].index)}: {bad[0].reason}"
            say(f"{folder}: {len(bad)} of {len(reads)} photographs are left out, the first is {first}")
        if not good:
            raise UserError(f"{folder} has no photograph in which a face is found")
        kept = np.array([read.index for read in good])
        images, landmarks = MemorySource([read.encoded for read in good], name=str(folder)), places[kept].__getitem__
        crops |= {source.place(read.index): read.encoded for read in good}
    vectors = normalised(embed(images, landmarks).sum(axis=1).astype(np.float64))
    names = [source.identity(label) for label in source.labels(kept).tolist()]
    return Faces([source.place(index) for index in kept.tolist()], names, vectors)


def draw_confusions(found: Thresholds, folder: Path, crops: Mapping[str, np.ndarray]) -> str:
    """Write a picture of the confusions; returns its file's name."""

    def drawn(confusion: Confusion) -> Pair:
        left, right = (crops[path] if path in crops else Path(path).read_bytes() for path in confusion.images)
        return Pair([left], [right], caption(confusion))

    groups = {title: [drawn(one) for one in confusions] for title, confusions in found.confusions.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(pair_sheet(groups, columns=4), folder / "confusions.png", dpi=130)
    return "confusions.png"


def caption(confusion: Confusion) -> str:
    """Who they are, and the cosine."""
    people = [name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…" for name in dict.fromkeys(confusion.people)]
    return f"{' · '.join(people)}: {confusion.score:.3f}"


def rate(text: str) -> float:
    """A rate of false accepts, of an option."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no rate between 0 and 1, such as 1e-4")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DIR", help="identity/*.jpg, or gallery/, probe/ and unknown/")
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder, state dict or .onnx file")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json and pictures of confusions")
    parser.add_argument(
        "--align", type=Path, metavar="YUNET", help="align photographs by OpenCV's YuNet, an .onnx file"
    )
    parser.add_argument(
        "--far",
        type=rate,
        nargs="+",
        help="wanted FARs or FPIRs; default: " + " ".join(map(rate_name, FARS)),
    )
    parser.add_argument("--no-flip", action="store_true", help="do not add the mirrored image's embedding")
    add_network_options(parser)
    add_name_option(parser)
    add_json_option(parser, "what results.json holds")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Judge the model, print and write what is found; returns what ``results.json`` holds."""
    keep_freed_memory()
    check_folder(args.output)
    if not args.data.is_dir():
        raise FileNotFoundError(f"there is no folder {args.data}")
    folders = {kind: args.data / kind for kind in ("gallery", "probe", "unknown") if (args.data / kind).is_dir()}
    align = detector(args.align) if args.align else None
    embed, taken = load_embedder(args, World(take_device()), flip=not args.no_flip)
    crops: dict[str, np.ndarray] = {}
    if folders.keys() >= {"gallery", "probe"}:
        faces = {kind: read_faces(folder, embed, align, crops) for kind, folder in folders.items()}
        many = own_gallery(faces["gallery"], faces["probe"], faces.get("unknown"), args.far or FPIRS)
        many.worst = draw_confusions(many, args.output, crops)
        print_rates("1:N", many.rates, many.interval, names=search_names(many.tpir))
        _tell_thresholds("FPIR", many, args.far or FPIRS, many.unknown, "images of unknown people")
        return write_results(args.output, args.name, input=taken, flip=not args.no_flip, own_gallery=many)
    one = own_pairs(read_faces(args.data, embed, align, crops), args.far or FARS)
    one.worst = draw_confusions(one, args.output, crops)
    print_rates("1:1", one.tar, one.interval, met=one.far, names=tar_names(one.tar))
    _tell_thresholds("FAR", one, args.far or FARS, one.impostor, "pairs of two people")
    return write_results(args.output, args.name, input=taken, flip=not args.no_flip, own_pairs=one)


def _tell_thresholds(name: str, found: Thresholds, wanted: Sequence[float], count: int, of: str) -> None:
    """Print the thresholds, and why some of the wanted rates have none, of ``count`` scores."""
    if found.threshold:
        title = f"thresholds by {name}: accept what exceeds them"
        print_thresholds(title, name, found.threshold, found.threshold_interval)
    missing = [rate for rate in wanted if f"{rate:g}" not in found.threshold]
    if low := [rate_name(rate) for rate in missing if rate * count * (1 + 1e-12) < 1]:
        say(f"{count} {of} are too few for {name} {', '.join(low)}")
    if high := [rate_name(rate) for rate in missing if rate * count * (1 + 1e-12) >= 1]:
        say(f"{name} {', '.join(high)} has no threshold: of {count} {of} only the highest scores are held")


if __name__ == "__main__":
    run(main)
