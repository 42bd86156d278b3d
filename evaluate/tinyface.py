"""TinyFace, rank-1, -5 and -20 among the distractors: ``python -m evaluate.tinyface --help``.

Images are to be aligned beforehand, as all are here; the published figures are of faces with some room around them.
"""

import argparse
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
from evaluate.protocols.embeddings import normalised
from evaluate.protocols.resampling import draw, rates
from evaluate.protocols.tinyface import RANKS, closed_set, read_lists
from evaluate.reporting.results import write_results
from evaluate.reporting.schema import TinyFace
from evaluate.reporting.tables import print_rates
from evaluate.reporting.uncertainty import uncertainty
from pipelines.common.command import run
from pipelines.common.files import check_folder
from pipelines.common.json_output import add_json_option, only_json
from pipelines.sources.lists import ListSource


def tinyface(
    probes: np.ndarray, mates: np.ndarray, distractors: np.ndarray, probe_person: np.ndarray, mate_person: np.ndarray
) -> TinyFace:
    """Figures of features (Q, d), (M, d) and (n, d), and of whom they show (Q,), (M,); people are resampled."""
    person = np.concatenate([mate_person, np.full(len(distractors), -1)])
    gallery = normalised(np.concatenate([mates, distractors]).astype(np.float64))
    rank = closed_set(normalised(probes.astype(np.float64)), gallery, probe_person, person)
    hits = rank[:, None] < np.array(RANKS)
    figures = {f"rank{k}": float(share) for k, share in zip(RANKS, hits.mean(axis=0))}
    _, unit = np.unique(probe_person, return_inverse=True)
    signs = draw(unit.max() + 1)
    resampled = dict(zip(figures, rates(hits, unit, signs).T))
    return TinyFace(
        probes=len(probes),
        mates=len(mates),
        distractors=len(distractors),
        **figures,
        **uncertainty(figures, resampled, "people", unit, signs, who=probe_person.tolist()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Probe/, Gallery_Match/ and Gallery_Distractor/")
    parser.add_argument("--lists", type=Path, help="folder of the release's two .mat lists; default: names tell")
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json")
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
    lists = read_lists(args.data, args.lists)
    with ranks() as world:
        embed, network_input = load_embedder(args, world)
        probes, mates, distractors = (
            embed(ListSource([str(path) for path in paths])).sum(axis=1)
            for paths in (lists.probes, lists.mates, lists.distractors)
        )
        if not world.main:
            return None
    found = tinyface(probes, mates, distractors, lists.probe_person, lists.mate_person)
    print_rates("TinyFace", found.rates, found.interval, names={f"rank{k}": f"rank-{k}" for k in RANKS})
    return write_results(args.output, args.name, input=network_input, tinyface=found)


if __name__ == "__main__":
    run(main)
