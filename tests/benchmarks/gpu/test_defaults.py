"""Config lines from given figures."""

import pytest

from benchmarks.gpu.defaults import choose
from tests.benchmarks.gpu.rows import check, compiled, decode, head, outcomes, rows_of

GPU = "data: {decode: gpu, hw_decoder_load: 0.65, threads: 4}"


def lines(**parts):
    return choose(rows_of(outcomes(**parts)))


@pytest.mark.parametrize(
    ("slowed", "cores", "speeds", "line"),
    [
        # Alike beside a step: the fewer cores. Where one is clearly slower: not that one.
        ([0.5, 0.9, 1.2], [3.5, 1.9, 4.0], [60e3, 40e3, 50e3], "data: {decode: cpu, threads: 2}"),
        ([0.5, 4.0, 6.0], [3.5, 1.9, 4.0], [60e3, 40e3, 50e3], "data: {decode: cpu, threads: 4}"),
        (
            [9.0, 9.0, 1.0],
            [3.5, 1.9, 4.0],
            [60e3, 40e3, 50e3],
            "data: {decode: gpu, hw_decoder_load: 0.65, threads: 4}",
        ),
        # Too slow for a faster network, even where this step hides it; if all are, the best of them.
        ([0.5, 0.5, 0.5], [3.5, 1.9, 4.0], [60e3, 15e3, 50e3], "data: {decode: cpu, threads: 4}"),
        ([0.5, 0.5, 0.5], [3.5, 1.9, 4.0], [9e3, 8e3, 7e3], "data: {decode: cpu, threads: 2}"),
        # Faster beside the step than without a loader is noise, and no win.
        ([-5.0, 0.5, 0.9], [3.5, 1.9, 4.0], [60e3, 40e3, 50e3], "data: {decode: cpu, threads: 2}"),
    ],
)
def test_decoding(slowed, cores, speeds, line):
    assert lines(decode=decode(slowed, cores, speeds)) == [line]


def test_kernels():
    assert lines(head=head([10.0, 20.0], [8.0, 15.0])) == ["head: {kernels: triton}"]
    assert lines(head=head([10.0, 20.0], [8.0, 40.0])) == ["head: {kernels: torch}"]
    assert lines(head=head([10.0, 20.0], [])) == []  # not measured
    wrong = check("loss against float64", 0.5, passed=False, kernels="triton")
    assert lines(head=[*head([10.0, 20.0], [8.0, 15.0]), wrong]) == []


def test_compiling():
    assert lines(compile=compiled(r50=1.3, r100=1.2)) == ["model: {compile: true}"]
    assert lines(compile=compiled(r50=1.01)) == ["model: {compile: false}"]
    assert lines(compile=compiled(r50=1.3, vit_l=1.0)) == [
        "model: {compile: true}  # r50",
        "model: {compile: false}  # vit_l",
    ]


def test_nothing_measured_nothing_chosen():
    assert lines(environment=[check("Python", "3.11.7")]) == []
