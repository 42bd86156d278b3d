"""Which published rows a run stands beside."""

import re
from pathlib import Path

import pytest

from benchmarks.reproduced import label, named, of_config, other_settings, published
from train.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_row_is_what_its_config_trains():
    rows = [row for row in published() if "config" in row]
    assert len(rows) > 30
    for row in rows:
        assert row in of_config(load_config(CONFIGS / f"{row['config']}.yaml")), label(row)


def test_configs_and_rows_cite_the_same_figures():
    """The comment "Published with it" of a config, against the rows that name it."""
    cited = 0
    for path in CONFIGS.glob("*.yaml"):
        told = re.search(
            r"Published with it: IJB-C TAR ([\d.]+) % at FAR 1e-4, ([\d.]+) % at FAR 1e-5", path.read_text()
        )
        rows = [row["IJBC"] for row in published() if row.get("config") == path.stem and "IJBC" in row]
        if told and rows:
            figures = [(100 * row["0.0001"], 100 * row.get("1e-05", 0)) for row in rows]
            assert any(pair == pytest.approx([float(x) for x in told.groups()], abs=1e-9) for pair in figures), path
            cited += 1
    assert cited > 15


def test_a_run_elsewhere_on_other_ranks_is_the_same_network():
    kept = CONFIGS / "glint360k_r50_topofr.yaml"
    changed = ["data.train=/elsewhere/Glint360K", "data.batch_size=64", "model.compile=false", "head.tile=512"]
    (row,) = of_config(load_config(kept, changed))
    assert label(row) == "TopoFR · r50 · Glint360K" and other_settings(load_config(kept, changed), row) == []
    trained = load_config(kept, [*changed, "optim.lr=0.2", "schedule.epochs=3", "data.augment=flip"])
    assert other_settings(trained, row) == ["data.augment", "optim.lr", "schedule.epochs"]


@pytest.mark.parametrize(
    "change",
    ["data.train=/data/ms1mv2", "model.name=r100", "head.m=0.4", "head.sample_rate=0.3", "recipe.topology=0.2"],
)
def test_another_network_is_not_taken_for_it(change):
    kept = CONFIGS / "glint360k_r50_topofr.yaml"
    assert all(row["config"] != kept.stem for row in of_config(load_config(kept, [change])))


def test_rows_are_named_by_words():
    assert [label(row) for row in named("TOPOFR glint r200")] == ["TopoFR · r200 · Glint360K"]
    with pytest.raises(ValueError, match="no published row has all of 'topofr r51' in its name"):
        named("topofr r51")
