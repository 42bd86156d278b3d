"""Scale on paper: what the planner says of devices, of published figures, of all configs, and of up to 512 GPUs.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --only configs

Writes the tables of docs/scaling.md and its chart; nothing is measured.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from benchmarks.command import ROOT
from benchmarks.published_speed import PUBLISHED, PublishedSpeed
from pipelines.common.command import run
from train.config import Config, load_config
from train.planning.border import fits
from train.planning.data_sets import DataSize, data_size
from train.planning.devices import BETWEEN, DEVICES, WITHIN, Device, Link, links_of
from train.planning.forecast import forecast
from train.planning.network import trace_network
from train.planning.plan import Cluster, Plan, make_plan, source_batch
from train.planning.step import Setting, StepTrace, fixed_memory, trace_classifier

DOCUMENT, CHART = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.png"
SCALED = "wf42m_r100_pfc02"  # the config of the chart
RANKS = (1, 8, 16, 32, 64, 128, 256, 512)
IDENTITIES = (1_000_000, 10_000_000, 100_000_000)
RATES = (1.0, 0.1)

Cells = list[str]
GIB, MIB = 2**30, 2**20


def table(head: Sequence[str], rows: Iterable[Cells]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [head, [":--", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def device_table() -> str:
    """The devices of the planner."""

    def row(device: Device) -> Cells:
        tera = [f"{device.flops[name] / 1e12:g}" if name in device.flops else "–" for name in ("bf16", "fp16", "fp32")]
        shares = [f"{share:.0%}" for share in (device.matmul_share, device.conv_share, device.memory_share)]
        return [
            device.name,
            f"{device.memory / GIB:.1f}",
            *tera,
            f"{device.bandwidth / 1e9:,.0f}",
            *shares,
            device.link,
            str(device.cores),
        ]

    head = ("device", "GiB", "bf16", "fp16", "fp32", "GB/s", "products", "convolutions", "memory", "link", "cores")
    return table(head, map(row, DEVICES.values()))


def link_table() -> str:
    """The links of the planner."""

    def row(link: Link, out_of: str) -> Cells:
        reached = f"{link.share * link.rate / 1e9:g}"
        return [link.name, out_of, f"{link.rate / 1e9:g}", reached, f"{link.latency * 1e6:g}"]

    rows = [row(link, "a GPU") for link in WITHIN.values()]
    rows += [row(link, "a node" if link.shared else "a node, for each GPU") for link in BETWEEN.values()]
    return table(("link", "out of", "GB/s", "reached", "µs a hop"), rows)


# -- published figures -------------------------------------------------------------------------------------------------


def published_table() -> str:
    """The published figures beside the planner's."""
    head = ("whose", "backbone", "GPUs x batch", "identities", "rate", "images/s", "planned", "ratio", "MiB", "planned")
    return table(head, map(_published_row, PUBLISHED))


def _published_row(figure: PublishedSpeed) -> Cells:
    device, links = figure.place()
    plan = make_plan(
        figure.load(), Cluster(device, links, figure.gpus), DataSize(figure.identities, None), borders=False
    )
    speed, needed = plan.forecast.images_per_second, plan.memory.total / MIB
    memory = ["–", f"{needed:,.0f}"] if figure.memory is None else [f"{figure.memory / MIB:,.0f}", f"{needed:,.0f}"]
    return [
        figure.source,
        f"{figure.backbone}",
        f"{figure.gpus} {figure.device.replace('_pcie', ' PCIe')} x {figure.batch}",
        f"{figure.identities:,}",
        f"{figure.sample_rate:g}",
        f"{figure.images_per_second:,.0f}",
        f"{speed:,.0f}",
        f"{speed / figure.images_per_second:.2f}",
        *memory,
    ]


# -- configs -----------------------------------------------------------------------------------------------------------


def config_table() -> str:
    """The plan of every published config, on the number of GPUs that it is for, and on 8."""
    head = ("config", "GPUs x batch", "GFLOP", "GiB", "images/s", "hours", "binds", "on 8: GiB", "images/s", "hours")
    return table(head, map(_config_row, published_configs()))


def published_configs() -> list[Path]:
    """All but those for processors, and fine-tuning, whose network and data are the user's."""
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    return [path for path in paths if load_config(path).device == "cuda" and path.stem != "finetune_fewshot"]


def _config_row(path: Path) -> Cells:
    config = load_config(path)
    data, device, batch = data_size(config), DEVICES["h100"], config.data.batch_size
    ranks = (source_batch(path) or batch) // batch
    plans = {
        number: make_plan(config, Cluster(device, links_of(device), number), data, borders=False)
        for number in {ranks, 8}
    }
    parts = plans[ranks].forecast.parts
    flops = sum(part.flops for part in parts) / batch / config.optim.accumulate / 1e9
    first, on_eight = _config_cells(plans[ranks]), _config_cells(plans[8])
    return [path.stem, f"{ranks} x {batch}", f"{flops:,.0f}", *first, plans[ranks].forecast.binds, *on_eight]


def _config_cells(plan: Plan) -> Cells:
    memory = f"{plan.memory.total / GIB:.1f}" + ("" if plan.fits else " (too much)")
    return [memory, f"{plan.forecast.images_per_second:,.0f}", "–" if plan.days is None else f"{24 * plan.days:.1f}"]


# -- scale -------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A line of the chart."""

    identities: int
    rate: float
    between: str = "ndr"

    @property
    def name(self) -> str:
        """For the legend."""
        links = "" if self.between == "ndr" else f", {self.between}"
        return f"{self.identities / 1e6:g} M identities, rate {self.rate:g}{links}"


CASES = (*(Case(*of) for of in product(IDENTITIES, RATES)), Case(IDENTITIES[0], 1.0, "ethernet25"))


class Point(NamedTuple):
    """A step of a case on some ranks.

    Attributes:
        seconds: by what takes them: backbone, head, and the exchange that the device waits for.
        memory: bytes of a rank.
    """

    images_per_second: float
    seconds: dict[str, float]
    memory: int
    fits: bool

    @property
    def most(self) -> str:
        """What takes most of the step."""
        return max(self.seconds, key=self.seconds.__getitem__)


def scaled() -> dict[Case, list[Point]]:
    """A point for each number of ranks; the backbone's part of a step is the same in all of them."""
    device = DEVICES["h100"]
    config = load_config(ROOT / "configs" / f"{SCALED}.yaml", ["data.batch_size=128"])
    networks = {several: trace_network(config, 128, gpu=True, keep_gradients=several) for several in (False, True)}
    points: dict[Case, list[Point]] = {case: [] for case in CASES}
    for case, ranks in product(CASES, RANKS):
        of_case = load_config(
            ROOT / "configs" / f"{SCALED}.yaml", ["data.batch_size=128", f"head.sample_rate={case.rate}"]
        )
        setting = Setting(True, device.memory, ranks, case.identities)
        head, fixed = trace_classifier(of_case, setting), fixed_memory(of_case, setting)
        trace = StepTrace(networks[ranks > 1], head, fixed)
        points[case].append(_point(of_case, setting, trace, device, case.between))
    return points


def _point(config: Config, setting: Setting, trace: StepTrace, device: Device, between: str) -> Point:
    expected = forecast(config, setting, trace, device, links_of(device, between))
    seconds = {"backbone": 0.0, "head": 0.0, "links": expected.exposed}
    for part in expected.parts:
        seconds["backbone" if part.name.startswith("backbone") else "head"] += part.device
    return Point(expected.images_per_second, seconds, trace.memory.total, fits(trace, setting))


def scale_table(points: dict[Case, list[Point]]) -> str:
    """What the chart shows, for some numbers of GPUs."""
    shown = [RANKS.index(ranks) for ranks in (1, 8, 64, 512)]

    def cell(point: Point) -> str:
        speed = f"{point.images_per_second:,.0f} {point.most}" if point.fits else "–"
        return f"{speed}, {point.memory / GIB:.0f} GiB"

    rows = ([case.name, *(cell(line[place]) for place in shown)] for case, line in points.items())
    return table(("", *(f"{RANKS[place]} GPU{'s' * (place > 0)}" for place in shown)), rows)


def chart(points: dict[Case, list[Point]], path: Path) -> None:
    """Images a second of a GPU, and its memory, against the number of GPUs."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    markers = {"backbone": "o", "head": "s", "links": "^"}
    colours = dict(zip(IDENTITIES, ("#3b6fb6", "#d9822b", "#3c8c4e")))
    for case, line in points.items():
        style = ":" if case.between != "ndr" else "-" if case.rate == 1 else "--"
        drawn = dict(linestyle=style, color=colours[case.identities])
        if case.between == "ndr":
            axes[1].plot(RANKS, [point.memory / GIB for point in line], **drawn)
        fitting = [(ranks, point) for ranks, point in zip(RANKS, line) if point.fits]
        speeds = [point.images_per_second / ranks for ranks, point in fitting]
        axes[0].plot([ranks for ranks, _ in fitting], speeds, label=case.name, **drawn)
        for (ranks, point), speed in zip(fitting, speeds):
            axes[0].plot(ranks, speed, markers[point.most], color=colours[case.identities], markersize=5)
    for name, marker in markers.items():
        axes[0].plot([], [], marker, color="grey", label=f"most of a step: {name}")
    memory = DEVICES["h100"].memory / GIB
    axes[1].axhline(memory, color="grey", linewidth=1)
    axes[1].annotate("memory of an H100", (RANKS[-1], memory), ha="right", va="bottom", color="grey")
    speeds_shown, memory_shown = (100, 200, 500, 1000, 2000, 3000), (10, 20, 50, 100, 200, 400)
    labels = "images/s of a GPU, where the step fits", "GiB of a GPU"
    for axis, label, ticks in zip(axes, labels, (speeds_shown, memory_shown)):
        axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel=label)
        axis.set_xticks(RANKS, [str(ranks) for ranks in RANKS])
        axis.set_yticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


# -- the document ------------------------------------------------------------------------------------------------------


def with_table(text: str, name: str, content: str) -> str:
    """A document with the table between its marks ``<!-- name -->`` and ``<!-- end -->`` replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
    assert re.search(pattern, text, re.DOTALL), f"no place for the table {name}"
    return re.sub(pattern, lambda found: f"{found[1]}\n{content}\n{found[2]}", text, flags=re.DOTALL)


def scale() -> str:
    """The table of what the chart shows; draws the chart, too."""
    points = scaled()
    chart(points, CHART)
    return scale_table(points)


TABLES: dict[str, Callable[[], str]] = {
    "devices": device_table,
    "links": link_table,
    "published": published_table,
    "configs": config_table,
    "scale": scale,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), help="some of the tables")
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="the document whose tables are written")
    args = parser.parse_args()
    for name in args.only:
        content = TABLES[name]()
        args.output.write_text(with_table(args.output.read_text(), name, content))
        print(content)


if __name__ == "__main__":
    run(main)
