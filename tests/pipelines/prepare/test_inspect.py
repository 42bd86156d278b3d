"""Figures and pictures of a data set whose figures are known."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare import __main__ as prepare
from pipelines.prepare.summary import identity_sheet, in_words, summarise
from pipelines.sources.memory import MemorySource
from tests.pipelines.photos import encoded, write_folder


def plain(colour, form="JPEG", size=112, **options):
    return encoded(Image.new("RGB", (size, size), colour), form, **options)


def test_figures():
    images = [plain((10, 20, 30), "PNG"), plain((30, 20, 10), "PNG", 50), plain((20, 20, 20), quality=80), b"none"]
    found = summarise(MemorySource(images, np.array([0, 0, 0, 4])))
    assert (found["images"], found["identities"], found["classes"], found["unreadable"]) == (4, 2, 5, 1)
    assert found["images_per_identity"] == {"least": 1, "median": 2, "greatest": 3, "mean": 2}
    assert found["formats"] == {".png": pytest.approx(2 / 3), ".jpg": pytest.approx(1 / 3)}
    figures = in_words(found)
    assert figures["images"] == "4" and figures["identities"] == "2 of 5 classes"
    assert figures["images per identity"] == "1 to 3, median 2, mean 2.0"
    assert (figures["  1"], figures["  2 to 3"]) == ("1 identities", "1 identities")
    assert figures["looked into"] == "4 images, 1 of them unreadable"
    assert figures["formats"] == ".png (66.7 %), .jpg (33.3 %)"
    assert figures["width x height"] == "112 x 112 (66.7 %), 50 x 50 (33.3 %)"
    assert figures["JPEG quality"] == "80 to 80, median 80, mean 80.0"
    assert figures["mean of R, G, B"] == "20.0, 20.0, 20.0"
    assert figures["deviation of R, G, B"] == "8.2, 0.0, 8.2"  # the square root of 200 / 3
    none = in_words(summarise(MemorySource([b"none"], np.array([0]))))
    assert none["looked into"] == "1 images, 1 of them unreadable"
    assert summarise(MemorySource(images * 9, np.zeros(36, np.int64)), sample=5)["looked_into"] == 5


def test_sheet_has_a_row_for_each_identity():
    colours = {0: (250, 0, 0), 1: (0, 250, 0), 2: (0, 0, 250)}
    labels = np.array([0, 1, 2, 0, 1, 2, 2])
    images = [plain(colours[label], "PNG", size=40) for label in labels]
    images[4] = b"none"
    sheet = np.asarray(identity_sheet(MemorySource(images, labels), rows=5, columns=3))
    assert sheet.shape == (3 * 112, 3 * 112, 3)
    middles = sheet[56::112, 56::112]
    assert middles[0].tolist() == [[250, 0, 0], [250, 0, 0], [0, 0, 0]]
    assert sorted(middles[1].tolist()) == [[0, 0, 0], [0, 0, 0], [0, 250, 0]]
    assert middles[2].tolist() == [[0, 0, 250]] * 3
    assert np.asarray(identity_sheet(MemorySource(images, labels), rows=2, columns=1)).shape == (224, 112, 3)


def test_command(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "a <b>", {"x": 2, "y": 1})
    outputs = ["--sheet", f"{tmp_path}/s.png", "--html", f"{tmp_path}/p.html"]
    arguments = ["prepare", "inspect", f"{tmp_path}/a <b>", *outputs]
    monkeypatch.setattr(sys, "argv", arguments)
    prepare.main()
    assert "images per identity   1 to 2" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "--json"])
    prepare.main()
    printed, told = capsys.readouterr()
    figures = json.loads(printed)
    assert figures["identities_by_images"] == {"1": 1, "2 to 3": 1} and "images per identity   1 to 2" in told
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (2 * 112, 2 * 112)  # as wide as there are images
    page = (tmp_path / "p.html").read_text()
    assert "a &lt;b&gt;" in page and "112 x 112 (100.0 %)" in page and "data:image/png;base64,iVBOR" in page


def test_a_path_that_is_not_utf8_makes_a_page(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_folder(folder, {"x": 1})
    monkeypatch.setattr(sys, "argv", ["prepare", "inspect", str(folder), "--html", f"{tmp_path}/p.html"])
    prepare.main()
    assert "caf\\udce9</h1>" in (tmp_path / "p.html").read_text(encoding="utf-8")
