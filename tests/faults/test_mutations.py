"""Damaged files of every format that is read: accepted or refused in words, with no signal, hang or growth."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.mutations import FORMATS

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30  # seconds that one case may take, on a busy machine
SHARES = {"images": 0.4}  # of the usual number of cases: they take longer than others


def survive(kind, count, log):
    """Go through the cases of a format; returns the counts. Where the process dies or hangs, the failure names one."""
    command = [sys.executable, "-m", "tests.faults.mutations", kind, "0", str(count), str(log)]
    errors = log.with_name("errors")  # no pipe: what decoders have to say would fill it
    with errors.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=file, text=True)
    seen, since = "", time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        case = log.read_text() if log.exists() else ""
        if case != seen:
            seen, since = case, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            process.kill()
            pytest.fail(f"{kind}: hangs at case {seen}")
    output, _ = process.communicate()
    assert process.returncode == 0, f"{kind}: code {process.returncode} at case {seen}\n{errors.read_text()[-3000:]}"
    return json.loads(output)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [24, pytest.param(750, marks=pytest.mark.slow)])
def test_mutations(kind, count, tmp_path, capsys):
    for package in ("parquet", "pyarrow"), ("lmdb", "lmdb"), ("lmdb of pairs", "msgpack"):
        if kind.startswith(package[0]):
            pytest.importorskip(package[1])
    count = int(count * SHARES.get(kind, 1))
    counts = survive(kind, count, tmp_path / "log")
    assert counts["accepted"] + counts["refused"] == count
    with capsys.disabled():
        print(f"\n{kind}: {count} mutations, {counts['accepted']} accepted, {counts['refused']} refused", end="")
