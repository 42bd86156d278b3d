"""Configs that are Python modules (``config = edict()``; ``config.lr = 0.1``), read as text and never run.

What is understood is what such files are made of: constants, tuples, lists, dictionaries, arithmetic on them and on
keys set before (``config.num_epoch // 10``), ``if`` on these, ``config.update(…)``, and the config of a file beside it
(``from configs.big import config``).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.common.errors import UserError
from train.migration.constants import Constants, NotConstantError

ANY_KEY = "*"  # of a line that may set any of them


@dataclass(frozen=True)
class Unread:
    """A line that is not understood, and the key that it would set: None for none, `ANY_KEY` for any of them."""

    file: str
    line: int
    text: str
    key: str | None


@dataclass
class PythonConfig:
    """What a module sets.

    Attributes:
        values: the keys' values, as set last.
        unread: what is not understood, in order.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)


def read_config(path: Path, importers: tuple[Path, ...] = ()) -> PythonConfig:
    """Read a module, for ``importers`` that take their config from it. Raises ``UserError`` for what is no Python."""
    try:
        source = path.read_text(encoding="utf-8-sig")
        tree = ast.parse(source)
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{path} is no Python config{line}: {getattr(error, 'msg', error)}") from None
    module = _Module(path, source, (*importers, path.resolve()))
    try:
        module.read(tree.body)
    except RecursionError:
        raise UserError(f"{path} nests too deeply to be read") from None
    return PythonConfig(module.base | module.names["config"], module.unread)


class _Module(Constants):
    """A module as far as it is read.

    Attributes:
        files: itself, and before it those that import its config.
        base: the config of ``base.py``, of which there is only what this module sets.
    """

    def __init__(self, path: Path, source: str, files: tuple[Path, ...]) -> None:
        self.path, self.source, self.files = path, source, files
        self.base: dict[str, Any] = {}
        self.unread: list[Unread] = []
        super().__init__(config=self.base)

    def read(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            try:
                self._read(statement)
            except NotConstantError:
                self._leave(statement)

    def _read(self, node: ast.stmt) -> None:
        if isinstance(node, ast.If):
            self.read(node.body if self.value(node.test) else node.orelse)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._set(target, node.value)
        elif isinstance(node, ast.AugAssign):
            target = ast.parse(ast.unparse(node.target), mode="eval").body  # the same, to be read
            self._set(node.target, ast.BinOp(target, node.op, node.value))
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._set(node.target, node.value)
        elif isinstance(node, ast.ImportFrom):
            self._import(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._update(node.value)
        elif not isinstance(node, ast.Import | ast.Pass) and not _is_text(node):
            raise NotConstantError

    def _set(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            for part, item in zip(target.elts, self.value(value), strict=True):
                self._set(part, ast.Constant(item))
        elif isinstance(target, ast.Attribute):
            self._put(self.dictionary(target.value), target.attr, self.value(value))
        elif isinstance(target, ast.Subscript):
            self._put(self.dictionary(target.value), self.value(target.slice), self.value(value))
        elif isinstance(target, ast.Name):
            self.names[target.id] = self.dictionary(value) if target.id == "config" else self.value(value)
        else:
            raise NotConstantError

    def _put(self, owner: dict[Any, Any], key: Any, value: Any) -> None:
        if not isinstance(key, str):
            raise NotConstantError
        owner[key] = value
        if self._is_config(owner):
            self.unread = [unread for unread in self.unread if unread.key != key]

    def _is_config(self, value: Any) -> bool:
        return value is self.base or value is self.names["config"]

    def _import(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name in ("config", "*"):
                self.names["config" if alias.name == "*" else alias.asname or "config"] = self._imported(node)
            elif alias.asname == "config":
                raise NotConstantError

    def _imported(self, node: ast.ImportFrom) -> dict[str, Any]:
        """The config of another module: ``base``'s, or that of a file beside this one."""
        *package, name = (node.module or "").split(".")
        if name == "base":
            return self.base
        file = self.path.with_name(f"{name}.py")
        beside = node.level < 2 and package[-1:] in ([], [self.path.resolve().parent.name])
        if not beside or not file.is_file() or file.resolve() in self.files:
            raise NotConstantError
        other = read_config(file, self.files)
        self.unread += other.unread
        return other.values

    def _update(self, call: ast.Call) -> None:
        if not isinstance(call.func, ast.Attribute) or call.func.attr != "update":
            raise NotConstantError
        owner = self.dictionary(call.func.value)
        for key, value in self.merged(call).items():
            self._put(owner, key, value)

    def _leave(self, statement: ast.stmt) -> None:
        """Note that a statement is not understood; what it changes does not hold any more what it held before."""
        keys: list[str | None] = []
        for name, key in dict.fromkeys(self._changed(statement)):
            if name != "config" and not self._is_config(self.names.get(name)):
                self.names.pop(name, None)
            elif key is None:
                keys.append(ANY_KEY)
            else:
                self.names[name].pop(key, None)
                keys.append(key)
        text = (ast.get_source_segment(self.source, statement) or "").splitlines()[0]
        for key in keys or [None]:
            self.unread.append(Unread(self.path.name, statement.lineno, text, key))

    def _changed(self, node: ast.AST, called: bool = False) -> Iterator[tuple[str, str | None]]:
        """What may have another value after a statement: names, and keys of the dictionaries that have these names.

        That is what is set, a list or dictionary of which a method is ``called``, and the config wherever it is handed
        on as a whole, unless it is printed.
        """
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            yield from self._changed_place(node, called, is_set=not isinstance(node.ctx, ast.Load))
            return
        bound = getattr(node, "asname", None) or getattr(node, "name", None)  # by def, class, import
        if bound:
            yield "config" if bound == "*" else bound, None
        for part, is_called in _parts(node):
            yield from self._changed(part, is_called)

    def _changed_place(
        self, node: ast.Name | ast.Attribute | ast.Subscript, called: bool, is_set: bool
    ) -> Iterator[tuple[str, str | None]]:
        if isinstance(node, ast.Name):
            held = self.names.get(node.id)
            if is_set or self._is_config(held) or (called and isinstance(held, list | dict)):
                yield node.id, None
            return
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        owner = self.names.get(name)
        key = node.attr if isinstance(node, ast.Attribute) else getattr(node.slice, "value", None)
        if not isinstance(owner, dict) or not isinstance(key, str):
            yield from self._changed(node.value, called or is_set)
        elif is_set or (called and isinstance(owner.get(key, []), list | dict)):
            yield name, key


def _parts(node: ast.AST) -> list[tuple[ast.AST, bool]]:
    """What a node is made of, and whether a method is called of it; nothing of what is printed."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
        return []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return [(node.func.value, True), *((part, False) for part in (*node.args, *node.keywords))]
    return [(part, False) for part in ast.iter_child_nodes(node)]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
