import json
import sys

import numpy as np
import pytest
import torch

from evaluate import ijbs as command
from evaluate import report
from evaluate.features.embed import Embedder
from evaluate.features.network import load_network
from evaluate.features.ranks import World
from evaluate.ijbs import find_images, identification
from evaluate.protocols.identification import mates
from evaluate.protocols.ijbs_lists import Pairing, Templates, medium_of, read_lists
from evaluate.protocols.intervals import wilson
from pipelines.common.errors import UserError
from pipelines.sources.lists import ListSource
from tests.evaluate.ijbs_release import make_features, write_lists
from tests.evaluate.networks import write_onnx
from tests.pipelines.photos import jpeg

# Of AdaFace's validation_lq, commit c60eaa7, on the same lists and features: rank-1, -5, -10, TPIR at FPIR .01 and .1.
# Its pairings are five; the sixth, uav_to_single, is its `identification` called with its UAV probes and single stills.
PUBLISHED_CODE = {
    "surveillance_to_single": [0.24, 0.57, 0.77, 0.009433962404727936, 0.029506221413612366],
    "surveillance_to_booking": [0.38, 0.84, 0.94, 0.06382978707551956, 0.13348053395748138],
    "multiview_surveillance_to_booking": [
        0.7931034564971924,
        0.931034505367279,
        1,
        0.31904762983322144,
        0.31904762983322144,
    ],
    "surveillance_to_surveillance": [
        0.2874999940395355,
        0.699999988079071,
        0.8125,
        0.03822055086493492,
        0.10025063157081604,
    ],
    "uav_to_single": [
        0.3243243098258972,
        0.5945945978164673,
        0.8108108043670654,
        0.1264880895614624,
        0.1264880895614624,
    ],
    "uav_to_booking": [
        0.5675675868988037,
        0.7297297120094299,
        0.9189189076423645,
        0.0863095223903656,
        0.0863095223903656,
    ],
}


def test_is_the_published_code(tmp_path):
    images = write_lists(tmp_path)
    lists = read_lists(tmp_path)
    sums = np.zeros((len(lists.media), 12))
    for name, feature in zip(images, make_features(images)):
        medium = medium_of(*name.split("/"))
        if medium in lists.media:
            sums[lists.media[medium]] += feature
    for name, pairing in lists.pairings.items():
        found = identification(pairing, sums)
        rates = [found.rank1, found.rank5, found.rank10, *found.tpir.values()]
        assert rates == pytest.approx(PUBLISHED_CODE[name], abs=1e-6)
        for key, rate in found.rates.items():
            low, high = found.interval[key]
            assert low <= rate <= high and low < high


def test_a_probe_without_an_image_is_never_found():
    """Also where its mate is the gallery's first and all scores are equal, to zero."""
    rng = np.random.default_rng(0)
    sums = rng.standard_normal((8, 6))
    first, second = (Templates(np.arange(k, k + 2), np.arange(2), np.arange(k, k + 2)) for k in (0, 2))
    probes = Templates(np.arange(4), np.arange(4), np.array([7, 1, 2, 3]))
    sums[7] = 0
    found = identification(Pairing(probes, (first, second)), sums)
    assert found.rank1 == found.rank5 == found.rank10 == 0.75


def test_probes_without_a_mate_tell_nothing_of_those_that_have_one():
    sums = np.eye(24)
    first, second = (Templates(np.arange(k, k + 2), np.arange(2), np.arange(k, k + 2)) for k in (0, 2))
    probes = Templates(np.arange(24), np.arange(24), np.arange(24))
    found = identification(Pairing(probes, (first, second)), sums)
    assert found.rank1 == 1 and found.interval["rank1"] == pytest.approx(wilson(1, 4))


def test_a_subject_twice_in_the_galleries_has_no_one_mate():
    with pytest.raises(UserError, match="the galleries must hold one template a subject"):
        mates(np.array([1]), np.array([3, 1, 3]), "the galleries")
    assert mates(np.array([5, 3, 4]), np.array([3, 1, 5]), "").tolist() == [2, 0, -1]


def write_release(folder):
    for number, name in enumerate(write_lists(folder / "lists")):
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(int(name.partition("/")[0]) * 1000 + number % 7))
    (folder / "data/notes").mkdir()
    return write_onnx(folder / "n.onnx")


def test_command_to_a_page(tmp_path, monkeypatch, capsys):
    write_release(tmp_path)
    options = {"--data": "data", "--lists": "lists", "--checkpoint": "n.onnx", "--output": "out"}
    monkeypatch.setattr(sys, "argv", ["", *(x for k, v in options.items() for x in (k, str(tmp_path / v)))])
    command.main()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["ijbs"].keys() == PUBLISHED_CODE.keys() and not results["flip"]
    lists = read_lists(tmp_path / "lists")
    paths, of = find_images(tmp_path / "data", lists.media)
    features = one_by_one(tmp_path / "n.onnx", paths)
    sums = np.array([features[of == medium].sum(axis=0) for medium in range(len(lists.media))])
    for name, pairing in lists.pairings.items():
        found = identification(pairing, sums)
        assert results["ijbs"][name]["rank1"] == found.rank1 and results["ijbs"][name]["tpir"] == found.tpir
    assert (
        f"{len(np.unique(of))} of {len(lists.media)} media have images, {len(paths)} in all" in capsys.readouterr().out
    )
    monkeypatch.setattr(sys, "argv", ["", "--results", str(tmp_path / "out"), "--output", str(tmp_path / "page")])
    report.main()
    page = (tmp_path / "page/index.html").read_text()
    assert "Multiview surveillance to booking" in page and "ARoFace on AdaFace" in page


def one_by_one(network, paths):
    """Features (n, d) of the images, all kept."""
    model = load_network(network, None, torch.device("cpu"))
    return Embedder(model.model, 112, World(torch.device("cpu")), batch_size=5, threads=1, flip=False)(
        ListSource(paths)
    )[:, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [*lines, lines[-1].replace("img/", "img/9")], "the galleries must hold one template a subject"),
        (lambda lines: [line.replace(",", ",999", 1) for line in lines], "g1 has 15 templates, and a mate of 0 of 100"),
    ],
)
def test_what_the_lists_show_is_told_before_the_images_are_looked_for(tmp_path, monkeypatch, change, message):
    write_lists(tmp_path / "lists")
    path = tmp_path / "lists/galleries/cs6_surveillance_to_single_g1.csv"
    heading, *lines = path.read_text().splitlines()
    path.write_text("\n".join([heading, *change(lines)]))
    options = {"--data": "data", "--lists": "lists", "--checkpoint": "n.onnx", "--output": "out"}
    monkeypatch.setattr(sys, "argv", ["", *(x for k, v in options.items() for x in (k, str(tmp_path / v)))])
    with pytest.raises(UserError, match=f"lists, surveillance_to_single: .*{message}"):
        command.main()


def test_a_folder_without_their_images(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/face.jpg").write_bytes(jpeg(0))
    with pytest.raises(UserError, match="holds no image of the lists"):
        find_images(tmp_path, {(1, "img_1"): 0})
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_images(tmp_path / "2", {})
