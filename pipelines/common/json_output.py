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

    The block is given a function that prints a document to standard output. It does nothing where JSON is not wanted,
    or for None: of several ranks only one has a document.
    """
    output = sys.stdout

    def tell(document: object) -> None:
        if wanted and document is not None:
            print(json.dumps(document, allow_nan=False, indent=1), file=output)

    with redirect_stdout(sys.stderr) if wanted else nullcontext():
        yield tell
