"""MegaFace challenge 1 on FaceScrub without the development kit: ``python -m evaluate.megaface --help``.

Each ordered pair of images of a FaceScrub identity is one search (Kemelmacher-Shlizerman et al., "The MegaFace
Benchmark", 2016): the one is the probe, the other lies in the gallery among the distractors, and the search succeeds
when no distractor scores as high. Verification takes the same pairs as genuine, and as impostors all pairs of a probe
and a distractor.
"""

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.features.extract import listed_images
from evaluate.features.options import (
    add_cache_option,
    add_name_option,
    add_network_options,
    load_embedder,
    refuse_network_options,
)
from evaluate.features.ranks import World, ranks
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.megaface_files import (
    feature_path,
    find_noises,
    read_features,
    read_list,
    read_noises,
    write_feature,
)
from evaluate.protocols.resampling import draw, limits, rates, rates_above
from evaluate.protocols.roc import tar_at
from evaluate.protocols.scores import Largest, blocks
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import MegaFace, Noises
from evaluate.reporting.tables import print_rates
from evaluate.reporting.uncertainty import uncertainty
from evaluate.reporting.words import tar_names
from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, replacing
from pipelines.common.json_output import add_json_option, only_json
from pipelines.sources.lists import ListSource

FAR = 1e-6
CURVE_FAR = 1e-4  # how far the ROC is drawn
NOISY_PROBES = ("centre", "drop")


def megaface(probes: np.ndarray, identity: np.ndarray, distractors: np.ndarray) -> MegaFace:
    """Rates of unit features: probes float32 (Q, d) of ``identity`` (Q,), distractors float32 (n, d) in list order.

    Rank-1 is given for the first 10, 100, ... distractors and for all, TAR at a FAR of at most 1e-6. For the
    intervals the probes' identities are resampled; the distractors stay.
    """
    _, label, size = np.unique(identity, return_inverse=True, return_counts=True)
    if not len(distractors) or size.max(initial=0) < 2:
        raise UserError("MegaFace needs a distractor and an identity with two images at least")
    genuine, searcher = _genuine(probes, label)
    impostors = len(probes) * len(distractors)
    top = Largest(int(impostors * CURVE_FAR) + 1)
    best = np.full(len(probes), -np.inf, np.float32)
    hits = {}
    sizes = [10**k for k in range(1, 20) if 10**k < len(distractors)] + [len(distractors)]
    for start, end in zip([0, *sizes], sizes):
        for part, scores in blocks(distractors[start:end], probes, rows=4096):
            np.maximum(best, scores.max(axis=0), out=best)
            top.add(scores, (start + part.start) * len(probes))
        hits[str(end)] = genuine > best[searcher]
    rank1 = {end: float(found.mean()) for end, found in hits.items()}
    largest, keys = top.held()
    order = np.argsort(-largest, kind="stable")
    largest, impostor = largest[order], label[keys[order] % len(probes)]
    signs = draw(len(size))
    wanted = FAR * len(distractors) * ((signs > 0) @ size)[:, None]
    few = slice(4 * math.ceil(FAR * impostors))  # are enough, though a resample may have fewer of them
    limit_of = limits(largest[few], impostor[few], wanted, signs)
    resampled = dict(zip(hits, rates(np.stack(list(hits.values()), axis=1), label[searcher], signs).T))
    if round(FAR * impostors):  # else nothing is known of this FAR
        resampled[f"{FAR:g}"] = rates_above(genuine, label[searcher], limit_of, signs)[:, 0]
    genuine.sort()
    largest = largest[::-1]
    # Below one impostor pair a FAR is zero.
    fars = np.geomspace(max(1 / impostors, 1e-9), CURVE_FAR, 121)
    found, limit = tar_at(genuine, largest, impostors, [FAR])
    tar = {f"{FAR:g}": float(found[0])}
    return MegaFace(
        probes=len(probes),
        distractors=len(distractors),
        searches=len(genuine),
        rank1=rank1,
        tar=tar,
        threshold={f"{FAR:g}": float(limit[0])},
        roc={"far": fars.tolist(), "tar": tar_at(genuine, largest, impostors, fars)[0].tolist()},
        **uncertainty(rank1 | tar, resampled, "identities", label[searcher], signs, who=identity.tolist()),
    )


def _genuine(probes: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all ordered pairs of one identity, float32 (s,), and the probe of each, int64 (s,)."""
    order = np.argsort(label, kind="stable")
    scores, searchers = [], []
    for rows in np.split(order, np.cumsum(np.bincount(label))[:-1]):
        between = probes[rows] @ probes[rows].T
        i, j = np.nonzero(~np.eye(len(rows), dtype=bool))
        scores.append(between[i, j])
        searchers.append(rows[i])
    return np.concatenate(scores), np.concatenate(searchers)


def without_noise(
    features: np.ndarray, identity: np.ndarray, noisy: np.ndarray, treatment: str
) -> tuple[np.ndarray, np.ndarray]:
    """Probes and identities with the ``noisy`` (Q,) images dropped, or replaced by their identity's clean centre.

    The published figures were computed with the centres; an identity without a clean image is dropped in any case.
    """
    assert treatment in NOISY_PROBES
    names, label = np.unique(identity, return_inverse=True)
    centres = np.zeros((len(names), features.shape[1]), features.dtype)
    np.add.at(centres, label[~noisy], features[~noisy])
    centres = normalised(centres)
    features = np.where(noisy[:, None], centres[label], features)
    keep = ~noisy if treatment == "drop" else np.linalg.norm(features, axis=1) > 0
    return features[keep], identity[keep]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="MegaFace challenge 1 on FaceScrub: rank-1 and TAR at FAR 1e-6.")
    parser.add_argument(
        "--facescrub-list", type=Path, required=True, help="paths ending in identity/name, or the kit's JSON"
    )
    parser.add_argument(
        "--megaface-list", type=Path, required=True, help="distractors, paths ending in a/b/name, or JSON"
    )
    parser.add_argument("--facescrub-noises", type=Path, help="names of wrongly labelled images")
    parser.add_argument("--megaface-noises", type=Path, help="distractors that show FaceScrub identities")
    parser.add_argument("--noisy-probes", choices=NOISY_PROBES, default="centre", help="what becomes of them")
    parser.add_argument("--features", type=Path, required=True, help="folder with facescrub/ and megaface/ features")
    parser.add_argument("--algorithm", default="facemill", help="ending of feature files: x, _x or _x.bin")
    parser.add_argument("--checkpoint", type=Path, help="compute the features first, from --images")
    parser.add_argument("--images", type=Path, help="folder with aligned facescrub/ and megaface/ images")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json")
    add_network_options(parser)
    add_cache_option(parser)
    add_name_option(parser)
    add_json_option(parser, "what results.json holds")
    args = parser.parse_args()
    refuse_network_options(parser, args)
    if (args.checkpoint is None) != (args.images is None):
        parser.error("--checkpoint and --images belong together")
    return args


def check_searches(identity: np.ndarray, noisy: np.ndarray, treatment: str) -> None:
    """Raise ``UserError`` where `without_noise` would leave no identity (Q,) two images, of which one is the probe."""
    clean = identity[~noisy]
    kept = clean if treatment == "drop" else identity[np.isin(identity, clean)]
    if np.unique(kept, return_counts=True)[1].max(initial=0) < 2:
        raise UserError("MegaFace needs an identity with two images at least; the lists leave none")


def read_or_embed(
    args: argparse.Namespace, sets: dict[str, list[str]], world: World
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Features (n, d) of the images of each set, and what the network took for ``results.json``.

    They are read from files; or a checkpoint's are computed, and written as such files by the first rank, with a stamp
    a set by which `check_stamps` knows whose they are.
    """
    stamps = {kind: stamp_path(args.features / kind, args.algorithm) for kind in sets}
    if not args.checkpoint:
        check_stamps(stamps.values())
        read = {kind: read_features(args.features / kind, names, args.algorithm) for kind, names in sets.items()}
        lengths = {kind: features.shape[1] for kind, features in read.items()}
        if len(set(lengths.values())) > 1:
            told = " and ".join(f"{length} numbers in {args.features / kind}" for kind, length in lengths.items())
            raise UserError(f"the features are of two networks: they have {told}")
        return read, {}
    images = {kind: listed_images(args.images / kind, names) for kind, names in sets.items()}
    embed, network_input = load_embedder(args, world)
    features = {
        kind: normalised(embed(ListSource([str(path) for path in paths])).sum(axis=1)) for kind, paths in images.items()
    }
    if world.main:
        for stamp in stamps.values():  # from here on the files may be of two networks
            write_stamp(stamp, "")
        for kind, names in sets.items():
            for name, feature in zip(names, features[kind]):
                write_feature(feature_path(args.features / kind, name, args.algorithm), feature)
            write_stamp(stamps[kind], f"{embed.digest} {embed.autocast}")
    return features, {"input": network_input}


def stamp_path(folder: Path, algorithm: str) -> Path:
    """The file that tells of which network the features in a ``folder`` are; it is empty until all are written."""
    return feature_path(folder, "features", algorithm).with_suffix(".network")


def write_stamp(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text)


def check_stamps(stamps: Iterable[Path]) -> None:
    """Raise ``UserError`` unless all sets' features are whole and of one network, or of other programs: unstamped."""
    texts = {path: path.read_text() if path.exists() else None for path in stamps}
    if len(set(texts.values())) > 1 or "" in texts.values():
        told = " and ".join(map(str, texts))
        raise UserError(
            f"the features are of two networks, or of a command that was interrupted, as {told} tell: give "
            "--checkpoint and --images again, or remove these files if they tell wrongly"
        )


def main() -> None:
    args = parse_arguments()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Judge the features, print and write what is found; returns what ``results.json`` holds, None but on one rank."""
    check_folder(args.output)
    lists, noise_lists = (args.facescrub_list, args.megaface_list), (args.facescrub_noises, args.megaface_noises)
    scrub, distractors = (read_list(path, parts) for path, parts in zip(lists, (2, 3)))
    noises = [read_noises(path) for path in noise_lists]
    rows = [find_noises(names, listed) for names, listed in zip((scrub, distractors), noises)]
    distractors = np.delete(np.array(distractors, object), rows[1]).tolist()
    if not distractors:
        raise UserError(f"{args.megaface_noises} leaves no distractor of {args.megaface_list}")
    identity = np.array([name.split("/")[0] for name in scrub])
    noisy = np.isin(np.arange(len(scrub)), rows[0])
    check_searches(identity, noisy, args.noisy_probes)
    with ranks() as world:
        features, network_input = read_or_embed(args, {"facescrub": scrub, "megaface": distractors}, world)
        if not world.main:
            return None
    probes, identity = without_noise(normalised(features["facescrub"]), identity, noisy, args.noisy_probes)
    results = megaface(probes, identity, normalised(features["megaface"]))
    results.noises = {}
    for kind, path, listed, found in zip(("facescrub", "megaface"), noise_lists, noises, rows):
        if path:
            results.noises[kind] = Noises(listed=len(listed), found=len(found))
            doubt = ": are they named as in the list, with suffix and folder?" if 2 * len(found) < len(listed) else ""
            say(f"{len(found)} of {len(listed)} noises in {path} are images of the {kind} list{doubt}")
    names = {count: f"rank-1, {int(count):,} distractors" for count in results.rank1} | tar_names(results.tar)
    print_rates("MegaFace", {**results.rank1, **results.tar}, results.interval, names=names)
    return write_results(args.output, args.name, megaface=results, **network_input)


if __name__ == "__main__":
    run(main)
