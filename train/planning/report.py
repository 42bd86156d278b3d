"""A plan for people: tables for a terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from train.planning.plan import Plan

MIB, GIB = 2**20, 2**30


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
    needed, own = plan.memory, plan.cluster.device
    unit, divisor = ("GiB", GIB) if needed.total > 2 * GIB else ("MiB", MIB)
    table = _table("memory of a rank", unit)
    for name, size in needed.parts.items():
        if size >= MIB:
            table.add_row(name, _number(size / divisor))
    table.add_section()
    table.add_row(f"together, when most ({needed.moment})", _number(needed.total / divisor))
    table.add_row(f"of {own.name}", _number(own.memory / divisor))
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
    table = _table("a step of a rank", "GFLOP", "GB", "kernels", "ms", "arithmetic", "host ms")
    for part in expected.parts:
        table.add_row(
            part.name,
            _number(part.flops / 1e9),
            _number(part.bytes / 1e9),
            f"{part.kernels:,.0f}",
            _number(1e3 * part.device),
            f"{part.arithmetic / part.device if part.device else 0:.0%}",
            _number(1e3 * part.host),
        )
    table.add_section()
    waits = {"waiting for links": expected.exposed, "links meanwhile": expected.hidden, "decoding": expected.decoding}
    for name, seconds in waits.items():
        table.add_row(name, "", "", "", _number(1e3 * seconds), "", "")
    table.add_section()
    table.add_row("together", "", "", "", _number(1e3 * expected.step), "", _number(1e3 * expected.host))
    return table


def _table(first: str, *others: str) -> Table:
    """Names on the left, numbers on the right."""
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)  # 80 columns are enough
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _run(plan: Plan) -> str:
    expected = plan.forecast
    lines = [f"{expected.images_per_second:,.0f} images/s; bound by {expected.binds}"]
    if plan.days and plan.steps:
        length = f"{plan.days:.1f} days" if plan.days >= 2 else f"{24 * plan.days:.1f} hours"
        lines.append(f"{plan.config.schedule.epochs:g} epochs are {plan.steps:,} steps: {length}, without verification")
    lines.append(f"a checkpoint is {plan.checkpoint / GIB:.2f} GiB; the disk needs {plan.disk / GIB:.1f} GiB")
    return "\n".join(lines)
