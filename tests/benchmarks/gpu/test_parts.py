"""What the parts check notices what is wrong, where a CPU can show it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import failure, first_contact, material, pixels, reference, runs, suite, verification
from benchmarks.gpu.part import Report, Setting, read_rows
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.step import covered
from benchmarks.gpu.training import largest_difference
from pipelines.common.errors import UserError
from pipelines.common.pillow import decode
from pipelines.loading.admission import Admission
from pipelines.loading.read_ahead import THREAD
from pipelines.sources import open_source
from train.planning.devices import known_device


@pytest.fixture
def setting(tmp_path):
    return Setting("cpu", tmp_path / "data", tmp_path, 1e12, 1, small=True)


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "rows.jsonl")


def checks(report):
    return [row for row in read_rows(report._path) if row["kind"] == "check"]


def test_every_part_is_a_module():
    import importlib

    assert all(callable(importlib.import_module(f"benchmarks.gpu.{name}").run) for name in PARTS)


def test_the_images_are_what_they_are_said_to_be(setting, report):
    material.run(report, setting)
    source = open_source(setting.data)
    (file,), _ = source.read(np.array([5]))
    image = Image.open(__import__("io").BytesIO(bytes(file)))
    assert image.size == (112, 112) and image.layer[0][1:3] == (2, 2)  # the luma has twice the colours' pixels a side
    assert len(source) == read_rows(report._path)[0]["value"] and source.num_classes == 32
    admitted, bad = Admission().admit([np.frombuffer(each, np.uint8) for each in material.bad_images().values()])
    assert len(bad) == len(material.bad_images())
    for odd in material.odd_images().values():
        assert decode(odd).size in {(112, 112), (250, 250)}


@pytest.mark.parametrize("margin", ["arcface", "curricularface"])
@pytest.mark.parametrize("spoilt", ["", "M", "RATE"])
def test_a_step_is_held_against_a_second_formula(setting, report, monkeypatch, margin, spoilt):
    if spoilt == "M":
        monkeypatch.setattr(reference, "_SIN", 0.4)
    elif spoilt:
        monkeypatch.setattr(reference, "RATE", 0.5)
    first_contact.check_step(report, setting, margin, "torch", batch=16, classes=100, size=32)
    wrong = spoilt == "M" or (spoilt == "RATE" and margin == "curricularface")
    assert [row["passed"] for row in checks(report)] == [not wrong] * 3


def test_pixels_that_differ_are_noticed(setting, report, monkeypatch):
    monkeypatch.setattr(pixels, "decode", lambda file: decode(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM))
    pixels._against_pillow(report, setting, "cpu")
    assert not any(row["passed"] for row in checks(report))


def test_pixels_that_change_while_they_are_held_are_noticed(monkeypatch):
    images = [torch.full((2, 3, 4, 4), value, dtype=torch.uint8) for value in range(9)]
    held = [value.item() for value in pixels._checksums(iter(images), late=False)]

    def spoiling():
        for place, each in enumerate(images):
            yield each
            if place == 5:
                images[4].zero_()

    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    late = [value.item() for value in pixels._checksums(spoiling(), late=True)]
    assert len(held) == len(late) == 9 and [a == b for a, b in zip(held, late)].count(False) == 1


def test_curves_of_losses(report):
    assert largest_difference([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    for wrong in ([1.0, float("nan")], [float("nan"), 2.0]):  # which Python's max would not see
        assert not report.at_most("", largest_difference(wrong, [1.0, 2.0]), 1e-3)
        assert not report.at_most("", largest_difference([1.0, 2.0], wrong), 1e-3)


def test_spans():
    assert covered([(0, 2), (1, 3), (5, 6), (5.2, 5.5)]) == 4 and covered([]) == 0


def test_gpus_by_the_names_of_their_drivers():
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "NVIDIA L40S", "NVIDIA H200"]
    assert [known_device(name).name for name in names] == ["h100", "a100", "rtx4090", "l40s", "h200"]
    assert known_device("NVIDIA L4") is None


@pytest.mark.parametrize(
    ("said", "code", "kind", "passed"),
    [
        ("....\n4 passed in 1.00s\n", 0, "check", True),
        ("..F.\nFAILED tests/a.py::b\n1 failed, 3 passed\n", 1, "check", False),
        ("....... [ 10%]\n..s\n", None, "skipped", None),
        ("...F... [ 10%]\n..s\n", None, "check", False),
        ("no tests ran\n", 5, "check", False),
    ],
)
def test_what_pytest_says(report, said, code, kind, passed):
    suite.verdict(report, "tests", said, code)
    (row,) = read_rows(report._path)
    assert row["kind"] == kind and row.get("passed") == passed


def test_a_wait_for_the_device_is_noticed_in_all_threads_but_the_loaders(monkeypatch):
    import threading
    import warnings

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def wait():
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp)", stacklevel=1)

    with suite.waits("cuda") as found:
        wait()
        warnings.warn("something else", stacklevel=1)
        for name in (THREAD, "of autograd"):
            other = threading.Thread(target=wait, name=name)
            other.start()
            other.join()
        wait()
    assert len(found) == 3 and found[0].startswith("test_parts.py:") and modes == ["warn", "default"]


def test_the_step_fails_on_the_last_rank_only(monkeypatch):
    for rank, fails in ((0, False), (1, True)):
        run = object.__new__(failure._Failing)
        run.step, run.world = 5, SimpleNamespace(rank=rank, size=2)
        monkeypatch.setattr(failure.Trainer, "train_step", lambda self, batches: {})
        if fails:
            with pytest.raises(UserError, match="on purpose"):
                run.train_step(iter([]))
        else:
            assert run.train_step(iter([])) == {}


def test_accuracies_of_another_precision_are_compared(setting, report, monkeypatch):
    features = iter([np.eye(80, 128)[:, None].repeat(2, 1), np.ones((80, 2, 128))])
    monkeypatch.setattr(verification, "Embedder", lambda *_, **__: lambda source: next(features))
    same = np.arange(40) % 2 == 0
    config = SimpleNamespace(model=SimpleNamespace(input_size=56))
    run = SimpleNamespace(learner=SimpleNamespace(backbone=None), config=config, world=None)
    verification._compare(report, setting, run, np.zeros(80), same)
    assert [row["name"] for row in checks(report)] == ["accuracies differ by"]


def test_the_log_of_a_run_that_was_killed_ends_in_the_middle_of_a_line(setting):
    job = runs._Job.__new__(runs._Job)
    job.output = setting.scratch
    (setting.scratch / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert job.losses() == {1: 2.0, 2: 1.5} and job.logged_step() == 2
