"""The head's benchmark: its yardstick is correct, and a small run leaves complete results."""

import json

import pytest
import torch

from benchmarks.head import METHODS, build, largest, main
from benchmarks.materialised import MaterialisedHead
from losses import PartialFC, create_margin
from tests.command import called
from tests.losses.support import close, problem


def test_materialised_head_computes_the_same():
    embeddings, labels, centres = problem()
    embeddings[1] = -embeddings[1]
    results = []
    for head in (MaterialisedHead(16, 37), PartialFC(create_margin("arcface", gradient="straight_through"), 16, 37)):
        head.load_state_dict({"weight": centres})
        x = embeddings.clone().requires_grad_()
        out = head(x, labels)
        loss = out if isinstance(out, torch.Tensor) else out.loss
        loss.backward()
        results.append((x.grad, head.weight.grad))
    close(results[1][0], results[0][0])
    close(results[1][1], results[0][1])


@pytest.mark.parametrize("rate, classes", [(0.3, 11), (0.05, 3)])
def test_materialised_head_samples_all_positives(rate, classes):
    head = MaterialisedHead(16, 37, sample_rate=rate)
    labels = torch.tensor([5, 9, 36, 5])
    index = head._sample(labels)
    assert len(index) == classes and {5, 9, 36} <= set(index.tolist()) and (index.diff() > 0).all()
    head(torch.randn(4, 16), labels).backward()
    assert (head.weight.grad.abs().sum(1) > 0).sum() == classes


MARKS = {"triton": pytest.mark.gpu, "compiled": pytest.mark.slow}


@pytest.mark.parametrize("method", [pytest.param(method, marks=MARKS.get(method, ())) for method in METHODS])
def test_every_method_trains(method):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = build(method, 50, 1.0, torch.device(device))
    x, y = torch.randn(8, 512, device=device, requires_grad=True), torch.arange(8, device=device)
    step(x, y)
    assert x.grad is not None


def test_search_finds_the_limit(monkeypatch):
    monkeypatch.setattr("benchmarks.head.measure_apart", lambda identities, **_: {"fits": identities <= 3_456_789})
    row = largest("fused", 1.0, batch=8, threads=1, memory=0)
    assert 3_456_789 * 0.97 < row["largest_identities"] <= 3_456_789


def test_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # whose memory has no limit of ours
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    effort = ["--sample-rates", 1, "--batch", 8, "--rounds", 1, "--seconds", 0, "--threads", 1, "--memory", 1.1]

    def measured(method, identities):
        output = tmp_path / f"{method}_{identities}"
        ended = called(main, "--methods", method, "--identities", identities, *effort, "--output", output)
        assert ended.code == 0, ended.error
        (path,) = output.glob("head_*.json")
        (row,) = json.loads(path.read_text())["rows"]
        assert (row["method"], row["identities"]) == (method, identities)
        return row, [path.stat().st_size for path in output.glob("head_*.png")]

    for method in ("dense", "fused"):
        row, (picture,) = measured(method, 2000)
        assert row["milliseconds"] > 0 and row["peak_mib"] > 0 and picture > 1000
    # 300 000 centres are 586 MiB: not even they and their momentum fit.
    row, pictures = measured("fused", 300_000)
    assert row["milliseconds"] == "does not fit in 1.1 GiB" and not pictures
