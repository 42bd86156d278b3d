"""What the machine has, and whether it fits together."""

import ctypes
import platform
import subprocess
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu.part import Report, Setting
from train.doctor import facts

_CLOCKS = {
    "driver_version": "driver",
    "clocks.max.sm": "largest clock of the processors",
    "clocks.max.memory": "largest clock of the memory",
    "clocks.current.sm": "clock of the processors now",
    "power.limit": "power limit",
    "temperature.gpu": "temperature, °C",
    "pcie.link.gen.current": "generation of the PCIe link now",
    "pcie.link.width.current": "lanes of the PCIe link now",
    "pci.bus_id": "PCI address",
}
# Compute capabilities whose chips have a decoder of JPEGs of their own: A100; H100 and H200; B200.
_WITH_JPEG_ENGINE = ((8, 0), (9, 0), (10, 0))


def run(report: Report, setting: Setting) -> None:
    """The doctor's facts; the GPU as its driver describes it; its JPEG engine."""
    for fact in facts():
        report.holds(fact.name, fact.sound, fact.value, limit=fact.remedy)
    report.figure("operating system", platform.platform())
    if setting.device == "cpu":
        report.skip("the GPU's clocks, NUMA node and JPEG engine", "no GPU")
        return
    report.holds("Triton can be imported", _has_triton())
    report.figure("cuDNN", str(torch.backends.cudnn.version()))
    answers = nvidia_smi(*_CLOCKS)
    for field, value in answers.items():
        report.figure(_CLOCKS[field], value)
    if not answers:
        report.skip("the GPU's clocks and NUMA node", "nvidia-smi does not answer")
    else:
        report.figure("NUMA node of the GPU", _numa_node(answers["pci.bus_id"]))
    engines = jpeg_engines()
    if engines is None:
        report.skip("JPEG engine", "no libnvjpeg to ask")
    elif torch.cuda.get_device_capability() in _WITH_JPEG_ENGINE:
        report.holds("nvJPEG finds the JPEG engine", engines, str(engines))
    else:
        report.figure("JPEG engine", "yes" if engines else "none, as expected of this GPU")


def nvidia_smi(*fields: str) -> dict[str, str]:
    """What ``nvidia-smi`` says of the first visible GPU, by field (``nvidia-smi --help-query-gpu``); {} without it."""
    if not torch.cuda.is_available():
        return {}
    uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    chosen = [f"--id=GPU-{uuid.removeprefix('GPU-')}"] if uuid else []
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", *chosen]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.stdout.partition("\n")[0].split(",")]
    return dict(zip(fields, values)) if answer.returncode == 0 and len(values) == len(fields) else {}


def _has_triton() -> bool:
    try:
        import triton
    except ImportError:
        return False
    return bool(triton.__version__)


def _numa_node(bus_id: str) -> str:
    """Of a GPU at a PCI address such as 00000000:1B:00.0; the kernel's -1 where there is one node only."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        return Path(f"/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node").read_text().strip()
    except OSError:
        return "unknown"


def jpeg_engines() -> bool | None:
    """Whether nvJPEG finds a JPEG decoder in hardware; None where there is no nvJPEG beside DALI to ask."""
    found = find_spec("nvidia")  # where pip puts NVIDIA's libraries, in a folder of each or of each CUDA
    folders = list(found.submodule_search_locations or ()) if found else []
    libraries = [path for folder in folders for path in sorted(Path(folder).glob("*/lib/libnvjpeg.so.*"))]
    if not libraries:
        return None
    torch.ones(1, device="cuda")  # nvJPEG works in the context that this makes
    try:
        nvjpeg = ctypes.CDLL(str(libraries[-1]))
        handle = ctypes.c_void_p()
        # nvjpegCreateEx(backend NVJPEG_BACKEND_HARDWARE, allocators by default, no flags); 0 is success.
        status = nvjpeg.nvjpegCreateEx(3, None, None, ctypes.c_uint(0), ctypes.byref(handle))
        if status == 0:
            nvjpeg.nvjpegDestroy(handle)
    except (OSError, AttributeError):
        return None
    return status == 0
