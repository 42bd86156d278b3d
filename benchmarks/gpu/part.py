"""What a part of the acceptance run is given, and how it tells what it found, a row at a time."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# A check has "value", "limit" and "passed", a figure "value", what is left out "reason". "of" says of what a figure is.
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where a part runs, and how large.

    Attributes:
        device: ``cuda`` or ``cpu``.
        data: folder of a RecordIO set of 112-pixel faces.
        scratch: folder for what the part writes; removed when the run is over.
        ends: when the part's time is over, by `time.time`.
        ranks: processes of the parts that test what is between them.
        small: least sizes, where a CPU stands in for a GPU.
    """

    device: str
    data: Path
    scratch: Path
    ends: float
    ranks: int
    small: bool

    @property
    def seconds(self) -> float:
        """That the part has left."""
        return self.ends - time.time()

    @property
    def place(self) -> torch.device:
        """The device with its number, the current one."""
        return torch.device("cuda", torch.cuda.current_device()) if self.device == "cuda" else torch.device("cpu")

    @property
    def half(self) -> torch.dtype:
        """The type in which this device multiplies in training."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Setting":
        """Raises ``TypeError`` where fields are missing."""
        fields = json.loads(text)
        return cls(**{**fields, "data": Path(fields["data"]), "scratch": Path(fields["scratch"])})


class Report:
    """A part's rows, written to a file as they come: what a part has told stays told if it hangs or dies."""

    def __init__(self, path: Path | None) -> None:
        """``path``: None on ranks whose rows nobody wants."""
        self._path = path

    def _add(self, kind: str, name: str, **row: Any) -> None:
        value = row.get("value")
        if isinstance(value, float) and not math.isfinite(value):
            row["value"] = str(value)  # JSON has no such numbers
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"kind": kind, "name": name, **row}) + "\n")

    def figure(self, name: str, value: float | str, unit: str = "", **of: Any) -> None:
        """What is reported."""
        self._add("figure", name, value=value, unit=unit, **({"of": of} if of else {}))

    def at_most(self, name: str, value: float, limit: float, unit: str = "", **of: Any) -> bool:
        """What must hold: ``value`` <= ``limit``, which a NaN is not. Returns whether it does."""
        return self._check(name, value, f"<= {limit:g}", value <= limit, unit, of)

    def at_least(self, name: str, value: float, limit: float, unit: str = "", **of: Any) -> bool:
        """What must hold: ``value`` >= ``limit``."""
        return self._check(name, value, f">= {limit:g}", value >= limit, unit, of)

    def holds(
        self, name: str, passed: bool, value: float | str = "", unit: str = "", limit: str = "", **of: Any
    ) -> bool:
        """What must hold, in other words than a limit."""
        return self._check(name, value, limit, passed, unit, of)

    def _check(self, name: str, value: float | str, limit: str, passed: bool, unit: str, of: dict[str, Any]) -> bool:
        row = dict(value=value, unit=unit, limit=limit, passed=bool(passed))
        self._add("check", name, **row, **({"of": of} if of else {}))
        return bool(passed)

    def skip(self, name: str, reason: str) -> None:
        """What was left out, and why."""
        self._add("skipped", name, reason=reason)


def read_rows(path: Path) -> list[Row]:
    """The rows that a part has told so far; a last one that is cut off is none."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
