"""The accuracy benchmark from its command to its files, and its figures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import sem

from benchmarks.accuracy import NETWORKS, QUICKSTART, ROWS, compare, is_config_of
from losses import create_margin
from train.config import load_config
from train.recipes import create_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_figures():
    folds, plain = np.random.default_rng(0).uniform(0.7, 0.9, (2, 3, 10))
    row = compare(folds, plain)
    assert row["accuracy"] == pytest.approx(100 * np.mean(folds))
    assert row["folds_std"] == pytest.approx(np.mean([100 * np.std(seed) for seed in folds]))
    assert row["spread"] == pytest.approx(np.std([100 * np.mean(seed) for seed in folds]) * 1.5**0.5)
    assert row["over_plain"] == pytest.approx(100 * np.mean(folds) - 100 * np.mean(plain))
    assert row["error"] == pytest.approx(100 * sem([np.mean(folds[:, i] - plain[:, i]) for i in range(10)]))
    assert compare(plain[:1], plain[:1])["over_plain"] == 0 and compare(plain[:1], plain[:1])["spread"] is None


def test_rows_can_be_built():
    assert list(dict.fromkeys(network for network, _ in ROWS.values())) == list(NETWORKS)
    for network, overrides in ROWS.values():
        config = load_config(ROOT / "configs/quickstart.yaml", [*NETWORKS[network], *overrides])
        create_margin(config.head.margin, **config.head.options)
        create_recipe(config.recipe.name, **config.recipe.options)


def benchmark(tmp_path, *arguments, lr=0.01):
    command = [sys.executable, ROOT / "benchmarks/accuracy.py", *arguments, "--runs", tmp_path / "runs"]
    command += ["--data", tmp_path / "faces", "--bins", tmp_path / "faces.bin", "--output", tmp_path]
    command += ["--override", "model={name: mbf, width: 0.1, input_size: 32}", "schedule={epochs: 1}"]
    command += ["data.batch_size=16", f"optim.lr={lr}"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def test_a_run_is_known_by_its_config_whatever_was_found_at_its_start(tmp_path):
    values = [f"data.train={tmp_path}", "precision=auto", "head.tile=auto", f"output={tmp_path / 'run'}"]
    ran = load_config(QUICKSTART, [*values, "precision=fp32", "head.tile=512"])
    kept = tmp_path / "config.yaml"
    kept.write_text(yaml.safe_dump(ran.model_dump(), sort_keys=False))
    assert is_config_of(kept, QUICKSTART, values)
    assert not is_config_of(kept, QUICKSTART, [*values, "optim.lr=0.3"])
    assert not is_config_of(kept, QUICKSTART, [*values, "precision=bf16"])


@pytest.mark.slow
def test_trains_verifies_and_compares(tmp_path):
    generator = np.random.default_rng(0)
    for identity in range(20):
        (tmp_path / "faces" / f"{identity:02d}").mkdir(parents=True)
        for image in range(3):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "faces" / f"{identity:02d}" / f"{image}.jpg")
    pairs = [sys.executable, "-m", "pipelines.prepare", "pairs", tmp_path / "faces", tmp_path / "faces.bin"]
    subprocess.run([*map(str, pairs), "--count", "20"], check=True, cwd=ROOT)

    result = benchmark(tmp_path, "plain", "rsp", "--jobs", "2")
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("accuracy_*.json")
    first, second = json.loads(path.read_text())["rows"]
    assert (first["row"], second["row"], first["set"]) == ("plain", "rsp", "faces")
    assert first["over_plain"] == 0 and 0 < first["accuracy"] <= 100 and first["images_per_second"] > 0
    assert second["over_plain"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert path.with_suffix(".png").exists()

    weights = tmp_path / "runs/plain_2048/model.pt"
    trained = weights.stat().st_mtime_ns
    assert benchmark(tmp_path, "plain").returncode == 0
    assert weights.stat().st_mtime_ns == trained, "a row that is there is only read"
    result = benchmark(tmp_path, "plain", lr=0.1)
    assert result.returncode == 2 and "plain_2048 holds a run of another config" in result.stderr
    result = benchmark(tmp_path, "plain", "--seeds", "-1")
    assert result.returncode == 2 and "plain_-1: " in result.stderr and "seed: " in result.stderr
    result = benchmark(tmp_path, "plane")
    assert result.returncode == 2 and "unknown row 'plane'" in result.stderr
