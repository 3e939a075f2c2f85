"""A program against its unit tests, inside the sandbox: right where every assert holds and at least one was reached.

The tests are read and compiled before the program runs, with their own built-in functions, and their comparisons are
made here, so that what the program does to `AssertionError`, `all` or `__eq__` changes no verdict.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import inspect
import operator
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

PROGRAM = "solution"
"""The name tests may import the program by."""
LIBRARIES = ("numpy", "scipy", "sympy", "pandas", "networkx")
_ASSERT, _COMPARE = "__asserted__", "__compared__"
_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: operator.contains(container, item),
    ast.NotIn: lambda item, container: not operator.contains(container, item),
}
_BY_NAME = {kind.__name__: function for kind, function in _OPERATORS.items()}
_STRANGE = (
    982_451_653,
    982_451_653.5,
    "\x00 equal to nothing",
    ("equal", "to nothing"),
    ["equal to nothing"],
    {"": None},
)
"""What no honest object equals."""
_TOO_DEEP = (SyntaxError, ValueError, RecursionError, MemoryError)


def parsed_tests(tests: str) -> ast.Module:
    """The tests as a tree.

    Raises:
        ValueError: they are no Python, or assert nothing; in words for the user.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as a backslash that means nothing
            tree = ast.parse(tests)
    except _TOO_DEEP as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"is no Python{line}: {getattr(error, 'msg', None) or type(error).__name__}") from error
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError("has no assert statement, so it could not fail")
    return tree


def prepare(program: str, tests: str) -> None:
    """Load the libraries that a program names, once for all and before anything watches: some look at their caller."""
    for name in LIBRARIES:
        if name in program or name in tests:
            with contextlib.suppress(Exception):  # not installed, or broken: the program's import will say so
                importlib.import_module(name)


def passes(program: str, tests: str) -> bool:
    """Whether the program, run as a module `solution`, fulfils the tests: asserts, or functions `test_...` of them."""
    warnings.simplefilter("ignore")
    checks = compile(ast.fix_missing_locations(_Guarded().visit(parsed_tests(tests))), "tests", "exec")
    own_builtins = dict(vars(builtins))
    tally = _Tally()
    module = types.ModuleType(PROGRAM)
    sys.modules[PROGRAM] = module
    try:
        exec(compile(program, f"{PROGRAM}.py", "exec", dont_inherit=True), vars(module))
        given = dict(vars(module))
        names = {
            **given,
            "__name__": "tests",
            "__builtins__": own_builtins,
            _ASSERT: tally.asserted,
            _COMPARE: tally.compared,
        }
        exec(checks, names)
        for test in _test_functions(names, given):
            test()
    except BaseException:  # also SystemExit and KeyboardInterrupt, which the program may raise
        return False
    return tally.asserts > 0


def _test_functions(names: dict[str, Any], given: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """What the tests define in pytest's manner: functions `test_...` without arguments."""
    for name, value in list(names.items()):
        new = name not in given or given[name] is not value
        if name.startswith("test") and new and inspect.isfunction(value) and not inspect.signature(value).parameters:
            yield value


class _Guarded(ast.NodeTransformer):
    """Asserts and comparisons as calls of our own."""

    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        call = ast.Call(ast.Name(_ASSERT, ast.Load()), [self.visit(node.test)], [])
        return ast.copy_location(ast.Expr(call), node)

    def visit_Compare(self, node: ast.Compare) -> ast.Call:
        self.generic_visit(node)
        signs = ast.Tuple([ast.Constant(type(sign).__name__) for sign in node.ops], ast.Load())
        call = ast.Call(ast.Name(_COMPARE, ast.Load()), [signs, node.left, *node.comparators], [])
        return ast.copy_location(call, node)


class _Tally:
    """What the tests call; counts the asserts that held."""

    def __init__(self) -> None:
        self.asserts = 0

    def asserted(self, holds: Any) -> None:
        if not holds:
            raise AssertionError
        self.asserts += 1

    def compared(self, signs: tuple[str, ...], *values: Any) -> Any:
        """`a < b < c` of any values; one that is equal to anything makes it fail."""
        if any(map(_equals_anything, values)):
            raise AssertionError
        result: Any = True
        for sign, left, right in zip(signs, values, values[1:], strict=False):
            result = _BY_NAME[sign](left, right)
            if not result:
                break
        return result


def _equals_anything(value: Any) -> bool:
    """Whether a value, or one inside it, has an `__eq__` of the program's that says yes to what it cannot equal."""
    todo, seen = [value], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            todo += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one
        if _has_own_equality(type(one)):
            if any(_says_yes(one, strange) for strange in (object(), *_STRANGE)):
                return True
            if _says_yes(one, True) and _says_yes(one, False):
                return True
    return False


def _has_own_equality(kind: type) -> bool:
    for parent in kind.__mro__:
        if "__eq__" in vars(parent):
            written = vars(parent)["__eq__"]
            here = getattr(written, "__globals__", None) is vars(sys.modules[PROGRAM])
            return here or parent.__module__ == PROGRAM
    return False


def _says_yes(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except Exception:
        return False
