"""The formulas and tables of docs/scaling.md say what the planner's functions say."""

import re

import pytest

from benchmarks.scaling import ROOT, TABLES, _config_row, published_configs, with_table
from train.config import load_config
from train.planning.head import trace_head
from train.planning.network import trace_network
from train.planning.traffic import step_exchanges

TEXT = (ROOT / "docs" / "scaling.md").read_text()


def rows(name):
    """The cells of a table, below its head."""
    content = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)[1]
    lines = [line for line in content.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def value(formula, **symbols):
    """A formula of the page, such as 4·(B + Q)·d."""
    code = formula.replace("·", "*").replace("²", "**2").replace("−", "-")
    return eval(code, {"min": min}, symbols)


def config(*overrides, name="glint360k_r50"):
    return load_config(ROOT / "configs" / f"{name}.yaml", overrides)


EXCHANGES = {what: formula for what, _, formula, _ in rows("exchanges")}
KINDS = {what: kind for what, kind, _, _ in rows("exchanges")}
CASES = {
    "plain": ([], {}),
    "past embeddings": (["head={margin: broadface, queue_size: 40}"], {"Q": 40}),
    "a long queue": (["head={margin: broadface, queue_size: 4000}"], {"Q": 4000}),
    "large scale": (["head.s=100"], {}),
    "elasticface": (["head={margin: elasticface}"], {}),
    "uniface": (["head={margin: uniface}"], {}),
    "topofr": (["recipe={name: topofr, gather: true}"], {}),
    "contraface": (["recipe={name: contraface, gather: true}"], {}),
    "transface": (["recipe={name: transface}", "model.name=transface_s"], {}),
    "distill": (["recipe={name: distill, teacher: a.onnx}"], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formulas_of_exchanges(case):
    overrides, more = CASES[case]
    ranks, batch, parameters = 5, 12, 1234
    symbols = {"N": ranks * batch, "B": ranks * batch, "d": 24, "Q": 0, "P": parameters, "p": 112, **more}
    if case == "contraface":
        symbols["B"] *= 2
    run = config(*overrides, f"data.batch_size={batch}", "model.embedding_size=24")
    found = step_exchanges(run, ranks, parameters=parameters)
    for each in found:
        twice = 2 if case in ("topofr", "uniface") and each.name == "sums over the classes" else 1
        assert each.bytes == twice * value(EXCHANGES[each.name], **symbols), each.name
        assert each.collective == KINDS[each.name]
    assert {each.name for each in found} >= {what for what, *_, when in rows("exchanges") if when.startswith("always")}


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_the_formulas_of_memory(rule):
    formulas = dict(rows("memory"))
    run = config(f"optim.name={rule}", "optim.ema=0.999", "model.name=mbf", "model.embedding_size=64")
    rule = "sgd with momentum" if rule == "sgd" else rule
    head = trace_head(run, rows=64, num_classes=9000, gpu=True, tile=1024, ranks=4)["build"].left
    centres = {"c": 2250, "d": 64}
    assert head["centres"] == value(formulas["centres"], **centres)
    assert head["optimiser of the centres"] == value(formulas[f"optimiser of the centres, {rule}"], **centres)

    network = trace_network(run, 4, gpu=True, keep_gradients=True)
    left = network.phases["build"].left
    parts = {"weights": "weights", "gradients": "gradients, the buckets of DistributedDataParallel"}
    parts |= {"averaged weights": "averaged weights, with `optim.ema`", "optimiser": f"optimiser, {rule}"}
    for part, formula in parts.items():  # buffers of batch norms and counts of steps come to these
        assert left[part] == pytest.approx(value(formulas[formula], P=network.parameters), rel=0.05)


def test_the_products_of_the_head():
    numbers, tile, classes, width = 64, 1024, 9000, 64
    run = config("model.embedding_size=64")
    phases = trace_head(run, rows=numbers, num_classes=classes, gpu=True, tile=tile)
    flops = sum(work.flops for phase in phases.values() for work in phase.work)
    formula = re.search(r"2·d·B·\(5·k − 2·n\)", TEXT)[0]
    assert flops == value(formula, d=width, B=numbers, k=classes, n=tile)


@pytest.mark.parametrize("name", ["devices", "links"])
def test_tables_are_as_they_are_written(name):
    assert with_table(TEXT, name, TABLES[name]()) == TEXT


def test_the_table_of_configs():
    """Every config has its row; one is planned anew. What torch's versions trace differs a little."""
    written = {row[0]: row for row in rows("configs")}
    assert set(written) == {path.stem for path in published_configs()}
    fresh = _config_row(ROOT / "configs" / "ms1mv3_r50_onegpu.yaml")
    assert numbers(fresh) == pytest.approx(numbers(written["ms1mv3_r50_onegpu"]), rel=0.05)


def numbers(cells):
    return [float(found.replace(",", "")) for cell in cells[1:] for found in re.findall(r"\d[\d,]*\.?\d*", cell)]
