"""Checkpoints of a run: sharded folders that load on any number of ranks, complete or absent, the newest few kept.

They are written behind the steps that follow: the state is copied to host memory while the next step computes, and goes
to the disk from there.
"""

import json
import logging
import os
import shutil
import threading
import uuid
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from models.sharded import checksums, load_sharded, verify
from pipelines.common.errors import UserError
from pipelines.common.files import naming, sync
from pipelines.common.log import get_logger
from train.distributed import agreed, comes_true
from train.state import Part, check_finite, snapshot
from train.step_folders import complete, is_step_folder, step_folder

logger = get_logger(__name__)

# What this version writes. A higher number is for what an older version would misread; checkpoints without one are 1,
# which have neither checksums nor the parts of `_SINCE_2`.
FORMAT = 2
_SINCE_2 = ("skipped",)
_CPU = torch.device("cpu")


class FormatError(UserError):
    """A checkpoint of a version of Facemill to come."""


class Checkpoints:
    """The folder ``checkpoints`` of a run.

    A checkpoint is written beside its final name and renamed when every rank has finished and all is on the disk, so
    what bears a final name is whole. ``meta.json`` in it says in words what it belongs to, and has the checksums of the
    other files. A checkpoint with a number that is not finite is not written.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        device: torch.device = _CPU,
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        """``device``: of the state. ``on_complete`` is called on the main rank for every checkpoint that is there."""
        self.folder, self.keep, self._on_complete = folder, keep, on_complete
        on_gpu = device.type == "cuda"
        # A thread's device is the first one until it is set: it is waited for at the end of a copy, and the memory of
        # the copy is let go of where it was written.
        take: Callable[[], None] = partial(torch.cuda.set_device, device) if on_gpu else lambda: None
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="copy", initializer=take)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way, initargs=(take,))
        self._copied: Future[dict[str, Any]] | None = None
        self._written: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None
        self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return complete(self.folder)

    @staticmethod
    def meta(path: Path, *fields: str) -> dict[str, Any]:
        """What the checkpoint says of itself, ``fields`` at least.

        Raises ``UserError`` where it does not, ``FormatError`` where this version is too old to read it.
        """
        file = path / "meta.json"
        try:
            meta = json.loads(file.read_text())
        except (ValueError, FileNotFoundError):  # no text, or no JSON
            meta = None
        if isinstance(meta, dict) and meta.get("format", 1) not in range(1, FORMAT + 1):
            raise FormatError(
                f"{path} is of format {meta['format']}, and this version of Facemill reads {FORMAT} at most; "
                "use the version that wrote it, or a newer one"
            )
        missing = [name for name in (*fields, "step") if not isinstance(meta, dict) or name not in meta]
        if missing:
            raise UserError(
                f"{file} does not say the {missing[0]} of its run: it is damaged, or of another version; "
                f"remove {path} to take the checkpoint before it"
            )
        assert isinstance(meta, dict)  # nothing is missing
        if meta.get("format", 1) > 1 and meta.get("checksum") != _checksum(meta):
            raise UserError(f"{file} has changed since it was written")
        return meta

    # -- resuming ------------------------------------------------------------------------------------------------------

    def newest(self, *fields: str) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is sound, and its ``meta`` with ``fields``; None where there is none at all.

        The main rank chooses, and every rank checks a share of the files. A damaged one is told of, and put aside as
        ``step_….damaged``; what a kill has left is removed. All ranks call.

        Raises ``UserError`` where none of several is sound, or one is of a newer format.
        """
        self._join()  # now, while the launcher's store is surely there: a save may be the answer to its end
        names, *_ = agreed(self._listed)
        damaged: dict[Path, str] = {}
        for name in reversed(names):
            path = self.folder / name
            reason = next(filter(None, agreed(partial(self._damage, path, *fields))), "")
            if not reason:
                agreed(partial(self._clear, damaged))
                return path, self.meta(path, *fields)
            damaged[path] = reason
        if damaged:
            reason = next(iter(damaged.values()))
            raise UserError(
                f"{reason}; and no other checkpoint there is sound: copy them again, or choose another output"
            )
        return None

    def _clear(self, damaged: dict[Path, str]) -> None:
        """Put the damaged ones aside, and delete those that a kill has kept from it; on the main rank."""
        if dist.get_rank() == 0:
            for path, reason in damaged.items():
                logger.warning("%s; it is put aside, and the one before it taken", reason)
                _replace(path, path.with_suffix(".damaged"))
            self._delete_old()

    def _delete_old(self) -> None:
        for path in self.all()[: -self.keep]:
            _discard(path)

    def _listed(self) -> list[str]:
        """The names of all checkpoints, on the main rank."""
        if dist.get_rank() != 0 or not self.folder.is_dir():
            return []
        whole = self.all()
        for path in self.folder.iterdir():
            if path.suffix == ".partial" or (is_step_folder(path) and path not in whole):
                _discard(path)
        return [path.name for path in whole]

    def _damage(self, path: Path, *fields: str) -> str:
        """What is wrong with a checkpoint, as far as this rank has to look; nothing where it is sound."""
        comes_true((path / "meta.json").exists)  # the main rank sees it, others perhaps not yet
        try:
            files = self.meta(path, *fields).get("files", {})
            verify(path, dict(sorted(files.items())[dist.get_rank() :: dist.get_world_size()]))
        except FormatError:
            raise
        except (UserError, OSError) as error:
            return str(error)
        return ""

    def load(self, path: Path, parts: dict[str, Part]) -> None:
        """Read a checkpoint that ``newest`` has found sound into the parts, sharded as they are; all ranks call."""
        meta = self.meta(path, "step")
        if meta.get("format", 1) < 2:
            parts = {name: part for name, part in parts.items() if name not in _SINCE_2}
        stored = meta.get("parts", list(parts))
        if different := sorted(set(stored) ^ set(parts)):
            has, has_not = ("it", "this run") if different[0] in stored else ("this run", "it")
            raise UserError(
                f"cannot resume from {path}: {has} has the part {different[0]}, which {has_not} has not; "
                "restore the config that it was written with, or choose another output"
            )
        load_sharded(path, parts, checked=True)

    # -- saving --------------------------------------------------------------------------------------------------------

    def save(self, step: int, parts: dict[str, Part], meta: dict[str, Any]) -> Path:
        """Begin to write a checkpoint of the parts, with what ``meta`` says in its ``meta.json``; all ranks call.

        One is written at a time: it waits for the one before. Until ``copied`` returns, no weight and no state of an
        optimiser may change; buffers and tensors of their own may.
        """
        self.finish()
        self._join()
        final = step_folder(self.folder, step)
        meta = {"format": FORMAT, "step": step, "parts": list(parts), **meta}
        state = {name: snapshot(part) for name, part in parts.items()}
        self._copied = self._copier.submit(self._copy, state)
        self._written = self._writer.submit(self._write, final, self._copied, meta)
        return final

    def _copy(self, state: dict[str, Any]) -> dict[str, Any]:
        copy = self._stager.stage(state)
        assert isinstance(copy, dict)  # not a future: this is a thread already
        return copy

    def copied(self) -> None:
        """Wait until the parts of the checkpoint under way may change."""
        if self._copied is not None:
            self._copied.result()
            self._copied = None

    @property
    def failed(self) -> bool:
        """Whether the checkpoint under way has failed: ``finish`` then says why."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def finish(self) -> None:
        """Wait until the checkpoint under way is on the disk; raises what has kept it from there."""
        written, self._written, self._copied = self._written, None, None
        if written is not None:
            written.result()

    def _join(self) -> None:
        """The ranks' group for the thread: its collectives must not come between those of the steps."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo")

    def wait(self, seconds: float | None) -> None:
        """Give the checkpoint under way some time (None: all it needs), at an end that has another reason."""
        if self._written is not None:
            wait([self._written], seconds)

    def _write(self, final: Path, copied: "Future[dict[str, Any]]", meta: dict[str, Any]) -> None:
        """In the thread: from host memory to a whole checkpoint."""
        main, group, folder = dist.get_rank() == 0, self._group, final.with_suffix(".partial")

        def begin() -> None:
            check_finite(copied.result())
            if main:
                _discard(folder)
                folder.mkdir(parents=True)

        def write() -> dict[str, list[int]]:
            try:
                dcp.save(copied.result(), checkpoint_id=str(folder), process_group=group)
            except CheckpointException as error:
                raise _first_cause(error, folder) from error
            own = [path.name for path in folder.glob(f"__{dist.get_rank()}_*")]
            return checksums(folder, [*own, ".metadata"] if main else own)

        def publish(files: dict[str, list[int]]) -> None:
            said = {**meta, "files": files}
            with naming(folder):
                (folder / "meta.json").write_text(json.dumps({**said, "checksum": _checksum(said)}, indent=1))
            sync(folder / "meta.json")
            sync(folder)
            _replace(folder, final)
            self._on_complete()
            self._delete_old()

        try:
            agreed(begin, group)
            files = {name: sums for part in agreed(write, group) for name, sums in part.items()}
            agreed(lambda: publish(files) if main else None, group)
        except BaseException:
            if main:  # what there is of it takes the room that the next one needs
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _give_way(begin: Callable[[], None]) -> None:
    """Let this thread come behind the steps, but not behind all that other users of the machine do."""
    begin()
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _replace(path: Path, other: Path) -> None:
    """Rename a folder, in the place of another one if need be, for good."""
    _discard(other)
    path.rename(other)
    sync(other.parent)


def _discard(path: Path) -> None:
    """Remove a folder, if there is one, from its name at once.

    A kill in the middle leaves what nobody takes for a checkpoint, and so do files that are still read on a network
    file system: the next start removes it, and until then the name is free for another.
    """
    half = path.with_name(f"{path.name.partition('.')[0]}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.rename(half)
        sync(half.parent)
        shutil.rmtree(half)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("what is left of %s stays for now: %s", path, error.strerror)


def _first_cause(error: CheckpointException, folder: Path) -> Exception:
    """What has kept torch from writing a checkpoint, as an error that can be told in a line."""
    causes = [cause for cause, _ in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError):
            return OSError(cause.errno, cause.strerror, str(folder))
    text = str(causes[0] if causes else error).strip().splitlines() or [type(error).__name__]
    return UserError(f"cannot write {folder}: {text[-1]}")


def _checksum(meta: dict[str, Any]) -> int:
    """The CRC-32 of what a ``meta.json`` says."""
    said = {name: value for name, value in meta.items() if name != "checksum"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint")  # here: filters are not a thread's own
