"""A run over two machines: equal to that on one, calm about a cable that is out for a moment, clear about a cut one."""

import contextlib
import subprocess
import sys
import time

import pytest

from tests.faults.machines import CARD, two_machines
from tests.faults.support import SMOOTH, gone, same
from tests.train.support import RUN

LONGER = {"schedule": {"epochs": 100}, **SMOOTH}
RANKS = ["data.batch_size=8", "log.sinks=[jsonl]", "dist.timeout=15"]


@pytest.fixture(scope="module")
def machines():
    """Two machines, or a skipped test."""
    with contextlib.ExitStack() as opened:
        try:
            found = opened.enter_context(two_machines())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot make two networks: {error}")
        yield found


@contextlib.contextmanager
def both(job, machines, *overrides, folders=(".", ".")):
    """The run on both machines, a command each, begun in its folder."""
    with contextlib.ExitStack() as opened:
        runs = []
        for place, machine in enumerate(machines):
            elastic = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
            elastic += ["--rdzv-backend=c10d", f"--rdzv-endpoint={machines[0].address}:29477", "--rdzv-id=fault"]
            elastic += [f"--rdzv-conf=is_host={1 - place}", f"--local-addr={machine.address}"]
            launcher = machine.command("env", f"GLOO_SOCKET_IFNAME={CARD}", *elastic, RUN)
            where = {"name": f"{place}", "cwd": folders[place]}
            runs.append(opened.enter_context(job.start(*RANKS, *overrides, launcher=launcher, **where)))
        yield runs


def errors(run):
    """What it calls an error, in its own words."""
    return [line for line in run.said().splitlines() if line.startswith("error")]


def test_they_are_one(job, whole, machines):
    with both(job, machines) as runs:
        assert [run.wait() for run in runs] == [0, 0], "".join(run.said() for run in runs)
    same(job, whole, within=1e-4)


@pytest.mark.slow  # each waits half a minute for a disk that is late
def test_an_output_that_they_do_not_share(job, machines, tmp_path):
    """Each would have half of every checkpoint. It is said at the start, and nothing is begun."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    with both(job, machines, "output=run", folders=folders) as runs:
        assert [run.wait() for run in runs] == [1, 1]
    assert all("output" in line and "share" in line for run in runs for line in errors(run))
    assert any(errors(run) for run in runs), runs[0].said()
    assert not [path for folder in folders for path in folder.rglob("step_*")]


@pytest.mark.slow
def test_a_cable_that_is_out_for_twenty_seconds(make_job, machines, tmp_path):
    job, whole = make_job(tmp_path / "run", **LONGER), make_job(tmp_path / "whole", **LONGER)
    whole.finish()
    with both(job, machines, "dist.timeout=120") as runs:
        runs[0].until(lambda: job.step() >= 50)
        machines[1].plug("down")
        time.sleep(20)
        assert job.step() < 600, "the run did not notice"
        machines[1].plug("up")
        assert [run.wait() for run in runs] == [0, 0], "".join(run.said() for run in runs)
    same(job, whole, within=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("side", [0, 1])
def test_a_cable_that_is_out_for_good(make_job, machines, tmp_path, side):
    """The ranks say so and end within the time that the config sets; with the cable back the run goes on.

    torchrun on the second machine has no such time: it waits for the first one until its system gives up.
    """
    job, whole = make_job(tmp_path / "run", **LONGER), make_job(tmp_path / "whole", **LONGER)
    whole.finish()
    for machine in machines:
        machine.retry(7)
    with both(job, machines) as runs:
        runs[0].until(lambda: job.step() >= 50)
        began = time.monotonic()
        machines[side].plug("down")
        try:
            for run in runs:
                run.until(lambda run=run: errors(run), timeout=30)
            said = time.monotonic() - began
            codes = [run.wait(120) for run in runs]
            ended = time.monotonic() - began
        finally:
            machines[side].plug("up")
            for machine in machines:
                machine.retry(15)
        print(f"said after {said:.0f} s, ended after {ended:.0f} s")
        assert codes == [1, 1] and gone(job, 5)
        assert all(len(errors(run)) == 1 for run in runs), "".join(run.said() for run in runs)
    with both(job, machines) as runs:
        assert [run.wait() for run in runs] == [0, 0], "".join(run.said() for run in runs)
    same(job, whole, within=1e-2)
