"""Images a second of the data pipeline, beside the usual ways, and of training: ``python -m benchmarks.throughput``.

Without arguments it runs on the synthetic data (which it prepares) and the quickstart's network.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # as a script, Python looks for modules beside it first: the rooms are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import results
from benchmarks.command import ROOT
from benchmarks.data import measure_data
from benchmarks.step import measure_step
from benchmarks.synthetic import synthetic_data
from pipelines.common.command import run


def main() -> None:
    """Measure, print the tables, write JSON and charts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set to read (default: the synthetic one)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/quickstart.yaml", help="whose step to measure")
    parser.add_argument("--batch", type=int, default=128, help="images a batch of the data pipeline")
    parser.add_argument("--image-size", type=int, default=112, help="side of the data pipeline's images in pixels")
    parser.add_argument("--cores", type=int, default=2, help="threads or worker processes of each way")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median is taken")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way of the data pipeline in a round")
    parser.add_argument("--output", type=Path, default=results.RESULTS, help="folder for JSON and charts")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the config")
    options = parser.parse_args()
    data = options.data or synthetic_data()
    device = "cuda" if results.machine()["gpu"] else "cpu"

    rows = measure_data(
        data,
        batch_size=options.batch,
        cores=options.cores,
        device=device,
        image_size=options.image_size,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    results.show(rows, f"data pipeline, {options.image_size} pixels, {options.cores} cores")
    path = results.save(f"data_{options.image_size}", rows, options.output)
    results.bar_chart(rows, "name", "images_per_second", "data pipeline", path.with_suffix(".png"))

    rows = measure_step(options.config, [f"data.train={data}", *options.overrides], rounds=options.rounds)
    results.show(rows, f"training step, {options.config.stem}")
    print(path, results.save("step", rows, options.output))


if __name__ == "__main__":
    run(main)
