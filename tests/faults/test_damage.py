"""Files of a run that are damaged in every way: one warning and the checkpoint before it, or one line."""

import json
import random
import re
import shutil
import signal

import pytest

from tests.faults.forked import Attack
from tests.faults.support import same

JSONL = "log.sinks=[jsonl]"  # TensorBoard's files are its own
NEWEST = "step_000000056"


@pytest.fixture(scope="module")
def killed(make_job, tmp_path_factory):
    """A run that was killed near its end: it has checkpoints of the steps 48, 52 and 56."""
    job = make_job(tmp_path_factory.mktemp("killed"))
    assert job.fork(JSONL, attack=Attack(r"mkdir checkpoints/step_000000060\.partial")).wait() == -signal.SIGKILL
    shutil.rmtree(job.output / "checkpoints" / "step_000000060.partial", ignore_errors=True)
    assert job.checkpoints == ["step_000000048", "step_000000052", NEWEST]
    return job


@pytest.fixture
def attacked(killed, make_job, tmp_path):
    """A copy of it to damage."""
    job = make_job(tmp_path)
    shutil.copytree(killed.output, job.output)
    return job


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


def garbage(path):
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)


def zero_tail(path):
    """As a power cut leaves a file whose last blocks were not written yet."""
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + bytes(path.stat().st_size - half))


def says(**changes):
    """Change what a ``meta.json`` says; None takes a key away."""

    def change(path):
        meta = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in meta.items() if value is not None}))

    return change


def holds(text):
    return lambda path: path.write_text(text)


def damaged(attacked):
    """Go on from a damaged newest checkpoint: one warning that names it, the one before, the same figures."""
    said = attacked.finish(JSONL)
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if NEWEST in line and "wrote" not in line]) == 1, said
    assert "resuming at step 52" in said


# The report's eleven ways, of the newest checkpoint: each file of it cut, empty, missing, changed.
WAYS = {
    "tensors cut": ("*.distcp", cut),
    "tensors empty": ("*.distcp", empty),
    "tensors missing": ("*.distcp", remove),
    "tensors with a flipped bit": ("*.distcp", flip),
    "tensors half written": ("*.distcp", zero_tail),
    "index cut": (".metadata", cut),
    "index missing": (".metadata", remove),
    "index garbage": (".metadata", garbage),
    "meta.json empty": ("meta.json", empty),
    "meta.json no object": ("meta.json", holds("[1, 2]")),
    "meta.json without its step": ("meta.json", says(step=None)),
}
MORE = {
    "tensors garbage": ("*.distcp", garbage),
    "index empty": (".metadata", empty),
    "index with a flipped bit": (".metadata", flip),
    "meta.json cut": ("meta.json", cut),
    "meta.json garbage": ("meta.json", garbage),
    "meta.json with another step": ("meta.json", says(step=60)),
    "meta.json with other checksums": ("meta.json", says(files={})),
    "meta.json null": ("meta.json", holds("null")),
}


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.slow) for way in MORE)])
def test_the_newest_checkpoint(attacked, whole, way):
    pattern, damage = {**WAYS, **MORE}[way]
    (path,) = (attacked.output / "checkpoints" / NEWEST).glob(pattern)
    damage(path)
    damaged(attacked)
    same(attacked, whole)


def test_leftovers_and_torn_lines(attacked, whole):
    """What a kill or a power cut leaves elsewhere is cleared away without a word."""
    checkpoints = attacked.output / "checkpoints"
    shutil.copytree(checkpoints / NEWEST, checkpoints / "step_000000060.partial")
    shutil.copytree(checkpoints / NEWEST, checkpoints / "step_000000058")
    (checkpoints / "step_000000058" / "meta.json").unlink()
    (attacked.output / ".model.pt.0a1b2c3d.tmp").write_bytes(b"half")
    for name in ("log.jsonl", "quarantine.jsonl"):
        with (attacked.output / name).open("a") as file:
            file.write('{"step": 57, "lo')
    garbage(attacked.output / "config.yaml")
    garbage(attacked.output / "best.pt")
    said = attacked.finish(JSONL)
    assert "resuming at step 56" in said and "Traceback" not in said
    same(attacked, whole)
    lines = (attacked.output / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines if line.endswith("}")] == [41]
    assert (attacked.output / "config.yaml").read_text().startswith("data:")


def test_none_is_sound(attacked):
    """One line, and nothing that could still be mended is thrown away."""
    for path in (attacked.output / "checkpoints").iterdir():
        cut(path / ".metadata")
    before = {name for name in attacked.files() if name.startswith("checkpoints/")}
    run = attacked.fork(JSONL)
    assert run.wait() == 2, run.said()
    errors = [line for line in run.said().splitlines() if line.startswith("error")]
    assert len(errors) == 1 and str(attacked.output) in errors[0] and "Traceback" not in run.said()
    kept = {re.sub(r"\.damaged", "", name) for name in attacked.files()}
    assert before <= kept


def test_a_checkpoint_of_a_version_to_come(attacked):
    """It is not damaged: the run does not go on from an older one as if it were."""
    path = attacked.output / "checkpoints" / NEWEST / "meta.json"
    says(format=99)(path)
    before, run = attacked.files(), attacked.fork(JSONL)
    assert run.wait() == 2
    (line,) = run.said().splitlines()
    assert "format 99" in line and str(path.parent) in line
    assert attacked.files() == before


@pytest.mark.slow
def test_two_hundred_flipped_bits(killed, make_job, whole, tmp_path):
    """Anywhere in the newest checkpoint: never a silent difference."""
    chance = random.Random(15)
    for number in range(200):
        job = make_job(tmp_path / f"{number}")
        shutil.copytree(killed.output, job.output)
        files = sorted((job.output / "checkpoints" / NEWEST).iterdir())
        flip(chance.choice(files), chance.random())
        job.finish(JSONL)
        same(job, whole)
        shutil.rmtree(job.output)
