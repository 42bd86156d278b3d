"""LMDB's file format, as far as it takes to find the entries of an environment: keys in order and where values lie.

A file is a row of pages. Pages 0 and 1 are meta pages, of which the one of the later transaction counts; it names the
root of a B+tree of pages, whose leaves hold the entries: short values in place, long ones on pages of their own. (LMDB
0.9's ``mdb.c``, data version 1, of a 64-bit little-endian machine.)

LMDB's own library maps the file and believes it: at a file that is cut short or damaged it ends the process. Here every
number that is read is checked before it is followed, and the values are read by offset like those of other formats.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.common.errors import UserError
from pipelines.sources.ranges import RangeReader

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE = struct.Struct("<QHHHH")  # number, padding, flags, end of the entries' offsets, start of the entries
_META = struct.Struct(
    "<IIQQ48s4xHHQQQQQQQ"
)  # magic, version, _, _, free pages' tree; that of the entries; last page, _
_PAGE_SIZE = struct.Struct("<I")  # the beginning of the free pages' tree
_NODE = struct.Struct("<HHHH")  # size or page: low half, high half; flags or rest of the page; bytes of the key
_NUMBER = struct.Struct("<Q")
_BRANCH, _LEAF = 0x01, 0x02  # flags of pages
_LONG = 0x01  # flag of an entry: its value lies on pages of its own
_SEVERAL = 0x04  # flag of a tree
_NO_ROOT = (1 << 64) - 1
_SMALLEST, _LARGEST = 256, 1 << 16  # bytes of a page


class Entry(NamedTuple):
    key: bytes
    begin: int  # the byte at which the value starts in the file
    length: int


class _Tree(NamedTuple):
    page_size: int
    pages: int  # of the file
    root: int
    entries: int
    flags: int
    transaction: int


def entries(file: RangeReader) -> Iterator[Entry]:
    """The entries of the main database, in the order of their keys.

    Raises ``ValueError`` naming the file where it is no LMDB, is cut short, or is damaged.
    """
    tree = _tree(file)
    if tree.flags & _SEVERAL:
        raise UserError(f"{file.path} is an LMDB of keys with several values, which holds no images")
    if tree.pages * tree.page_size > file.size:
        raise UserError(
            f"{file.path} is cut short: it has {file.size} of {tree.pages * tree.page_size} bytes; copy it again"
        )
    found, seen = 0, set[int]()
    ahead = [] if tree.root == _NO_ROOT else [tree.root]
    while ahead:
        number = ahead.pop()
        if number in seen or not 1 < number < tree.pages:
            raise _damaged(file.path, number)
        seen.add(number)
        page = file.read(number * tree.page_size, tree.page_size).tobytes()
        try:
            below, here = _nodes(page, number, tree)
        except (struct.error, ValueError):
            raise _damaged(file.path, number) from None
        ahead += reversed(below)
        found += len(here)
        yield from here
    if found != tree.entries:
        raise UserError(f"{file.path} is damaged: it announces {tree.entries} entries and has {found}; copy it again")


def _tree(file: RangeReader) -> _Tree:
    """The entries' tree as of the last transaction."""
    first = _read_meta(file, 0)
    second = _read_meta(file, first.page_size) if first else None
    if not first or not second:
        raise UserError(f"{file.path} is no readable LMDB: it does not begin with two meta pages")
    return max(first, second, key=lambda tree: tree.transaction)


def _read_meta(file: RangeReader, begin: int) -> _Tree | None:
    if begin + _PAGE.size + _META.size > file.size:
        return None
    content = file.read(begin + _PAGE.size, _META.size).tobytes()
    magic, version, _, _, free, flags, _, _, _, _, count, root, last, transaction = _META.unpack(content)
    (page_size,) = _PAGE_SIZE.unpack_from(free)
    if (magic, version) != (_MAGIC, _VERSION) or not _SMALLEST <= page_size <= _LARGEST:
        return None
    return _Tree(page_size, last + 1, root, count, flags, transaction)


def _nodes(page: bytes, number: int, tree: _Tree) -> tuple[list[int], list[Entry]]:
    """The pages below a branch page, or the entries of a leaf. Raises ``ValueError`` or ``struct.error`` at damage."""
    own, _, flags, lower, upper = _PAGE.unpack_from(page)
    if own != number or flags & 0xF not in (_BRANCH, _LEAF) or not _PAGE.size <= lower <= upper <= len(page):
        raise ValueError
    count = (lower - _PAGE.size) // 2
    below: list[int] = []
    here: list[Entry] = []
    for place in struct.unpack_from(f"<{count}H", page, _PAGE.size):
        low, high, node_flags, key_size = _NODE.unpack_from(page, place)
        if flags & _BRANCH:
            below.append(low | high << 16 | node_flags << 32)
            continue
        key_end = place + _NODE.size + key_size
        length = low | high << 16
        begin, end = number * tree.page_size + key_end, (number + 1) * tree.page_size
        if node_flags & _LONG:
            (first,) = _NUMBER.unpack_from(page, key_end)
            begin, end = first * tree.page_size + _PAGE.size, tree.pages * tree.page_size
        if key_end > len(page) or begin + length > end:
            raise ValueError
        here.append(Entry(page[place + _NODE.size : key_end], begin, length))
    return below, here


def _damaged(path: Path, page: int) -> UserError:
    return UserError(f"{path} is damaged at page {page}: copy it again")
