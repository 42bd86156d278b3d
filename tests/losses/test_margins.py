"""Every margin family against float64 formulas, published implementations, other numbers of ranks, and extremes."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import MARGINS, CentreOptimizer, PartialFC, create_margin
from losses.margin import Rows
from losses.scf import log_bessel
from tests.losses import naive
from tests.losses.test_partial_fc import close, problem

FAMILIES = {
    "sphereface": ({}, naive.sphereface),
    "curricularface": ({}, naive.curricularface),
    "mv_softmax am": ({"kind": "am"}, partial(naive.mv_softmax, kind="am")),
    "mv_softmax arc": ({"kind": "arc"}, partial(naive.mv_softmax, kind="arc")),
    "magface": ({}, naive.magface),
    "adaface": ({}, naive.adaface),
    "elasticface arc": ({}, partial(naive.elasticface, kind="arc", m=0.5, sigma=0.05)),
    "elasticface cos": ({"kind": "cos"}, partial(naive.elasticface, kind="cos", m=0.35, sigma=0.05)),
    "elasticface arc+": ({"plus": True}, partial(naive.elasticface, kind="arc", m=0.5, sigma=0.0175, plus=True)),
    "elasticface cos+": (
        {"kind": "cos", "plus": True},
        partial(naive.elasticface, kind="cos", m=0.35, sigma=0.02, plus=True),
    ),
    "gb_cosface": ({}, naive.gb_cosface),
    "gb_magface": ({}, naive.gb_magface),
    "broadface": ({"queue_size": 20}, naive.arcface),
    "scf": ({}, naive.scf),
}


def batch(seed=0, rows=12, d=16, classes=37):
    """Embeddings of norms from 5 to 120, most near their centres, one beside and one opposite; and uniform numbers."""
    embeddings, labels, centres = problem(rows, d, classes, seed)
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(embeddings) * (5 + 115 * torch.rand(rows, 1, generator=generator))
    if rows > 2:
        embeddings[1] = -embeddings[1]
        embeddings[2] = embeddings[2].roll(1)
    return embeddings, labels, centres, torch.rand(rows, generator=generator)


def make(name, centres, **head_options):
    options, _ = FAMILIES[name]
    head = PartialFC(create_margin(name.split()[0], **options), centres.shape[1], len(centres), **head_options)
    with torch.no_grad():
        head.weight.copy_(centres[head.start : head.stop])
    return head


def step(head, embeddings, labels, uniform, weights=None):
    """Loss and gradients of one batch."""
    x = embeddings.clone().requires_grad_()
    head.weight.grad = None
    out = head(x, labels, weights, uniform)
    out.loss.backward()
    gradient = head.weight.grad
    return out.loss.detach(), x.grad, torch.zeros_like(head.weight) if gradient is None else gradient.to_dense()


def state(head):
    return {key: value for key, value in head.state_dict().items() if key != "weight"}


def test_every_margin_is_here():
    assert {name.split()[0] for name in FAMILIES} == MARGINS.keys() - {"arcface", "cosface", "combined"}


@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("name", FAMILIES)
def test_matches_float64(name, mode):
    embeddings, labels, centres, uniform = batch()
    labels[3] = -1
    weights = torch.rand(12) + 0.5
    ours = step(make(name, centres, mode=mode, tile=5), embeddings, labels, uniform, weights)
    expected = naive.family(embeddings, centres, labels, uniform, FAMILIES[name][1], weights)
    close(ours[0], expected[0])
    close(ours[1], expected[1])
    close(ours[2], expected[2] * (name != "scf"))  # scf leaves the centres alone
    assert (ours[1][3] == 0).all()


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(2, 9), d=st.integers(4, 9), classes=st.integers(2, 20), seed=st.integers(0, 99))
def test_any_shape(name, rows, d, classes, seed):
    """In fewer dimensions cosines come so near to ±1 that float32 has no digits left for the sine."""
    embeddings, labels, centres, uniform = batch(seed, rows, d, classes)
    reference = partial(naive.scf, d=d) if name == "scf" else FAMILIES[name][1]
    expected = naive.family(embeddings, centres, labels, uniform, reference)
    for mode in ("streamed", "dense"):
        ours = step(make(name, centres, mode=mode, tile=3), embeddings, labels, uniform)
        close(ours[0], expected[0], 1e-4)
        close(ours[1], expected[1], 1e-3)
        close(ours[2], expected[2] * (name != "scf"), 1e-3)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
@pytest.mark.parametrize("mode", ["streamed", "dense"])
@pytest.mark.parametrize("name", FAMILIES)
def test_extremes_are_finite(name, mode, cosine):
    _, labels, centres, uniform = batch(rows=6)
    several = {
        "on their centres": (cosine * 30 * centres[labels], labels, centres),
        "all of one class": (cosine * centres[labels], torch.zeros(6, dtype=torch.int64), centres),
        "only one class": (cosine * centres[labels], torch.zeros(6, dtype=torch.int64), centres[:1]),
        "all centres equal": (cosine * centres[labels], labels, centres[:1].expand(37, -1)),
        "one row with a class": (centres[labels], torch.tensor([5, -1, -1, -1, -1, -1]), centres),
        "no labels": (centres[labels], torch.full((6,), -1), centres),
        "tiny": (1e-30 * centres[labels], labels, centres),
    }
    for what, (embeddings, classes, weight) in several.items():
        head = make(name, weight, mode=mode)
        for _ in range(2):
            for value in step(head, embeddings, classes, uniform):
                assert torch.isfinite(value).all(), what
        if what == "no labels":
            assert value.abs().max() == 0


def test_logits_of_others_stay_under_their_bound_and_have_the_slope_they_say():
    for name in FAMILIES:
        margin = create_margin(name.split()[0], **FAMILIES[name][0])
        for t in (-1.0, 0.0, 1.0) if name == "curricularface" else (0.0,):
            one = torch.ones(9)
            rows = Rows(torch.zeros(9), one.bool(), torch.linspace(-1, 1, 9), one, 4, uniform=one / 2)
            if name == "curricularface":
                margin.eval().t.fill_(t)
            rows.state = margin.update(rows)
            cos = torch.linspace(-1, 1, 101).repeat(9, 1).requires_grad_()
            logits = margin.others(cos, rows)
            assert logits.max() <= margin.bound(rows) + 1e-4
            (slope,) = torch.autograd.grad(logits.sum(), cos)
            assert torch.allclose(margin.slope(cos.detach(), rows), slope)
            assert margin.bound(rows) - margin.shift(rows) <= 70


def test_draws_are_finite_at_both_ends():
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    rows = Rows(torch.zeros(3), torch.ones(3, dtype=torch.bool), torch.zeros(3), torch.ones(3), 4, uniform)
    margins = create_margin("elasticface").update(rows)
    assert margins[1] == 0.5 and 0.2 < margins[0] < 0.25 and 0.75 < margins[2] < 0.8


def test_errors_say_what_to_do():
    for name, options, word in (
        ("mv_softmax", {"kind": "cos"}, "'am' and 'arc'"),
        ("mv_softmax", {"t": -1}, "t >= 0"),
        ("elasticface", {"kind": "am"}, "'arc' and 'cos'"),
        ("magface", {"l_a": 20, "u_a": 10}, "rise"),
        ("broadface", {"queue_size": 0}, "queue_size"),
        ("adaface", {"t": 1}, "unexpected keyword"),
        ("qface", {}, "known: arcface"),
    ):
        with pytest.raises(ValueError, match=word):
            create_margin(name, **options)
    embeddings, labels, centres, _ = batch()
    with pytest.raises(ValueError, match="uniform random number"):
        make("elasticface arc", centres)(embeddings, labels)
    with pytest.raises(ValueError, match="entropy"):
        make("scf", centres, entropy=True)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_state_is_saved_and_restored(name):
    batches = [batch(seed) for seed in range(4)]
    centres = batches[0][2]
    head = make(name, centres)
    for embeddings, labels, _, uniform in batches[:3]:
        step(head, embeddings, labels, uniform)
    saved = {key: value.clone() for key, value in head.state_dict().items()}
    expected = step(head, batches[3][0], batches[3][1], batches[3][3])
    again = make(name, torch.zeros_like(centres))
    again.load_state_dict(saved)
    for ours, theirs in zip(step(again, batches[3][0], batches[3][1], batches[3][3]), expected):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_state_rests_in_evaluation_and_over_broken_batches(name):
    embeddings, labels, centres, uniform = batch()
    head = make(name, centres)
    step(head, embeddings, labels, uniform)
    before = {key: value.clone() for key, value in state(head).items()}
    head.eval()
    head(embeddings + 1, labels, uniform=uniform)
    assert all(torch.equal(value, before[key]) for key, value in state(head).items())
    head.train()
    head(embeddings * torch.nan, labels, uniform=uniform)
    head(embeddings, torch.full_like(labels, -1), uniform=uniform)
    assert all(value.isfinite().all() for value in state(head).values())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "scf"])
def test_a_deferred_update_uses_its_own_batch_state(name):
    """Two batches of very different difficulty, then one walk over the centres for both."""
    easy, hard = batch(0), batch(1)
    updates = []
    for options in ({}, {"fused": True, "deferred": True}):
        head = make(name, easy[2], tile=8)
        optimizer = CentreOptimizer(head, lr=0.1, **options)
        for factor, (embeddings, labels, _, uniform) in ((1, easy), (-1, hard)):
            head(factor * embeddings, labels, uniform=uniform).loss.backward()
        optimizer.step()
        updates.append(head.weight.detach() - easy[2])
    close(updates[1], updates[0], 1e-4)


def test_broadface_trains_centres_with_the_past_and_the_encoder_without():
    """Against the definition, over a queue that wraps, with centres that move in between and rows without a class."""
    centres = batch()[2]
    head = make("broadface", centres)
    queue, w = [], centres.double()
    for seed in range(5):
        embeddings, labels, _, uniform = batch(seed, rows=9)
        labels[seed] = -1
        _, gx, gw = step(head, embeddings, labels, uniform)
        keep = labels >= 0
        _, ex, _ = naive.family(embeddings, w, labels, uniform, FAMILIES["broadface"][1])
        past = [x + x.norm() / then.norm() * (w[y] - then) for x, y, then in queue if y >= 0]
        rows = torch.stack([*past, *embeddings[keep].double()])
        classes = torch.tensor([y for _, y, _ in queue if y >= 0] + labels[keep].tolist())
        _, _, ew = naive.family(rows, w, classes, torch.zeros(len(rows)), FAMILIES["broadface"][1])
        close(gx, ex, 1e-4)
        close(gw, ew, 1e-4)
        queue = (queue + [(x.double(), int(y), w[y].clone()) for x, y in zip(embeddings, labels)])[-20:]
        with torch.no_grad():
            head.weight -= 2 * gw
        w = head.weight.detach().double()
    assert len(queue) == 20


# -- ranks -------------------------------------------------------------------------------------------------------------


def on_rank(names, mode, rate, classes):
    """Three batches of every family: losses, gradients over world size, and the state at the end."""
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    results = {}
    for name in names:
        head = make(name, batch(classes=classes)[2], mode=mode, tile=6, sample_rate=rate)
        steps = []
        for seed in range(3):
            whole = batch(seed, classes=classes)
            embeddings, labels, _, uniform = (part.tensor_split(world)[rank] for part in whole)
            labels[0] = -1
            loss, gx, gw = step(head, embeddings, labels, uniform)
            with torch.no_grad():
                head.weight -= 0.5 * gw
            steps.append((loss, gx / world, gw))
        results[name] = steps, {key: value.clone() for key, value in state(head).items()}
    return results


@pytest.mark.parametrize(
    "mode, rate, classes", [("streamed", 1, 37), ("dense", 1, 37), ("streamed", 0.4, 37), ("streamed", 1, 3)]
)
def test_any_number_of_ranks(ranks, mode, rate, classes):
    names = list(FAMILIES)

    def without_first_labels(world):
        """What the ranks see is a batch in which the first row of every rank has no class."""
        results = {}
        for name in names:
            head = make(name, batch(classes=classes)[2], mode=mode, tile=6, sample_rate=rate)
            steps = []
            for seed in range(3):
                embeddings, labels, _, uniform = batch(seed, classes=classes)
                labels[:: 12 // world] = -1
                steps.append(step(head, embeddings, labels, uniform))
                with torch.no_grad():
                    head.weight -= 0.5 * steps[-1][2]
            results[name] = steps, state(head)
        return results

    for world in (1, 2, 4):
        single, several = without_first_labels(world), ranks(world, on_rank, names, mode, rate, classes)
        for name in names:
            for at in range(3):
                loss, gx, gw = single[name][0][at]
                parts = [result[name][0][at] for result in several]
                for part in parts:
                    close(part[0], loss, 1e-4)
                close(torch.cat([part[1] for part in parts]), gx, 2e-4)
                close(torch.cat([part[2] for part in parts]), gw, 2e-4)
            for key, value in single[name][1].items():
                assert all(torch.equal(result[name][1][key], several[0][name][1][key]) for result in several), key
                close(several[0][name][1][key], value, 1e-4)


# -- published implementations -----------------------------------------------------------------------------------------


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
        rows = Rows(data["in_label"], torch.ones(16, dtype=torch.bool), own.float(), torch.ones(16), 32, uniform)
        ours = create_margin("elasticface", kind=kind, m=mean, sigma=sigma, plus=True).update(rows)
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
        close(out.loss + out.row_losses[out.own].mean(), data["out_loss"], 1e-5)
        close(x.grad, data["out_gemb"], 1e-4)
        close(head.weight.grad, data["out_gw"], 1e-4)
        with torch.no_grad():
            head.weight -= 0.5 * head.weight.grad
        # Both queues hold the same embeddings, ours in a ring and as offsets from the centres of their time.
        count = int(data["out_qlen"])
        assert count == (head.queue.labels >= 0).sum()
        order = (torch.arange(count) + (head.queue.oldest if count == 40 else 0)) % 40
        close(head.queue.inverse[order, 0], 1 / data["out_qproxy"].norm(dim=1), 1e-5)
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
