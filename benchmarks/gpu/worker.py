"""A part of the acceptance run in a process of its own: ``python -m benchmarks.gpu.worker PART SETTING REPORT``."""

import argparse
import importlib
import os
from pathlib import Path

# What `train.run` sets, too: on a CPU torch's threads share the cores with the decoding.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from benchmarks.gpu.part import Report, Setting
from pipelines.common.command import run


def main() -> None:
    """Run the part and tell its rows in the file REPORT, on the first of several ranks only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("setting", type=Setting.from_json)
    parser.add_argument("report", type=Path)
    arguments = parser.parse_args()
    first = os.environ.get("RANK", "0") == "0"
    if arguments.setting.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    module = importlib.import_module(f"benchmarks.gpu.{arguments.part}")
    module.run(Report(arguments.report if first else None), arguments.setting)


if __name__ == "__main__":
    run(main)
