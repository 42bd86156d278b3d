"""Move a run here: ``python -m train.migrate configs/ms1mv3_r50.py [section.key=value ...] [--checkpoint FOLDER]``.

Reads a config of arcface_torch, TransFace or TopoFR (a Python module, which is never run) or a script that runs
AdaFace, writes a config of ours, and prints what became of each key. With ``--checkpoint`` the run goes on from what it
has learnt: from all of it where its ranks saved their states (save_all_states), else with its weights and centres as
a start. docs/migrate.md has the whole move.
"""

import argparse
from pathlib import Path

from rich.console import Console

from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.files import check_file, replacing
from train.checkpoint import Checkpoints
from train.config import validated
from train.distributed import joined
from train.migration.checkpoint import find_saved, find_weights, write_checkpoint
from train.migration.document import table, tree_of, yaml_text
from train.migration.theirs import TRAINERS, read_theirs

_WIDTH = 160  # of the table where there is no terminal


def main() -> None:
    """Parse the command line, translate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="their config: configs/x.py, or scripts/run_x.sh of AdaFace")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that replace the migrated ones"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="their work_dirs/x: what the run has learnt")
    parser.add_argument("--out", type=Path, help="the config to write; the name of theirs, .yaml, in this folder")
    parser.add_argument("--trainer", choices=TRAINERS, help="told from the files around the config, if they are there")
    arguments = parser.parse_intermixed_args()
    out = arguments.out or Path(arguments.config.with_suffix(".yaml").name)
    if out.exists():
        raise UserError(f"{out} is there already: name another with --out")
    check_file(out)  # before a checkpoint is written, which the same command with another --out would find in its way

    theirs = read_theirs(arguments.config, arguments.trainer)
    saved = find_saved(arguments.checkpoint) if arguments.checkpoint else None
    if saved and saved.power:
        theirs.power, theirs.why = saved.power, f"as in {saved.files[0].name}"
    rows = theirs.rows()
    if arguments.checkpoint and not saved:
        rows.append(find_weights(arguments.checkpoint))
    tree = tree_of(rows, arguments.overrides)
    if "train" not in tree.get("data", {}):
        raise UserError(f"{arguments.config} names no data that could be read: add data.train=FOLDER")
    config = validated(tree, f"{arguments.config} as a config of ours")
    text = yaml_text(tree, rows, arguments.overrides, f"{theirs.path.name} of {theirs.trainer}, by train.migrate.")

    console = Console(markup=False, emoji=False, highlight=False)
    console.width = console.width if console.is_terminal else _WIDTH
    console.print(table(rows))
    if arguments.overrides:
        say(f"in the place of what stands above: {', '.join(arguments.overrides)}")
    if saved:
        with joined("cpu", config.dist.start_timeout):
            written = write_checkpoint(config, saved)
    with replacing(out) as temporary:
        temporary.write_text(text)
    say(f"wrote {out}")
    if saved:
        ranks = len(saved.files)
        say(f"wrote {written}: global_step {saved.global_step}, epoch {saved.epoch}, of {ranks} ranks")
        images = Checkpoints.meta(written, "images")["images"]
        batches = round(images // (config.data.batch_size * ranks) * config.schedule.epochs)
        if saved.total not in (None, batches):
            say(
                f"their schedule ends at global_step {saved.total}, by num_image; here images are counted ({images}), "
                f"and it ends at {batches}"
            )
        say(f"go on with: torchrun --nproc_per_node={ranks} train/run.py --config {out}")


if __name__ == "__main__":
    run(main)
