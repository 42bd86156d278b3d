"""Trackers: one run there however often ours is resumed, and a service that fails ends nothing."""

import json
import subprocess
import sys
import threading
from unittest.mock import MagicMock

import pytest
import yaml
from PIL import Image

from pipelines.common.errors import UserError
from train import trackers
from train.environment import revision
from train.progress import SINKS
from train.trackers import Tracker


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    tree = {"model": {"name": "ir_50"}, "optim": {"lr": 0.1, "groups": {}}, "verify": {"bins": ["lfw"] * 300}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "environment.json").write_text(json.dumps({"revision": "0123abcd", "fingerprint": 7, "driver": None}))
    return folder


def picture():
    return Image.linear_gradient("L").convert("RGB").resize((40, 30))


class Service(Tracker):
    """A service that fails where it is told to, and waits until it may answer."""

    package = "service"
    fails_at = None

    def __init__(self, folder):
        self.may_answer, self.got = threading.Event(), []
        super().__init__(folder)

    def _open(self, folder, config, environment):
        self.told = config, environment
        assert self.fails_at != "open", "no [network]\nat all"

    def _send(self, step, figures):
        self.may_answer.wait(10)
        assert self.fails_at != "send", "gone"
        self.got.append((step, dict(figures)))

    def _send_picture(self, name, step, picture):
        self.got.append((step, name, picture.size))

    def _close(self):
        assert self.fails_at != "close", "gone"
        self.got.append("end")


def test_a_service_that_is_slow_holds_no_step_up(folder):
    service = Service(folder)
    service.log({"step": 1, "loss": 0.5, "skipped_steps": 2})
    service.show("batch", 1, picture())
    service.log({"step": 2, "loss": None, "lr": 0.1, "cosine": float("nan")})
    assert not service.got
    service.may_answer.set()
    service.close()
    assert service.got == [(1, {"loss": 0.5, "skipped_steps": 2.0}), (1, "batch", (40, 30)), (2, {"lr": 0.1}), "end"]
    config, environment = service.told
    assert config["model"]["name"] == "ir_50" and environment["fingerprint"] == 7


@pytest.mark.parametrize("fails_at", ["open", "send", "close"])
def test_a_service_that_fails_is_told_in_one_line(folder, monkeypatch, capsys, fails_at):
    monkeypatch.setattr(Service, "fails_at", fails_at)
    service = Service(folder)
    service.may_answer.set()
    for step in (1, 2):
        service.log({"step": step, "loss": 0.5})
    service.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("service gets no more figures, the run goes on: ")
    assert ("no [network]" in line) == (fails_at == "open")


def test_a_service_that_never_answers_is_left(folder, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.1)
    service = Service(folder)
    service.log({"step": 1, "loss": 0.5})
    service.close()
    assert "does not answer" in capsys.readouterr().err
    service.may_answer.set()


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_library_is_told_before_the_run(folder, monkeypatch, package):
    for name in ("wandb", "mlflow.entities", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'facemill\[{package}\]'"):
        SINKS[package](folder)


def two_starts(kind, folder):
    """Steps 1 to 3, then again from step 3, as after a kill behind a checkpoint."""
    for first in (1, 3):
        sink = SINKS[kind](folder)
        sink.show("worst/lfw", first, picture())
        for step in range(first, first + 3):
            sink.log({"step": step, "loss": 1 / step})
        sink.log({"step": first + 2, "verify/lfw": 0.9 + first / 100})
        sink.close()


@pytest.mark.slow  # MLflow takes long to make its database
def test_mlflow_keeps_one_run(folder, monkeypatch, tmp_path, capsys):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where pictures go by default
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "faces")
    two_starts("mlflow", folder)
    assert "no more figures" not in capsys.readouterr().err

    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("faces").experiment_id])
    curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(curve) == [(step, 1 / step) for step in range(1, 6)]
    verified = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "verify/lfw")]
    assert sorted(verified) == [(3, 0.91), (5, 0.93)]
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    kept = client.download_artifacts(run.info.run_id, "worst/lfw.png", str(tmp_path))
    with Image.open(kept) as shown:
        assert shown.convert("RGB").tobytes() == picture().tobytes()
    assert run.data.params["model.name"] == "ir_50" and run.data.params["optim.lr"] == "0.1"
    assert run.data.tags["mlflow.source.git.commit"] == "0123abcd" and run.data.tags["environment.fingerprint"] == "7"


def test_mlflow_is_told_no_commit_where_there_is_none(folder, monkeypatch):
    """Of an installed package nobody knows it."""
    (folder / "environment.json").write_text(json.dumps({"revision": None}))
    mlflow = MagicMock()
    mlflow.entities.RunTag = lambda name, value: (name, value)
    client = mlflow.tracking.MlflowClient.return_value
    client.create_run.return_value.info.run_id = "1"
    for name, module in (("mlflow.entities", mlflow.entities), ("mlflow.tracking", mlflow.tracking)):
        monkeypatch.setitem(sys.modules, name, module)
    SINKS["mlflow"](folder).close()
    assert client.log_batch.call_args.kwargs["tags"] == [("environment.revision", "None")]


def test_wandb_offline_keeps_one_run(folder, monkeypatch, capsys):
    """A part a start, of one run, for ``wandb sync``; its library has no reader for them."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    two_starts("wandb", folder)
    assert "no more figures" not in capsys.readouterr().err

    name = (folder / "wandb.id").read_text().strip()
    parts = list((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert parts and {path.name for path in parts} == {f"run-{name}.wandb"}
    shown = list((folder / "wandb").glob("offline-run-*/files/media/images/worst/lfw_*.png"))
    assert {Image.open(path).tobytes() for path in shown} == {picture().tobytes()} and len(shown) == 2
    written = b"".join(path.read_bytes() for path in parts)
    for text in (b"verify/lfw", b"0.91", b"0.93", b"ir_50", b"0123abcd"):
        assert text in written


def test_the_revision_is_that_of_the_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    assert revision(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    git("tag", "-a", "v1", "-m", "v1")
    commit = revision(tmp_path)
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert revision(tmp_path) == f"{commit}-dirty"
