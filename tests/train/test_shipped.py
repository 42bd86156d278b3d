"""Configs by name."""

import pytest

from pipelines.common.errors import UserError
from tests.test_architecture import ROOT
from train.config import load_config
from train.shipped import described, find_config


def test_a_name_is_a_shipped_config_wherever_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a run's, for example
    assert find_config("quickstart") == ROOT / "configs/quickstart.yaml"
    named, given = (load_config(path, ["seed=3"]) for path in ("quickstart", ROOT / "configs/quickstart.yaml"))
    assert named == given and named.seed == 3


def test_what_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("data: {train: mine}\nmodel: {name: r18}\noutput: runs\n")
    assert load_config("quickstart").data.train != load_config(ROOT / "configs/quickstart.yaml").data.train


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("quikstart", "did you mean 'quickstart'"),
        ("configs/quickstart.yaml", "there is no configs/quickstart.yaml; .* --config quickstart"),
        ("quickstart.yaml", "--config quickstart$"),
    ],
)
def test_what_is_not_there(config, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        load_config(config)
    with pytest.raises(FileNotFoundError):
        load_config("mine.yaml")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("# One. Two.\n# Three.\ndata: {}\n", "One. Two."),
        ("# One is\n# long. Two.\n# Three.\ndata: {}\n", "One is long."),
        ("# One is\n# all\ndata: {}  # a. b\n", "One is all"),
        ("data: {}\n", ""),
    ],
)
def test_what_a_config_is(config, says):
    assert described(config) == says
