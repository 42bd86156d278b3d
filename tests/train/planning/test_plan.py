"""The command, and plans of the published configs."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from pipelines.common.errors import UserError
from tests.command import called
from tests.train.planning.support import config
from train.config import load_config
from train.plan import main
from train.planning.data_sets import KNOWN, data_size
from train.planning.devices import links_of, named_device
from train.planning.plan import Cluster, make_plan, source_batch

CONFIGS = sorted(Path(__file__).resolve().parents[3].glob("configs/*.yaml"))
FEW = {"wf42m_vits_pfc03": [], "quickstart": [], "finetune_fewshot": ["model.name=r18"]}
OWN_DATA = ("quickstart", "finetune_fewshot", *(path.stem for path in CONFIGS if path.stem.startswith("celeba8k")))


def cluster(device="h100", ranks=8, between="ndr"):
    return Cluster(named_device(device), links_of(named_device(device), between), ranks)


def plan_of(path, overrides=(), **arguments):
    settled = load_config(path, overrides)
    size = data_size(settled, identities=126 if path.stem in OWN_DATA else None)
    return make_plan(settled, cluster(**arguments), size, made_for=source_batch(path), borders=False)


def check(path, overrides=()):
    plan = plan_of(path, overrides)
    assert plan.fits and plan.forecast.images_per_second > 1000
    if path.stem not in OWN_DATA:
        assert 0 < plan.days < 100
    json.dumps(plan.as_dict())


@pytest.mark.parametrize("name", FEW)
def test_some_configs_have_a_plan(name):
    check(next(path for path in CONFIGS if path.stem == name), FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_a_plan(path):
    check(path)


@pytest.fixture
def small(tmp_path):
    tree = {
        "data": {"train": "/nowhere/ms1mv3", "batch_size": 16},
        "model": {"name": "mbf", "input_size": 36, "checkpoint_activations": "auto"},
        "precision": "auto",
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "small.yaml"
    path.write_text("# Schedule: somebody's, 16 x 4 images.\n" + yaml.safe_dump(tree))
    return path


def printed(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.plan", *arguments])
    main()
    return capsys.readouterr().out


@pytest.fixture
def without_borders(monkeypatch):
    """The command without its search for the borders, which takes most of its time."""
    monkeypatch.setattr("train.plan.make_plan", partial(make_plan, borders=False))


def test_the_command_prints_a_plan(small, monkeypatch, capsys):
    where = ["--gpus", "2", "--nodes", "4", "--device", "a100"]
    text = printed(monkeypatch, capsys, "--config", str(small), *where, "data.batch_size=32")
    for words in (
        "tracing a step of mbf",
        "mbf on 8 x a100, 32 images a rank, 93,431 identities",
        "what fits",
        "images/s",
    ):
        assert words in text
    assert "the global batch is 256, that of the config's source 64" in text


def test_the_command_prints_json(without_borders, small, monkeypatch, capsys):
    where = ["--device", "v100", "--identities", "5000"]
    tree = json.loads(printed(monkeypatch, capsys, "--config", str(small), *where, "--json"))
    assert tree["device"] == "v100" and tree["ranks"] == 8 and tree["data"]["identities"] == 5000
    assert tree["memory"]["total"] == sum(tree["memory"]["parts"].values())
    assert tree["checkpoint_activations"] is False and isinstance(tree["tile"], int)
    assert tree["disk"] == 4 * tree["checkpoint"]


def test_a_config_that_comes_along_is_planned_by_its_name(without_borders, monkeypatch, capsys):
    tree = json.loads(printed(monkeypatch, capsys, "--config", "quickstart", "--identities", "10", "--json"))
    assert tree["data"]["identities"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h1000"], "h1000"),
        (["data.train=/nowhere/else"], "--identities N"),
        (["data.batchsize=3"], "batch_size"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(small, arguments, message):
    ended = called(main, "--config", small, *arguments)
    assert ended.code == 2 and message in ended.error and ended.error.count("\n") == 1


def test_identities_and_images_are_those_of_the_data_or_of_its_name(faces):
    def size(train, head=(), **given):
        return data_size(config({"name": "mbf"}, head, {"train": train}), **given)

    assert (size(str(faces)).identities, size(str(faces)).images) == (8, 96)
    assert size("/nowhere/wf42m") == KNOWN["wf42m"]
    assert size("/nowhere/wf12m_conflict/train.rec").identities == 1_017_970  # as its config's comment says
    assert size("/glint360k_disk/ms1mv3") == KNOWN["ms1mv3"]
    assert size("/nowhere/wf12m_conflict/train.rec", identities=7).identities == 7
    assert size(str(faces), {"num_classes": 30}).identities == 30
    assert size("/nowhere/else", {"num_classes": 30}).images is None
    with pytest.raises(UserError, match="--identities"):
        size("/nowhere/else")


def test_several_sets_have_the_identities_of_all_and_images_by_their_weights(faces, tmp_path):
    def size(*train):
        return data_size(config({"name": "mbf"}, data={"train": list(train)}))

    (tmp_path / "few.txt").write_text("00\n01\n")
    whole = size(str(faces))
    half = size({"path": str(faces), "weight": 0.5})
    assert (half.identities, half.images) == (whole.identities, whole.images // 2)
    assert size({"path": str(faces), "identities": str(tmp_path / "few.txt")}).identities == 2
    together = size("/nowhere/casia", {"path": "/nowhere/ms1mv3", "weight": 2})
    assert together.identities == KNOWN["casia"].identities + KNOWN["ms1mv3"].identities
    assert together.images == KNOWN["casia"].images + 2 * KNOWN["ms1mv3"].images
    with pytest.raises(UserError, match="--identities"):  # nobody knows how many they have in common
        size("/nowhere/casia", {"path": "/nowhere/ms1mv3", "labels": "shared"})


def test_the_sources_batch_stands_in_the_comment():
    batches = {path.stem: source_batch(path) for path in CONFIGS}
    assert batches["wf42m_vitl_pfc03"] == 384 * 64 and batches["ms1mv3_r50_onegpu"] == 128
    assert batches["quickstart"] is None


def test_warnings():
    def said(settled, **arguments):
        made_for = arguments.pop("made_for", None)
        size = data_size(settled, identities=arguments.pop("identities", 100_000))
        return " ".join(make_plan(settled, cluster(**arguments), size, made_for=made_for, borders=False).warnings)

    small = {"name": "mbf", "input_size": 36}
    assert "does not fit" in said(config(small, data={"batch_size": 200_000}))
    assert "links" in said(config(small), ranks=16, between="ethernet10")
    assert "optim.accumulate=4" in said(config(small), made_for=256)
    assert "decoding" in said(config(small, data={"batch_size": 512, "threads": 1}), ranks=1)
    assert "precision=fp16" in said(config(small, precision="bf16"), device="v100")
    assert "precision=fp16" not in said(config(small, precision="bf16"))
    few = replace(data_size(config(small), identities=8), images=63)
    for batch, expected in ((32, True), (31, False)):
        plan = make_plan(config(small, data={"batch_size": batch}), cluster(ranks=2), few, borders=False)
        assert expected == any("no run: a global batch of 64" in each for each in plan.warnings)


def test_disk_by_hand():
    onegpu = next(path for path in CONFIGS if path.stem == "ms1mv3_r50_onegpu")
    plan = plan_of(onegpu, ["model.name=r18"], ranks=1)
    trained = 24_025_088 + 512 * 93_431
    assert 8 * trained < plan.checkpoint < 1.001 * 8 * trained  # with the running statistics
    assert plan.steps == 20 * (5_179_510 // 128)
