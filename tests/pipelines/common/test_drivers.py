"""Which driver the installed builds need."""

from types import SimpleNamespace

import pytest
import torch
from nvidia import dali

from pipelines.common import drivers
from pipelines.common.errors import UserError
from pipelines.loading import decoder

NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Feb 22 01:44:30 UTC 2024\nGCC version: gcc 12.2.0\n"


@pytest.mark.parametrize(
    ("content", "version"),
    [(NVRM.format("550.54.15"), "550.54.15"), (NVRM.format("580.65"), "580.65"), ("garbage", None), (None, None)],
)
def test_the_drivers_version(content, version, tmp_path, monkeypatch):
    monkeypatch.setattr(drivers, "LOADED", tmp_path / "version")
    if content is not None:
        (tmp_path / "version").write_text(content)
    assert drivers.installed_driver() == version


@pytest.mark.parametrize(("version", "major"), [("13.0", 13), ("12.6", 12), (None, None)])
def test_the_cuda_of_torch(version, major, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", version)
    assert drivers.cuda_of_torch() == major


def test_the_installed_dali_is_what_it_says_of_itself():
    assert drivers.cuda_of_dali() == int(str(dali.__cuda_version__)[:2])


@pytest.mark.parametrize(
    ("names", "builds", "major"),
    [
        (["numpy", "nvidia_dali_cuda130", "nvidia-dali-tf-plugin-cuda130"], {"nvidia-dali-cuda130": 13}, 13),
        (["nvidia-dali-nightly-cuda120"], {"nvidia-dali-nightly-cuda120": 12}, 12),
        (["nvidia-dali-cuda120", "nvidia-dali-cuda130"], {"nvidia-dali-cuda120": 12, "nvidia-dali-cuda130": 13}, None),
        ([], {}, None),
    ],
)
def test_builds_of_dali(names, builds, major, monkeypatch):
    monkeypatch.setattr(drivers, "distributions", lambda: [SimpleNamespace(metadata={"Name": name}) for name in names])
    assert drivers.dali_builds() == builds
    assert drivers.cuda_of_dali() == major


def test_every_build_has_a_least_driver():
    assert {drivers.cuda_of_dali(), drivers.cuda_of_torch() or 13} <= set(drivers.LEAST_DRIVER)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (
            ["nvidia-dali-cuda120"],
            r"nvidia-dali-cuda120 needs a driver from 525 on, this one is 470.1; install a newer one$",
        ),
        (
            ["nvidia-dali-cuda130"],
            r"cuda130 needs a driver from 580 on, this one is 470.1; .*, or nvidia-dali-cuda120 in its",
        ),
        (
            ["nvidia-dali-cuda120", "nvidia-dali-cuda130"],
            "120 and nvidia-dali-cuda130 lie over each other",
        ),
        ([], "is the driver recent enough"),
    ],
)
def test_the_remedy_is_for_the_build_that_is_installed(names, remedy, monkeypatch):
    monkeypatch.setattr(drivers, "distributions", lambda: [SimpleNamespace(metadata={"Name": name}) for name in names])
    monkeypatch.setattr(drivers, "installed_driver", lambda: "470.1")
    monkeypatch.setattr(decoder, "GetCUDADeviceCount", lambda: 0)
    with pytest.raises(UserError, match=f"torch finds a GPU, NVIDIA DALI does not: .*{remedy}"):
        decoder.Decoder(batch_size=1, image_size=8, device=torch.device("cuda"), threads=1)
