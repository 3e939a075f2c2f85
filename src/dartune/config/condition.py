"""Conditions on the columns of a row (`data.where`): comparisons in Python's syntax, translated to pyarrow expressions.

The text is parsed by `ast` and never run. Syntax that the translation does not list is an error.
"""

from __future__ import annotations

import ast
import operator
import warnings
from functools import reduce
from itertools import pairwise
from typing import Any

NUMBER, TEXT, TRUTH = "a number", "a text", "true or false"
KINDS: dict[type, str] = {float: NUMBER, str: TEXT, bool: TRUTH}
OPERATORS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
SHOWN_CHARS = 60
"""Characters of a part that is not read, in messages."""
EXAMPLE = 'alignment_percentile > 0.1 and source in ["web", "book"]'


class Condition:
    """A condition on the columns of a row. A comparison with a missing value is neither true nor false, as in SQL.

    Args:
        text: the condition; see docs/data-format.md.

    Attributes:
        kinds: column -> what it is compared with (`NUMBER`, `TEXT` or `TRUTH`); None if it is only tested for null.
        expression: the pyarrow expression over columns of float64, string and bool.

    Raises:
        ValueError: the text is not a condition; the message names the position, counted from 1.
    """

    def __init__(self, text: str) -> None:
        line = " ".join(text.splitlines()).strip()
        self.text, self.kinds = text, dict[str, str | None]()
        try:
            with warnings.catch_warnings(action="ignore"):  # of an invalid escape sequence in a text
                tree = ast.parse(line, mode="eval")
            self.expression: Any = self._truth(tree.body)
        except SyntaxError as error:
            hint = f"{error.msg} (equality is ==, texts are in quotes, other columns are col('my name'))"
            raise ValueError(_message(hint, error.offset or len(line) + 1)) from None
        except (RecursionError, MemoryError):
            raise ValueError("should be a condition; this one is nested too deeply") from None
        except OverflowError:
            raise ValueError("should be a condition; this one has a number that is too large") from None
        except ValueError:  # of ast.parse: half of a surrogate pair, and in Python 3.11 a NUL character
            raise ValueError("should be a condition; this one is not valid text") from None
        except _NotRead as error:
            problem, node = error.args
            part = (ast.get_source_segment(line, node) or "")[:SHOWN_CHARS]
            position = len(line.encode()[: node.col_offset].decode()) + 1
            raise ValueError(_message(f"`{part}` {problem}", position)) from None

    def _truth(self, node: ast.expr) -> Any:
        """The expression of a node that is true or false."""
        match node:
            case ast.BoolOp(op, parts):
                combine = operator.and_ if isinstance(op, ast.And) else operator.or_
                return reduce(combine, map(self._truth, parts))
            case ast.UnaryOp(ast.Not(), part):
                return ~self._truth(part)
            case ast.Compare(left, operators, operands):
                pairs = zip(pairwise([left, *operands]), operators, strict=True)
                return reduce(operator.and_, (self._comparison(node, *pair, op) for pair, op in pairs))
        return self._column(node, TRUTH)

    def _comparison(self, node: ast.expr, left: ast.expr, right: ast.expr, op: ast.cmpop) -> Any:
        pc = _compute()
        if isinstance(op, ast.In | ast.NotIn):
            contained = self._membership(node, left, right)
            return contained if isinstance(op, ast.In) else ~contained
        if isinstance(right, ast.Constant) and right.value is None:
            column = self._column(left, None)
            if isinstance(op, ast.Is | ast.Eq):
                return column.is_null()
            if isinstance(op, ast.IsNot | ast.NotEq):
                return column.is_valid()
        if type(op) not in OPERATORS:
            raise _NotRead("is not read; `is` needs None behind it", node)
        values = [_value(side) for side in (left, right)]
        if None not in values:
            raise _NotRead("compares no column; write columns without quotes", node)
        # Two columns are compared as numbers, because their own kinds are unknown.
        kind = next((KINDS[type(value)] for value in values if value is not None), NUMBER)
        sides = zip((left, right), values, strict=True)
        return OPERATORS[type(op)](
            *(self._column(side, kind) if value is None else pc.scalar(value) for side, value in sides)
        )

    def _membership(self, node: ast.expr, left: ast.expr, right: ast.expr) -> Any:
        import pyarrow

        pc = _compute()
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            values = [_value(element) for element in right.elts]
            kinds = {KINDS[type(value)] for value in values if value is not None}
            if len(kinds) != 1 or None in values:
                raise _NotRead("should be a list of numbers, or of texts; test null with `is None`", right)
            column = self._column(left, kinds.pop())
            # `isin` itself is false for null, so that `not in` would be true.
            return pc.if_else(column.is_valid(), column.isin(values), pyarrow.scalar(None, pyarrow.bool_()))
        if isinstance(part := _value(left), str):
            return pc.match_substring(self._column(right, TEXT), part)
        raise _NotRead('is not read; write `column in ["a", "b"]`, or `"part" in column`', node)

    def _column(self, node: ast.expr, kind: str | None) -> Any:
        pc = _compute()
        name = _column_name(node)
        if name is None:
            raise _NotRead(
                'is not read; use columns (or col("my name")), numbers, texts, <, ==, in, is None, and, or, not', node
            )
        earlier_kind = self.kinds.get(name)
        if kind and earlier_kind and kind != earlier_kind:
            raise _NotRead(f"is compared with {earlier_kind} elsewhere, and here with {kind}", node)
        self.kinds[name] = kind or earlier_kind
        return pc.field(name)


def _compute() -> Any:
    """pyarrow's functions, loaded only where there is a condition; its type stubs lack most of them."""
    import pyarrow.compute

    return pyarrow.compute


class _NotRead(Exception):
    """A part of a condition that is not read: the problem and the node."""


def _message(problem: str, position: int) -> str:
    return f"should be a condition such as {EXAMPLE}; at character {position}: {problem}"


def _value(node: ast.expr) -> float | str | bool | None:
    """The value of a number, a text, True or False; None for other nodes."""
    match node:
        case ast.Constant(bool() | str() as value):
            return value
        case ast.Constant(int() | float() as number):
            return float(number)
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)) if not isinstance(number, bool):
            return -float(number)
    return None


def _column_name(node: ast.expr) -> str | None:
    """The column that a node names: `level`, `meta.level` or `col("any name")`; None for other nodes."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(inner, name):
            struct = _column_name(inner)
            return None if struct is None else f"{struct}.{name}"
        case ast.Call(ast.Name("col"), [ast.Constant(str(name))], []):
            return name or None
    return None
