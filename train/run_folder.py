"""The folder of a run: one run at a time, on a disk that all nodes share."""

import json
import os
import socket
import uuid
from pathlib import Path

from evaluate.features.ranks import World
from pipelines.common.errors import UserError
from pipelines.common.files import check_folder, naming, remove_leftovers, replacing
from pipelines.common.locks import take_lock
from train.distributed import agreed, comes_true

# A whole run leaves these: where one is, there was a run, whatever else has been deleted.
_RESULTS = ("model.pt", "best.pt")


class RunFolder:
    """A run's folder, held by the main rank until ``release``, at the latest until its process ends.

    The file ``.lock`` in it says who holds it and, ever after, whether the run has had a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._notes: dict[str, object] = {}

    def claim(self, world: World) -> None:
        """Hold the folder, made where it is not there, and clear what a kill has left in it; all ranks call.

        Raises ``UserError`` on all ranks where another run holds it, or where a rank does not see it.
        """
        token = uuid.uuid4().hex
        token, *_ = agreed(lambda: self._acquire(token) if world.main else token)
        if not all(agreed(lambda: world.main or self._sees(token))):
            raise UserError(f"output: {self.path} must be a folder that all nodes share; not every process sees it")

    def _acquire(self, token: str) -> str:
        check_folder(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._notes = self._read()
        if not take_lock(self._lock, self.path):
            holder = self._notes.get("holder", "another process")
            raise UserError(f"{self.path} is in use by {holder}: wait for its end, or choose another output")
        self._note(holder=f"process {os.getpid()} on {socket.gethostname()}", token=token)
        remove_leftovers(self.path)
        return token

    def _sees(self, token: str) -> bool:
        def is_there() -> bool:
            try:
                return json.loads((self.path / ".lock").read_bytes())["token"] == token
            except (OSError, ValueError, KeyError, TypeError):  # not there yet, or half of it
                return False

        return comes_true(is_there)

    def note_checkpoint(self) -> None:
        """Note that there is a checkpoint now."""
        if not self._notes.get("had_checkpoint"):
            self._note(had_checkpoint=True)

    def check_unused(self) -> None:
        """Raises ``UserError`` where a fresh start would write over the results of an earlier run."""
        found = [name for name in _RESULTS if (self.path / name).exists()]
        if found or self._notes.get("had_checkpoint"):
            what = found[0] if found else "the log of a run"
            raise UserError(
                f"{self.path} holds {what} and no checkpoint to go on from: choose another output, or remove the folder"
            )

    def write(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(text)

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self) -> dict[str, object]:
        assert self._lock is not None
        try:
            notes = json.loads(os.pread(self._lock, 1 << 16, 0))
        except ValueError:  # new, or torn by a full disk
            return {}
        return notes if isinstance(notes, dict) else {}

    def _note(self, **notes: object) -> None:
        """Written in place: the lock is on the file itself."""
        assert self._lock is not None
        self._notes |= notes
        content = json.dumps(self._notes).encode()
        with naming(self.path):
            os.pwrite(self._lock, content + b" " * (os.fstat(self._lock).st_size - len(content)), 0)
            os.fsync(self._lock)
