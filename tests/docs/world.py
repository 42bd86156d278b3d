"""What the pages presuppose, in small: faces, networks, runs, benchmarks in their releases' layouts, by their names."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy.io import savemat
from torch import nn

from benchmarks.face_ijb import write_faces
from evaluate import overlap, verification
from models import create_model
from models.onnx_file import export_onnx
from pipelines.loading.loader import read_once
from pipelines.prepare import __main__ as prepare
from pipelines.sources import open_source
from pipelines.sources.bins import read_bin
from pipelines.synthetic.dataset import make_dataset
from tests.command import called
from tests.conftest import SHARED
from tests.docs.blocks import ROOT
from tests.evaluate.ijbs_release import write_lists
from tests.train.migration.theirs import BASE, OWN, module, save_ranks
from train import run as train_run

SIDE = 32  # of the images that the small networks take


class World:
    """A folder in which each thing is made when it is first asked for: ``world("lfw.bin")`` is its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str) -> Path:
        """Raises ``KeyError`` for what nothing here makes."""
        path = self.folder / name
        if not path.exists():
            make = next((make for pattern, make in MAKERS.items() if re.fullmatch(pattern, name)), None)
            if make is None:
                raise KeyError(f"nothing here makes {name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            make(self, path)
        return path

    def lay(self, name: str, folder: Path) -> None:
        """Copy it to where a page has it."""
        found, place = self(name), folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, place, dirs_exist_ok=True)
        else:
            shutil.copy(found, place)

    @property
    def faces(self) -> Path:
        """Rendered faces as RecordIO, and pairs of others."""
        folder = self.folder / "rendered"
        make_dataset(folder, identities=40, images_per_identity=6, held_out=20, processes=1)
        return folder

    @property
    def images(self) -> list[list[bytes]]:
        """The encoded faces of each identity."""
        source = open_source(self.faces)
        people: list[list[bytes]] = [[] for _ in range(source.num_classes)]
        for content, label in zip(*source.read(np.arange(len(source)))):
            people[label].append(content.tobytes())
        return people


def shrunk(config: dict) -> dict:
    """A config with a small network, small batches, one epoch and one verification set, for a processor."""
    config["data"] |= {"train": config["data"]["train"].lstrip("/"), "batch_size": 8}
    config["schedule"] |= {"epochs": 1, "warmup_epochs": 0}
    config |= {"device": "cpu", "precision": "auto"}  # many a processor has no bf16
    if bins := config.get("verify", {}).get("bins"):
        config["verify"]["bins"] = bins[:1]
    model = config["model"]
    convolutional = re.match(r"r\d", model["name"])
    model |= {"name": "r18", "width": 0.125, "input_size": SIDE} if convolutional else {"input_size": 36}
    model |= {"compile": False, "embedding_size": 16}
    return config


def write_configs(folder: Path) -> None:
    """All published configs, shrunk; the quickstart's network is small."""
    folder.mkdir(parents=True)
    for path in (ROOT / "configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        if path.stem == "quickstart":
            config["data"]["batch_size"] = 16
        else:
            config = shrunk(config)
        if path.stem == "ms1mv3_r50_onegpu":  # which a page gives another network, that has no width
            config["model"] = {"name": "r18", "input_size": SIDE, "embedding_size": 16}
        (folder / path.name).write_text(yaml.safe_dump(config))


class Teacher(nn.Module):
    """Small images less their mean, projected at random: to a network without training all faces are one person's."""

    def __init__(self, data: Path) -> None:
        super().__init__()
        source = open_source(data)
        batches = read_once(source, np.arange(len(source)), batch_size=64, image_size=SIDE, threads=1)
        mean = torch.cat([batch.images for batch in batches]).mean(0)
        self.register_buffer("mean", nn.functional.avg_pool2d(mean, 4))
        self.project = nn.Linear(self.mean.numel(), 32, bias=False)
        nn.init.orthogonal_(self.project.weight, generator=torch.Generator().manual_seed(0))
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project((nn.functional.avg_pool2d(images, 4) - self.mean).flatten(1))


def detector(world: World, path: Path) -> None:
    """OpenCV's YuNet, which cannot be made here."""
    weights = SHARED / "faces/weights/yunet_n_640_640.onnx"
    if not weights.is_file():
        pytest.skip("no detector beside the checkout")
    shutil.copy(weights, path)


def photographs(count: int) -> Callable[[World, Path], None]:
    """A maker of real faces of so many people, as the detector finds none in rendered ones."""

    def make(world: World, path: Path) -> None:
        folder = SHARED / "faces/celeba297"
        if not folder.is_dir():
            pytest.skip("no photographs beside the checkout")
        people = sorted(person for person in folder.iterdir() if person.is_dir() and len(list(person.iterdir())) >= 6)
        for person in people[:count]:
            (path / person.name).mkdir(parents=True)
            for image in sorted(person.iterdir())[:6]:
                shutil.copy(image, path / person.name)

    return make


def people(count: int) -> Callable[[World, Path], None]:
    """A maker of a folder ``identity/*.jpg`` of so many people."""

    def make(world: World, path: Path) -> None:
        for number, images in enumerate(world.images[:count]):
            (path / f"person{number}").mkdir(parents=True)
            for image, content in enumerate(images):
                (path / f"person{number}/{image}.jpg").write_bytes(content)

    return make


def landmarks(world: World, path: Path) -> None:
    """Lines as the page says; the rendered faces are aligned, so five fixed points will do."""
    points = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"
    images = [f"people/person{number}/{image}.jpg" for number in range(40) for image in range(6)]
    path.write_text("".join(f"{image} {points}\n" for image in images))


def training_set(world: World, path: Path) -> None:
    """RecordIO of two images a person, with the usual verification sets beside it."""
    make_dataset(path, identities=40, images_per_identity=2, held_out=20, processes=1)
    for name in ("lfw", "cfp_fp", "agedb_30"):
        shutil.copy(path / "heldout.bin", path / f"{name}.bin")


def shards(world: World, path: Path) -> None:
    """WebDataset."""
    ended = called(prepare.main, "convert", world.faces, path, "--to", "webdataset")
    assert ended.code == 0, ended.error


def run(world: World, path: Path) -> None:
    """A finished run of the quickstart's network, of so many steps that its embeddings differ in length."""
    values = [
        f"data.train={world.faces}",
        "data.batch_size=16",
        "schedule.epochs=8",
        "verify.bins=[]",
        f"output={path}",
    ]
    ended = called(train_run.main, "--config", ROOT / "configs/quickstart.yaml", *values)
    assert ended.code == 0, ended.error


def weights(name: str, **options: object) -> Callable[[World, Path], None]:
    """A maker of a backbone's state dict."""

    def make(world: World, path: Path) -> None:
        torch.manual_seed(0)
        torch.save(create_model(name, 16, SIDE, **options).state_dict(), path)

    return make


def timm_weights(world: World, path: Path) -> None:
    timm = pytest.importorskip("timm")
    save_file(timm.create_model(path.stem).state_dict(), path)


def ijb(world: World, path: Path) -> None:
    """The lists and loose crops of a release; IJB-B's have other names."""
    write_faces(path, world("few_people"))
    if path.name == "IJBB":
        (path / "IJBC").rename(path / "IJBB")
        for old in (path / "IJBB/meta").iterdir():
            old.rename(old.with_name(old.name.replace("ijbc", "ijbb").replace("_G1", "_S1").replace("_G2", "_S2")))


def tinyface(world: World, path: Path) -> None:
    """``aligned`` with its three folders, and the two lists of ``Testing_Set``."""
    for folder, chosen in {"Probe": slice(0, 1), "Gallery_Match": slice(1, 3)}.items():
        names = []
        (path / "aligned" / folder).mkdir(parents=True)
        for number, images in enumerate(world.images[:20]):
            for image, content in enumerate(images[chosen]):
                names.append(f"{number}_{image}.jpg")
                (path / "aligned" / folder / names[-1]).write_bytes(content)
        cells = np.array([[name] for name in names], object)
        ids = np.array([[int(name.partition("_")[0])] for name in names])
        key = {"Probe": "probe", "Gallery_Match": "gallery"}[folder]
        listed = {"Probe": "probe", "Gallery_Match": "gallery_match"}[folder]
        (path / "Testing_Set").mkdir(exist_ok=True)
        savemat(path / f"Testing_Set/{listed}_img_ID_pairs.mat", {f"{key}_set": cells, f"{key}_ids": ids})
    (path / "aligned/Gallery_Distractor").mkdir()
    for number, images in enumerate(world.images[20:]):
        (path / f"aligned/Gallery_Distractor/{number}.jpg").write_bytes(images[0])


def ijbs(world: World, path: Path) -> None:
    for number, name in enumerate(write_lists(path / "protocols")):
        place, who = path / "aligned" / name, int(name.partition("/")[0])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(world.images[who // 7 % 40][number % 6])


def names_beside(world: World, path: Path) -> None:
    """The person of each image of a ``.bin`` set: those of a genuine pair are one."""
    same = read_bin(world("lfw.bin")).same
    path.write_text("".join(f"p{pair}\n{'p' if one else 'q'}{pair}\n" for pair, one in enumerate(same)))


def groups(world: World, path: Path) -> None:
    """Two groups of the people of ``lfw.people.txt`` and of IJB's subjects."""
    people = [f"{letter}{number}" for number in range(200) for letter in "pq"] + [str(n) for n in range(50)]
    path.write_text("".join(f"{name},{'ab'[int(name.strip('pq')) % 2]}\n" for name in people))


def results(command: Callable[[], None], *arguments: str) -> Callable[[World, Path], None]:
    """A maker of what a command leaves in the folder of ``path``; arguments that start with ``@`` are the world's."""

    def make(world: World, path: Path) -> None:
        words = [world(word[1:]) if word.startswith("@") else word for word in arguments]
        ended = called(command, *words, "--output", path.parent)
        assert ended.code == 0, ended.error

    return make


def arcface_torch(world: World, path: Path) -> None:
    """A checkout with a config, and the folder of a run of two ranks under way."""
    values = OWN | {"network": "mbf", "embedding_size": 16, "rec": "data/ms1mv3", "num_classes": 40, "num_image": 80}
    values |= {"batch_size": 8, "num_epoch": 2, "save_all_states": True}
    (path / "configs").mkdir(parents=True)
    (path / "configs/base.py").write_text(module(BASE))
    (path / "configs/ms1mv3_r50.py").write_text(module(values))
    torch.manual_seed(0)
    backbone = create_model("mbf", 16, 112)
    centres = [nn.Parameter(torch.randn(20, 16) * 0.01) for _ in range(2)]
    rule = torch.optim.SGD([{"params": backbone.parameters()}, {"params": centres}], lr=0.1, momentum=0.9)
    logits = backbone(torch.randn(4, 3, 112, 112)) @ torch.cat(centres).T
    logits.logsumexp(1).sum().backward()
    rule.step()
    folder = path / "work_dirs/ms1mv3_r50"
    folder.mkdir(parents=True)
    torch.save(backbone.state_dict(), folder / "model.pt")
    save_ranks(folder, backbone, centres, rule.state_dict(), epoch=1, global_step=5, total_iters=10)


def activate(world: World, path: Path) -> None:
    """The environment that runs the tests is active already."""
    path.touch()


# What is made by which function: the first whose pattern is the whole name.
MAKERS: dict[str, Callable[[World, Path], None]] = {
    r"\.venv/bin/activate": activate,
    r"yunet\.onnx": detector,
    r"photographs": photographs(75),
    r"new_people": photographs(20),
    r"few_people": people(12),
    r"home/faces/celeba297": people(2),
    r"faces|celeba297|people|my_people|my_faces": people(40),
    r"landmarks\.txt": landmarks,
    r"(.*/)?\w+\.bin": lambda world, path: shutil.copy(world.faces / "heldout.bin", path),
    r"lfw\.people\.txt": names_beside,
    r"groups\.csv": groups,
    r"data/IJB[BC]": ijb,
    r"tinyface": tinyface,
    r"ijbs": ijbs,
    r"home/faces/celeba8k": shards,
    r"data/\w+": training_set,
    r"(.*/)?\w+\.onnx": lambda world, path: export_onnx(Teacher(world.faces), path, SIDE, dynamic_batch=True),
    r"runs/\w+/best\.pt": lambda world, path: run(world, path.parent) or shutil.copy(path.with_name("model.pt"), path),
    r"runs/\w+": run,
    r"model\.pt": weights("r18", width=0.125),
    r"r50\.pth": weights("r50", width=0.125),
    r"backbone\.pth": weights("r18"),
    r"convnext_tiny\.safetensors": timm_weights,
    r"results/a/results\.json": results(verification.main, "--checkpoint", "@runs/a", "--bins", "@lfw.bin"),
    r"results/overlap/overlap\.json": results(
        overlap.main, "@faces", "@lfw.bin", "--checkpoint", "@net.onnx", "--images", "2"
    ),
    r"\.\./arcface_torch": arcface_torch,
}
