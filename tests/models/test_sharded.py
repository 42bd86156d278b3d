"""Sharded checkpoints: damage is named, and nothing that a file brings along is run."""

import io
import json
import os
import pickle
import struct
import warnings
import zlib

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from models.sharded import _Planner, checksums, load_sharded, read_sharded, stored_checksums, verify
from pipelines.common.errors import UserError


def state():
    return {"backbone": {"conv": torch.arange(6.0).view(2, 3), "bias": torch.ones(4)}, "lr": 0.1, "betas": (0.9, 0.99)}


def empty():
    return {"backbone": {"conv": torch.zeros(2, 3), "bias": torch.zeros(4)}, "lr": None, "betas": None}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint without checksums, as versions before them wrote."""
    folder = tmp_path / "step_000000001"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state(), checkpoint_id=str(folder), no_dist=True)
    return folder


def sign(folder):
    """Write the checksums of all files, as training does."""
    (folder / "meta.json").write_text(
        json.dumps({"files": checksums(folder, [path.name for path in folder.iterdir()])})
    )


def change_metadata(folder, change):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


class Malice:
    """Leaves a folder behind when unpickled by an ordinary reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("signed", [False, True])
def test_all_comes_back(folder, signed):
    if signed:
        sign(folder)
    target = empty()
    load_sharded(folder, target, no_dist=True)
    assert torch.equal(target["backbone"]["conv"], state()["backbone"]["conv"])
    assert (target["lr"], target["betas"]) == (0.1, (0.9, 0.99))
    assert read_sharded(folder).keys() == {"conv", "bias"}


def test_checksums_are_size_and_crc(tmp_path, monkeypatch):
    data = os.urandom(1000)
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr("models.sharded._BLOCK", 300)
    assert checksums(tmp_path, ["x"]) == {"x": [1000, zlib.crc32(data)]}


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_every_change_is_noticed(folder, name, damage):
    sign(folder)
    data = bytearray((folder / name).read_bytes())
    if damage == "gone":
        (folder / name).unlink()
    else:
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data if damage == "bit" else data[:-1])
    what = "is missing" if damage == "gone" else "has changed since it was written"
    target = empty()
    for read in (lambda: read_sharded(folder), lambda: load_sharded(folder, target, no_dist=True)):
        with pytest.raises(UserError, match=f"^{folder} is damaged: {name} {what}$"):
            read()
    assert not target["backbone"]["conv"].any(), "nothing is read before all is checked"


def test_a_share_of_the_files_can_be_verified(folder):
    sign(folder)
    (folder / "__0_0.distcp").write_bytes(b"")
    files = stored_checksums(folder)
    verify(folder, {".metadata": files[".metadata"]})
    with pytest.raises(UserError, match="__0_0.distcp has changed"):
        verify(folder, files)


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"files": [1]}', '{"files": {"x": 1}}', '{"files": {"x": ["a", 1]}}', '{"files": {"../x": [1, 1]}}']
    + ["[" * 100_000, '{"files": {"/dev/zero": [1, 1]}}', '{"files": {"x": [1, 1, 1]}}'],
)
def test_a_damaged_meta(folder, text):
    (folder / "meta.json").write_text(text)
    with pytest.raises(UserError, match="is damaged: meta.json is not as it was written$"):
        load_sharded(folder, empty(), no_dist=True)


def damaged(name):
    """Ways to damage a checkpoint without checksums, and part of the line that follows."""
    return {
        "no metadata": lambda f: (f / ".metadata").unlink(),
        "empty metadata": lambda f: (f / ".metadata").write_bytes(b""),
        "half metadata": lambda f: (f / ".metadata").write_bytes((f / ".metadata").read_bytes()[:200]),
        "other metadata": lambda f: (f / ".metadata").write_bytes(pickle.dumps([1, 2])),
        "empty piece": lambda f: (f / "__0_0.distcp").write_bytes(b""),
        "half piece": lambda f: (f / "__0_0.distcp").write_bytes((f / "__0_0.distcp").read_bytes()[:700]),
        "zero piece": lambda f: (f / "__0_0.distcp").write_bytes(bytes((f / "__0_0.distcp").stat().st_size)),
        "no piece": lambda f: (f / "__0_0.distcp").unlink(),
        "other names": lambda f: change_metadata(f, lambda m: m.state_dict_metadata.clear()),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["no metadata", "empty metadata", "half metadata", "other metadata"]
    + ["empty piece", "half piece", "zero piece", "no piece", "other names"],
)
def test_damage_without_checksums_is_one_line(folder, name):
    """PyTorch raises a BaseException, which no ordinary handler catches."""
    damaged(name)(folder)
    with pytest.raises(UserError, match=f"^{folder} is [^\n]+$"):
        load_sharded(folder, empty(), no_dist=True)


def both(folder):
    with pytest.raises(UserError, match="__0_0.distcp has changed") as caught:
        load_sharded(folder, empty())
    return str(caught.value), dist.get_rank()


def test_all_ranks_fail_together(ranks, folder):
    """Each looks at a part of the files only."""
    sign(folder)
    (folder / "__0_0.distcp").write_bytes(b"x")
    (first, _), (second, rank) = ranks(2, both, folder)
    assert first == second and rank == 1


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", 7])
def test_pieces_lie_in_the_folder(folder, name):
    (folder.parent / "secret").write_bytes((folder / "__0_0.distcp").read_bytes())
    change_metadata(folder, lambda m: [setattr(piece, "relative_path", name) for piece in m.storage_data.values()])
    for read in (lambda: read_sharded(folder), lambda: load_sharded(folder, empty(), no_dist=True)):
        with pytest.raises(UserError, match="is damaged"):
            read()


def test_a_piece_that_is_no_file_does_not_hang(folder):
    (folder / "__0_0.distcp").unlink()
    os.mkfifo(folder / "__0_0.distcp")
    with pytest.raises(UserError, match="__0_0.distcp is missing"):
        read_sharded(folder)


def test_pieces_are_read_as_they_are(folder):
    """PyTorch would decompress them, to any size."""
    change_metadata(
        folder,
        lambda m: [setattr(piece, "transform_descriptors", ["stream.zstd/1"]) for piece in m.storage_data.values()],
    )
    with pytest.raises(UserError, match="is refused: its pieces are compressed"):
        read_sharded(folder)


def test_metadata_does_not_change_classes(folder):
    """Two opcodes would set an attribute of a class for the rest of the process."""
    target = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (folder / ".metadata").write_bytes(target + b"(N" + b"}(S'changed'\nI1\nu" + b"tb.")
    with pytest.raises(UserError, match="changes a class"):
        read_sharded(folder)
    from torch.distributed.checkpoint.metadata import Metadata

    assert not hasattr(Metadata, "changed")


def test_numbers_in_metadata_reserve_no_memory(folder):
    """The unpickler in C makes its memo as large as the largest place in it: here 64 GiB."""
    (folder / ".metadata").write_bytes(b"\x80\x04Nr" + struct.pack("<I", 2**32 - 2) + b".")
    with pytest.raises(UserError, match="is no checkpoint"):
        read_sharded(folder)


def test_a_tensor_that_is_said_to_be_no_tensor_runs_nothing(folder, tmp_path):
    piece = io.BytesIO()
    torch.save(Malice(tmp_path / "trace"), piece)
    (folder / "__0_0.distcp").write_bytes(piece.getvalue())

    def change(metadata):
        metadata.state_dict_metadata["backbone.conv"] = BytesStorageMetadata()
        for index in list(metadata.storage_data):
            entry = metadata.storage_data[index]
            entry.offset, entry.length = 0, len(piece.getvalue())
            metadata.storage_data[type(index)(index.fqn)] = entry

    change_metadata(folder, change)
    target = {"backbone": {"conv": torch.zeros(2, 3)}}
    with pytest.raises(UserError, match="backbone.conv is no tensor"):
        load_sharded(folder, target, no_dist=True)
    with pytest.raises(UserError, match="neither a tensor nor a plain value"):
        load_sharded(folder, {"lr": 0.0}, no_dist=True)
    assert not (tmp_path / "trace").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(target, checkpoint_id=str(folder), no_dist=True)
    assert (tmp_path / "trace").exists(), "the file would not have done harm in the first place"


def test_a_signal_in_the_middle_is_no_damage(folder, monkeypatch):
    """PyTorch wraps whatever is raised while it reads."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_Planner, "resolve_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_sharded(folder, empty(), no_dist=True)
