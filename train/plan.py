"""Plan a run: ``python -m train.plan --config configs/x.yaml [section.key=value ...] [--gpus 8] [--device h100]``.

What a rank needs of memory, what fits, how long a step and the run take, and which part of the machine binds. A step is
traced without data, weights or a GPU. How fast the device is, its maker says or, with ``--device this``, short
measurements of this machine.
"""

import argparse

from rich.console import Console

from pipelines.common.command import at_least, run, say
from pipelines.common.json_output import add_json_option, only_json
from train.config import load_config
from train.planning.calibration import this_device
from train.planning.data_sets import data_size
from train.planning.devices import BETWEEN, DEVICES, WITHIN, links_of, named_device
from train.planning.plan import Cluster, make_plan, source_batch
from train.planning.report import tables
from train.shipped import find_config


def main() -> None:
    """Parse the command line, plan, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, help="YAML file of the run, or the name of a config that comes with Facemill"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parser.add_argument("--device", default="h100", help=f"{', '.join(DEVICES)}, or this: measured here")
    parser.add_argument("--gpus", type=at_least(1), help="of a node; 8, with --device this 1")
    parser.add_argument("--nodes", type=at_least(1), default=1)
    parser.add_argument("--link", default="ndr", choices=BETWEEN, help="between nodes")
    parser.add_argument("--within", choices=WITHIN, help="within a node; the device's own where it is not given")
    parser.add_argument("--identities", type=at_least(1), help="instead of the data's")
    parser.add_argument("--images", type=at_least(1), help="instead of the data's")
    add_json_option(parser, "bytes, seconds, FLOPs")
    arguments = parser.parse_args()
    with only_json(arguments.json) as tell:
        path = find_config(arguments.config)
        config = load_config(path, arguments.overrides)
        here = arguments.device == "this"
        gpus = arguments.gpus or (1 if here else 8)
        device = this_device() if here else named_device(arguments.device)
        cluster = Cluster(device, links_of(device, arguments.link, gpus, arguments.within), gpus * arguments.nodes)
        data = data_size(config, arguments.identities, arguments.images)
        say(f"tracing a step of {config.model.name}, which takes longer the deeper it is")
        plan = make_plan(config, cluster, data, made_for=source_batch(path), timed=device.name == "cpu")
        console = Console(markup=False, emoji=False, highlight=False)
        for part in tables(plan):
            console.print(part, soft_wrap=True)
        tell(plan.as_dict())


if __name__ == "__main__":
    run(main)
