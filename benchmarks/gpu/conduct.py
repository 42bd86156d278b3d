"""The parts as processes, one after the other, in the time that there is: none can stop the rest."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from benchmarks.command import ROOT
from benchmarks.gpu.part import Row, Setting, read_rows
from benchmarks.gpu.parts import Part

_GRACE = 6.0  # seconds for a part to end after SIGTERM, less than `_END`
_OWN_GRACE = 2.0  # for what it has started, one process after the other
_END = 8.0  # seconds for tables and files when all is done
_EARLIER = 2.0  # seconds before its limit in which a part is to end by itself
_TAIL = 4000  # characters kept of what a part wrote that failed


@dataclass
class Outcome:
    """What became of a part: ``done``, ``failed``, ``out of time``, ``cut`` (out of time, but free to be) or
    ``skipped``."""

    part: str
    state: str
    rows: list[Row]
    seconds: float = 0.0
    said: str = ""  # why it failed or was skipped: the end of what it wrote

    @property
    def failures(self) -> list[str]:
        """What must hold and does not."""
        broken = [row["name"] for row in self.rows if row["kind"] == "check" and not row["passed"]]
        return broken + ([self.state] if self.state in ("failed", "out of time") else [])


def conduct(
    parts: Mapping[str, Part],
    setting: Setting,
    deadline: float,
    tell: Callable[[str, float, float], None],
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run ``parts`` in their order until ``deadline`` (`time.time`).

    What is left of the time is shared out anew before each part, by the shares of those to come.

    Args:
        tell: called now and then with the part that runs, its seconds so far and its limit.
        done: called with each part's outcome.
    """
    outcomes = []
    names = list(parts)
    for place, name in enumerate(names):
        left = deadline - _END - time.time()
        limit = left * parts[name].share / sum(parts[other].share for other in names[place:])
        if limit < (1 if setting.small else parts[name].least):
            outcome = Outcome(name, "skipped", [], said="no time")
        else:
            outcome = run_part(name, parts[name], setting, limit, tell)
        outcomes.append(outcome)
        done(outcome)
    return outcomes


def run_part(
    name: str, part: Part, setting: Setting, limit: float, tell: Callable[[str, float, float], None]
) -> Outcome:
    """One part, for ``limit`` seconds at most."""
    setting.scratch.mkdir(exist_ok=True)
    rows, output = setting.scratch / f"{name}.jsonl", setting.scratch / f"{name}.txt"
    began = time.time()
    arguments = [name, replace(setting, ends=began + limit - _EARLIER).to_json(), str(rows)]
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*launcher(part, setting), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment(part),
            start_new_session=True,
        )
        try:
            while process.poll() is None and time.time() < began + limit:
                tell(name, time.time() - began, limit)
                time.sleep(0.1)
            late = process.poll() is None
        finally:
            end(process, _GRACE)
    state, said = "done", ""
    if late:
        state, said = ("cut" if part.cut else "out of time"), f"ended at its limit of {limit:.0f} s"
    elif process.returncode:
        code = process.returncode
        state, said = "failed", f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if state in ("failed", "out of time"):
        said += "\n" + output.read_text(errors="replace")[-_TAIL:].strip()
    return Outcome(name, state, read_rows(rows), time.time() - began, said.strip())


def launcher(part: Part, setting: Setting) -> list[str]:
    """The command of a part's worker: under torchrun where it needs ranks that are not there."""
    command = [sys.executable]
    if part.everywhere and setting.ranks > 1 and "RANK" not in os.environ:
        command += torchrun(setting.ranks)
    return [*command, "-m", "benchmarks.gpu.worker"]


def torchrun(ranks: int) -> list[str]:
    """Arguments of Python that start so many processes of what follows."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]


def environment(part: Part | None = None) -> dict[str, str]:
    """A process's variables: it imports these rooms, and is one of several ranks only where each rank runs the part."""
    variables = dict(os.environ)
    if part is None or not part.everywhere:
        for name in _OF_RANKS & variables.keys():
            del variables[name]
        variables = {name: value for name, value in variables.items() if not name.startswith("TORCHELASTIC_")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables["PYTHONUNBUFFERED"] = "1"  # what it said last is what it died of
    return variables


# What torchrun tells its processes; one that is to be alone must not hear it.
_OF_RANKS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
}


def end(process: subprocess.Popen, grace: float = _OWN_GRACE) -> None:
    """End a process that leads a session, and what it has started: politely, then surely."""
    try:
        if process.poll() is None:
            signal_session(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
    finally:  # whatever has ended the waiting: what stays would share the GPU with all that follows
        signal_session(process, signal.SIGKILL)
        process.wait()


def signal_session(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to a process that leads a session, and to those of its children that have stayed in it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def python(*arguments: str, ranks: int = 1) -> list[str]:
    """The command of a program of these rooms, ``-m train.run`` say, on so many ranks."""
    return [sys.executable, *(torchrun(ranks) if ranks > 1 else []), *arguments]


def chosen(parts: Mapping[str, Part], names: Sequence[str], several: bool) -> dict[str, Part]:
    """Those of ``names``, or all, with what they need; under torchrun (``several``) only those that regard ranks."""
    found = {name: part for name, part in parts.items() if (name in names or not names) and (part.ranks or not several)}
    if found and found.keys() - _WITHOUT_IMAGES and "material" in parts:
        found = {"material": parts["material"]} | found
    return found


_WITHOUT_IMAGES = {"environment", "first_contact", "head", "collectives"}
