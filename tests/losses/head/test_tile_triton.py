"""The Triton kernels against the same arithmetic in torch, in Triton's interpreter; and compiled for real GPUs."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

import losses.head.partial_fc
from losses import CentreOptimizer, PartialFC, create_margin
from losses.head.sampling import draw
from losses.margins.margin import HardNegativeCurve, Margin
from tests.losses.support import RULES, close, problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def steps(kernels, margin, rule, *, rows=9, d=20, classes=150, count=2, scale=1.0, weights=None, zero=(), **options):
    """Losses, entropies, gradients of the embeddings, centres and the optimiser's state after some steps."""
    head = PartialFC(margin, d, classes, kernels=kernels, seed=4, device=DEVICE, **options)
    head.load_state_dict(
        {"weight": problem(rows, d, classes)[2].index_fill(0, torch.tensor(zero, dtype=torch.int64), 0)}, strict=False
    )
    optimizer = CentreOptimizer(head, **RULES[rule], fused=True)
    optimizer.grad_scale = scale
    results = []
    for seed in range(count):
        x, y, _ = problem(rows, d, classes, seed)
        y[0] = -1
        x = x.to(DEVICE).requires_grad_()
        out = head(x, y.to(DEVICE), weights)
        (out.loss * scale).backward()
        optimizer.step()
        results += [out.loss, out.entropy if options.get("entropy") else None, x.grad]
    return [value for value in results if value is not None] + [head.weight.detach(), *optimizer.state.values()]


def both(tolerance=2e-5, margin="arcface", rule="sgd", options=None, **problem):
    margins = (create_margin(margin, **(options or {})) for _ in range(2))
    torch_, triton = (steps(name, margin, rule, **problem) for name, margin in zip(("torch", "triton"), margins))
    for ours, expected in zip(triton, torch_, strict=True):
        close(ours, expected, tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_that_of_torch(rule):
    """Several blocks of rows and of classes, the last ones cut; a tile that ends within a block."""
    both(rule=rule, rows=130, classes=300, tile=170, count=1, entropy=True, scale=8.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("aligned", [1, 128])
def test_sampled_rows_and_rows_that_fill_up(rule, aligned, monkeypatch):
    monkeypatch.setattr(losses.head.partial_fc, "draw", partial(draw, aligned=aligned))
    active = draw(torch.arange(9), 150, 0, 150, 0.2, 4, 0, aligned).active
    assert active is None if aligned == 1 else active.logical_not().any()
    both(tolerance=1e-4, rule=rule, sample_rate=0.2, tile=40, entropy=True)


MARGINS = {
    **{name: {} for name in ("cosface", "magface", "adaface", "gb_cosface", "curricularface", "mv_softmax")},
    "arcface": dict(interclass_filter=0.1),
    "mv_softmax filtered": dict(interclass_filter=0.1, kind="arc"),
}


@pytest.mark.parametrize("name", MARGINS)
def test_margins(name):
    """Of few dimensions, so that some negatives are hard, or past the filter."""
    both(margin=name.split()[0], options=MARGINS[name], rows=5, d=4, classes=130, weights=torch.rand(5, device=DEVICE))


def test_centres_of_length_zero():
    both(rows=9, zero=(3, 149))


@pytest.mark.parametrize(
    "name, s",
    [("arcface", 300.0), *((name, 1000.0) for name in ("arcface", "curricularface", "mv_softmax", "gb_cosface"))],
)
def test_large_scales(name, s):
    """Several blocks a tile, rows whose own class is all there is of a tile, classes that are not drawn."""
    options = dict(rows=9, classes=129 + 128, tile=256, count=1, sample_rate=0.9, entropy=True)
    both(1e-6 * s, margin=name, options=dict(s=s), **options)


def test_half_precision():
    """The interpreter multiplies bfloat16 as if it were integers, so float16 stands in for it there."""
    both(tolerance=2e-3, count=1, matmul_dtype=torch.bfloat16 if DEVICE == "cuda" else torch.float16)


@pytest.mark.parametrize("classes", [1, 128, 129])
def test_few_classes(classes):
    both(rows=3, d=5, classes=classes)


def test_without_momentum(monkeypatch):
    monkeypatch.setitem(RULES, "sgd", RULES["sgd"] | {"momentum": 0.0})
    both()


def test_what_has_no_kernels_says_so():
    with pytest.raises(ValueError, match="dense"):
        PartialFC(create_margin("arcface"), 4, 5, kernels="triton", mode="dense")
    with pytest.raises(ValueError, match="'torch' or 'triton'"):
        PartialFC(create_margin("arcface"), 4, 5, kernels="cuda")
    with pytest.raises(ValueError, match="float64.*kernels: torch"):
        PartialFC(create_margin("arcface"), 4, 5, kernels="triton", matmul_dtype=torch.float64)


class SameLimit(Margin):
    """Cosines above .1 are doubled in every row; the limit is one number, seen B times."""

    def hard_negatives(self, batch):
        limit = batch.cos_y.new_full((), 0.1).expand(len(batch.cos_y))
        return HardNegativeCurve(
            limit, torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0], device=limit.device)[1::2]
        )


def test_tensors_may_lie_in_memory_as_they_like():
    """Embeddings by columns, as a transposed product gives them, and a margin's tensors with strides."""
    results = []
    for kernels in ("torch", "triton"):
        head = PartialFC(SameLimit(16.0), 20, 150, kernels=kernels, tile=40, device=DEVICE)
        x, y, centres = problem(9, 20, 150)
        head.load_state_dict({"weight": centres}, strict=False)
        x = x.T.contiguous().T.to(DEVICE).requires_grad_()
        out = head(x, y.to(DEVICE))
        out.loss.backward()
        results.append((out.loss.detach(), x.grad, head.weight.grad))
    for expected, ours in zip(*results):
        close(ours, expected)


COMPILE = """
import os, re, subprocess, sys, tempfile, triton
from triton.backends.compiler import GPUTarget
from losses.head import rows_triton, tile_triton as kernels

capability, everything = int(sys.argv[1]), sys.argv[2] == "all"
multiprocessor = {80: 164, 90: 228}[capability] * 1024
reader = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump")
f, i, l, b = "*fp32", "*i64", "*i1", "fp32"
row, row_block = dict(weight=f, gradient=f, inv_norm=f, index=i, active=l, first="i32", lr=b, decay=b), dict(SIZE=512)
curve, bias = dict(limit=f, coefficients=f, filter=b), dict(bias=f)
jobs = [
    ("_load_centres", dict(weight=f, centres="*bf16", inv_norm=f, index=i, first="i32"), dict(TINY=1e-12), None, 2),
    ("_sgd", row | dict(momentum=f, beta=b), {}, None, 4),
    ("_adamw", row | dict(mean=f, square=f, steps=f, beta1=b, beta2=b, eps=b), {}, None, 4),
    ("_lion", row | dict(mean=f, beta1=b, beta2=b), {}, None, 4),
]
for size, h in ((2, "*bf16"), (4, "*fp32")):
    product = dict(x=h, centres=h, inv_norm=f, target_column=i, active=l, s=b, rows="i32", count="i32")
    gradient = product | dict(reduced=f, d_reduced=f, d_cos_y=f, out=h)
    sums = product | dict(sums=f)
    forward, backward = (kernels.BLOCKS[name, size] for name in ("class_sums", "d_product"))
    variants = [("_class_sums", sums | extra, dict(BESIDE=beside), forward, size) for extra, beside in
                ((bias, True), ({}, False), (dict(tops=f), True), (curve | dict(tops=f), True))]
    variants += [("_d_product", gradient | extra, {}, backward, size) for extra in (curve, {}, bias)]
    jobs += variants if everything or size == 2 else [variants[0], variants[4]]  # they take most registers
for name, signature, constants, blocks, size in jobs:
    function = getattr(kernels if blocks else rows_triton, name)
    constants = dict(SIZE=512, PRECISION=kernels._PRECISION, LOWEST=-1e38) | constants
    options = {}
    if blocks is None:
        constants |= dict(BLOCK=512)
    else:
        arguments = blocks.arguments(size)
        constants |= {n: v for n, v in arguments.items() if n.isupper()}
        options = {n: v for n, v in arguments.items() if n.islower() and v is not None}
    types = {n: signature.get(n, "constexpr") for n in function.arg_names}
    constants = {n: constants.get(n) for n in function.arg_names if types[n] == "constexpr"}
    whole = [k for k, n in enumerate(function.arg_names) if types[n][0] == "*" or n in ("rows", "count")]
    aligned = {(k,): [["tt.divisibility", 16]] for k in whole}
    source = triton.compiler.ASTSource(function, types, constants, aligned)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        said = subprocess.run([reader, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(f" {name}:([0-9]+)", said)[1]) for name in ("REG", "STACK"))
    shared, threads = done.metadata.shared, 32 * done.metadata.num_warps
    fit = min(65536 // (-(-registers // 8) * 8 * threads), multiprocessor // (shared + 1024), 2048 // threads)
    print(name, size, ",".join(sorted(signature.keys() & {"limit", "bias", "tops"})) or "-",
          registers, stack, shared // 1024, fit, int("mma" in done.asm["ptx"]))
"""


@pytest.mark.parametrize(
    "capability, which, count",
    [
        (90, "most", 13),
        pytest.param(90, "all", 18, marks=pytest.mark.slow),
        pytest.param(80, "all", 18, marks=pytest.mark.slow),
    ],
)
def test_they_compile_for_gpus(capability, which, count, tmp_path):
    """To machine code of Ampere and Hopper: products on the tensor cores, no register spilt (which would need a stack),
    two or more programs of products on a multiprocessor, shared memory that every card has.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability), which], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == count
    for name, _, _, _, stack, shared, fit, tensor_cores in lines:
        product = name in ("_class_sums", "_d_product")
        assert int(stack) == 0 and int(shared) <= 99 and (int(fit) >= 2 or not product), (name, *_)
        assert (tensor_cores == "1") == product


def truncated(value):
    """To the 11 bits that a tensor core reads of a float32."""
    return (value.view(torch.int32) & -0x2000).view(torch.float32)


def test_three_products_of_halves_are_float32():
    """What ``tf32x3`` does, which the interpreter does not show."""
    x, centres = (torch.nn.functional.normalize(value) for value in problem(200, 512, 100)[::2])
    exact = x.double() @ centres.double().T
    (a, b), (c, d) = ((truncated(v), truncated(v - truncated(v))) for v in (x, centres))
    three = (
        (b.double() @ c.double().T + a.double() @ d.double().T).float() + (a.double() @ c.double().T).float()
    ).double()
    one = a.double() @ c.double().T
    float32 = (x @ centres.T).double()
    error, of_float32, of_one = ((value - exact).abs().max() for value in (three, float32, one))
    assert error < 2 * of_float32 < 1e-6 < of_one / 100
