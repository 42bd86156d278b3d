"""Configs as Python modules, read without running them: what is read is what running them would have set."""

import sys
from types import ModuleType

import pytest

from train.migration.python_config import ANY_KEY, read_config

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
    "updates": """
        from easydict import EasyDict as edict
        config = edict()
        config.lr = 0.1
        config.update(dict(network="r100", lr=0.4), batch_size=64)
        config.update({"num_epoch": 20, **{"seed": 3}})
        large = dict(lr=0.8)
        config.lr = 0.2
        config.update(large, **{"fp16": True})
        config.extra = dict(**large)
    """,
    "names": """
        from easydict import EasyDict as edict
        other = edict(lr=3)
        cfg = edict()
        config = cfg
        cfg.lr = 0.1
        other.lr = 4
        config["optim"] = dict(lr=other.lr)
        config["optim"]["lr"] += 1
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


IMPORTS = {
    "of the folder": "from configs.big import config",
    "relative": "from .big import config",
    "all": "from configs.big import *",
    "by a name": "from big import config as big\nconfig = big",
    "updated with": "from configs.big import config as big\nconfig = dict(lr=3)\nconfig.update(big)",
}


@pytest.mark.parametrize("lines", IMPORTS.values(), ids=list(IMPORTS))
def test_the_config_of_a_file_beside_it(tmp_path, lines):
    folder = tmp_path / "configs"
    folder.mkdir()
    big = "from configs.base import config\nconfig.network = 'r100'\nconfig.lr = 0.4\nconfig.seed = int('3')\n"
    (folder / "big.py").write_text(big)
    found = read_config(written(folder, lines + "\nconfig.batch_size = 64"))
    assert found.values == {"network": "r100", "lr": 0.4, "batch_size": 64}
    assert [(line.file, line.line, line.key) for line in found.unread] == [("big.py", 4, "seed")]


ANY = (
    "from configs.big import config",
    "from other.beside import config",
    "from configs.config import config",
    "from configs.beside import cfg as config",
    "config = load('big')",
    "config.update(load('big'))",
    "config.update([('lr', 1)])",
    "config |= load('big')",
    "setattr(config, 'lr', 1)",
    "vars(config).update(lr=1)",
    "for key in ('lr', 'seed'):\n    config[key] = 1",
    "try:\n    from configs.beside import config\nexcept ImportError:\n    pass",
    "class config:\n    lr = 1",
)


@pytest.mark.parametrize("statement", ANY)
def test_what_may_set_any_key_is_told(tmp_path, statement):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "beside.py").write_text("cfg = config = dict(lr=0.4)\n")
    found = read_config(written(folder, statement + "\nconfig.lr = 2\n"))
    assert [(line.line, line.key) for line in found.unread] == [(1, ANY_KEY)]


def test_what_only_reads_the_config_sets_nothing(tmp_path):
    lines = "config.lr = 1\nprint(config)\nprint(dict(config))\nos.makedirs(config.output)\nlr: float\n"
    found = read_config(written(tmp_path, lines))
    assert found.values == {"lr": 1} and {line.key for line in found.unread} == {None}


@pytest.mark.parametrize("change", ["config.sets.append('x')", "config.sets[0] = 'x'", "del config.sets", "sets.pop()"])
def test_lists_that_change_are_not_known_any_more(tmp_path, change):
    found = read_config(written(tmp_path, f"sets = ['lfw']\nconfig.sets = ['lfw']\n{change}\nconfig.val = sets\n"))
    told = [line.key for line in found.unread if line.key]
    assert (found.values, told) in (({"val": ["lfw"]}, ["sets"]), ({"sets": ["lfw"]}, ["val"]))


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
    "sum": "+".join(["1"] * 900) + "+ f()",
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
