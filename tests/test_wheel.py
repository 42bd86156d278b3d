"""The wheel holds what the commands need where there is no checkout, and nothing else; the sdist, what git holds."""

import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.test_architecture import ROOT

pytest.importorskip("setuptools", "77")
ROOMS = ("pipelines", "models", "losses", "train", "evaluate", "benchmarks")
BUILD = "from setuptools import build_meta as made; made.build_sdist('dist'); made.build_wheel('dist')"


def known(*options):
    """Files that git knows, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone: git says what is to be packed")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Built from a copy: setuptools writes beside what it packs."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in known("--cached", "--others", "--exclude-standard"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    made = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_sdist_holds_what_git_holds(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    missing = known("--cached") - names
    assert not missing, f"MANIFEST.in leaves out {sorted(missing)}"
    strays = {name for name in names - known("--cached", "--others", "--exclude-standard") if ".egg-info/" not in name}
    assert strays <= {"PKG-INFO", "setup.cfg"}


def test_it_holds_every_module_config_and_file_that_modules_read(wheel):
    expected = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    expected |= {ROOT / room / "py.typed" for room in ROOMS} | set((ROOT / "configs").glob("*.yaml"))
    expected |= {ROOT / "evaluate/reporting" / name for name in ("published.json", "report.css")}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {str(path.relative_to(ROOT)) for path in expected}


def test_its_commands_are_found(wheel, tmp_path):
    """From its files alone: away from the checkout, nothing else on the path but the libraries."""
    wheel.extractall(tmp_path / "site")
    script = "import sys; sys.path.insert(0, 'site'); sys.argv = ['facemill', *sys.argv[1:]]; "
    script += "from train.console import main; main()"
    told = [
        subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True)
        for words in (["--help"], ["configs"], ["configs", "quickstart"])
    ]
    assert not any(one.returncode for one in told), told
    assert "doctor" in told[0].stdout
    assert [line.split()[0] for line in told[1].stdout.splitlines()] == sorted(
        path.stem for path in (ROOT / "configs").glob("*.yaml")
    )
    assert told[2].stdout == (ROOT / "configs/quickstart.yaml").read_text()
