"""How torch uses the processor where decoding and computing share it."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, for work that several would only wait for: each wait spins on a core others can use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_thread_here() -> None:
    """The same for the calling thread alone, for good: ``torch.set_num_threads`` would be for all of them.

    Where torch has no OpenMP, nothing changes.
    """
    torch.get_num_threads()  # at its first use in a thread torch sets the number of all threads there
    if set_number := getattr(ctypes.CDLL(None), "omp_set_num_threads", None):
        set_number(1)


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bf16 numbers (AVX512_BF16, AMX).

    Others compute them in float32 and round, which is slower than float32 alone.
    """
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next allocation.

    By default each large array is mapped anew and its pages are cleared by the kernel at first touch: a third of the
    training step of a small network. Where there is another C library, nothing changes.
    """
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
