"""Every margin family against float64 formulas, and at extremes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import MARGINS, PartialFC, create_margin
from losses.margins.margin import BatchView
from tests.losses import naive
from tests.losses.families import FAMILIES, batch, make, step
from tests.losses.support import close


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
        close(ours[0], expected[0], 1e-3 if name == "scf" else 1e-4)  # scf's is a difference, at times near 0
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


def test_logits_of_others_stay_where_they_say_and_have_the_slope_they_say():
    for name in FAMILIES:
        margin = create_margin(name.split()[0], **FAMILIES[name][0])
        for t in (-1.0, 0.0, 1.0) if name == "curricularface" else (0.0,):
            one = torch.ones(9)
            view = BatchView(torch.zeros(9), one.bool(), torch.linspace(-1, 1, 9), one, 4, uniform=one / 2)
            if name == "curricularface":
                margin.eval().t.fill_(t)
            view.state = margin.update(view)
            cos = torch.linspace(-1, 1, 101).repeat(9, 1).requires_grad_()
            logits = margin.others(cos, view)
            assert not margin.within_s or logits.abs().max() <= margin.s + 1e-4
            (slope,) = torch.autograd.grad(logits.sum(), cos)
            # The largest, for what a polynomial's terms take from each other near its zeros.
            assert torch.allclose(margin.slope(cos.detach(), view), slope, atol=1e-6 * float(slope.abs().max()))


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_vector_of_length_zero_has_no_direction(name, rate):
    """An embedding and centres of 0, own and other: gradients of the usual size, alike in both modes."""
    embeddings, labels, centres, uniform = batch()
    embeddings[4], labels[5], labels[6] = 0, 7, 7
    centres[7], centres[20] = 0, 0
    results = [
        step(make(name, centres, mode=mode, tile=5, sample_rate=rate), embeddings, labels, uniform)
        for mode in ("streamed", "dense")
    ]
    for streamed, dense in zip(*results):
        close(streamed, dense, 1e-4)
        assert streamed.abs().max() < 1000


WITH_SCALE = {name: family for name, family in FAMILIES.items() if name != "scf"}
WITH_SCALE |= {
    "arcface": ({}, naive.arcface),
    "cosface": ({}, partial(naive.combined, m2=0.0, m3=0.4)),
    "combined": ({}, naive.combined),
}


@pytest.mark.parametrize("s", [30, 64, 150, 300, 1000])
@pytest.mark.parametrize("name", WITH_SCALE)
def test_any_scale(name, s):
    """Rows on their centre, near, beside and opposite it; loss, gradients and entropies; of few and of many rows.

    The logits of float32 cosines have an error of s·1e-7, and so have their exponentials.
    """
    options, formula = WITH_SCALE[name]
    for rows in (12, 40):  # whose tiles keep what they computed: all, and some
        embeddings, labels, centres, uniform = batch(rows=rows)
        embeddings[3] = 20 * centres[labels[3]]
        expected = naive.family(embeddings, centres, labels, uniform, partial(formula, s=s))
        for mode, tile in (("streamed", 5), ("dense", None)):
            head = PartialFC(create_margin(name.split()[0], s=float(s), **options), 16, 37, mode=mode, tile=tile)
            head.load_state_dict({"weight": centres}, strict=False)
            for ours, theirs in zip(step(head, embeddings, labels, uniform), expected):
                close(ours, theirs, 2e-5 + 1e-6 * s)


@pytest.mark.parametrize("s", [64.0, 300.0])
@pytest.mark.parametrize("mode", ["streamed", "dense"])
def test_entropy_at_any_scale(mode, s):
    """Of cosines so alike that no class is alone in the softmax."""
    embeddings, labels, centres, _ = batch()
    centres = centres[:1] + 0.01 * centres
    head = PartialFC(create_margin("cosface", s=s, m=0.0), 16, 37, mode=mode, tile=5, entropy=True)
    head.load_state_dict({"weight": centres})
    p = (s * F.normalize(embeddings.double()) @ F.normalize(centres.double()).T).softmax(1)
    close(head(embeddings, labels).entropy, -torch.special.xlogy(p, p).sum(1), 1e-6 * s)


@pytest.mark.parametrize("kernels", ["torch", "triton", "dense"])
def test_entropy_does_not_cancel(kernels):
    """Rows on the centre of another class, beside one, and between two: entropies from e^-50 on, none below 0.

    The logits are between -64 and 64. An entropy as the difference of two such numbers would be 1e-5 off.
    """
    _, labels, centres, _ = batch(classes=300, d=64)
    embeddings = centres[labels + 1 - 2 * (labels == 299)]
    embeddings[4:8] += 0.3 * torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    embeddings[8:] += centres[(labels[8:] + 2) % 300]
    options = dict(mode="dense") if kernels == "dense" else dict(kernels=kernels)
    head = PartialFC(create_margin("cosface", s=64.0, m=0.0), 64, 300, tile=130, entropy=True, **options)
    head.load_state_dict({"weight": centres})
    logits = 64 * F.normalize(embeddings.double()) @ F.normalize(centres.double()).T
    expected = (logits.softmax(1) * (logits.logsumexp(1, keepdim=True) - logits)).sum(1)
    ours = head(embeddings, labels).entropy.double()
    assert (ours >= 0).all() and ours.min() < 1e-15 < 0.5 < ours.max()
    assert ((ours - expected).abs() <= 1e-6 + 1e-4 * expected).all()
    assert ((ours - expected).abs()[:4] <= 1e-4 * expected[:4]).all()


def test_draws_are_finite_at_both_ends():
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    view = BatchView(torch.zeros(3), torch.ones(3, dtype=torch.bool), torch.zeros(3), torch.ones(3), 4, uniform)
    margins = create_margin("elasticface").update(view)
    assert margins[1] == 0.5 and 0.2 < margins[0] < 0.25 and 0.75 < margins[2] < 0.8


def test_errors_say_what_to_do():
    for name, options, word in (
        ("magface", {"l_a": 20, "u_a": 10}, "rise"),
        ("adaface", {"t": 1}, "keyword argument 't'; its options are s, m, h, t_alpha, gradient, interclass_filter"),
        ("qface", {}, "known: arcface"),
        ("acrface", {}, "did you mean 'arcface'"),
    ):
        with pytest.raises(ValueError, match=word):
            create_margin(name, **options)
    embeddings, labels, centres, _ = batch()
    with pytest.raises(ValueError, match="uniform random number"):
        make("elasticface arc", centres)(embeddings, labels)
    with pytest.raises(ValueError, match="entropy"):
        make("scf", centres, entropy=True)
