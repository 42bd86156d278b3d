"""Configs: what a user may get wrong is named, and every shipped one is valid."""

import os
import re
from pathlib import Path
from typing import get_args

import pytest

from losses import MARGINS
from models.registry import BACKBONES
from pipelines.common.errors import UserError
from train.config import Config, load_config
from train.keys import key_table
from train.sections.data import TrainingSet
from train.sections.head import Head, Stage
from train.sections.model import Lora, Model
from train.sections.optim import Group

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
        ("data.decode=nvjpeg", "data.decode: "),
        ("data.hw_decoder_load=1.1", "data.hw_decoder_load: "),
        ("optim.lr=fast", "optim.lr"),
        ("optim.lr=-1", "greater than 0"),
        ("schedule.name=linear", "'polynomial', 'cosine', 'step' or 'constant'"),
        ("schedule.milestones=[1]", "milestones belong to the schedule 'step'"),
        ("optim.lr", "section.key=value"),
        ("=1", "section.key=value"),
        ("output.folder=x", "output is a value"),
        ("optim=5", "optim must be a section of keys and values, not 5"),
        ("lr=1", "unknown key lr; did you mean optim.lr?"),
        ("epochs=3", "unknown key epochs; did you mean schedule.epochs?"),
        ("batch_size=3", "unknown key batch_size; did you mean data.batch_size?"),
        ("optim.learning_rate=1", "unknown key optim.learning_rate; did you mean optim.lr?"),
        ("optim.wd=1", "unknown key optim.wd; did you mean optim.weight_decay?"),
        ("head.dropout=0", "unknown key head.dropout; did you mean model.dropout?"),
        ("head.scale=3", "unknown key head.scale (options here: s, m, gradient, interclass_filter)"),
        ("head.marginn=arcface", "unknown key head.marginn; did you mean head.margin?"),
        ("recipe.topology=1", "unknown key recipe.topology"),
        (
            "head.margin=arcfase",
            "head.margin: unknown margin 'arcfase'; did you mean 'arcface'? known: arcface, cosface",
        ),
        ("model.name=r51", "model.name: unknown backbone 'r51'; did you mean 'r50'? known: r18, "),
        ("recipe.name=plane", "recipe.name: unknown recipe 'plane'; did you mean 'plain'?"),
        ("optim.name=sgdm", "optim.name: unknown optimizer 'sgdm'; did you mean 'sgd'? known: sgd, adamw"),
        (
            "optim.name=lbfgs",
            "optim.name: lbfgs evaluates a loss several times a step, which a step here does not offer",
        ),
        ("optim.betas=[0.9, 0.99]", "unknown key optim.betas"),
        ("optim={name: adamw, betas: 0.9}", "optim.betas: must be a valid tuple, not 0.9"),
        ("optim={name: adamw, betas: [0.9, 2]}", "optim: Invalid beta parameter at index 1: 2.0"),
        ("optim={name: adamw, fused: false}", "unknown key optim.fused"),
        ("optim={name: rprop}", "optim: rprop has no weight decay; set optim.weight_decay=0"),
        ("optim={name: []}", "optim.name: must be a valid string, not []"),
        ("optim={name: muon, ns_steps: 100}", "optim.ns_steps: must be less than 100, not 100"),
        ("head.warmup_epochs=400", "head.warmup_epochs is 400: in"),
        ("head.warmup_epochs=20", "head.warmup_epochs is 20: in 20 epochs"),
        ("optim={name: muon, adjust_lr_fn: mean}", "optim.adjust_lr_fn: must be 'match_rms_adamw' or 'original'"),
        ("head.tile=big", "head.tile: must be a valid integer or 'auto', not 'big'"),
        ("data.threads=0", "data.threads: must be greater than 0 or 'auto', not 0"),
        ("model.checkpoint_activations=maybe", "must be a valid boolean or 'auto', not 'maybe'"),
        ("head.optim.name=muon", "head.optim.name: must be 'sgd', 'adamw' or 'lion', not 'muon'"),
        ("head.optim.betas=[0.9, 0.99]", "head.optim.betas is nothing that sgd, the rule of the centres, knows"),
        ("head.optim={name: adamw, betas: [0.9, 1]}", "head.optim.betas.1: must be less than 1"),
        ("head.optim.nme=sgd", "unknown key head.optim.nme"),
        ("log.sinks=[json]", "log.sinks.0: unknown log sink 'json'; did you mean 'jsonl'?"),
        ("log.tensorboard=false", "log: the key tensorboard has become sinks: [jsonl, tensorboard], or [jsonl]"),
        (f"seed={2**63}", "seed: must be less than 9223372036854775808"),
        ("data.augment=flop", "data.augment: unknown augmentation 'flop'; did you mean 'flip'?"),
        ("optim.lr=.inf", "optim.lr: must be a finite number, not inf"),
        ("optim.lr=1e400", "optim.lr: must be a finite number"),
        ("schedule.epochs=.inf", "schedule.epochs: must be a finite number"),
        ("schedule={name: step, milestones: [.nan]}", "schedule.milestones.0: must be"),
        ("optim.weight_decay=.nan", "optim.weight_decay: must be a finite number, not nan"),
        ("optim.lr=true", "optim.lr: must not be true"),
        ("optim.groups=[norms]", "optim.groups.0 must be a section of keys and values, not 'norms'"),
        ("optim.groups=[{match: norms, decay: 0}]", "unknown key optim.groups.0.decay"),
        ("optim.groups=[{match: norms, weight_deacy: 0}]", "did you mean optim.groups.0.weight_decay?"),
        ("data.train=[{path: a, weigth: 2}]", "unknown key data.train.0.weigth; did you mean data.train.0.weight?"),
        ("head.optim.mometum=0", "unknown key head.optim.mometum; did you mean head.optim.momentum?"),
        ("model.lora={rnk: 4}", "unknown key model.lora.rnk; did you mean model.lora.rank?"),
        ("precision=int8", "precision: must be 'bf16', 'fp16', 'fp32' or 'auto', not 'int8'"),
        ("optim.groups=[{weight_decay: -1}]", "optim.groups.0.match is missing; optim.groups.0.weight_decay: must be"),
        ("seed=", "seed: must be a valid integer, not null"),
        ("head.m=.nan", "head.m: must be a finite number, not nan"),
        ("head.m=-1", "head.m: must be greater than or equal to 0, not -1"),
        ("head.m=null", "head.m: must be a valid number, not null"),
        ("head.m=[1]", "head.m: must be a valid number, not [1]"),
        ("head.m=half", "head.m: must be a valid number, unable to parse string as a number, not 'half'"),
        ("head.m=true", "head.m: must not be true"),
        ("head.s=0", "head.s: must be greater than 0, not 0"),
        ("head.interclass_filter=2", "head.interclass_filter: must be less than or equal to 1, not 2"),
        ("head={margin: broadface, queue_size: 1.5}", "head.queue_size: must be a valid integer"),
        ("head={margin: magface, l_a: 20, u_a: 10}", "head: norms must rise"),
        ("head={margin: gb_cosface, low: 0.9}", "head: the boundary's limits must rise"),
        ("model.width=0", "model.width: must be greater than 0, not 0"),
        ("model.se=2", "model.se: must be a valid boolean"),
        ("recipe={name: topofr, topology: -1}", "recipe.topology: must be greater than or equal to 0, not -1"),
        ("recipe={name: contraface, dropout: 1}", "recipe.dropout: must be less than 1"),
        ("verify.bins=lfw.bin", "verify.bins: must be a valid list, not 'lfw.bin'"),
        ("verify={bins: [a], bins: [b]}", "verify: line 1 gives the key bins a second time"),
        ("output=''", "output: must not be empty"),
        ("output=$FACEMILL_NOWHERE/a", "output: the variable FACEMILL_NOWHERE in $FACEMILL_NOWHERE/a is not set"),
        ("output=~nobody_of_this_name/a", "output: there is no home folder ~nobody_of_this_name"),
    ],
)
def test_mistakes_are_named(file, override, words):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        load_config(file, [override])
    assert str(file) in str(raised.value) or override.partition("=")[0] in str(raised.value)


@pytest.mark.parametrize("override", ["zzz=1", "head.zzz=1", "data.zzz=1"])
def test_nothing_near_nothing_suggested(file, override):
    with pytest.raises(ValueError, match="unknown key") as raised:
        load_config(file, [override])
    assert "did you mean" not in str(raised.value)


def test_numbers_as_yaml_reads_them(file):
    """YAML 1.1 takes 5e-1 for a string."""
    config = load_config(
        file, ["head={s: 64e0, m: 5e-1}", "model.width=1e-1", "recipe={name: topofr, topology: 1e-1}", "optim.lr=1e-3"]
    )
    assert config.head.options == {"s": 64, "m": 0.5} and config.optim.lr == 1e-3
    assert config.model.options == {"dropout": 0.4, "width": 0.1} and config.recipe.options == {"topology": 0.1}


@pytest.mark.parametrize(
    "section", [*(Head(margin=name) for name in MARGINS), *(Model(name=name) for name in BACKBONES)]
)
def test_every_number_of_every_option_is_bounded(section):
    """No option takes NaN, a list, or -1e9, and each takes its default."""
    options = type(section).options_of(getattr(section, section.chooser))
    for name, field in options.model_fields.items():
        assert options.model_validate({name: field.default})
        for wrong in (float("nan"), [1], -1e9):
            with pytest.raises(ValueError):
                options.model_validate({name: wrong})


def test_an_optimiser_that_the_centres_do_not_have(file):
    with pytest.raises(
        ValueError, match="yaml: class centres have no rule 'muon'; set head.optim.name to sgd or adamw or"
    ):
        load_config(file, ["optim.name=muon"])
    config = load_config(file, ["optim.name=muon", "head.optim.name=sgd", f"seed={2**63 - 1}"])
    assert (config.optim.name, config.centre_rule["algorithm"], config.seed) == ("muon", "sgd", 2**63 - 1)


@pytest.mark.parametrize(
    "optim, own, expected",
    [
        ("{lr: 2, weight_decay: 0.3}", "{}", dict(algorithm="sgd", lr=2.0, momentum=0.9, weight_decay=0.3)),
        ("{lr: 2}", "{lr: 0.25, momentum: 0, weight_decay: 0}", dict(lr=0.5, momentum=0, weight_decay=0)),
        ("{name: adamw, betas: [0.8, 0.9], eps: 0.1}", "{}", dict(algorithm="adamw", betas=(0.8, 0.9), eps=0.1)),
        ("{name: adamw, betas: [0.8, 0.9]}", "{betas: [0.7, 0.9], eps: 0.2}", dict(betas=(0.7, 0.9), eps=0.2)),
        ("{name: adamw, betas: [0.8, 0.9], eps: 0.1}", "{name: lion}", dict(algorithm="lion", betas=None, eps=None)),
    ],
)
def test_what_the_centres_take_of_the_backbone_s_optimiser(file, optim, own, expected):
    rule = load_config(file, [f"optim={optim}", f"head.optim={own}"]).centre_rule
    assert {key: rule.get(key) for key in expected} == expected


def keys_of(section, prefix=""):
    for name, field in section.model_fields.items():
        if name in section.sections():
            yield from keys_of(section.sections()[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description
        several = "[]" if "list[" in str(field.annotation) else ""
        for kind in (kind for kind in get_args(field.annotation) if kind in (Group, Lora, Stage, TrainingSet)):
            yield from keys_of(kind, f"{prefix}{name}{several}.")


def test_every_key_has_its_line_with_a_meaning():
    table = {line.split()[0]: line for line in key_table(Config).splitlines()}
    keys = dict(keys_of(Config))
    assert set(table) == {*keys, "model.*", "head.*", "recipe.*", "optim.*"}
    for key, meaning in keys.items():
        assert meaning and meaning in table[key], key
    assert table["schedule.name"].split()[1] == "polynomial" and "(polynomial, cosine, step" in table["schedule.name"]
    assert table["data.train"].split()[1] == "(required)" and table["verify.bins"].split()[1] == "[]"
    assert "one of r18, " in table["model.*"]


def test_empty_sections_mean_their_defaults(file):
    file.write_text(file.read_text() + "verify:\noptim:\n")
    assert load_config(file) == load_config(file, ["verify={}", "optim=null"])


def test_a_path_may_be_no_utf8(file):
    path = os.fsdecode(b"/data/caf\xe9")
    assert load_config(file, [f"data.train={path}"]).data.train[0].path == path


def test_paths_are_expanded(file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    keys = ["data.train", "output", "model.init_from", "head.init_from"]
    config = load_config(file, [*(f"{key}=~/a/$SCRATCH" for key in keys), "verify.bins=[lfw, '${SCRATCH}/a$.bin']"])
    found = [config.data.train[0].path, config.output, config.model.init_from, config.head.init_from]
    assert found == ["/home/me/a//scratch"] * 4
    assert config.verify.bins == ["lfw", "/scratch/a$.bin"]


def test_data_is_a_path_or_a_list_of_sets(file):
    short, listed = (load_config(file, [f"data.train={text}"]).data for text in ("/a", "[/a]"))
    assert short == listed and short.model_dump()["train"] == "/a"
    sets = ["/a", {"path": "/b", "weight": 2.5, "labels": "shared"}]
    data = load_config(file, ["data.train=[/a, {path: /b, weight: 2.5, labels: shared}]"]).data
    assert [entry.weight for entry in data.train] == [1, 2.5] and data.paths_text == "/a, /b"
    assert data.model_dump()["train"] == sets == load_config(file, [f"data.train={sets}"]).data.model_dump()["train"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("3", "data.train: must be a path or a list of data sets, not 3"),
        ("[]", "data.train: List should have at least 1 item"),
        ("[{weight: 2}]", "data.train.0.path is missing"),
        ("[/a, {path: /b, weight: 0}]", "data.train.1.weight: must be greater than 0, not 0"),
        ("[/a, {path: /b, wieght: 2}]", "unknown key data.train.1.wieght"),
        ("['']", "data.train.0.path: must not be empty"),
        ("[3]", "data.train.0 must be a section of keys and values, not 3"),
    ],
)
def test_a_mistake_in_the_list_of_sets(file, value, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load_config(file, [f"data.train={value}"])


def test_two_warm_ups(file):
    with pytest.raises(ValueError, match="not both"):
        load_config(file, ["schedule.warmup_steps=5", "schedule.warmup_epochs=1"])


@pytest.mark.parametrize(
    "content, words",
    [
        (b"a: [", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
        (b"[" * 2000, "nested too deeply"),
        (b"? [a]\n: b", "not valid YAML"),
        (b"a: !!int ''", "not valid YAML"),
        (b"a: !!bool x", "not valid YAML"),
        (b"- 1", "sections"),
        (b"", "sections"),
        (b"data: {}", "data.train is missing"),
        (b"1: 2", "1: Keys should be strings"),
        (b"\xff\xfe\x00", "no text"),
        (
            b"data: {train: a}\noutput: b\nmodel: {name: r18}\ndata: {threads: 2}\n",
            "line 4 gives the key data a second",
        ),
        (b"data: {train: a}\nmodel:\n  name: r18\n  name: r50\n", "line 4 gives the key name a second"),
    ],
)
def test_broken_files(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as raised:
        load_config(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", [".", "missing.yaml"])
def test_no_file(tmp_path, name):
    with pytest.raises(OSError, match=str(tmp_path)):
        load_config(tmp_path / name)


def test_a_mark_and_carriage_returns_of_windows(file):
    plain = load_config(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(file) == plain


def test_merged_keys_may_be_replaced(file):
    file.write_text("x: &x {lr: 1}\n" + file.read_text() + "optim: {<<: *x, lr: 2}\n")
    with pytest.raises(ValueError, match="unknown key x$"):
        load_config(file)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path):
    assert load_config(path).output == f"runs/{path.stem}"
