"""The table of devices, and this machine as one."""

import pytest
import torch

from pipelines.common.errors import UserError
from train.planning import calibration
from train.planning.devices import BETWEEN, DEVICES, WITHIN, links_of, named_device


def test_every_device_has_its_figures():
    for name, device in DEVICES.items():
        assert device.name == name and device.link in WITHIN
        assert device.flops["fp32"] <= device.flops["bf16"] <= device.flops["fp16"]
        assert all(0 < share <= 1 for share in (device.matmul_share, device.conv_share, device.memory_share))


def test_a_node_sends_through_all_its_ports():
    links = links_of(named_device("h100"), "hdr")
    assert links.nodes(8) == 1 and links.nodes(9) == 2
    assert links.rate(8) == pytest.approx(0.8 * WITHIN["nvlink4"].rate)
    assert links.rate(16) == pytest.approx(0.8 * 8 * BETWEEN["hdr"].rate)
    assert links_of(named_device("h100"), "hdr", ranks_per_node=4).rate(16) == pytest.approx(0.8 * 4 * 25e9)
    assert links_of(named_device("h100"), "ethernet10").rate(16) == pytest.approx(0.8 * 1.25e9)
    assert links_of(named_device("l40s"), "ndr").rate(16) == pytest.approx(0.8 * WITHIN["pcie4"].rate)


def test_unknown_names_are_told():
    with pytest.raises(UserError, match="did you mean 'h100'"):
        named_device("h10")
    with pytest.raises(UserError, match="unknown link 'infiniband'"):
        links_of(DEVICES["h100"], "infiniband")


def test_this_machine(monkeypatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.01)
    here = calibration.this_device("cpu")
    assert here.flops["fp32"] > 1e9 and here.bandwidth > 1e8
    assert 0 < here.memory_share <= 1 and here.conv_share > 0 and here.cores >= 1
    assert 1e-8 < here.launch < 1e-2 and here.decode > 10


@pytest.mark.gpu
def test_this_gpu():
    here = calibration.this_device("cuda")
    assert here.flops["bf16"] > here.flops["fp32"] and here.memory > 2**30
    assert here.name == torch.cuda.get_device_name()
