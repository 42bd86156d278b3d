"""Damaged files of every format that is read: accepted or refused in words, with no signal, hang or growth."""

import json
import os
import time

import pytest

from tests.faults.mutations import FORMATS, go_through
from tests.processes import CONTEXT

PATIENCE = 30  # seconds that one case may take, on a busy machine
SHARES = {"images": 0.4}  # of the usual number of cases: they take longer than others


def child(kind, count, log):
    with log.with_name("errors").open("w") as file:  # no pipe: what decoders have to say would fill it
        os.dup2(file.fileno(), 2)
    counts = go_through(kind, range(count), log)
    log.with_name("counts").write_text(json.dumps(counts))


def survive(kind, count, log):
    """Go through the cases of a format; returns the counts. Where the process dies or hangs, the failure names one."""
    process = CONTEXT.Process(target=child, args=(kind, count, log))
    process.start()
    seen, since = "", time.monotonic()
    while process.exitcode is None:
        process.join(0.05)
        case = log.read_text() if log.exists() else ""
        if case != seen:
            seen, since = case, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            process.kill()
            pytest.fail(f"{kind}: hangs at case {seen}")
    errors = log.with_name("errors")
    assert process.exitcode == 0, f"{kind}: code {process.exitcode} at case {seen}\n{errors.read_text()[-3000:]}"
    return json.loads(log.with_name("counts").read_text())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [24, pytest.param(750, marks=pytest.mark.slow)])
def test_mutations(kind, count, tmp_path, capsys):
    for package in ("parquet", "pyarrow"), ("arrow", "pyarrow"), ("lmdb", "lmdb"), ("lmdb of pairs", "msgpack"):
        if kind.startswith(package[0]):
            pytest.importorskip(package[1])
    count = int(count * SHARES.get(kind, 1))
    counts = survive(kind, count, tmp_path / "log")
    assert counts["accepted"] + counts["refused"] == count
    with capsys.disabled():
        print(f"\n{kind}: {count} mutations, {counts['accepted']} accepted, {counts['refused']} refused", end="")
