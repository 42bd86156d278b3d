"""Nothing that a file of weights brings along is run: pickles that call, and classes that published files name."""

import enum
import os
import pickle
import sys
import types
from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from models.weights import load_backbone, load_weights, read_weights
from tests.models.support import CENTRES, new, same, small


class Malice:
    """Leaves a file behind when unpickled by an ordinary reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickle_does_not_run(tmp_path, legacy):
    trace = tmp_path / "trace"
    path = tmp_path / "x.pt"
    state = {**small().state_dict(), "evil": Malice(trace)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"refused: reading it would run code \(\w+\.mkdir\)"):
        load_weights(small(), path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file would not have done harm in the first place"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_malicious_plain_pickle_does_not_run(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Malice(trace)))
    with pytest.raises(ValueError, match="x.pt"):
        read_weights(tmp_path / "x.pt")
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore")
def test_malicious_metadata_of_a_sharded_checkpoint_does_not_run(checkpoint, tmp_path):
    folder, _ = checkpoint
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = Malice(tmp_path / "trace")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="does not belong"):
        read_weights(folder)
    assert not (tmp_path / "trace").exists()


class Settings(dict):
    """Lightning keeps hyper-parameters in such a dict."""

    __module__, __qualname__ = "pytorch_lightning.utilities.parsing", "AttributeDict"


class Backend(str, enum.Enum):
    __module__, __qualname__ = "pytorch_lightning.utilities.enums", "DistributedType"
    DDP = "ddp"


class ModelCheckpoint:
    __module__, __qualname__ = "pytorch_lightning.callbacks", "ModelCheckpoint"


@pytest.fixture
def lightning(monkeypatch):
    """Lightning is there while this is entered, and not afterwards, when its files are read."""

    @contextmanager
    def installed():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
            for kind in (Settings, Backend, ModelCheckpoint):
                module = types.ModuleType(kind.__module__)
                setattr(module, kind.__qualname__, kind)
                patch.setitem(sys.modules, kind.__module__, module)
            yield

    return installed


def test_lightning_checkpoint_with_its_classes(tmp_path, lightning):
    model = small("ir_18")
    content = {
        "pytorch-lightning_version": "1.4.4",
        "state_dict": {
            **{f"model.{name}": tensor for name, tensor in model.state_dict().items()},
            "head.kernel": CENTRES.T,
        },
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.9)}},
        "lr_schedulers": [{"milestones": Counter([8, 12])}],
        "hyper_parameters": Settings(arch="ir_18", backend=Backend.DDP, callback=ModelCheckpoint()),
    }
    with lightning():
        torch.save(content, tmp_path / "adaface.ckpt")
    loaded, options = load_backbone(tmp_path / "adaface.ckpt")
    assert same(loaded, model)
    assert options == {"name": "ir_18", "embedding_size": 32, "input_size": 32, "bgr": True}
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images[:, [2, 1, 0]]))
    with pytest.warns(UserWarning, match="bgr=True"):
        load_weights(new("ir_18"), tmp_path / "adaface.ckpt")
