"""Configs of other trainers as configs of ours, by the command."""

import re
from pathlib import Path

import pytest

from tests.train.migration.theirs import checkout
from train.config import load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LINEAR = """
class PolynomialLRWarmup:
    def __init__(self, optimizer, warmup_iters, total_iters=5, power=1.0, last_epoch=-1):
        self.power = power
"""
SQUARE = """
class PolyScheduler:
    def __init__(self, optimizer):
        self.power = 2
"""


@pytest.fixture
def moved(migrate, tmp_path):
    """``moved(path, *arguments)`` migrates a config; returns ours, and what was printed."""

    def call(path, *arguments):
        out = tmp_path / "mine.yaml"
        printed = migrate(path, "--out", out, *arguments)
        return load_config(out), printed

    return call


def test_keys(moved, tmp_path):
    config, printed = moved(checkout(tmp_path, fp16=True, lr=0.2, sample_rate=0.3, dali=True, dali_aug=True))
    assert (
        config.data.paths_text == "/data/ms1mv3" and config.data.batch_size == 128 and config.data.augment == "arcface"
    )
    assert config.model.name == "r50" and config.model.embedding_size == 512
    assert config.head.margin == "arcface" and config.head.options == {
        "s": 64,
        "m": 0.5,
        "gradient": "straight_through",
    }
    assert config.head.sample_rate == 0.3 and config.head.num_classes == 93431
    assert (config.optim.name, config.optim.lr, config.optim.momentum, config.optim.clip) == ("sgd", 0.2, 0.9, 5)
    assert config.optim.weight_decay == 5e-4 and config.optim.accumulate == 1
    assert (config.schedule.name, config.schedule.epochs, config.schedule.warmup_epochs) == ("polynomial", 20, 0)
    assert config.verify.bins == ["lfw"] and config.verify.every_steps == 2000 and config.log.every_steps == 10
    assert (config.precision, config.seed, config.output) == ("bf16", 2048, "runs/mine")
    for key in ("rec", "margin_list", "num_image", "wandb_key", "fp16"):
        assert re.search(rf"^\s*{key} ", printed, re.MULTILINE)
    assert "secret" not in printed
    assert printed.count("log.sinks: jsonl") == 1 and printed.count("as above") == 1


# Published runs as their configs name them (facts of arcface_torch's and TransFace's repositories), and ours of them.
WF42M = {"margin_list": (1.0, 0.0, 0.4), "sample_rate": 0.3, "fp16": True, "num_epoch": 40, "warmup_epoch": 4}
WF42M |= {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.1, "batch_size": 384, "num_classes": 2059906}
CONFLICT = {"margin_list": (1.0, 0.0, 0.4), "sample_rate": 0.3, "fp16": True, "interclass_filtering_threshold": 0.4}
EMORE = {"network": "vit_b_dp005_mask_005", "fp16": True, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.1}
PUBLISHED = {
    "ms1mv3_r50_onegpu": ({"lr": 0.02, "fp16": True}, ()),
    "wf42m_vits_pfc03": (WF42M | {"network": "vit_s_dp005_mask_0"}, ()),
    "wf42m_vitb_pfc03": (WF42M | {"network": "vit_b_dp005_mask_005"}, ()),
    "wf12m_r50_conflict_filter": (CONFLICT | {"warmup_epoch": 2}, ()),
    "ms1mv2_vitb_transface": (EMORE | {"batch_size": 512, "num_epoch": 35, "warmup_epoch": 3}, ("FFT.py",)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_become_ours(moved, tmp_path, name):
    own, marks = PUBLISHED[name]
    config, _ = moved(checkout(tmp_path, marks=marks, scheduler=SQUARE, **own))
    ours = load_config(CONFIGS / f"{name}.yaml")
    assert config.model.name.partition("_dp005")[0] == ours.model.name
    options = ours.model.options
    if "005" in own.get("network", ""):
        options = options | {"mask_ratio": 0.1}  # what their code does, whatever the name says
    for option, value in options.items():
        assert config.model.options.get(option, value) == value
    assert config.head.options | {"gradient": None} == ours.head.options | {"gradient": None}
    for section in ("optim", "schedule", "recipe"):
        assert getattr(config, section) == getattr(ours, section)
    assert config.data.batch_size == ours.data.batch_size and config.precision == ours.precision
    assert config.head.sample_rate == ours.head.sample_rate and config.head.margin == ours.head.margin


@pytest.mark.parametrize("scheduler, power", [(LINEAR, 1), (SQUARE, 2), ("", 2), ("print(", 2), ("x = 1", 2)])
def test_the_power_is_the_checkouts(moved, tmp_path, scheduler, power):
    config, _ = moved(checkout(tmp_path, scheduler=scheduler))
    assert config.schedule.power == power


def test_topofr_has_its_own_loss_and_sampling(moved, tmp_path):
    config, printed = moved(
        checkout(tmp_path, marks=["GUM.py"], margin_list=(1.0, 0.0, 0.4), sample_rate=0.1, network="r100")
    )
    assert (config.recipe.name, config.data.augment, config.head.sample_rate) == ("topofr", "rsp", 1)
    assert config.head.margin == "arcface" and config.head.options == {"s": 64, "m": 0.5}
    assert config.recipe == load_config(CONFIGS / "ms1mv2_r100_topofr.yaml").recipe
    assert "never reads it" in printed


def test_the_trainer_may_be_named(moved, tmp_path):
    path = checkout(tmp_path, network="vit_l_dp005_mask_005", gradient_acc=4)
    config, _ = moved(path, "--trainer", "transface")
    assert config.model.name == "transface_l" and config.recipe.name == "transface"
    assert config.optim.accumulate == 1 and config.optim.clip == 5  # only arcface_torch reads gradient_acc


def test_a_config_without_its_base(moved, tmp_path):
    config, printed = moved(checkout(tmp_path, base={}, network="r18", optimizer="adamw", weight_decay=0.1))
    assert config.model.name == "r18" and config.optim.name == "adamw" and config.optim.weight_decay == 0.1
    assert "not beside the config" in " ".join(printed.split())


def test_keys_of_2021(moved, tmp_path):
    base = {"loss": "cosface", "network": "r18", "batch_size": 64, "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    config, printed = moved(checkout(tmp_path, base=base, warmup_epoch=-1, decay_epoch=[8, 14]))
    assert config.head.margin == "cosface" and config.head.options == {"s": 64, "m": 0.4}
    assert (config.schedule.name, config.schedule.milestones, config.schedule.gamma) == ("step", [8, 14], 0.1)
    assert config.schedule.warmup_epochs == 0 and "/ 512" in printed


def test_gradients_that_are_summed(moved, tmp_path):
    """A mean of 4 with 4 times the rate, a quarter of the decay and of the clip moves weights as their sum does."""
    config, _ = moved(checkout(tmp_path, gradient_acc=4, lr=0.1, weight_decay=4e-4))
    assert config.optim.accumulate == 4 and config.optim.lr == pytest.approx(0.4)
    assert config.optim.weight_decay == pytest.approx(1e-4) and config.optim.clip == 1.25


def test_no_rate_is_the_batchs_own_classes(moved, tmp_path):
    config, _ = moved(checkout(tmp_path, sample_rate=0.0))
    assert 0 < config.head.sample_rate < 1e-5


def test_adamw_does_not_see_the_size_of_a_gradient(moved, tmp_path):
    config, _ = moved(checkout(tmp_path, gradient_acc=4, optimizer="adamw", lr=0.001, weight_decay=0.1))
    assert (config.optim.lr, config.optim.weight_decay, config.optim.clip) == (0.001, 0.1, 1.25)


def test_adaface(moved, tmp_path):
    parser = """
parser.add_argument('--m', default=0.5, type=float)
parser.add_argument('--t_alpha', default=0.01, type=float)
parser.add_argument('--use_16bit', action='store_true')
parser.add_argument('--seed', default=42, type=int)
"""
    (tmp_path / "config.py").write_text(parser)
    script = tmp_path / "scripts" / "run.sh"
    script.parent.mkdir()
    script.write_text(
        "python main.py --data_root /data --train_data_path faces --prefix mine --use_16bit --gpus 2 --arch ir_101 \\\n"
        " --batch_size 512 --epochs 26 --lr_milestones 12,20,24 --lr 0.1 --head adaface --m 0.4 --h 0.333 \\\n"
        " --low_res_augmentation_prob 0.2 --weight_decay 1e-4\n"
    )
    config, _ = moved(script)
    ours = load_config(CONFIGS / "ms1mv2_r100_adaface.yaml")
    assert config.data.paths_text == "/data/faces" and config.data.batch_size == 256 and config.output == "runs/mine"
    assert config.head.margin == ours.head.margin
    assert config.head.options == {"m": 0.4, "h": 0.333, "s": 64, "t_alpha": 0.01}
    assert config.schedule == ours.schedule and config.data.augment == ours.data.augment
    assert config.optim == ours.optim and config.precision == "bf16"


RUN = "python main.py --train_data_path faces --head adaface"


def script(tmp_path, options):
    path = tmp_path / "run.sh"
    path.write_text(f"{RUN} {options}\n")
    return path


def test_adaface_without_its_parser(moved, tmp_path):
    """What is not given is what the published parser has, and the table says that there was none."""
    config, printed = moved(script(tmp_path, "--gpus 2 --batch_size 512"))
    assert config.optim.weight_decay == 5e-4 and [group.match for group in config.optim.groups] == ["norms"]
    assert config.precision == "fp32" and config.head.options == {"m": 0.5, "h": 0.0, "s": 64, "t_alpha": 0.01}
    assert config.schedule.epochs == 24 and config.schedule.milestones == [8, 12, 14]
    assert (config.data.batch_size, config.data.paths_text, config.model.name) == (256, "faces", "ir_18")
    assert config.optim.lr == 0.1 and config.optim.momentum == 0.9 and config.seed == 42
    assert re.search(r"config.py +None +- +not beside the script", printed)
    (tmp_path / "mine.yaml").unlink()
    (tmp_path / "config.py").write_text("parser.add_argument('--m', default=0.4, type=float)\n")
    config, printed = moved(script(tmp_path, ""))
    assert "not beside the script" not in printed
    assert config.optim.weight_decay == 5e-4 and len(config.optim.groups) == 1 and config.head.options["m"] == 0.4


@pytest.mark.parametrize(
    "low_res, crop, photometric, augment, noted",
    [(0, 0, 0, "flip", False), (0.2, 0.2, 0.2, "adaface", False), (0, 0.2, 0, "adaface", True)],
)
def test_adafaces_augmentation(moved, tmp_path, low_res, crop, photometric, augment, noted):
    options = {"low_res": low_res, "crop": crop, "photometric": photometric}
    config, printed = moved(
        script(tmp_path, " ".join(f"--{name}_augmentation_prob {value}" for name, value in options.items()))
    )
    assert config.data.augment == augment
    assert ("theirs are 0, 0.2, 0" in " ".join(printed.split())) == noted
    rows = [line for line in printed.splitlines() if "augmentation_prob" in line]
    assert len(rows) == 3 and all(("adaface" in row) == (augment == "adaface") for row in rows)


@pytest.mark.parametrize("options", ["--data_root $ROOT", "--gpus $N", "--lr_gamma $G", "--crop_augmentation_prob $P"])
def test_what_another_option_needs_is_told(moved, tmp_path, options):
    with pytest.raises(ValueError, match=r"run.sh, line 1: --\w+ \$"):
        moved(script(tmp_path, options))


def test_settings_of_an_update_and_of_an_import(moved, tmp_path):
    path = checkout(tmp_path, lines="config.update(dict(network='r100', lr=0.4))\n")
    config, _ = moved(path)
    assert (config.model.name, config.optim.lr, config.verify.bins) == ("r100", 0.4, ["lfw"])
    (tmp_path / "mine.yaml").unlink()
    path.rename(path.with_name("big.py"))
    path.write_text("from configs.big import config\nconfig.lr = 0.2\n")
    config, _ = moved(path)
    assert (config.model.name, config.optim.lr, config.verify.bins) == ("r100", 0.2, ["lfw"])


def test_overrides_are_written(moved, tmp_path):
    config, printed = moved(checkout(tmp_path), "data.train=/mine", "optim.lr=0.3", "model.compile=true")
    assert (config.data.paths_text, config.optim.lr, config.model.compile) == ("/mine", 0.3, True)
    assert "data.train=/mine, optim.lr=0.3, model.compile=true" in " ".join(printed.split())
    written = (tmp_path / "mine.yaml").read_text()
    assert "images a GPU, as theirs" in written  # what is said of a value of theirs is not said of another
    assert "the same folder" not in written and "for the whole batch, as theirs" not in written


FAULTS = {
    "no constant": ({"lines": "config.lr = float('0.1')\n"}, r"line \d+: config.lr = float"),
    "import": (
        {"lines": "from configs.x import config\n"},
        r"line \d+: from configs.x import config. Write the values",
    ),
    "setattr": ({"lines": "setattr(config, 'lr', 1)\n"}, r"mine.py, line \d+: setattr\(config, 'lr', 1\)"),
    "augmentation": ({"dali_aug": True, "lines": "config.dali = bool(1)\n"}, r"line \d+: config.dali = bool"),
    "network": ({"network": "r51"}, "unknown network 'r51'; did you mean 'r50'"),
    "margin": ({"margin_list": (1.35, 0.0, 0.0)}, "refused by their code"),
    "short margin": ({"margin_list": (1.0, 0.5)}, "margin_list = .* is no value"),
    "text": ({"warmup_epoch": "two"}, "warmup_epoch = 'two' is no value"),
    "optimizer": ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
    "synthetic": ({"rec": "synthetic"}, "add data.train=FOLDER"),
    "negative": ({"lr": -1}, "optim.lr: must be greater than 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_moved_is_told(moved, tmp_path, fault):
    given, told = FAULTS[fault]
    with pytest.raises(ValueError, match=told):
        moved(checkout(tmp_path, **given))
    assert not (tmp_path / "mine.yaml").exists()


def test_what_is_not_needed_need_not_be_constant(moved, tmp_path):
    _, printed = moved(checkout(tmp_path, lines="config.wandb_key = os.environ['KEY']\nprint(config)\n"))
    assert "not a constant, and not needed" in printed


def test_nothing_is_written_over(migrate, tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        migrate(checkout(tmp_path), "--out", out)
    assert out.read_text() == "mine"


def test_a_folder_without_states_is_a_start(moved, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ValueError, match="neither checkpoint_gpu_0.pt nor model.pt"):
        moved(checkout(tmp_path), "--checkpoint", work)
    (work / "model.pt").touch()
    config, printed = moved(checkout(tmp_path), "--checkpoint", work)
    assert config.model.init_from == str(work / "model.pt") and config.head.init_from is None
    assert "centres, which start anew" in " ".join(printed.split())
    (tmp_path / "mine.yaml").unlink()
    (work / "softmax_fc_gpu_0.pt").touch()
    config, _ = moved(checkout(tmp_path), "--checkpoint", work)
    assert config.head.init_from == str(work)
    (tmp_path / "mine.yaml").unlink()
    config, _ = moved(checkout(tmp_path), "--checkpoint", work / "model.pt")
    assert config.model.init_from == str(work / "model.pt") and config.head.init_from is None
