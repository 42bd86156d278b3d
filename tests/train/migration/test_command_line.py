"""AdaFace's command lines, read from a script: what argparse makes of them."""

import argparse
import shlex

import pytest

from train.migration.command_line import read_script

PARSER = """
    import argparse
    def get_args():
        parser = argparse.ArgumentParser()
        parser.add_argument('--data_root', type=str, default='')
        parser.add_argument('--use_16bit', action='store_true', help='half precision')
        parser.add_argument('--epochs', default=24, type=int, metavar='N')
        parser.add_argument('--lr_milestones', default='8,12,14', type=str)
        parser.add_argument('--h', default=0.0, type=float)
        parser.add_argument('--gpus', type=int, default=1)
        return parser
"""


def checkout(tmp_path, script, parser=PARSER):
    (tmp_path / "scripts").mkdir()
    path = tmp_path / "scripts" / "run.sh"
    path.write_text(script)
    if parser:
        lines = parser.strip("\n").splitlines()
        (tmp_path / "config.py").write_text("\n".join(line[4:] for line in lines))
    return path


ARGUMENTS = "--data_root '/my data' --use_16bit --epochs=3 --h 0.333"


def test_options_and_defaults(tmp_path):
    continued = ARGUMENTS.replace(" --h", " \\\n --h")
    script = f"#!/bin/sh\n# python main.py --epochs 1\ncd x\npython main.py \\\n  {continued}\n"
    found = read_script(checkout(tmp_path, script))
    scope = {}
    exec((tmp_path / "config.py").read_text(), scope)
    parser: argparse.ArgumentParser = scope["get_args"]()
    assert found.values == vars(parser.parse_args(shlex.split(ARGUMENTS)))
    assert found.unread == []


def test_variables_are_told(tmp_path):
    found = read_script(checkout(tmp_path, "ROOT=/data\npython3 ./main.py --data_root $ROOT --epochs 3\n"))
    assert [(line.line, line.key) for line in found.unread] == [(2, "data_root")]
    assert "data_root" not in found.values and found.values["epochs"] == 3


def test_without_the_parser_values_are_told_by_their_look(tmp_path):
    script = "python main.py --epochs 3 --use_16bit --lr 0.1 --arch ir_50\n"
    found = read_script(checkout(tmp_path, script, parser=None))
    assert found.values == {"epochs": 3, "use_16bit": True, "lr": 0.1, "arch": "ir_50"}


@pytest.mark.parametrize(
    "script, told",
    [
        ("echo\n", "main.py 0 times"),
        ("python main.py\npython main.py\n", "main.py 2 times"),
        ("python main.py stray\n", "'stray' is no option"),
        ("\npython main.py --epochs many\n", "line 2: --epochs many is no int"),
        ("python main.py --data_root 'open\n", "line 1: No closing quotation"),
    ],
)
def test_what_cannot_be_read(tmp_path, script, told):
    with pytest.raises(ValueError, match=told):
        read_script(checkout(tmp_path, script))
