"""Configs: what a user may get wrong is named, and every shipped one is valid."""

from pathlib import Path

import pytest

from train.config import load_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {train: faces}\nmodel: {name: r18, dropout: 0.4}\noutput: runs/x\n")
    return path


def test_defaults_options_and_overrides(file):
    config = load_config(file, ["optim.lr=0.5", "head.s=32", "verify.bins=[lfw, a.bin]", "schedule.epochs=3"])
    assert (config.data.batch_size, config.optim.lr, config.verify.bins) == (128, 0.5, ["lfw", "a.bin"])
    assert config.model.options == {"dropout": 0.4} and config.head.options == {"s": 32}


@pytest.mark.parametrize(
    "override, words",
    [
        ("optim.lrr=1", "optim.lrr; did you mean optim.lr?"),
        ("optin.lr=1", "unknown key optin; did you mean optim?"),
        ("data.batchsize=1", "did you mean data.batch_size?"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=-1", "greater than 0"),
        ("schedule.name=linear", "'polynomial', 'cosine', 'step' or 'constant'"),
        ("schedule.milestones=[1]", "milestones belong to the schedule 'step'"),
        ("optim.lr", "section.key=value"),
        ("output.folder=x", "output is a value"),
    ],
)
def test_mistakes_are_named(file, override, words):
    with pytest.raises(ValueError, match=words.replace("[", r"\[").replace("?", r"\?")):
        load_config(file, [override])


def test_two_warm_ups(file):
    with pytest.raises(ValueError, match="not both"):
        load_config(file, ["schedule.warmup_steps=5", "schedule.warmup_epochs=1"])


@pytest.mark.parametrize(
    "text, words", [("a: [", "not YAML"), ("- 1", "sections"), ("data: {}", "data.train is missing")]
)
def test_broken_files(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path):
    assert load_config(path).output == f"runs/{path.stem}"
