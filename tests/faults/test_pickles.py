"""Attacks by files that run code when they are read the easy way: every kind that the product reads, none may run.

Each leaves a folder behind where it succeeds. That it would is shown by reading it the easy way afterwards.
"""

import contextlib
import io
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from evaluate import verification
from evaluate.features.files import load_features
from evaluate.features.network import load_network
from evaluate.features.pairs import read_pairs
from evaluate.protocols.megaface_files import read_features
from evaluate.reporting.results import read_results
from models import export
from models.sharded import load_sharded, read_sharded
from models.weights import load_backbone
from pipelines.common.errors import UserError
from pipelines.sources import open_source
from pipelines.sources.recordio_writer import write_dataset
from tests.command import called
from tests.pipelines.photos import jpeg, write_tar
from train.config import load_config
from train.fine_tune import stored_classes


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


ATTACKS = {}


def attack(function):
    """``function(folder, malice)`` writes files, and returns how the product reads them and what is easier."""
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


# Checkpoints


def saved(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"backbone": {"conv": torch.ones(3)}, "lr": 0.1}, checkpoint_id=str(folder / "c"), no_dist=True)
    return folder / "c"


def resumed(checkpoint, **state):
    """How a run resumes, and how PyTorch's documentation says to."""
    state = state or {"backbone": {"conv": torch.zeros(3)}}
    return (
        lambda: load_sharded(checkpoint, dict(state), no_dist=True),
        lambda: dcp.load(dict(state), checkpoint_id=str(checkpoint), no_dist=True),
    )


def change(checkpoint, edit):
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    edit(metadata)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def torch_saved(value, **options):
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def replace_pieces(checkpoint, content, name="__0_0.distcp"):
    """Every entry is this content now."""
    (checkpoint / name).write_bytes(content)

    def edit(metadata):
        for piece in metadata.storage_data.values():
            piece.relative_path, piece.offset, piece.length = name, 0, len(content)

    change(checkpoint, edit)


@attack
def metadata_of_a_checkpoint(folder, malice):
    checkpoint = saved(folder)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(malice))
    return resumed(checkpoint)


@attack
def metadata_with_more_in_it_read_for_evaluation(folder, malice):
    checkpoint = saved(folder)
    change(checkpoint, lambda metadata: setattr(metadata, "planner_data", malice))
    return lambda: read_sharded(checkpoint), resumed(checkpoint)[1]


@attack
def a_value_of_a_checkpoint(folder, malice):
    checkpoint = saved(folder)
    replace_pieces(checkpoint, torch_saved(malice))
    return resumed(checkpoint, lr=0.0)


@attack
def a_tensor_said_to_be_a_value(folder, malice):
    checkpoint = saved(folder)

    def edit(metadata):
        metadata.state_dict_metadata["backbone.conv"] = BytesStorageMetadata()
        for index, piece in list(metadata.storage_data.items()):
            metadata.storage_data[type(index)(index.fqn)] = piece

    change(checkpoint, edit)
    replace_pieces(checkpoint, torch_saved(malice))
    return resumed(checkpoint)


@attack
def a_tensor_that_is_a_pickle(folder, malice):
    checkpoint = saved(folder)
    replace_pieces(checkpoint, torch_saved(malice, _use_new_zipfile_serialization=False))
    return lambda: read_sharded(checkpoint), lambda: torch.load(checkpoint / "__0_0.distcp", weights_only=False)


@attack
def a_piece_outside_the_folder(folder, malice):
    checkpoint = saved(folder)
    replace_pieces(checkpoint, torch_saved(malice), "../elsewhere")
    return resumed(checkpoint, lr=0.0)


# Weights


def weights(folder, name, content):
    (folder / name).write_bytes(content)
    return lambda: load_network(folder / name), lambda: torch.load(io.BytesIO(content), weights_only=False)


@attack
def weights_in_a_zip_file(folder, malice):
    return weights(folder, "model.pt", torch_saved({"conv.weight": torch.ones(1), "x": malice}))


@attack
def weights_as_pytorch_wrote_them_before(folder, malice):
    return weights(folder, "model.pth", torch_saved({"x": malice}, _use_new_zipfile_serialization=False))


@attack
def weights_that_are_a_bare_pickle(folder, malice):
    read, _ = weights(folder, "model.pt", pickle.dumps(malice, protocol=2))
    return read, lambda: pickle.loads((folder / "model.pt").read_bytes())


@attack
def weights_under_a_name_that_scripts_leave_behind(folder, malice):
    """Names of Lightning's are stood in for; no other name may be beside them."""
    return weights(folder, "a.ckpt", torch_saved({"callbacks": {"pytorch_lightning": malice}, "state_dict": {}}))


@attack
def weights_that_are_called_safetensors(folder, malice):
    return weights(folder, "model.safetensors", torch_saved({"x": malice}))


@attack
def weights_that_are_called_onnx(folder, malice):
    pytest.importorskip("onnxruntime")
    return weights(folder, "model.onnx", torch_saved({"x": malice}))


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
def test_the_config_beside_weights(tmp_path, name):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    (tmp_path / name).write_text(f"name: !!python/object/apply:os.mkdir [{tmp_path / 'trace'}]")
    with pytest.raises(UserError):
        load_backbone(tmp_path)
    assert not (tmp_path / "trace").exists()


@attack
def centres_of_arcface_torch(folder, malice):
    torch.save({"state_dict_softmax_fc": {"weight": malice}}, folder / "checkpoint_gpu_0.pt")
    return lambda: stored_classes(folder), lambda: torch.load(folder / "checkpoint_gpu_0.pt", weights_only=False)


@attack
def centres_of_older_arcface_torch(folder, malice):
    torch.save({"weight": malice}, folder / "softmax_fc_gpu_0.pt", _use_new_zipfile_serialization=False)
    return lambda: stored_classes(folder), lambda: torch.load(folder / "softmax_fc_gpu_0.pt", weights_only=False)


# Images and pairs


def pickled(folder, name, value, read):
    (folder / name).write_bytes(pickle.dumps(value))
    return lambda: read(folder / name), lambda: pickle.loads((folder / name).read_bytes())


@attack
def a_verification_set(folder, malice):
    return pickled(folder, "lfw.bin", malice, read_pairs)


@attack
def an_image_of_a_verification_set(folder, malice):
    return pickled(folder, "lfw.bin", ([b"image", malice] * 10, [True] * 10), read_pairs)


@attack
def flags_of_a_verification_set(folder, malice):
    array = np.empty(10, object)
    array[:] = [malice] * 10
    return pickled(folder, "lfw.bin", ([b"image"] * 20, array), read_pairs)


@attack
def a_value_of_an_lmdb(folder, malice):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "set"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", pickle.dumps(malice))
    return lambda: open_source(folder / "set"), lambda: pickle.loads(pickle.dumps(malice))


@pytest.mark.parametrize("suffix", ["cls", "pyd", "pkl", "pickle", "pth", "npy", "npz"])
def test_members_of_a_shard(tmp_path, monkeypatch, suffix):
    """WebDataset's own decoders unpickle some; here a label is a text, and others are left out."""
    monkeypatch.chdir(tmp_path)
    malice = pickle.dumps(Malice("trace"), protocol=0)  # short enough for a label, wherever the folder lies
    write_tar(tmp_path / "0.tar", {"person/a.jpg": jpeg(1), f"person/a.{suffix}": malice})
    source = open_source(tmp_path / "0.tar")
    source.read(np.arange(len(source)))
    assert not (tmp_path / "trace").exists()


@attack
def a_parquet_file(folder, malice):
    return pickled(folder, "a.parquet", malice, open_source)


@attack
def a_record_file(folder, malice):
    return pickled(folder, "train.rec", malice, open_source)


# Arrays


def object_array(malice):
    array = np.empty(3, object)
    array[:] = [malice] * 3
    return array


@attack
def features_in_npy(folder, malice):
    np.save(folder / "f.npy", object_array(malice))
    return lambda: load_features(folder / "f.npy", 3), lambda: np.load(folder / "f.npy", allow_pickle=True)


@attack
def features_in_npz(folder, malice):
    np.savez(folder / "f.npz", embs=object_array(malice))
    return lambda: load_features(folder / "f.npz", 3), lambda: np.load(folder / "f.npz", allow_pickle=True)["embs"]


@attack
def features_that_are_a_bare_pickle(folder, malice):
    return pickled(folder, "f.npy", malice, lambda path: load_features(path, 3))


@attack
def a_feature_file_of_megaface(folder, malice):
    return pickled(folder, "a_m.bin", malice, lambda _: read_features(folder, ["a"], "m"))


@pytest.mark.parametrize("bare", [False, True])
def test_the_cache_of_an_index(tmp_path, bare):
    """It is made anew."""
    write_dataset(tmp_path, [[jpeg(1)], [jpeg(2)]])
    whole = len(open_source(tmp_path))
    (cache,) = tmp_path.rglob("*.npz")
    malice = Malice(tmp_path / "trace")
    with np.load(cache) as saved:
        fields = {name: saved[name] if name == "stamp" else object_array(malice) for name in saved.files}
    if bare:
        cache.write_bytes(pickle.dumps(malice))
    else:
        np.savez(cache, **fields)
        assert b"mkdir" in zipfile.ZipFile(cache).read(f"{[*fields][-1]}.npy")
    assert len(open_source(tmp_path)) == whole and not (tmp_path / "trace").exists()


@pytest.mark.parametrize("extension", ["arrow.py_extension_type", "facemill.any"])
def test_types_in_a_parquet_file(tmp_path, extension):
    """Older versions of pyarrow unpickle what a column says of its type."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    described = {
        b"ARROW:extension:name": extension.encode(),
        b"ARROW:extension:metadata": pickle.dumps(Malice(tmp_path / "trace")),
    }
    fields = [pyarrow.field("image", pyarrow.binary(), metadata=described), pyarrow.field("label", pyarrow.int64())]
    table = pyarrow.table([[jpeg(1)], [0]], schema=pyarrow.schema(fields))
    parquet.write_table(table, tmp_path / "a.parquet")
    assert len(open_source(tmp_path / "a.parquet").read(np.arange(1))[0]) == 1
    assert not (tmp_path / "trace").exists()


# Texts


def yaml_attack(tag):
    def write(folder, malice):
        (folder / "run.yaml").write_text(tag.format(malice.trace))
        return lambda: load_config(folder / "run.yaml"), lambda: yaml.unsafe_load((folder / "run.yaml").read_text())

    return write


ATTACKS |= {
    "a config that calls": yaml_attack("data: !!python/object/apply:os.mkdir ['{}']"),
    "a config that makes an object": yaml_attack("data: !!python/object/new:os.mkdir ['{}']"),
    "a config that calls in a key": yaml_attack("? !!python/object/apply:os.mkdir ['{}']\n: 1"),
}


@attack
def results_for_a_report(folder, malice):
    return pickled(folder, "results.json", malice, read_results)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_runs(tmp_path, name):
    folder, trace = tmp_path / "files", tmp_path / "trace"
    folder.mkdir()
    read, easy = ATTACKS[name](folder, Malice(trace))
    with pytest.raises(UserError) as refused:
        read()
    assert not trace.exists(), "code was run"
    assert len(str(refused.value).splitlines()) == 1
    with contextlib.suppress(Exception, CheckpointException):  # of what comes after the code
        easy()
    assert trace.exists(), "the file would not have done harm in the first place"


@pytest.mark.parametrize("command", [verification, export], ids=lambda module: module.__name__)
def test_a_command_ends_in_one_line(tmp_path, command):
    torch.save({"conv.weight": Malice(tmp_path / "trace")}, tmp_path / "model.pt")
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps(Malice(tmp_path / "trace")))
    options = {
        verification: ["--checkpoint", tmp_path / "model.pt", "--bins", tmp_path / "lfw.bin"],
        export: ["--checkpoint", tmp_path / "model.pt", "--output", tmp_path / "out"],
    }
    ended = called(command.main, *options[command])
    assert (ended.code, ended.error.count("\n")) == (2, 1) and ended.error.startswith("error: ")
    assert not (tmp_path / "trace").exists()
