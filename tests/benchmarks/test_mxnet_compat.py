"""mxnet beside torch."""

import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("mxnet") is None, reason="an extra")
def test_torch_keeps_its_threads():
    """In a process of its own: only the first import changes them."""
    program = (
        "import torch; from benchmarks.mxnet_compat import import_mxnet; "
        "torch.set_num_threads(3); import_mxnet(); print(torch.get_num_threads())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["3"]
