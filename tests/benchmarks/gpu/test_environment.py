"""What the acceptance run asks of a machine."""

import torch

from benchmarks.gpu.environment import nvidia_smi


def test_nvidia_smi_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("Properties", (), dict(uuid="1-2")))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi("driver_version") == {}
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '580.82.07, 1980 MHz'\n")
    script.chmod(0o755)
    assert nvidia_smi("driver_version", "clocks.max.sm") == {
        "driver_version": "580.82.07",
        "clocks.max.sm": "1980 MHz",
    }
    assert nvidia_smi("driver_version") == {}  # as many values as were asked for, or none
