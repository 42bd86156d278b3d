"""Margin families against published implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses import PartialFC, create_margin
from losses.margins.margin import BatchView
from losses.margins.scf import log_bessel
from tests.losses import naive
from tests.losses.families import step
from tests.losses.support import close


def reference(shared, name):
    data = {k: torch.tensor(v) for k, v in np.load(shared / f"reference/losses/{name}.npz").items()}
    if "in_weight" in data and data["in_weight"].shape == (32, 50):
        data["in_weight"] = data["in_weight"].T
    if "out_gw" in data and data["out_gw"].shape == (32, 50):
        data["out_gw"] = data["out_gw"].T
    return data


def compare(head, data, uniform=None, loss="out_loss"):
    """One step of ``head`` on a reference's inputs gives its results; returns what the head gave."""
    with torch.no_grad():
        head.weight.copy_(data["in_weight"])
    ours = step(head, data["in_emb"], data["in_label"], uniform)
    close(ours[0], data[loss], 1e-5)
    close(ours[1], data["out_gemb"], 1e-4)
    close(ours[2], data["out_gw"], 1e-4)
    return ours


def head_of(margin, **options):
    return PartialFC(create_margin(margin, **options), 32, 50, tile=16)


def test_curricularface_reference(shared):
    head = head_of("curricularface")
    for at in range(3):
        data = reference(shared, f"curricular_{at}")
        compare(head, data)
        close(head.margin.t, data["out_buf_t"][0], 1e-5)


@pytest.mark.parametrize("rate", ["1.0", "0.01"])
def test_adaface_reference(shared, rate):
    head = head_of("adaface", t_alpha=float(rate))
    for at in range(3):
        data = reference(shared, f"adaface_ta{rate}_{at}")
        compare(head, data)
        close(head.margin.mean, data["out_mean"][0], 1e-5)
        close(head.margin.std, data["out_std"][0], 1e-5)


def test_gb_cosface_reference(shared):
    head = head_of("gb_cosface")
    for at in range(3):
        data = reference(shared, f"gbcosface_{at}")
        compare(head, data)
        close(head.margin.boundary, data["out_cos_v"][0], 1e-6)


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_magface_reference(shared, name):
    compare(head_of("magface"), reference(shared, f"magface_{name}"))


@pytest.mark.parametrize(
    "name, margin, options",
    [
        ("svx_AM", "cosface", {"s": 32, "m": 0.35}),
        ("svx_Arc", "arcface", {"s": 32, "m": 0.35}),
        ("svx_MV-AM", "mv_softmax", {"kind": "am"}),
        ("svx_MV-Arc", "mv_softmax", {"kind": "arc"}),
    ],
)
@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_mv_softmax_reference(shared, name, margin, options, kind):
    compare(head_of(margin, **options), reference(shared, f"{name}_{kind}"))


@pytest.mark.parametrize("kind", ["am", "arc"])
def test_mv_softmax_of_another_implementation(shared, kind):
    """Its weight of hard negatives is 1 + t."""
    data = reference(shared, f"facexzoo_mv_am{int(kind == 'am')}")
    compare(head_of("mv_softmax", kind=kind, t=0.12), data)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("kind", ["arc", "cos"])
def test_elasticface_reference(shared, kind, plus):
    """With the uniform numbers that give the reference's draws, which its target logits tell."""
    data = reference(shared, f"Elastic{kind.capitalize()}Face{'_plus' * plus}")
    cosines = F.normalize(data["in_emb"].double()) @ F.normalize(data["in_weight"].double()).T
    own, target = naive.own(cosines, data["in_label"]), naive.own(data["out_logits"].double(), data["in_label"]) / 64
    margins = torch.acos(target) - torch.acos(own) if kind == "arc" else own - target
    mean, sigma = (0.5, 0.05) if kind == "arc" else (0.35, 0.05)
    uniform = torch.special.ndtr((margins - mean) / sigma).float()
    # The reference's plus variant deals its sorted draws by a wrong permutation; row by row they are draws like others.
    compare(head_of("elasticface", kind=kind, m=mean, sigma=sigma), data, uniform)
    if plus:
        view = BatchView(data["in_label"], torch.ones(16, dtype=torch.bool), own.float(), torch.ones(16), 32, uniform)
        ours = create_margin("elasticface", kind=kind, m=mean, sigma=sigma, plus=True).update(view)
        close(ours.sort().values, margins.sort().values, 1e-4)
        hardest_first = own.argsort()
        assert (ours[hardest_first].diff() <= 0).all() and (margins[hardest_first].diff() > 0).any()


def test_broadface_reference(shared):
    """Five steps, SGD with lr .5 between them. The published loss is the encoder's plus the centres'."""
    head = head_of("broadface", queue_size=40)
    for at in range(5):
        data = reference(shared, f"broadface_comp_{at}")
        if at == 0:
            with torch.no_grad():
                head.weight.copy_(data["in_weight"])
        close(head.weight.detach(), data["in_weight"], 1e-4)
        x = data["in_emb"].clone().requires_grad_()
        head.weight.grad = None
        out = head(x, data["in_label"])
        out.loss.backward()
        close(out.loss + out.row_losses[out.local].mean(), data["out_loss"], 1e-5)
        close(x.grad, data["out_gemb"], 1e-4)
        close(head.weight.grad, data["out_gw"], 1e-4)
        with torch.no_grad():
            head.weight -= 0.5 * head.weight.grad
        # Both queues hold the same embeddings, ours in a ring and as offsets from the centres of their time.
        count = int(data["out_qlen"])
        assert count == (head.queue.labels >= 0).sum()
        order = (torch.arange(count) + (head.queue.oldest if count == 40 else 0)) % 40
        close(head.queue.inv_norm[order, 0], 1 / data["out_qproxy"].norm(dim=1), 1e-5)
        close(head.queue.offset[order], F.normalize(data["out_qfeat"]) - F.normalize(data["out_qproxy"]), 1e-5)


def test_sphereface_reference(shared):
    """OpenSphere's gradient is straight-through, and it keeps the centres at length one instead of dividing by it."""
    data = reference(shared, "sphereface_opensphere")
    length = data["in_weight"].norm(dim=1, keepdim=True)
    unit, gradient = data["in_weight"] / length, data["out_gw"]
    data["out_gw"] = (gradient - unit * (gradient * unit).sum(1, keepdim=True)) / length
    compare(head_of("combined", m1=1.7, m2=0, m3=0, gradient="straight_through"), data)


@pytest.mark.parametrize("name, annealing, scale", [("clcarwin", 1500 / 1.1, None), ("svx", 999.8, 32)])
def test_annealed_sphereface_reference(shared, name, annealing, scale):
    """Our target of m = 4 inside the annealing (λ·cos θ + ψ(θ))/(1 + λ) and the scale that these put around it."""
    data = reference(shared, {"clcarwin": "sphereface_clcarwin", "svx": "svx_SphereFace_hard"}[name])
    x, w = (data[key].double().requires_grad_() for key in ("in_emb", "in_weight"))
    cosines = F.normalize(x) @ F.normalize(w).T
    own = naive.own(cosines, data["in_label"])
    annealed = (annealing * own + create_margin("sphereface", s=1, m=4).target(own, None)) / (1 + annealing)
    s = x.norm(dim=1) if scale is None else torch.tensor(scale)
    loss = naive.softmax(s * annealed, (s * cosines.T).T, data["in_label"]).mean()
    close(loss, data["out_loss"], 2e-4 if scale else 1e-5)


def test_scf_reference(shared):
    """The reference adds 1e-6 to the scaled Bessel function e^-κ·I, far above its value; the rest is compared."""
    data = reference(shared, "scf_r64_k400")
    kappa = data["in_kappa"][:, 0].clone().requires_grad_()
    head = PartialFC(create_margin("scf"), 512, 16)
    with torch.no_grad():
        head.weight.copy_(data["in_wc"])
    out = head(kappa[:, None] * data["in_mu"], torch.arange(16))
    exact = log_bessel(255, kappa) + 255 * kappa.double().log()
    floored = ((exact - kappa.double()).exp() + 1e-6).log() + kappa.double()
    loss = out.loss + (floored - exact).mean() + 256 * np.log(2 * np.pi * 64**2)
    loss.backward()
    assert head.weight.grad is None
    close(loss, data["out_loss"], 1e-6)
    close(kappa.grad, data["out_gkappa"][:, 0], 1e-5)


@pytest.mark.parametrize("order", [0, 1, 1.5, 3, 7.5, 15, 63, 255])
def test_log_bessel(order):
    kappa = torch.tensor([0.0, 1e-3, 0.1, 1, 5, 30, 100, 400, 3000], dtype=torch.float64, requires_grad=True)
    close(log_bessel(order, kappa), naive.log_bessel(order, kappa), 1e-10)
    (ours,) = torch.autograd.grad(log_bessel(order, kappa).sum(), kappa)
    (expected,) = torch.autograd.grad(naive.log_bessel(order, kappa).sum(), kappa)
    close(ours, expected, 1e-8)
    assert ours[0] == 0  # I_{ν+1}/I_ν, the mean cosine under κ
