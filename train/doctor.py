"""Whether this machine's parts fit together, and what a run would use: ``python -m train.doctor``.

A line a fact. The exit code is 1 where something does not fit, a GPU that a run could not use for one.
"""

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch

from evaluate.features.ranks import count_devices, find_device
from models import timm_backbone
from pipelines.common import drivers
from pipelines.common.command import run, say
from pipelines.common.errors import UserError
from pipelines.common.json_output import add_json_option, only_json

_PYTHON = (3, 10), (3, 14)  # the first version that is supported, and the first that is not
_TORCH = (2, 11)
_EXTRAS = {  # of pyproject.toml: the modules that each brings, and what needs them
    "onnx": (("onnx", "onnxruntime"), "ONNX files, models.export to ONNX"),
    "timm": (("timm", "torchvision"), "backbones timm/NAME, EdgeFace"),
    "convert": (("pyarrow",), "reading Parquet and Arrow"),
    "hub": (("huggingface_hub",), "models.push, models of the hub by name"),
    "wandb": (("wandb",), "log.sinks: wandb"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "log.sinks: mlflow"),
    "mxnet": (("mxnet",), "the benchmarks' race against mxnet"),
    "bench": (("simplejpeg", "cv2"), "the benchmarks' race against the best DataLoader"),
}
_NODES = Path("/sys/devices/system/node")
_GIB = 2**30


@dataclass(frozen=True)
class Fact:
    """What is so, whether a run can do with it, and what to do where it cannot."""

    name: str
    value: str
    remedy: str = ""  # nothing where all is well
    lacking: bool = False  # an extra that is not installed, which is no fault

    @property
    def sound(self) -> bool:
        return not self.remedy


def facts() -> list[Fact]:
    """Everything that is to be said of this machine, the programs before what they run on."""
    sources: list[Callable[[], Iterator[Fact]]] = [programs, extras, processors, graphics, choice]
    return [fact for source in sources for fact in source()]


def programs() -> Iterator[Fact]:
    """Python and the libraries whose versions matter."""
    first, past = _PYTHON
    wrong = not first <= sys.version_info[:2] < past
    yield Fact("Python", platform.python_version(), "install Python 3.10 to 3.13" if wrong else "")
    cuda = f", built for CUDA {torch.version.cuda}" if torch.version.cuda else ", built without CUDA"
    old = _numbers(torch.__version__)[:2] < _TORCH
    yield Fact("PyTorch", torch.__version__.partition("+")[0] + cuda, "install torch 2.11 or newer" if old else "")
    yield _dali()
    triton = packages_distributions().get("triton")  # torch's nightlies have it by another name
    yield Fact("Triton", version(triton[0]) if triton else "not installed: head.kernels must be torch")
    if torch.version.cuda and torch.distributed.is_nccl_available():
        yield Fact("NCCL", ".".join(map(str, torch.cuda.nccl.version())))


def _dali() -> Fact:
    builds = drivers.dali_builds()
    if len(builds) > 1:
        names = " ".join(builds)
        return Fact("NVIDIA DALI", names, f"keep one of them: pip uninstall {names}, then install the one")
    remedy = f"pip install 'nvidia-dali-cuda120~={drivers.SOUND_DALI}.0'"
    if not builds:
        return Fact("NVIDIA DALI", "not installed", remedy)
    ((name, cuda),) = builds.items()
    try:
        number = version(name)
    except PackageNotFoundError:
        return Fact("NVIDIA DALI", "without a version", remedy)
    sound = f"{number}.".startswith(f"{drivers.SOUND_DALI}.")
    remedy = f"another version may end the process at a damaged image: pip install '{name}~={drivers.SOUND_DALI}.0'"
    return Fact("NVIDIA DALI", f"{number}, built for CUDA {cuda}", "" if sound else remedy)


def extras() -> Iterator[Fact]:
    """What only some need: it may be missing, and how it is installed."""
    for name, (modules, use) in _EXTRAS.items():
        missing = [module for module in modules if not _installed(module)]
        value = f"without {', '.join(missing)}: pip install 'facemill[{name}]'" if missing else "installed"
        unfit = name == "timm" and not missing and _unfit_timm()
        yield Fact(f"extra {name}", f"{unfit or value} ({use})", lacking=bool(missing or unfit))


def _unfit_timm() -> str:
    """Why timm cannot be imported, and the remedy: its torchvision may be that of another torch."""
    try:
        timm_backbone.library()
    except UserError as error:
        return str(error)
    return ""


def _installed(module: str) -> bool:
    """A folder that happens to bear the name, as the runs of a tracker do, is no module."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def processors() -> Iterator[Fact]:
    """What decodes where no GPU does, and launches the work of a GPU."""
    nodes = len(list(_NODES.glob("node[0-9]*"))) or 1
    several = f", {nodes} NUMA nodes (torchrun --numa-binding=node keeps a rank on its GPU's)" if nodes > 1 else ""
    yield Fact("processor", f"{len(os.sched_getaffinity(0))} cores{several}")


def graphics() -> Iterator[Fact]:
    """The driver and the GPUs, as PyTorch and as DALI see them."""
    driver = drivers.installed_driver()
    yield from _driver_facts(driver, {"PyTorch": drivers.cuda_of_torch(), "DALI": drivers.cuda_of_dali()})
    count = count_devices()
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        text = f"{device.name}, {device.total_memory / _GIB:.0f} GiB, compute capability {device.major}.{device.minor}"
        yield Fact(f"GPU {index}", text)
    if count:
        seen = _gpus_of_dali()
        yield Fact("GPUs that DALI sees", str(seen), drivers.why_dali_has_no_gpu() if seen < count else "")


def _driver_facts(driver: str | None, builds: dict[str, int | None]) -> Iterator[Fact]:
    """The driver, held against what each build (CUDA's major version, None for none) needs."""
    if driver is None:
        yield Fact("NVIDIA driver", "none")
        return
    needs = {name: drivers.LEAST_DRIVER[cuda] for name, cuda in builds.items() if cuda in drivers.LEAST_DRIVER}
    least = ", ".join(f"{name} needs {number}" for name, number in needs.items())
    short = [name for name, number in needs.items() if _numbers(driver)[0] < number]
    remedy = f"too old for {' and '.join(short)}: see docs/install.md, Drivers" if short else ""
    yield Fact("NVIDIA driver", driver + (f" ({least})" if least else ""), remedy)


def choice() -> Iterator[Fact]:
    """What ``device: auto`` comes to."""
    try:
        yield Fact("device: auto", find_device().type)
    except UserError as error:
        yield Fact("device: auto", "refused", str(error))


def _gpus_of_dali() -> int:
    from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]  # which the stub leaves out

    return GetCUDADeviceCount()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def main() -> None:
    """Print the facts."""
    parser = argparse.ArgumentParser(prog="python -m train.doctor", description=__doc__)
    add_json_option(parser, "a name, value and remedy a fact")
    with only_json(parser.parse_args().json) as tell:
        found = facts()
        width = max(len(fact.name) for fact in found)
        for fact in found:
            say(f"{'–' if fact.lacking else '✓' if fact.sound else '✗'} {fact.name:{width}}  {fact.value}")
            if fact.remedy:
                say(f"  {'':{width}}  → {fact.remedy}")
        sound = all(fact.sound for fact in found)
        tell({"sound": sound, "facts": [asdict(fact) for fact in found]})
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    run(main)
