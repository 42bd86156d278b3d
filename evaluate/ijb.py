"""IJB-B and IJB-C, 1:1 verification and 1:N identification: ``python -m evaluate.ijb --help``.

Writes ``results.json`` in the output folder; rates are fractions. With ``--ways`` there are several, each in a folder
called after what weighs the images.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluate.breakdowns.pairs import PairGroups
from evaluate.breakdowns.templates import given_qualities, template_breakdown, template_groups
from evaluate.features.extract import extract, features_key, loose_crops
from evaluate.features.files import load_features
from evaluate.features.options import (
    add_cache_option,
    add_checkpoint_option,
    add_name_option,
    add_network_options,
    load_embedder,
)
from evaluate.features.preprocessing import input_options
from evaluate.features.ranks import is_main, ranks
from evaluate.protocols.embeddings import finite, mean_norms
from evaluate.protocols.identification import (
    Search,
    joint,
    joint_top,
    mates,
    open_set,
    resampled_joint,
    resampled_open_set,
    search,
)
from evaluate.protocols.ijb_lists import IJB, TARGETS, Images, TemplateList
from evaluate.protocols.resampling import draw, impostor_limits, people, rates_above
from evaluate.protocols.roc import RULES
from evaluate.protocols.side_lists import read_groups
from evaluate.protocols.template_pairs import TemplatePairs
from evaluate.protocols.templates import FLIPS, NORMS, WAYS, Templates, pool
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import HardPair, Joint, OneToMany, OneToOne, OpenSet, PairKind, Settings
from evaluate.reporting.tables import print_breakdown, print_rates
from evaluate.reporting.uncertainty import uncertainty
from evaluate.reporting.words import search_names, tar_names
from pipelines.common.command import run, say
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder
from pipelines.common.json_output import add_json_option, only_json
from pipelines.loading.aligned import read_aligned

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PROTOCOLS = ("verification", "identification")
HARDEST, SHOWN = 12, 4  # pairs of each kind kept for the report, and images of each of their templates


def verification(pairs: TemplatePairs, rule: str) -> OneToOne:
    """1:1 figures of pairs of templates, with what a report draws from.

    Intervals are by the people that genuine pairs connect; a template that is in none is somebody of its own.
    """
    first, second, same, scores, roc = pairs.first, pairs.second, pairs.same, pairs.scores, pairs.roc
    ids = pairs.templates.ids
    points = {f"{far:g}": roc.at(far, rule) for far in FARS}
    tar = {far: point.tar for far, point in points.items()}
    lowest, highest = roc.genuine[: 4 * HARDEST][-1], roc.impostor[-4 * HARDEST :][0]

    def hardest(chosen: np.ndarray, sign: int) -> list[HardPair]:
        """The first pairs by ``sign`` times score, listed pairs of the same two templates once."""
        found: dict[tuple, HardPair] = {}
        for i in chosen[np.argsort(sign * scores[chosen], kind="stable")]:
            pair = sorted((int(ids[first[i]]), int(ids[second[i]])))
            found.setdefault(tuple(pair), HardPair(templates=pair, score=round(float(scores[i]), 6)))
        return list(found.values())[:HARDEST]

    fars, edges = np.geomspace(1e-7, 1, 281), np.linspace(-1, 1, 201)
    return OneToOne(
        tar=tar,
        far={far: point.far for far, point in points.items()},
        threshold={far: point.threshold for far, point in points.items()},
        rule=rule,
        genuine=len(roc.genuine),
        impostor=len(roc.impostor),
        roc={"far": fars.tolist(), "tar": roc.curve(fars).tolist()},
        histogram={
            "edges": edges.tolist(),
            "genuine": np.diff(np.searchsorted(roc.genuine, edges)).tolist(),
            "impostor": np.diff(np.searchsorted(roc.impostor, edges)).tolist(),
        },
        hardest={
            "genuine": hardest(np.flatnonzero(same & (scores <= lowest)), 1),
            "impostor": hardest(np.flatnonzero(~same & (scores >= highest)), -1),
        },
        **tar_uncertainty(tar, scores, first, second, same),
    )


def tar_uncertainty(
    tar: Mapping[str, float], scores: np.ndarray, first: np.ndarray, second: np.ndarray, same: np.ndarray
) -> dict[str, Any]:
    """The intervals of ``tar`` and its resamples, from the scores (P,) of pairs of templates (P,), (P,)."""
    genuine = np.flatnonzero(same)
    person = people(first[genuine], second[genuine], max(first.max(), second.max()) + 1)
    signs = draw(person.max() + 1)
    # A pair may be listed as genuine and as impostor: two images of one person are no strangers.
    impostor = np.flatnonzero(~same & (person[first] != person[second]))
    limits = impostor_limits(scores[impostor], person[first[impostor]], person[second[impostor]], FARS, signs)
    whose = person[first[genuine]]
    values = rates_above(scores[genuine], whose, limits, signs)
    return uncertainty(tar, dict(zip(tar, values.T)), "subjects", whose, signs)


def identification(templates: Templates, galleries: dict[str, TemplateList], probes: TemplateList) -> OneToMany:
    """1:N figures: the joint gallery, and each gallery as an open set."""
    probe = templates.vectors[templates.index(probes.template)]

    def vectors_and_mates(template: np.ndarray, subject: np.ndarray, names: str) -> tuple[np.ndarray, np.ndarray]:
        return templates.vectors[templates.index(template)], mates(probes.subject, subject, names)

    every = list(galleries.values())
    vectors, mate = vectors_and_mates(
        np.concatenate([g.template for g in every]), np.concatenate([g.subject for g in every]), "the galleries"
    )
    if (mate < 0).any():
        lost = np.flatnonzero(mate < 0)
        raise UserError(
            f"{len(lost)} probes have no mate in the galleries, the first is template {probes.template[lost[0]]}"
        )
    found = search(probe, vectors, mate, top=joint_top(len(probe)))
    searches: list[Search] = []
    for name, gallery in galleries.items():
        searches.append(search(probe, *vectors_and_mates(gallery.template, gallery.subject, f"gallery {name}")))
    _, subject = np.unique(probes.subject, return_inverse=True)
    signs = draw(subject.max() + 1)

    def with_intervals(figures: dict[str, Any], resampled: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return figures | uncertainty(figures | figures["tpir"], resampled, "subjects", subject, signs)

    return OneToMany(
        joint=Joint(**with_intervals(joint(found), resampled_joint(found, subject, signs))),
        open_set=OpenSet(
            **with_intervals(open_set(searches, list(galleries)), resampled_open_set(searches, subject, signs))
        ),
    )


def attach_images(hardest: Mapping[PairKind, list[HardPair]], images: Images, data: IJB) -> None:
    """Give each of the hardest pairs the paths of some images of its two templates, where they exist."""
    for pair in (pair for pairs in hardest.values() for pair in pairs):
        rows = [np.flatnonzero(images.template == template)[:SHOWN] for template in pair.templates]
        paths = [[data.image_path(images.names[row]) for row in side] for side in rows]
        if all(path.is_file() for side in paths for path in side):
            pair.images = [[str(path.absolute()) for path in side] for side in paths]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the data set: a folder with meta/ and loose_crop/")
    parser.add_argument("--target", choices=TARGETS, default="IJBC")
    source = parser.add_mutually_exclusive_group(required=True)
    add_checkpoint_option(source, required=False)
    source.add_argument("--features", type=Path, help=".npy or .npz of (images, 2d), (images, 2, d) or (images, d)")
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 2),
        help="views of an image in a row of --features: 1, the original; 2, the mirrored one, too",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json and extracted features")
    parser.add_argument(
        "--half", action="store_true", help="write extracted features as float16, which takes half the disk"
    )
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--rule", choices=RULES, default="nearest", help="which ROC point stands for a FAR")
    parser.add_argument("--flip", choices=FLIPS, default="sum", help="how the two views are joined")
    parser.add_argument("--norm", choices=NORMS, help="what becomes of an image vector's length (default: keep)")
    parser.add_argument("--no-detector-score", action="store_true", help="do not weigh images by the detector")
    parser.add_argument(
        "--quality", nargs="+", default=[], help="FNMR without the pairs of least quality: norm, detector, a .npy file"
    )
    parser.add_argument("--groups", type=Path, help="file of subjects and groups, whose 1:1 errors are compared")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, help="what weighs images, as CVLface reports it: results for each"
    )
    add_network_options(parser)
    add_cache_option(parser)
    add_name_option(parser)
    add_json_option(parser, "what results.json holds; with --ways by way")
    args = parser.parse_args()
    if args.views and args.checkpoint:
        parser.error("--views is for --features; a checkpoint's images have both")
    if args.ways and (args.norm or args.no_detector_score):
        parser.error("--ways says itself what --norm and --no-detector-score do")
    if (args.quality or args.groups) and "verification" not in args.protocol:
        parser.error("--quality and --groups are for the thresholds of --protocol verification")
    if args.half and (args.cache or not args.checkpoint):
        parser.error("--half is for the features.npy that --checkpoint writes, without --cache")
    return args


def image_features(args: argparse.Namespace, data: IJB, images: Images) -> tuple[np.ndarray | None, dict[str, str]]:
    """Features (n, v, d) from a file or of a checkpoint, and what its network took; None on a rank that is done."""
    features, network_input = (
        (load_features(args.features, len(images.names), args.views), {})
        if args.features
        else extracted(args, data, images)
    )
    if features is None:
        return None, network_input
    kind = "original and mirrored" if features.shape[1] == 2 else "one view alone"
    say(f"features of an image: {kind}, {features.shape[2]} numbers each")
    return features, network_input


def extracted(args: argparse.Namespace, data: IJB, images: Images) -> tuple[np.ndarray | None, dict[str, str]]:
    """What a checkpoint gives, by the cache or by ``features.npy`` in the output folder; None but on one rank."""
    source, landmarks = loose_crops(data, images)
    with ranks() as world:
        embed, network_input = load_embedder(args, world, read=read_aligned)
        if args.cache:
            features = embed(source, landmarks)
            return features if world.main else None, {"input": network_input}
        dtype = torch.float16 if args.half else torch.float32
        key = features_key(embed, network_input, images, dtype)
        file = extract(embed, source, landmarks, args.output, key, dtype=dtype)
        return load_features(file, len(source), 2) if world.main else None, {"input": network_input}


@dataclass(frozen=True)
class Lists:
    """All that is read before the long work, so that a fault in it is told at once.

    Attributes:
        pairs: template ids (P,), (P,) and ``same`` (P,) of 1:1, where it is asked for.
        one_to_many: the galleries and the probes of 1:N, where it is asked for.
        groups: whose 1:1 errors are compared; known to one rank.
        qualities: of the images (n,), by name.
    """

    data: IJB
    images: Images
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    one_to_many: tuple[dict[str, TemplateList], TemplateList] | None
    groups: PairGroups | None
    qualities: dict[str, np.ndarray]


def read_lists(args: argparse.Namespace) -> Lists:
    """Read what the options name."""
    data = IJB(args.data, args.target)
    images = data.images()
    pairs = data.pairs() if "verification" in args.protocol else None
    identified = "identification" in args.protocol
    templates = (data.galleries(), data.probes()) if args.groups or identified else None
    group_of = read_groups(args.groups) if args.groups else {}
    groups = None
    if group_of and pairs and templates and is_main():
        groups = template_groups(images, pairs, group_of, *templates)
        if not groups:
            raise UserError(f"{args.groups} has no two groups to compare")
    qualities = given_qualities(args.quality, images)
    return Lists(data, images, pairs, templates if identified else None, groups, qualities)


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Judge the features, print and write what is found; returns what ``results.json`` holds, or each by its way.

    None but on one rank.
    """
    input_options(args)  # told of a mistake in them before the long work
    check_folder(args.output)
    keep_freed_memory()
    lists = read_lists(args)
    images, name_of = lists.images, lists.images.names.__getitem__
    ways = [(way, *WAYS[way]) for way in args.ways or ()] or [("", args.norm or "keep", not args.no_detector_score)]
    if "detector" in args.quality or any(weighed for *_, weighed in ways):
        finite(images.detector, "the detector scores", name_of)
    features, network_input = image_features(args, lists.data, images)
    if features is None:
        return None
    if "norm" in args.quality:
        lists.qualities["norm"] = mean_norms(features)
    documents: dict[str, dict[str, Any]] = {}
    for way, norm, weighed in ways:
        detector = images.detector if weighed else None
        try:
            templates = pool(features, images.template, images.media, detector, flip=args.flip, norm=norm)
        except ValueError:  # the templates tell at no cost that something is not finite; what it is, a second pass
            finite(features, "the features", name_of)
            raise
        figures = scored(templates, lists, args.rule, f"{args.target} {way}".strip())
        settings = Settings(views=features.shape[1], flip=args.flip, norm=norm, detector_score=weighed)
        name = f"{args.name or args.output.resolve().name} {way}" if way else args.name
        documents[way] = write_results(
            args.output / way, name, target=args.target, settings=settings, **network_input, **figures
        )
    return documents if args.ways else documents[""]


def scored(templates: Templates, lists: Lists, rule: str, title: str) -> dict[str, Any]:
    """The figures of the protocols whose lists there are, printed."""
    figures: dict[str, Any] = {}
    if lists.pairs:
        pairs = TemplatePairs(templates, *lists.pairs)
        one = figures["verification"] = verification(pairs, rule)
        attach_images(one.hardest, lists.images, lists.data)
        print_rates(f"{title} 1:1", one.tar, one.interval, met=one.far, names=tar_names(one.tar))
        if lists.qualities or lists.groups:
            one.by = template_breakdown(pairs, lists.images, lists.qualities, lists.groups)
            print_breakdown(f"{title} 1:1", one.by)
    if lists.one_to_many:
        many = figures["identification"] = identification(templates, *lists.one_to_many)
        for kind, part in (("joint gallery", many.joint), ("open set", many.open_set)):
            print_rates(f"{title} 1:N, {kind}", part.rates, part.interval, names=search_names(part.tpir))
    return figures


if __name__ == "__main__":
    run(main)
