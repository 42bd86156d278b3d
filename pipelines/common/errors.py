"""Mistakes of the user, which end a command with one clear line: everything else that is raised is a bug."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """What the user can mend: the message names the file or the thing as the user called it, and the remedy.

    A ``ValueError`` for those who call Facemill from Python. Commands tell it in one line (`pipelines.common.command`);
    any other ``ValueError``, out of torch or numpy say, keeps its traceback.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is none of the ``known`` ones of a kind, with the nearest of them."""
    known = list(known)
    near = get_close_matches(name, known, 1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    return UserError(f"unknown {kind} '{name}'; {guess}known: {', '.join(known)}")


def one_line(error: BaseException) -> str:
    """The text of a library's error, which may go over several lines, in one; its kind where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def escaped(text: str) -> str:
    """``text`` with line breaks, escape codes and the like, which names may hold, as Python writes them."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def brief(names: Sequence[str]) -> str:
    """The first three of ``names``."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
