"""``--json``: standard output holds one JSON document and nothing else, for scripts."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--json`` to a command; ``what``: what the document holds."""
    parser.add_argument("--json", action="store_true", help=f"print only JSON: {what}; all else to standard error")


@contextmanager
def only_json(wanted: bool) -> Iterator[Callable[[object], None]]:
    """Within the block, if ``wanted``, what is printed goes to standard error.

    The value prints a document to standard output; it does nothing where JSON isn't wanted, or the document is None,
    as that of a rank that leaves the telling to another.
    """
    output = sys.stdout

    def tell(document: object) -> None:
        if wanted and document is not None:
            print(json.dumps(document, allow_nan=False, indent=1), file=output)

    with redirect_stdout(sys.stderr) if wanted else nullcontext():
        yield tell
