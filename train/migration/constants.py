"""Expressions of Python that are constants, or computed from constants: read, and never run."""

import ast
import operator
from collections.abc import Callable
from typing import Any

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


class Constants:
    """What the names of a module stand for, as far as it is known, and the values of expressions of these.

    Attributes:
        names: a dictionary with several names is one, as in Python.
    """

    def __init__(self, **names: Any) -> None:
        self.names = names

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
        """``config.key``, or an item of a list, tuple or dictionary."""
        if isinstance(node, ast.Attribute):
            return self.dictionary(node.value)[node.attr]
        return self.value(node.value)[self.value(node.slice)]

    def _called(self, node: ast.Call) -> Any:
        if ast.unparse(node.func) not in _DICTIONARIES:
            raise NotConstantError
        return self.merged(node)

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
        made: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values):
            made |= {self.value(key): self.value(item)} if key else self.dictionary(item)
        return made

    @staticmethod
    def _arithmetic(op: type[ast.AST], left: Any, right: Any) -> Any:
        if op is ast.Pow and abs(right) > 64:
            raise NotConstantError
        if op is ast.Mod and isinstance(left, str):  # may be as wide as its format says
            raise NotConstantError
        if op is ast.Mult and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise NotConstantError
        return _ARITHMETIC[op](left, right)

    def dictionary(self, node: ast.expr) -> dict[Any, Any]:
        """The value of an expression that is a dictionary."""
        value = self.value(node)
        if not isinstance(value, dict):
            raise NotConstantError
        return value

    def merged(self, call: ast.Call) -> dict[Any, Any]:
        """What ``edict(…)`` or ``update(…)`` is given."""
        made = {key: value for argument in call.args for key, value in self.dictionary(argument).items()}
        for word in call.keywords:
            made |= {word.arg: self.value(word.value)} if word.arg else self.dictionary(word.value)
        return made


_VALUES: dict[type[ast.expr], Callable[[Constants, Any], Any]] = {
    ast.Constant: lambda constants, node: node.value,
    ast.Tuple: lambda constants, node: tuple(constants.value(item) for item in node.elts),
    ast.List: lambda constants, node: [constants.value(item) for item in node.elts],
    ast.Dict: Constants._pairs,
    ast.Name: Constants._named,
    ast.Attribute: Constants._item,
    ast.Subscript: Constants._item,
    ast.Call: Constants._called,
    ast.IfExp: Constants._choice,
    ast.BoolOp: Constants._logic,
    ast.Compare: Constants._comparison,
    ast.UnaryOp: Constants._unary,
    ast.BinOp: Constants._binary,
    ast.JoinedStr: Constants._text,
    ast.FormattedValue: Constants._in_text,
}


def _bounded(value: Any) -> Any:
    too_large = isinstance(value, int | float) and abs(value) > _LARGEST
    if too_large or (isinstance(value, str | list | tuple) and len(value) > _LONGEST):
        raise NotConstantError
    return value
