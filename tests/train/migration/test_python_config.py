"""Configs as Python modules, read without running them: what is read is what running them would have set."""

import sys
from types import ModuleType

import pytest

from train.migration.python_config import read_config

MODULES = {
    "constants": """
        from easydict import EasyDict as edict
        config = edict()
        config.margin_list = (1.0, 0.5, 0.0)   # arcface
        config.network = "r50"
        config.output = None
        config.weight_decay = 5e-4
        config.val_targets = ['lfw', "cfp_fp"]
        config.interclass_filtering_threshold = -.4
        config.fp16 = not False
    """,
    "arithmetic": """
        import os
        from easydict import EasyDict as edict
        config = edict()
        root, scale = "/data/", 1
        scale += 2
        config.num_epoch = 40
        config.warmup_epoch = config.num_epoch // 10
        config.lr = 0.1 * 4 / 512 + 2 ** -3
        config["batch_size"] = scale * 128 % 100
        config.num_epoch *= 2
        config.rec = root + "ms1m"
        config.name = f"{config.rec}_{scale}"
        config.decay_epoch = [10, 2 * 11, config.num_epoch]
        config.first = config.decay_epoch[0]
    """,
    "dictionaries": """
        from easydict import EasyDict
        cfg = EasyDict({"lr": 0.1, "network": "r18"}, seed=7)
        config = cfg
        config.lr = 0.2
        config.extra = dict(a=1)
    """,
    "choices": """
        from easydict import EasyDict as edict
        config = edict()
        config.dataset = "glint360k"
        config.lr = 1 if config.dataset == "emore" else 2
        if config.dataset == "emore":
            config.num_classes = 85742
        elif config.dataset in ("glint360k", "webface") and config.lr > 1:
            config.num_classes = 360232
            config.decay_epoch = [8, 12, 15, 18]
        else:
            config.num_classes = 0
    """,
}


class EasyDict(dict):
    def __getattr__(self, name):
        return self[name]

    def __setattr__(self, name, value):
        self[name] = value


def written(tmp_path, text):
    path = tmp_path / "config.py"
    lines = text.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    path.write_text("\n".join(line[indent:] for line in lines))
    return path


@pytest.mark.parametrize("text", MODULES.values(), ids=list(MODULES))
def test_reading_is_running(tmp_path, monkeypatch, text):
    path = written(tmp_path, text)
    module = ModuleType("easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    run = {}
    exec(path.read_text(), run)
    found = read_config(path)
    assert found.values == run["config"]
    assert found.unread == []


def test_nothing_is_run(tmp_path):
    witness = tmp_path / "witness"
    path = written(tmp_path, f"open({str(witness)!r}, 'w').close()\nconfig.lr = open({str(witness)!r}, 'w')\n")
    found = read_config(path)
    assert not witness.exists()
    assert found.values == {} and [line.line for line in found.unread] == [1, 2]


def test_what_is_no_constant_is_told_by_line(tmp_path):
    text = """
        config.lr = 0.1
        config.batch_size = 128
        config.lr = float(os.environ["LR"])
        config.num_epoch = config.missing // 2
        for name in ("a", "b"):
            config.batch_size = 2
        if config.flag:
            config.seed = 1
        def schedule(epoch):
            return 1
        config.decay = lambda epoch: 1
    """
    found = read_config(written(tmp_path, text))
    assert found.values == {}  # lr and batch_size have other values then
    told = [(line.line, line.key) for line in found.unread]
    assert told == [(3, "lr"), (4, "num_epoch"), (5, "batch_size"), (7, "seed"), (9, None), (11, "decay")]


def test_a_later_constant_takes_the_place_of_what_was_not_understood(tmp_path):
    found = read_config(written(tmp_path, "config.lr = float('0.1')\nconfig.lr = 0.2\n"))
    assert found.values == {"lr": 0.2} and found.unread == []


BOMBS = {
    "power": "9 ** 9 ** 9",
    "text": "'x' * 10 ** 12",
    "format": "'%999999999d' % 1",
    "shift": "1 << 10 ** 9",
    "width": "f'{1:>999999999}'",
    "nested": "(" * 5000 + ")" * 5000,
    "list": "[0] * 10 ** 12",
}


@pytest.mark.parametrize("expression", BOMBS.values(), ids=list(BOMBS))
def test_no_file_makes_the_reader_compute_for_ever(tmp_path, expression):
    path = written(tmp_path, f"config.lr = {expression}\n")
    try:
        assert read_config(path).values == {}
    except ValueError as error:
        assert "is no Python config" in str(error)


def test_a_list_that_doubles(tmp_path):
    doubling = "x = [0, 0]\n" + "x = x + x\n" * 64 + "config.x = x\n"
    assert read_config(written(tmp_path, doubling)).values == {}


@pytest.mark.parametrize("content", [b"config.lr = = 3", b"\xff\xfe\x00", b"a\0b"])
def test_no_python(tmp_path, content):
    (tmp_path / "config.py").write_bytes(content)
    with pytest.raises(ValueError, match="config.py is no"):
        read_config(tmp_path / "config.py")
