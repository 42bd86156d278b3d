"""The configs say what was published: each number of a table with sources, but for differences that are named there."""

import json
import re
from pathlib import Path

import pytest

from train.config import Config, load_config
from train.section import OpenSection

HERE = Path(__file__).resolve()
CONFIGS = {path.stem: path for path in HERE.parents[2].glob("configs/*.yaml")}
TABLE = json.loads(HERE.with_name("published_configs.json").read_text())


def comment_of(text):
    """What the comment of a config says in numbers, and the figures that it cites."""
    text = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    identities, images = re.search(r"\(([\d ]+) identities, ([\d ]+) images\)", text).groups()
    (gpus,) = re.findall(r"\d+ x (\d+) images", text)
    numbers = {
        "identities": int(identities.replace(" ", "")),
        "images": int(images.replace(" ", "")),
        "gpus": int(gpus),
    }
    figures = {f"IJB-C {far}": float(rate) for rate, far in re.findall(r"([\d.]+) % at FAR (1e-\d)", text)}
    figures |= {name: float(rate) for name, rate in re.findall(r"(LFW|CFP-FP|AgeDB-30) ([\d.]+) %", text)}
    return numbers, figures


def value_of(config, section, key):
    """A value of a config, or what an option is where the config is silent."""
    part = getattr(config, section)
    if isinstance(part, OpenSection) and key not in type(part).model_fields:
        options = type(part).options_of(getattr(part, part.chooser)).model_validate(part.options)
        return getattr(options, key)
    value = getattr(part, key)
    return [group.model_dump() for group in value] if key == "groups" else value


def differences(entry, config, numbers):
    """{section.key: (published, ours)} of all that is not the same."""
    found = {}
    for section, values in entry["published"].items():
        for key, published in values.items():
            ours = numbers[key] if section == "comment" else value_of(config, section, key)
            if ours != published:
                found[f"{section}.{key}"] = (published, ours)
    return found


def test_every_config_has_its_entry():
    assert TABLE["configs"].keys() | TABLE["unpublished"].keys() == CONFIGS.keys()
    assert not TABLE["configs"].keys() & TABLE["unpublished"].keys()
    assert {entry["source"] for entry in TABLE["configs"].values()} == TABLE["sources"].keys()
    assert all(re.fullmatch(r"[0-9a-f]{40}", source["commit"]) for source in TABLE["sources"].values())


@pytest.mark.parametrize("name", TABLE["configs"])
def test_a_config_says_what_was_published(name):
    """And what is not as published is in the table, with a reason, and in the comment."""
    entry, config, text = TABLE["configs"][name], load_config(CONFIGS[name]), CONFIGS[name].read_text()
    numbers, figures = comment_of(text)
    found = differences(entry, config, numbers)
    assert found.keys() == entry.get("differences", {}).keys(), found
    assert figures == entry.get("figures", {})
    assert f"{entry['source']}'s, {config.data.batch_size} x {numbers['gpus']} images" in text
    if "differences" in entry or "beyond_numbers" in entry:
        assert "Not as published: " in text
    for must in ("name", "lr", "weight_decay", "clip", "groups"):
        assert must in entry["published"]["optim"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("optim", "lr", 0.2),
        ("optim", "clip", None),
        ("head", "m", 0.3),
        ("model", "dropout", 0.1),
        ("recipe", "gather", 1),
    ],
)
def test_a_number_that_differs_is_found(section, key, value):
    entry = json.loads(json.dumps(TABLE["configs"]["ms1mv2_r50_topofr"]))
    entry["published"][section][key] = value
    config = load_config(CONFIGS["ms1mv2_r50_topofr"])
    assert isinstance(config, Config)
    assert list(differences(entry, config, entry["published"]["comment"])) == [f"{section}.{key}"]
