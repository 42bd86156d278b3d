"""IJB-S, surveillance video: six pairings of probes and galleries, rank-k and TPIR at FPIR .01 and .1.

``python -m evaluate.ijbs --help``, alone or under torchrun. Images are aligned faces, laid out as AdaFace's evaluation
does: ``<subject>/videos_<video>_<frame>.jpg`` and ``<subject>/img_<number>.jpg``, without frames in which no face was
found. As there, mirror images are not embedded, an embedding's length counts, and a template is its images' mean.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.features.options import (
    add_cache_option,
    add_checkpoint_option,
    add_name_option,
    add_network_options,
    load_embedder,
)
from evaluate.features.ranks import ranks
from evaluate.features.sums import embedding_sums
from evaluate.protocols.identification import (
    mates,
    open_mates,
    rank_rates,
    resampled_open_set,
    resampled_ranks,
    search,
    tpir_at,
)
from evaluate.protocols.ijbs_lists import Medium, Pairing, medium_of, read_lists
from evaluate.protocols.resampling import draw
from evaluate.protocols.templates import NORMS
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import Identification
from evaluate.reporting.tables import print_rates
from evaluate.reporting.uncertainty import uncertainty
from evaluate.reporting.words import search_names
from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder
from pipelines.common.formats import is_image
from pipelines.common.json_output import add_json_option, only_json
from pipelines.sources.lists import ListSource

FPIRS = (0.01, 0.1)
_NEVER = np.iinfo(np.int64).max  # the rank of a mate that is not found


def find_mates(pairing: Pairing) -> list[np.ndarray]:
    """The place of each probe's mate, int64 (Q,), in both galleries as one, and in each; -1 where there is none.

    Raises ``UserError`` where there can be no figures of this pairing.
    """
    searching, subjects = pairing.probes.subject, [gallery.subject for gallery in pairing.galleries]
    joint = mates(searching, np.concatenate(subjects), "the galleries")
    return [joint, *(open_mates(searching, subject, f"gallery g{k}") for k, subject in enumerate(subjects, 1))]


def identification(pairing: Pairing, sums: np.ndarray) -> Identification:
    """The figures of a pairing, of the sums (M, d) of each medium's embeddings.

    Ranks are those in both galleries as one, of the probes that have a mate. TPIR is the mean of that in each gallery,
    of mates that come first. A probe without an image is never found. The probes' subjects are resampled, the galleries
    stay.
    """
    probes = pairing.probes.pool(sums)
    lost = ~probes.any(axis=1)
    vectors = [gallery.pool(sums) for gallery in pairing.galleries]
    searches = []
    for gallery, mate in zip([np.concatenate(vectors), *vectors], find_mates(pairing)):
        found = search(probes, gallery, mate)
        searches.append(replace(found, rank=np.where(lost & found.mated, _NEVER, found.rank)))
    joint, *each = searches
    rank, mated = joint.rank[joint.mated], joint.mated
    figures = rank_rates(rank)
    tpir = {f"{fpir:g}": float(np.mean([tpir_at(found, fpir) for found in each])) for fpir in FPIRS}
    _, unit = np.unique(pairing.probes.subject, return_inverse=True)
    signs = draw(unit.max() + 1)
    resampled = resampled_open_set(each, unit, signs, FPIRS) | resampled_ranks(rank, unit[mated], signs)
    searched, who = dict.fromkeys(resampled, len(np.unique(unit[mated]))), pairing.probes.subject.tolist()
    return Identification(
        **figures, tpir=tpir, **uncertainty(figures | tpir, resampled, "subjects", unit, signs, searched, who)
    )


def find_images(folder: Path, media: Mapping[Medium, int]) -> tuple[list[str], np.ndarray]:
    """The images of media that templates are made of, in order of subjects and names, and each one's medium, (n,)."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    paths: list[str] = []
    of: list[int] = []
    for subject in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
        for name in sorted(entry.name for entry in os.scandir(folder / subject)):
            medium = medium_of(subject, name) if is_image(name) else None
            if medium and medium in media:
                paths.append(os.path.join(folder, subject, name))  # noqa: PTH118  a str: there are millions
                of.append(media[medium])
    if not paths:
        raise UserError(f"{folder} holds no image of the lists: they are called <subject>/videos_<video>_<frame>.jpg")
    return paths, np.array(of, np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="aligned faces in a folder a subject")
    parser.add_argument("--lists", type=Path, required=True, help="the release's cs6_metadata.csv, probes, galleries/")
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--norm", choices=NORMS, default="keep", help="what becomes of an embedding's length")
    add_network_options(parser)
    add_cache_option(parser)
    add_name_option(parser)
    add_json_option(parser, "what results.json holds")
    args = parser.parse_args()
    with only_json(args.json) as tell:
        tell(evaluate(args))


def evaluate(args: argparse.Namespace) -> dict[str, Any] | None:
    """Judge the model, print and write what is found; returns what ``results.json`` holds, None but on one rank."""
    check_folder(args.output)
    lists = read_lists(args.lists)
    for name, pairing in lists.pairings.items():  # what the lists show is told before the long work
        try:
            find_mates(pairing)
        except UserError as error:
            raise UserError(f"{args.lists}, {name}: {error}") from None
    paths, of = find_images(args.data, lists.media)
    with ranks() as world:
        embed, network_input = load_embedder(args, world, flip=False)
        if world.main:
            say(f"{len(np.unique(of))} of {len(lists.media)} media have images, {len(paths)} in all")
        sums = embedding_sums(embed, ListSource(paths), of, len(lists.media), args.norm)
        if not world.main:
            return None
    found = {name: identification(pairing, sums) for name, pairing in lists.pairings.items()}
    for name, part in found.items():
        title = f"IJB-S {name.replace('_', ' ')}"
        print_rates(title, part.rates, part.interval, names=search_names(part.tpir))
    return write_results(args.output, args.name, input=network_input, flip=False, ijbs=found)


if __name__ == "__main__":
    run(main)
