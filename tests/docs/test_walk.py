"""Every command of README.md and docs/ is run, page by page, or the page says why not."""

import re
import shutil
from typing import NamedTuple

import pytest
import torch

from models.pretrained import from_pretrained
from tests.docs.blocks import ROOT
from tests.docs.commands import fences, is_ours
from tests.docs.walk import check_out, steps, take
from tests.docs.world import World

PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
# What begins a command in a block.
PROGRAM = re.compile(r" *(python|torchrun|facemill|make|pip|git|docker|sbatch|hf|tensorboard|ovc|trtexec|eval|\.) ")


class Walk(NamedTuple):
    """What a page presupposes, what it says that its commands write, and a program that it needs."""

    given: str
    written: str
    program: str = "bash"


BINS = "lfw.bin cfp_fp.bin agedb_30.bin"
WALKS = {
    "README.md": Walk(
        f"data/glint360k data/synthetic {BINS} data/IJBC my_people my_faces",
        "runs/a/model.pt runs/b/model.pt results/a/results.json results/a_ijbc/results.json results/mine/results.json "
        "report/index.html model.onnx model_int8.onnx",
    ),
    "docs/benchmarks.md": Walk(
        f"celeba297 {BINS} mobilefacenet_y1.onnx b.onnx runs/a runs/celeba8k_cpu/best.pt data/IJBC data/IJBB tinyface",
        "runs/celeba/model.pt data/celeba297/train.rec face_ijb/IJBC/meta data/face_ijb/IJBC/meta benchmarks/results",
    ),
    "docs/celeba8k.md": Walk(
        "home/faces/celeba8k home/faces/celeba297 home/faces/lfw.bin home/faces/cfp_fp.bin home/faces/teacher.onnx",
        "runs/celeba8k_cpu/model.pt runs/celeba8k_cpu_stage2/model.pt runs/celeba8k_cpu_distill/model.pt "
        "report/index.html exported/faces/model.safetensors exported/faces/README.md exported/faces.onnx "
        "exported/faces.int8.onnx",
    ),
    "docs/evaluation.md": Walk(
        f"runs/a {BINS} data/IJBC tinyface w600k_mbf_int8.onnx mobilefacenet_y1.onnx ijbs people groups.csv "
        "lfw.people.txt rfw/African_test.bin rfw/Asian_test.bin rfw/Caucasian_test.bin rfw/Indian_test.bin",
        "results/a/results.json results/a_ijbc/results.json results/a_tiny/results.json results/a_ijbs/results.json "
        "results/a8/results.json results/rfw/results.json results/people/results.json report/index.html "
        "results/quality/results.json results/quality_ijbc/results.json results/groups/results.json "
        "results/groups_ijbc/results.json",
    ),
    "docs/export.md": Walk(
        "runs/a lfw.bin results/a/results.json results/overlap/overlap.json data/mine photographs yunet.onnx",
        "model.onnx model_fp16.onnx model.pt2 exported/a/model.safetensors exported/a/config.json exported/a/README.md "
        "model_int8.onnx exported/a/model_int8.onnx aligned/train.rec",
    ),
    "docs/fine_tune.md": Walk(
        "new_people yunet.onnx lfw.bin cfp_fp.bin r50.pth runs/mine data/faces/heldout.bin model.pt faces",
        "data/new/train.rec runs/tuned/model.pt tuned.onnx runs/tuned_mine/model.pt benchmarks/results",
    ),
    "docs/first_training.md": Walk(
        ".venv/bin/activate",
        "data/synthetic/train.rec runs/quickstart/model.pt runs/quickstart/checkpoints runs/quickstart/log.jsonl "
        "runs/quickstart/tensorboard runs/quickstart/config.yaml results/quickstart/results.json report/index.html "
        "runs/cosface/model.pt runs/r18/model.pt",
    ),
    "docs/install.md": Walk("", "data/synthetic/train.rec runs/quickstart/model.pt my.yaml"),
    "docs/labels.md": Walk(
        "faces lfw.bin cfp_fp.bin net.onnx",
        "faces.png overlap/changes.txt overlap/overlap.png labels/labels.json labels/features.npy labels/labels.png "
        "labels/changes.txt data/train/train.rec data/train/left_out.jsonl",
    ),
    "docs/migrate.md": Walk(
        "../arcface_torch data/ms1mv3 data/IJBC", "ms1mv3_r50.yaml runs/ms1mv3_r50/model.pt runs/ms1mv3_r50/checkpoints"
    ),
    "docs/own_data.md": Walk(
        "photographs yunet.onnx landmarks.txt people",
        "data/mine/train.rec data/mine/train.idx data/mine/property data/mine/landmarks.npy data/mine/identities.json "
        "data/mine/left_out.jsonl data/listed/train.rec mine.html sheet.png data/faces/train/train.rec "
        "data/faces/heldout.bin runs/mine/model.pt results/mine/results.json",
    ),
    "docs/python.md": Walk("runs/a lfw.bin", "", program="jq"),
    "docs/reliability.md": Walk("data/glint360k lfw.bin", "shared/runs/a/model.pt"),
    "docs/training.md": Walk(
        f"data/glint360k data/synthetic data/wf42m data/ms1mv3 data/mine backbone.pth convnext_tiny.safetensors {BINS}",
        "runs/a/model.pt runs/a/best.pt runs/a/checkpoints runs/a/log.jsonl runs/a/tensorboard runs/a/config.yaml "
        "runs/a/environment.json runs/b/model.pt shared/runs/a/model.pt runs/tuned/model.pt",
    ),
}


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world") / "facemill")


@pytest.fixture(scope="session")
def walked(tmp_path_factory, world):
    """The folder in which a page was walked."""
    folders = {}

    def walk(page):
        if page not in folders:
            folders[page] = walk_page(page, world, tmp_path_factory)
        return folders[page]

    return walk


def walk_page(page, world, tmp_path_factory):
    folder = None
    for fence in fences(PAGES[page]):
        if fence.language != "bash" or fence.reason:
            continue
        if folder is None or fence.afresh:
            folder = tmp_path_factory.mktemp("page") / "facemill"
            check_out(folder, world, WALKS[page].given.split())
        for line, step in steps(fence):
            take(line, step, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", WALKS)
def test_a_page_can_be_walked(page, walked):
    if not shutil.which(WALKS[page].program):
        pytest.skip(f"there is no {WALKS[page].program}")
    folder = walked(page)
    missing = [name for name in WALKS[page].written.split() if not (folder / name).exists()]
    assert not missing


@pytest.mark.slow
def test_celeba8k_ends_in_a_network_and_a_page_of_all(walked):
    folder = walked("docs/celeba8k.md")
    page = (folder / "report/index.html").read_text()
    names = "celeba8k_cpu", "celeba8k_cpu_stage2", "celeba8k_cpu_distill", "teacher", "lfw", "cfp_fp"
    assert all(name in page for name in names)
    model = from_pretrained(folder / "exported/faces")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 16)
    assert "lfw" in (folder / "exported/faces/README.md").read_text()


def test_every_command_is_walked_or_says_why_not():
    for page, path in PAGES.items():
        runs = [fence for fence in fences(path) if fence.language == "bash" and not fence.reason]
        assert bool(runs) == (page in WALKS), page


def test_commands_stand_in_blocks_for_bash():
    for page, path in PAGES.items():
        for fence in fences(path):
            if fence.language == "":
                found = [line for _, line in fence.lines if is_ours(line) or PROGRAM.match(line)]
                assert not found, f"{page}, line {fence.line}"


def test_a_reason_stands_before_a_block_of_commands():
    for page, path in PAGES.items():
        marked = [fence for fence in fences(path) if fence.reason or fence.afresh]
        assert all(fence.language == "bash" for fence in marked), page
        assert len(re.findall(r"<!-- (?:not run|begins afresh)", path.read_text())) == len(marked), page
