"""IJB-B and IJB-C, 1:1 verification and 1:N identification: ``python -m evaluate.ijb --help``.

Writes ``results.json`` in the output folder; rates are fractions. With ``--ways`` there are several, each in a folder
called after what weighs the images.
"""

import argparse
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
    refuse_network_options,
)
from evaluate.features.preprocessing import input_options
from evaluate.features.ranks import is_main, ranks
from evaluate.protocols.embeddings import finite, mean_norms
from evaluate.protocols.ijb_lists import IJB, TARGETS, Images, TemplateList
from evaluate.protocols.roc import RULES
from evaluate.protocols.side_lists import read_groups
from evaluate.protocols.template_pairs import TemplatePairs
from evaluate.protocols.templates import FLIPS, NORMS, WAYS, Templates, pool, rows_of
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import Settings
from evaluate.reporting.tables import print_breakdown, print_rates
from evaluate.reporting.words import search_names, tar_names
from evaluate.templates.one_to_many import find_mates, identification
from evaluate.templates.one_to_one import attach_images, verification
from pipelines.common.command import run, say
from pipelines.common.cpu import keep_freed_memory
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder
from pipelines.common.json_output import add_json_option, only_json

PROTOCOLS = ("verification", "identification")


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
    refuse_network_options(parser, args)
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
        embed, network_input = load_embedder(args, world, aligned=True)
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
    """Read what the options name; ``UserError`` where the lists do not belong together."""
    data = IJB(args.data, args.target)
    images = data.images()
    pairs = data.pairs() if "verification" in args.protocol else None
    identified = "identification" in args.protocol
    templates = (data.galleries(), data.probes()) if args.groups or identified else None
    one_to_many = templates if identified else None
    _check(images, pairs, one_to_many)
    group_of = read_groups(args.groups) if args.groups else {}
    groups = None
    if group_of and pairs and templates and is_main():
        groups = template_groups(images, pairs, group_of, *templates)
        if not groups:
            raise UserError(f"{args.groups} has no two groups to compare")
    qualities = given_qualities(args.quality, images)
    return Lists(data, images, pairs, one_to_many, groups, qualities)


def _check(
    images: Images,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    one_to_many: tuple[dict[str, TemplateList], TemplateList] | None,
) -> None:
    """Raise ``UserError`` where a template has no image, or there can be no search."""
    known = np.unique(images.template)
    listed = list(pairs[:2]) if pairs else []
    if one_to_many:
        galleries, probes = one_to_many
        listed += [each.template for each in (*galleries.values(), probes)]
        find_mates(galleries, probes)
    for ids in listed:
        rows_of(ids, known)


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
