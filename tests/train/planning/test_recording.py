"""The recorder against sums by hand."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from train.planning.recording import Recorder, place


def test_memory_is_what_lives_and_peaks_at_its_most():
    with FakeTensorMode(), Recorder() as recorder:
        with recorder.phase("first", "kept"):
            kept = torch.empty(100)
        with recorder.phase("second", "passing"):
            a = torch.zeros(1000)
            b = a + 1
            del a
            c = b * 2
            del b
            view = c[:10]
            del c
    assert recorder.phases["first"].left == {"kept": 400}
    assert recorder.phases["second"].peak == {"kept": 400, "passing": 8000}
    assert recorder.phases["second"].left == {"kept": 400, "passing": 4000}
    del kept, view
    assert recorder._live.total() == 0


def test_what_is_relabelled_counts_for_its_new_use():
    with FakeTensorMode(), Recorder() as recorder, recorder.phase("all", "temporaries"):
        gradient = torch.zeros(10)
        recorder.relabel(gradient, "gradients")
    assert recorder.phases["all"].left == {"gradients": 40}


def test_work_of_a_product_a_sum_and_a_view():
    with FakeTensorMode(), Recorder() as recorder:
        with recorder.phase("build", ""):
            a, b, c = torch.zeros(4, 8), torch.zeros(8, 16), torch.zeros(4, 1)
        with recorder.phase("work", "", "part"):
            (a @ b).t().t().add_(c)
    product, addition = recorder.phases["work"].work
    assert (product.name, product.kind, product.precision, product.kernels) == ("part", "product", "fp32", 1)
    assert product.flops == 2 * 4 * 8 * 16 and product.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert addition.kind == "other" and addition.flops == 0 and addition.bytes == 4 * (2 * 4 * 16 + 4)


def test_rows_that_are_looked_up_are_all_that_is_read():
    with FakeTensorMode(), Recorder() as recorder:
        table, rows = torch.zeros(1000, 8), torch.zeros(5, dtype=torch.int64)
        with recorder.phase("read", ""):
            found = table[rows]
        with recorder.phase("write", ""):
            table[rows] = found
    assert [work.bytes for work in recorder.phases["read"].work] == [2 * 160 + 40]
    assert [work.bytes for work in recorder.phases["write"].work] == [40 + 160 + 160]


def test_flops_of_a_convolution_in_groups_and_of_its_gradients():
    with torch.device("meta"):
        layer = nn.Conv2d(16, 32, 3, padding=1, groups=4, bias=False)
    with FakeTensorMode(), Recorder() as recorder:
        place(layer, "cpu")
        images = torch.zeros(2, 16, 10, 10, requires_grad=True)
        with recorder.phase("forward", ""):
            out = layer(images)
        with recorder.phase("backward", ""):
            out.backward(torch.ones_like(out))
    forward = 2 * 2 * 10 * 10 * 32 * (16 // 4) * 9
    assert sum(work.flops for work in recorder.phases["forward"].work) == forward
    convolution = next(work for work in recorder.phases["backward"].work if work.kind == "convolution")
    assert convolution.flops == 2 * forward and convolution.kernels == 2


def test_repeated_numbers_are_read_once():
    with FakeTensorMode(), Recorder() as recorder:
        a, row = torch.zeros(100, 8), torch.zeros(8)
        with recorder.phase("work", ""):
            a + row.expand(100, 8)
    assert [work.bytes for work in recorder.phases["work"].work] == [2 * 3200 + 32]


def test_parameters_that_are_shared_are_placed_once():
    with torch.device("meta"):
        pair = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        pair[1].weight = pair[0].weight
    with FakeTensorMode():
        place(pair, "cpu")
    assert pair[1].weight is pair[0].weight and pair[0].weight.device.type == "cpu"
