"""Weights & Biases and MLflow: sinks whose figures and pictures go to a service, on which no run depends.

A run is one run there, too, also when it is resumed: a file in its folder keeps the service's name for it. The
service is told the config (``config.yaml``), and what the run was made with (``environment.json``). Where it lies,
and who may write to it, the usual variables say: ``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_API_KEY``;
``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``.
"""

import json
import math
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from pipelines.common.errors import UserError, escaped, one_line
from pipelines.common.files import replacing
from train.keys import flattened

_LAST_SECONDS = 60.0  # that the end of a run waits for the service


class Tracker:
    """What trackers share: a thread sends what there is, so that a service that is slow, or gone, holds no step up.

    What fails is said in one line, and ends the tracker, not the run. Only a library that is missing ends the run
    before it begins, by ``UserError``.
    """

    package: str

    def __init__(self, folder: Path) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None: the end
        self._failed = False
        try:
            self._open(
                folder,
                yaml.safe_load((folder / "config.yaml").read_text()),
                json.loads((folder / "environment.json").read_text()),
            )
        except ImportError as error:
            remedy = f"pip install 'facemill[{self.package}]', or leave {self.package} out of log.sinks"
            raise UserError(f"log.sinks: {self.package} cannot be imported ({error}): {remedy}") from None
        except Exception as error:
            self._fail(error)
        self._thread = threading.Thread(target=self._work, name=self.package, daemon=True)
        self._thread.start()

    def log(self, record: dict[str, Any]) -> None:
        """Send the numbers of a record, later."""
        figures = {name: float(value) for name, value in record.items() if _is_figure(value)}
        self._later(partial(self._send, int(figures.pop("step")), figures))

    def show(self, name: str, step: int, picture: Image.Image) -> None:
        """Send a picture, later."""
        self._later(partial(self._send_picture, name, step, picture))

    def close(self) -> None:
        """Send what waits, for a minute at most."""
        self._waiting.put(None)
        self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            self._fail(TimeoutError("it does not answer; figures of the end may be missing there"))

    def _later(self, send: Callable[[], None]) -> None:
        if not self._failed:  # else nobody takes it
            self._waiting.put(send)

    def _work(self) -> None:
        while not self._failed:
            send = self._waiting.get()
            try:
                if send is None:
                    return self._close()
                send()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        print(f"{self.package} gets no more figures, the run goes on: {escaped(one_line(error))}", file=sys.stderr)

    def _open(self, folder: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Begin the run there, or go on with it."""
        raise NotImplementedError

    def _send(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a point to curves."""
        raise NotImplementedError

    def _send_picture(self, name: str, step: int, picture: Image.Image) -> None:
        """Add a picture."""
        raise NotImplementedError

    def _close(self) -> None:
        """End the run there."""
        raise NotImplementedError


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, in the project ``facemill`` where ``WANDB_PROJECT`` names no other.

    With ``WANDB_MODE=offline`` it becomes a folder ``wandb`` in the run's, a part a start, for ``wandb sync``.
    """

    package = "wandb"

    def _open(self, folder: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
        import wandb

        name = _kept(folder / "wandb.id") or _keep(folder / "wandb.id", uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "facemill"),
            id=name,
            name=folder.name,
            dir=folder,
            config=config | {"environment": environment},
            resume="allow",
            allow_val_change=True,  # what may change on resuming
        )
        self._first = self._run.step  # of a run that goes on: earlier ones are there, and would be refused

    def _send(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(figures), step=step)

    def _send_picture(self, name: str, step: int, picture: Image.Image) -> None:
        import wandb

        if step >= self._first:
            self._run.log({name: wandb.Image(picture)}, step=step)

    def _close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """A run of MLflow, in the experiment ``facemill`` where ``MLFLOW_EXPERIMENT_NAME`` names no other.

    Without ``MLFLOW_TRACKING_URI`` it goes where MLflow's own default says, the file ``mlflow.db`` where the run was
    started. The config of the first start becomes the parameters, which MLflow lets nobody change; the environment,
    tags; pictures, files of the run.
    """

    package = "mlflow"

    def _open(self, folder: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        tags = {f"environment.{name}": str(value) for name, value in environment.items()}
        if environment["revision"]:
            tags["mlflow.source.git.commit"] = environment["revision"]
        self._last: dict[str, int] = {}  # of each curve: MLflow would keep a step that comes again twice
        self._id = _kept(folder / "mlflow.id")
        if self._id:
            run = self._client.get_run(self._id)
            self._client.update_run(self._id, status="RUNNING")
            for name in run.data.metrics:
                self._last[name] = max(point.step for point in self._client.get_metric_history(self._id, name))
        else:
            self._id = self._client.create_run(self._experiment(), run_name=folder.name).info.run_id
            _keep(folder / "mlflow.id", self._id)
            params = [Param(name, str(value)[:500]) for name, value in flattened(config).items()]
            for first in range(0, len(params), 100):  # the most that MLflow takes at a time
                self._client.log_batch(self._id, params=params[first : first + 100])
        self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "facemill")
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _send(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        new = [name for name in figures if step > self._last.get(name, -1)]
        self._client.log_batch(self._id, metrics=[self._metric(name, figures[name], now, step) for name in new])

    def _send_picture(self, name: str, step: int, picture: Image.Image) -> None:
        self._client.log_image(self._id, picture, f"{name}.png")

    def _close(self) -> None:
        self._client.set_terminated(self._id)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _kept(path: Path) -> str | None:
    return path.read_text().strip() if path.exists() else None


def _keep(path: Path, name: str) -> str:
    with replacing(path) as temporary:
        temporary.write_text(name + "\n")
    return name
