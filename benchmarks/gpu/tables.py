"""Rows in words: values with units, what they are of, and checks of one name together."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.gpu.part import Row
from benchmarks.results import number


def of(row: Row) -> str:
    """What a figure is of, in a line."""
    return ", ".join(f"{key.replace('_', ' ')} {number(value)}" for key, value in row.get("of", {}).items())


def value(row: Row) -> str:
    """A value and its unit."""
    return f"{number(row['value'])} {row['unit']}".strip()


def checks(rows: Iterable[Row]) -> list[tuple[str, str, str, str, bool]]:
    """Part, name, what was found, limit, passed. Those that fail stand alone, the others by their name."""
    found = []
    tested = [row for row in rows if row["kind"] == "check"]
    for (part, name, passed), group in groupby(tested, key=lambda row: (row["part"], row["name"], row["passed"])):
        same = list(group)
        if passed:
            found.append((part, name + _times(same), _range(same), _limit(same), True))
        else:
            found += [
                (part, f"{name} ({of(row)})" if of(row) else name, value(row), row["limit"], False) for row in same
            ]
    return found


def _times(rows: Sequence[Row]) -> str:
    return f" ({len(rows)} times)" if len(rows) > 1 else ""


def _range(rows: Sequence[Row]) -> str:
    numbers = [row["value"] for row in rows if isinstance(row["value"], (int, float))]
    if len(numbers) != len(rows) or min(numbers) == max(numbers):
        return " | ".join(dict.fromkeys(value(row) for row in rows))
    return f"{number(min(numbers))} to {number(max(numbers))} {rows[0]['unit']}".strip()


def _limit(rows: Sequence[Row]) -> str:
    return " | ".join(dict.fromkeys(row["limit"] for row in rows))
