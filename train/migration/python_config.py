"""Configs that are Python modules (``config = edict()``; ``config.lr = 0.1``), read as text and never run.

What is understood is what such files are made of: constants, tuples, lists, dictionaries, arithmetic on them and on
keys set before (``config.num_epoch // 10``), and ``if`` on these.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.common.errors import UserError

_ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARISONS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, among: item in among,
    ast.NotIn: lambda item, among: item not in among,
}
# No file makes the reader compute for ever: larger numbers, and longer texts and lists, are not read.
_LARGEST, _LONGEST = 1e18, 1_000_000
_DICTIONARIES = ("edict", "EasyDict", "easydict.EasyDict", "dict")


class NotConstantError(Exception):
    """An expression that only running it would tell."""


@dataclass(frozen=True)
class Unread:
    """A line that is not understood, and the key that it would set, if one can be told."""

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


def read_config(path: Path) -> PythonConfig:
    """Read a module. Raises ``UserError`` for what is no Python."""
    try:
        source = path.read_text(encoding="utf-8-sig")
        tree = ast.parse(source)
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{path} is no Python config{line}: {getattr(error, 'msg', error)}") from None
    module = _Module(source)
    module.read(tree.body)
    return module.config


class _Module:
    def __init__(self, source: str) -> None:
        self.source = source
        self.config = PythonConfig()
        self.names: dict[str, Any] = {}
        self.configs = {"config"}  # the names that the config has in the file

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
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._set(node.target, node.value)
        elif isinstance(node, ast.ImportFrom):
            self.configs |= {alias.asname or alias.name for alias in node.names if alias.name == "config"}
        elif not isinstance(node, ast.Import | ast.Pass) and not _is_text(node):
            raise NotConstantError

    def _set(self, target: ast.expr, value: ast.expr) -> None:
        key = self._key(target)
        if isinstance(target, ast.Tuple):
            for part, item in zip(target.elts, self.value(value), strict=True):
                self._set(part, ast.Constant(item))
        elif key is not None:
            self.config.values[key] = self.value(value)
            self.config.unread = [unread for unread in self.config.unread if unread.key != key]
        elif not isinstance(target, ast.Name):
            raise NotConstantError
        elif isinstance(value, ast.Name) and value.id in self.configs:
            self.configs.add(target.id)
        elif isinstance(value, ast.Call) and ast.unparse(value.func) in _DICTIONARIES:
            self.configs.add(target.id)
            self.config.values.update(self._dictionary(value))
        else:
            self.names[target.id] = self.value(value)

    def _key(self, target: ast.expr) -> str | None:
        """The key of ``config.key`` or ``config["key"]``."""
        if not isinstance(target, ast.Attribute | ast.Subscript) or not isinstance(target.value, ast.Name):
            return None
        if target.value.id not in self.configs:
            return None
        if isinstance(target, ast.Attribute):
            return target.attr
        key = target.slice.value if isinstance(target.slice, ast.Constant) else None
        return key if isinstance(key, str) else None

    def _dictionary(self, call: ast.Call) -> Mapping[str, Any]:
        """The value of ``edict(…)``."""
        given = [self.value(argument) for argument in call.args]
        if any(not isinstance(value, dict) for value in given):
            raise NotConstantError
        keywords = {keyword.arg: self.value(keyword.value) for keyword in call.keywords if keyword.arg}
        return {name: value for part in (*given, keywords) for name, value in part.items()}

    def value(self, node: ast.expr) -> Any:
        """The value of an expression. Raises ``NotConstantError``."""
        try:
            return _bounded(self._value(node))
        except NotConstantError:
            raise
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError):
            raise NotConstantError from None

    def _value(self, node: ast.expr) -> Any:
        kind = type(node)
        if kind not in _VALUES:
            raise NotConstantError
        return _VALUES[kind](self, node)

    def _named(self, node: ast.Name) -> Any:
        return self.names[node.id]

    def _item(self, node: ast.Attribute | ast.Subscript) -> Any:
        """``config.key`` or an item of a list, tuple or dictionary."""
        key = self._key(node)
        if key is not None:
            return self.config.values[key]
        if isinstance(node, ast.Attribute):
            raise NotConstantError
        return self.value(node.value)[self.value(node.slice)]

    def _called(self, node: ast.Call) -> Any:
        if ast.unparse(node.func) not in _DICTIONARIES:
            raise NotConstantError
        return self._dictionary(node)

    def _choice(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _logic(self, node: ast.BoolOp) -> bool:
        values = [self.value(item) for item in node.values]
        return all(values) if isinstance(node.op, ast.And) else any(values)

    def _comparison(self, node: ast.Compare) -> bool:
        values = [self.value(item) for item in (node.left, *node.comparators)]
        return all(_COMPARISONS[type(op)](left, right) for op, left, right in zip(node.ops, values, values[1:]))

    def _unary(self, node: ast.UnaryOp) -> Any:
        return _ARITHMETIC[type(node.op)](self.value(node.operand))

    def _binary(self, node: ast.BinOp) -> Any:
        return self._arithmetic(type(node.op), self.value(node.left), self.value(node.right))

    def _text(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.value(item)) for item in node.values)

    def _in_text(self, node: ast.FormattedValue) -> Any:
        if node.conversion != -1 or node.format_spec is not None:
            raise NotConstantError
        return self.value(node.value)

    def _pairs(self, node: ast.Dict) -> dict[Any, Any]:
        return {self.value(key): self.value(item) for key, item in zip(node.keys, node.values) if key}

    @staticmethod
    def _arithmetic(op: type[ast.AST], left: Any, right: Any) -> Any:
        if op is ast.Pow and abs(right) > 64:
            raise NotConstantError
        if op is ast.Mod and isinstance(left, str):  # may be as wide as its format says
            raise NotConstantError
        if op is ast.Mult and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise NotConstantError
        return _ARITHMETIC[op](left, right)

    def _leave(self, statement: ast.stmt) -> None:
        """Note that a statement is not understood; what it sets does not hold any more what it held before."""
        targets = list(_targets(statement))
        for target in targets:
            if isinstance(target, ast.Name):
                self.names.pop(target.id, None)
        keys: list[str | None] = [key for key in map(self._key, targets) if key]
        text = (ast.get_source_segment(self.source, statement) or "").splitlines()[0]
        for key in keys or [None]:
            self.config.values.pop(key or "", None)
            self.config.unread.append(Unread(statement.lineno, text, key))


_VALUES: dict[type[ast.expr], Callable[[_Module, Any], Any]] = {
    ast.Constant: lambda module, node: node.value,
    ast.Tuple: lambda module, node: tuple(module.value(item) for item in node.elts),
    ast.List: lambda module, node: [module.value(item) for item in node.elts],
    ast.Dict: _Module._pairs,
    ast.Name: _Module._named,
    ast.Attribute: _Module._item,
    ast.Subscript: _Module._item,
    ast.Call: _Module._called,
    ast.IfExp: _Module._choice,
    ast.BoolOp: _Module._logic,
    ast.Compare: _Module._comparison,
    ast.UnaryOp: _Module._unary,
    ast.BinOp: _Module._binary,
    ast.JoinedStr: _Module._text,
    ast.FormattedValue: _Module._in_text,
}


def _targets(statement: ast.stmt) -> Iterator[ast.expr]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield node


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _bounded(value: Any) -> Any:
    too_large = isinstance(value, int | float) and abs(value) > _LARGEST
    if too_large or (isinstance(value, str | list | tuple) and len(value) > _LONGEST):
        raise NotConstantError
    return value
