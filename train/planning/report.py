"""A plan for people: tables for a terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from train.planning.plan import Plan

GIB = 2**30


def tables(plan: Plan) -> Iterator[Table | str]:
    """What to print, in order."""
    config, device = plan.config, plan.cluster.device
    yield (
        f"{config.model.name} on {plan.cluster.ranks} x {device.name}, {config.data.batch_size} images a rank, "
        f"{plan.data.identities:,} identities, {config.precision}"
    )
    yield _memory(plan)
    yield _fits(plan)
    yield _time(plan)
    yield _run(plan)
    yield from (f"warning: {warning}" for warning in plan.warnings)


def _memory(plan: Plan) -> Table:
    table = _table("memory of a rank", "GiB")
    for name, size in plan.memory.parts.items():
        if size >= 2**20:
            table.add_row(name, f"{size / GIB:.2f}")
    table.add_section()
    table.add_row(f"together, when most ({plan.memory.moment})", f"{plan.memory.total / GIB:.2f}")
    table.add_row(f"of {plan.cluster.device.name}", f"{plan.cluster.device.memory / GIB:.1f}")
    return table


def _fits(plan: Plan) -> str:
    lines = []
    if plan.keeping is not None and plan.recomputing is not None:
        lines.append(
            f"activations kept: {plan.keeping / GIB:.2f} GiB; computed again: {plan.recomputing / GIB:.2f} GiB "
            f"(checkpoint_activations is {str(plan.config.model.checkpoint_activations).lower()})"
        )
    if plan.largest_batch is not None and plan.most_identities is not None:
        lines.append(f"what fits: {plan.largest_batch:,} images a rank, or {plan.most_identities:,} identities")
    return "\n".join(lines)


def _time(plan: Plan) -> Table:
    expected = plan.forecast
    table = _table("a step of a rank", "TFLOP", "GB", "kernels", "device ms", "arithmetic", "host ms")
    for part in expected.parts:
        table.add_row(
            part.name,
            f"{part.flops / 1e12:.2f}",
            f"{part.bytes / 1e9:.2f}",
            f"{part.kernels:,.0f}",
            f"{1e3 * part.device:.2f}",
            f"{part.arithmetic / part.device if part.device else 0:.0%}",
            f"{1e3 * part.host:.2f}",
        )
    table.add_section()
    waits = {"waiting for links": expected.exposed, "links meanwhile": expected.hidden, "decoding": expected.decoding}
    for name, seconds in waits.items():
        table.add_row(name, "", "", "", f"{1e3 * seconds:.2f}", "", "")
    table.add_section()
    table.add_row("together", "", "", "", f"{1e3 * expected.step:.2f}", "", f"{1e3 * expected.host:.2f}")
    return table


def _table(first: str, *others: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)  # 80 columns are enough
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _run(plan: Plan) -> str:
    expected, disk = plan.forecast, (plan.config.checkpoint.keep + 1) * plan.checkpoint
    lines = [f"{expected.images_per_second:,.0f} images/s; bound by {expected.binds}"]
    if plan.days is not None and plan.steps is not None:
        length = f"{plan.days:.1f} days" if plan.days >= 2 else f"{24 * plan.days:.1f} hours"
        lines.append(f"{plan.config.schedule.epochs:g} epochs are {plan.steps:,} steps: {length}, without verification")
    lines.append(f"a checkpoint is {plan.checkpoint / GIB:.2f} GiB; the disk needs {disk / GIB:.1f} GiB")
    return "\n".join(lines)
