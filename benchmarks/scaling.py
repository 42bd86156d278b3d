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

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.published_speed import PUBLISHED, PublishedSpeed
from pipelines.common.command import run
from train.config import Config, load_config
from train.planning.data_sets import DataSize, data_size
from train.planning.devices import BETWEEN, DEVICES, WITHIN, Device, links_of
from train.planning.plan import Cluster, Plan, make_plan

ROOT = Path(__file__).parents[1]
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
    rows = [
        [link.name, place, f"{link.rate / 1e9:g}", f"{link.share * link.rate / 1e9:g}", f"{link.latency * 1e6:g}"]
        for place, links in (("out of a GPU", WITHIN), ("out of a node", BETWEEN))
        for link in links.values()
    ]
    return table(("link", "", "GB/s", "reached", "µs a hop"), rows)


def plan_of(config: Config, device: Device, ranks: int, data: DataSize, between: str = "ndr") -> Plan:
    """A plan without the search for what fits."""
    return make_plan(config, Cluster(device, links_of(device, between), ranks), data, borders=False)


def part_seconds(plan: Plan) -> dict[str, float]:
    """Seconds of a step by what takes them: backbone, head, and the exchange that the device waits for."""
    parts = plan.forecast.parts
    backbone = sum(part.device for part in parts if part.name.startswith("backbone"))
    head = sum(part.device for part in parts if not part.name.startswith("backbone"))
    return {"backbone": backbone, "head": head, "links": plan.forecast.exposed}


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
    """The plan of every published config, on the number of GPUs that it is for, and on 8 of today's."""
    head = (
        "config",
        "GPUs x batch",
        "GiB",
        "GFLOP",
        "images/s",
        "days",
        "binds",
        "8 x batch",
        "GiB",
        "images/s",
        "days",
    )
    return table(head, (_config_row(path) for path in sorted((ROOT / "configs").glob("*.yaml"))))


def _config_row(path: Path) -> Cells:
    config = load_config(path)
    data = data_size(config)
    batch, ranks = config.data.batch_size, _made_for(path)
    cells = [path.stem]
    for number in (ranks, 8):
        plan = plan_of(config, DEVICES["h100"], number, data)
        speed = f"{plan.forecast.images_per_second:,.0f}"
        memory = f"{plan.memory.total / GIB:.1f}" + ("" if plan.fits else " (too much)")
        days = "–" if plan.days is None else f"{plan.days:.2f}"
        if len(cells) == 1:
            flops = sum(part.flops for part in plan.forecast.parts) / batch / config.optim.accumulate / 1e9
            cells += [f"{number} x {batch}", memory, f"{flops:,.0f}", speed, days, plan.forecast.binds]
        else:
            cells += [f"8 x {batch}", memory, speed, days]
    return cells


def _made_for(path: Path) -> int:
    """The number of GPUs of a config's source, from its comment: ``128 x 8 images``."""
    found = re.search(r"(\d+) x (\d+) images", path.read_text())
    return int(found[2]) if found else 1


# -- scale -------------------------------------------------------------------------------------------------------------


def scaled_plans() -> dict[tuple[int, float, int], Plan]:
    """Plans of one config by identities, sample rate and ranks, 128 images a GPU."""
    path = ROOT / "configs" / f"{SCALED}.yaml"
    plans = {}
    for identities, rate, ranks in product(IDENTITIES, RATES, RANKS):
        config = load_config(path, [f"head.sample_rate={rate}", "data.batch_size=128"])
        plans[identities, rate, ranks] = plan_of(config, DEVICES["h100"], ranks, DataSize(identities, None))
    return plans


def scale_table(plans: dict[tuple[int, float, int], Plan]) -> str:
    """What the chart shows, for some of its points: images/s and what takes most of a step; memory of a rank."""

    def cell(plan: Plan) -> str:
        seconds = part_seconds(plan)
        most = max(seconds, key=seconds.__getitem__)
        speed = f"{plan.forecast.images_per_second:,.0f} {most}" if plan.fits else "–"
        return f"{speed}, {plan.memory.total / GIB:.0f} GiB"

    shown = [ranks for ranks in RANKS if ranks in (1, 8, 64, 512)]
    rows = (
        [f"{identities / 1e6:g} M", f"{rate:g}", *(cell(plans[identities, rate, ranks]) for ranks in shown)]
        for identities, rate in product(IDENTITIES, RATES)
    )
    return table(("identities", "rate", *(f"{ranks} GPU{'s' * (ranks > 1)}" for ranks in shown)), rows)


def chart(plans: dict[tuple[int, float, int], Plan], path: Path) -> None:
    """Images a second, and the memory of a rank, against the number of GPUs; a line for each number of identities."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    markers, colours = {"backbone": "o", "head": "s", "links": "^"}, ("#3b6fb6", "#d9822b", "#3c8c4e")
    for (identities, colour), rate in product(zip(IDENTITIES, colours), RATES):
        line = [plans[identities, rate, ranks] for ranks in RANKS]
        label, style = f"{identities / 1e6:g} M identities, rate {rate:g}", "-" if rate == 1 else "--"
        memory = [plan.memory.total / GIB for plan in line]
        axes[1].plot(RANKS, memory, style, color=colour, marker=".", label=label)
        fitting = [(ranks, plan) for ranks, plan in zip(RANKS, line) if plan.fits]
        speeds = [plan.forecast.images_per_second for _, plan in fitting]
        axes[0].plot([ranks for ranks, _ in fitting], speeds, style, color=colour, label=label)
        for (ranks, plan), speed in zip(fitting, speeds):
            seconds = part_seconds(plan)
            marker = markers[max(seconds, key=seconds.__getitem__)]
            axes[0].plot(ranks, speed, marker, color=colour, markersize=5)
    for name, marker in markers.items():
        axes[0].plot([], [], marker, color="grey", label=f"most of the step: {name}")
    device = DEVICES["h100"]
    axes[1].axhline(device.memory / GIB, color="grey", linewidth=1)
    axes[1].annotate(
        f"memory of an {device.name}", (RANKS[-1], device.memory / GIB), ha="right", va="bottom", color="grey"
    )
    for axis, label in zip(axes, ("images/s, where it fits", "GiB of a GPU")):
        axis.set(xscale="log", yscale="log", xlabel="GPUs", ylabel=label)
        axis.set_xticks(RANKS, [str(ranks) for ranks in RANKS])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{SCALED.split('_')[1]}, 128 images a GPU, bf16, H100 with NVLink and InfiniBand NDR", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# -- the document ------------------------------------------------------------------------------------------------------


def with_table(text: str, name: str, content: str) -> str:
    """A document with the table between its marks ``<!-- name -->`` and ``<!-- end -->`` replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
    assert re.search(pattern, text, re.DOTALL), f"no place for the table {name}"
    return re.sub(pattern, lambda found: f"{found[1]}\n{content}\n{found[2]}", text, flags=re.DOTALL)


def scale() -> str:
    """The table of the scaled plans; draws their chart."""
    plans = scaled_plans()
    chart(plans, CHART)
    return scale_table(plans)


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
