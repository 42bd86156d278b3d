"""docs/migrate.md knows every key that the command knows."""

import re

import pytest

from tests.docs.blocks import ROOT
from train.migration.adaface import ADAFACE
from train.migration.arcface_torch import ARCFACE_TORCH


@pytest.mark.parametrize("heading, keys", [("Keys of arcface_torch", ARCFACE_TORCH), ("AdaFace", ADAFACE)])
def test_all_keys_are_in_the_table(heading, keys):
    text = (ROOT / "docs/migrate.md").read_text()
    (section,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(cells))) == set(keys)
