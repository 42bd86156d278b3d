import json
import sys

import numpy as np
import pytest

from evaluate import folders as command
from evaluate import report
from evaluate.protocols.all_pairs import compare
from evaluate.protocols.embeddings import normalised
from evaluate.reporting.schema import Thresholds
from pipelines.common.alignment import TEMPLATE
from pipelines.common.errors import UserError
from tests.evaluate.networks import write_onnx
from tests.pipelines.photos import encoded, jpeg, picture, write_folder


def evaluated(folder, monkeypatch, *options):
    network = write_onnx(folder / "n.onnx")
    arguments = [folder / "data", "--checkpoint", network, "--output", folder / "out", *options]
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    command.main()
    results = json.loads((folder / "out/results.json").read_text())
    monkeypatch.setattr(sys, "argv", ["", "--results", str(folder / "out"), "--output", str(folder / "page")])
    report.main()
    return results, (folder / "page/index.html").read_text()


def test_pairs_to_a_page(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "data", dict.fromkeys("abcdefgh", 3))
    results, page = evaluated(tmp_path, monkeypatch, "--far", "0.01", "1e-6")
    found = results["own_pairs"]
    assert (found["images"], found["people"], found["genuine"], found["impostor"]) == (24, 8, 24, 252)
    printed = capsys.readouterr().out
    assert "252 pairs of two people are too few for FAR 1e-6" in printed
    assert found["threshold_interval"] == {"0.01": None}
    assert "FAR 1e-2: fewer than 10 pairs of two people exceed the threshold" in " ".join(printed.split())
    assert "too few strangers</span>" in page and "fewer than 10 scores exceed the threshold" in page
    assert "Own people, 1:1" in page and "Most similar strangers" in found["confusions"]


def test_references_meet_the_others_only(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "data", {f"{name}__x": 3 for name in "abcdefgh"})
    for first in (tmp_path / "data").glob("*/*_0001.jpg"):
        first.rename(first.with_name("gallery.jpg"))
    results, _ = evaluated(tmp_path, monkeypatch, "--json")
    assert json.loads(capsys.readouterr().out.rpartition("written: ")[0]) == results  # then the report speaks
    found = results["own_pairs"]
    assert (found["genuine"], found["impostor"]) == (16, 8 * 14)


def test_gallery_to_a_page(tmp_path, monkeypatch):
    for kind in ("gallery", "probe"):
        write_folder(tmp_path / "data" / kind, dict.fromkeys("abc", 2))
    (tmp_path / "data/unknown").mkdir()
    for number in range(10):
        (tmp_path / f"data/unknown/{number}.jpg").write_bytes(jpeg(100 + number))
    results, page = evaluated(tmp_path, monkeypatch)
    found = results["own_gallery"]
    assert (found["gallery"], found["people"], found["probes"], found["unknown"]) == (6, 3, 6, 10)
    assert found["rank1"] == 1 and found["tpir"] == {"0.1": 1}  # the probes are the gallery's images
    assert "Own people, 1:N" in page


def test_photographs_are_aligned(tmp_path, monkeypatch, capsys):
    """Faces somewhere in photographs give the figures of the faces alone, and who has none is left out."""
    corners = {}
    for seed, name in enumerate(name for name in "abcdefgh" for _ in range(3)):
        face = picture(seed)
        corner = (11 * seed % 60, 7 * seed % 50)
        photograph = picture(100 + seed, size=180)
        photograph.paste(face, corner)
        corners[photograph.tobytes()] = complex(*corner)
        for kind, image in (("faces", face), ("photographs", photograph)):
            (tmp_path / kind / "data" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / "data" / name / f"{seed}.png").write_bytes(encoded(image, "PNG"))
    (tmp_path / "photographs/data/a/!.png").write_bytes(encoded(picture(99), "PNG"))  # the first

    def find(index, photograph):
        if photograph.tobytes() not in corners:
            raise UserError("no face is found in it")
        return TEMPLATE + corners[photograph.tobytes()]

    monkeypatch.setattr(command, "detector", lambda weights: find)
    wanted = evaluated(tmp_path / "faces", monkeypatch)[0]["own_pairs"]
    results, page = evaluated(tmp_path / "photographs", monkeypatch, "--align", "yunet.onnx")
    found = results["own_pairs"]
    assert (found["images"], found["impostor"]) == (24, 252)
    assert "1 of 25 photographs are left out, the first is" in capsys.readouterr().out
    assert found["threshold"] == pytest.approx(wanted["threshold"], abs=0.01)
    for title, confusions in wanted["confusions"].items():
        for one, other in zip(confusions, found["confusions"][title], strict=True):
            assert other["score"] == pytest.approx(one["score"], abs=0.01)
        first, other = confusions[0], found["confusions"][title][0]
        assert [path.split("/")[-2:] for path in first["images"]] == [path.split("/")[-2:] for path in other["images"]]
        assert first["people"] == other["people"]
    assert "confusions of" in page


def test_why_a_rate_has_no_threshold(capsys):
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(40), 3)
    found = compare(normalised(rng.standard_normal((120, 8))), person, fars=(0.001, 0.5), held=100)
    assert found.fars == (0.001,)
    told = Thresholds(threshold={"0.001": 0.5}, threshold_interval={"0.001": [0.4, 0.6]}, confusions={}, worst=None)
    command._tell_thresholds("FAR", told, (1e-6, 0.001, 0.5), found.impostors, "pairs of two people")
    printed = capsys.readouterr().out
    assert "7020 pairs of two people are too few for FAR 1e-6" in printed
    assert "FAR 5e-1 has no threshold: of 7020 pairs of two people only the highest scores are held" in printed


@pytest.mark.parametrize("far", ["0", "1", "one"])
def test_what_is_no_rate(far, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "d", "--checkpoint", "c", "--output", "o", "--far", far])
    with pytest.raises(SystemExit):
        command.parse_arguments()
    assert f"'{far}' is no rate between 0 and 1" in capsys.readouterr().err


def test_a_rate_given_twice_is_one(tmp_path, monkeypatch, capsys):
    """Each threshold keeps the interval that it has when its rate is asked for alone."""
    write_folder(tmp_path / "data", dict.fromkeys("abcdefgh", 3))
    wanted = {far: evaluated(tmp_path, monkeypatch, "--far", far)[0]["own_pairs"] for far in ("0.01", "0.1")}
    capsys.readouterr()
    found, _ = evaluated(tmp_path, monkeypatch, "--far", "1e-2", "0.1", "1e-6", "0.010000001", ".01", "1e-6")
    for field in ("tar", "threshold", "threshold_interval", "interval"):
        assert found["own_pairs"][field] == {far: one[field][far] for far, one in wanted.items()}
    assert "too few for FAR 1e-6\n" in capsys.readouterr().out


@pytest.mark.parametrize("there, other", [("gallery", "probes"), ("probe", "galery")])
def test_a_misspelt_folder_is_no_other_protocol(tmp_path, monkeypatch, there, other):
    """Their images lie flat, so that 1:1 would take the two folders for two people."""
    for kind in (there, other):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "data" / kind / f"{number}.jpg").write_bytes(jpeg(number))
    with pytest.raises(UserError, match=f"data holds {there}/ alone: 1:N needs gallery/ and probe/"):
        evaluated(tmp_path, monkeypatch)
    assert not (tmp_path / "out").exists()


FAULTS = {
    "pairs of one person": ({"a/1": 1, "b/1": 1}, "there are 0 pairs of one person and 1 of two: some of both"),
    "pairs of two people": ({"a/1": 1, "a/2": 1}, "there are 1 pairs of one person and 0 of two"),
    "too few pairs": ({"a/1": 1, "a/2": 1, "b/1": 1}, "there are 2 pairs of two people: the FARs that they tell"),
    "a probe of nobody": (
        {"gallery/a/1": 1, "gallery/b/1": 1, "probe/c/1": 1},
        "1 people of probe/ are not in gallery",
    ),
    "nobody to choose from": ({"gallery/a/1": 1, "probe/a/1": 1}, "gallery/ needs two images at least, it has 1"),
    "nobody unknown": (
        {"gallery/a/1": 1, "gallery/b/1": 1, "probe/a/1": 1, "unknown/notes": 0},
        "unknown holds neither",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_names_show_is_told_before_the_network_is_opened(tmp_path, monkeypatch, fault):
    names, message = FAULTS[fault]
    for name, image in names.items():
        path = tmp_path / "data" / f"{name}{'.jpg' * image}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(0))
    arguments = [tmp_path / "data", "--checkpoint", tmp_path / "none.onnx", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments)])
    with pytest.raises(UserError, match=message):
        command.main()


def test_people_without_a_face_in_the_gallery_are_left_out(tmp_path, monkeypatch, capsys):
    """One photograph without a face is no end of the run, and the figures are those of the others."""
    for kind in ("gallery", "probe"):
        for seed, name in enumerate("abc"):
            (tmp_path / "data" / kind / name).mkdir(parents=True)
            (tmp_path / "data" / kind / name / "1.png").write_bytes(encoded(picture(seed), "PNG"))
    hidden = encoded(picture(99), "PNG")
    (tmp_path / "data/gallery/c/1.png").write_bytes(hidden)

    def find(index, photograph):
        if photograph.tobytes() == picture(99).tobytes():
            raise UserError("no face is found in it")
        return TEMPLATE

    monkeypatch.setattr(command, "detector", lambda weights: find)
    results, page = evaluated(tmp_path, monkeypatch, "--align", "yunet.onnx")
    found = results["own_gallery"]
    assert (found["gallery"], found["people"], found["probes"], found["left_out"]) == (2, 2, 2, 2)
    assert found["rank1"] == 1
    printed = capsys.readouterr().out
    assert "1 photographs in probe/ are left out, of people without a face in gallery/: c\n" in printed
    assert "2 photographs are left out, in which no face is found, or none of their person" in page
    for name in "ab":
        (tmp_path / f"data/probe/{name}/1.png").unlink()
        (tmp_path / f"data/probe/{name}").rmdir()
    with pytest.raises(UserError, match="in gallery/ no face is found of anybody who is in probe/"):
        evaluated(tmp_path, monkeypatch, "--align", "yunet.onnx")


def test_help_names_the_rates_of_both_protocols(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit):
        command.parse_arguments()
    told = " ".join(capsys.readouterr().out.split())
    assert "default: 1e-6 1e-5 1e-4 1e-3 1e-2; or FPIRs of 1:N, default: 1e-4 1e-3 1e-2 1e-1" in told
