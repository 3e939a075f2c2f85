"""Runs a program against its unit tests, inside the sandbox.

A program passes if every assert holds and at least one was reached. The tests are parsed and compiled before the
program runs. They get separate built-in functions and module copies, and their comparisons are evaluated here. A
program that changes `AssertionError`, `all`, `math` or `__eq__` therefore cannot change the verdict.
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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dartune.sandbox.module_copies import OwnModules

PROGRAM = "solution"
"""Module name by which tests may import the program."""
LIBRARIES = ("numpy", "scipy", "sympy", "pandas", "networkx")
"""Third-party libraries that programs and tests commonly use: `prepare` imports them, `OwnModules` copies them."""
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
_OPERATORS_BY_NAME = {kind.__name__: function for kind, function in _OPERATORS.items()}
_UNEQUAL_VALUES = (
    982_451_653,
    982_451_653.5,
    "\x00 equal to nothing",
    ("equal", "to nothing"),
    ["equal to nothing"],
    {"": None},
)
"""Values that no honest object equals."""
_PARSE_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError)


def parsed_tests(tests: str) -> ast.Module:
    """Parse tests into a syntax tree.

    Raises:
        ValueError: the tests are not valid Python or contain no assert. The message continues a sentence for the user.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as an invalid escape sequence
            tree = ast.parse(tests)
    except _PARSE_ERRORS as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(
            f"they are not valid Python{line}: {getattr(error, 'msg', None) or type(error).__name__}"
        ) from error
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError("they have no assert statement, so they could not fail")
    return tree


def prepare(program: str, tests: str) -> None:
    """Import the libraries that a program or its tests name, in the server.

    All later forks share them. Some inspect their caller's frame on import, which `memory_guard` refuses in the fork.
    """
    for name in LIBRARIES:
        if name in program or name in tests:
            with contextlib.suppress(Exception):  # not installed or broken: the program's own import raises the error
                importlib.import_module(name)


def passes(program: str, tests: str) -> bool:
    """Return whether a program passes its tests.

    Args:
        program: Python source, which is run as a module `solution`.
        tests: Python source with asserts at its top level or in functions `test_...`.
    """
    warnings.simplefilter("ignore")
    tree = parsed_tests(tests)
    checks = compile(ast.fix_missing_locations(_Guarded().visit(parsed_tests(tests))), "tests", "exec")
    own_builtins = dict(vars(builtins))
    tally = _Tally()
    module = types.ModuleType(PROGRAM)
    try:
        used = _UsedNames(tree, ast.parse(program))
        modules = OwnModules(tree, PROGRAM, used.modules.values())
        sys.modules[PROGRAM] = module
        exec(compile(program, f"{PROGRAM}.py", "exec", dont_inherit=True), vars(module))
        hidden = own_builtins.keys() - used.tested_builtins
        program_names = {name: value for name, value in vars(module).items() if name not in hidden}
        test_names = {
            **program_names,
            **{name: copy for name, copy in used.copies(modules).items() if name in program_names},
            "__name__": "tests",
            "__builtins__": own_builtins | {"__import__": modules.imported},
            _ASSERT: tally.asserted,
            _COMPARE: tally.compared,
        }
        exec(checks, test_names)
        for test in _test_functions(test_names, program_names):
            test()
    except BaseException:  # also SystemExit and KeyboardInterrupt, which the program may raise
        return False
    return tally.asserts > 0


class _UsedNames:
    """The modules and built-in names that tests use without defining them.

    Attributes:
        modules: name in the tests -> name of the module.
        tested_builtins: built-in names that are under test instead of being helpers. MBPP asks for a function `sum`.
    """

    def __init__(self, tests: ast.Module, program: ast.Module) -> None:
        nodes = list(ast.walk(tests))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        undefined = {node.id for node in names if isinstance(node.ctx, ast.Load)} - set(_bound_names(nodes))
        self._read: dict[str, set[str]] = {}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in undefined:
                self._read.setdefault(node.value.id, set()).add(node.attr)
        self.modules = {name: name for name in self._read if name in sys.stdlib_module_names or name in LIBRARIES}
        for alias in (alias for node in ast.walk(program) if isinstance(node, ast.Import) for alias in node.names):
            top = alias.name.partition(".")[0]
            if (alias.asname or top) in self._read:
                self.modules[alias.asname or top] = alias.name if alias.asname else top
        helpers = undefined & vars(builtins).keys()
        # With several built-in names it is undecidable which are under test and which are helpers of the tests.
        only_name = len(helpers) == 1 and undefined == helpers | self.modules.keys()
        self.tested_builtins = helpers if only_name and not any(map(_mentions_program, nodes)) else set()

    def copies(self, own: OwnModules) -> dict[str, types.ModuleType]:
        """Return the copies in `own` of the used modules that have every attribute which the tests read."""
        copies = {name: own.get(module) for name, module in self.modules.items()}
        return {
            name: copy
            for name, copy in copies.items()
            if copy is not None and all(hasattr(copy, attribute) for attribute in self._read[name])
        }


def _mentions_program(node: ast.AST) -> bool:
    """Return whether a node names the program's module."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module] if isinstance(node, ast.ImportFrom) else []
    names += [node.value] if isinstance(node, ast.Constant) else []
    return PROGRAM in names


def _bound_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield every name that some node binds, in any scope."""
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(
            node,
            ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar,
        ):
            yield node.name or ""


def _test_functions(test_names: dict[str, Any], program_names: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """Yield the tests' functions `test_...` without parameters, which pytest would collect."""
    for name, value in list(test_names.items()):
        defined_by_tests = name not in program_names or program_names[name] is not value
        if (
            name.startswith("test")
            and defined_by_tests
            and inspect.isfunction(value)
            and not inspect.signature(value).parameters
        ):
            yield value


class _Guarded(ast.NodeTransformer):
    """Replaces asserts and comparisons by calls of `_Tally`, which the program cannot change."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        """Drop `from solution import *`.

        The tests see the program's names without it, and the import would hide built-in functions.
        """
        imports_everything = node.module == PROGRAM and node.names[0].name == "*"
        return ast.copy_location(ast.Pass(), node) if imports_everything else node

    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        call = ast.Call(ast.Name(_ASSERT, ast.Load()), [self.visit(node.test)], [])
        return ast.copy_location(ast.Expr(call), node)

    def visit_Compare(self, node: ast.Compare) -> ast.Call:
        self.generic_visit(node)
        operators = ast.Tuple([ast.Constant(type(operator_node).__name__) for operator_node in node.ops], ast.Load())
        call = ast.Call(ast.Name(_COMPARE, ast.Load()), [operators, node.left, *node.comparators], [])
        return ast.copy_location(call, node)


class _Tally:
    """Evaluates the asserts and comparisons of the tests, and counts the asserts that held."""

    def __init__(self) -> None:
        self.asserts = 0

    def asserted(self, holds: Any) -> None:
        if not holds:
            raise AssertionError
        self.asserts += 1

    def compared(self, operators: tuple[str, ...], *values: Any) -> Any:
        """Evaluate a chained comparison `a < b < c`; raise AssertionError for a value that claims to equal anything."""
        if any(map(_equals_anything, values)):
            raise AssertionError
        result: Any = True
        for name, left, right in zip(operators, values, values[1:], strict=False):
            result = _OPERATORS_BY_NAME[name](left, right)
            if not result:
                break
        return result


def _equals_anything(value: Any) -> bool:
    """Return whether a value, or a value inside it, has an `__eq__` by the program that returns true for anything."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, dict):
            pending += [*current.keys(), *current.values()]
        elif isinstance(current, list | tuple | set | frozenset):
            pending += current
        if _has_equality_of_program(type(current)):
            if any(_claims_equality(current, unequal) for unequal in (object(), *_UNEQUAL_VALUES)):
                return True
            if _claims_equality(current, True) and _claims_equality(current, False):
                return True
    return False


def _has_equality_of_program(kind: type) -> bool:
    """Return whether the program defined the `__eq__` of a type."""
    for parent in kind.__mro__:
        if "__eq__" in vars(parent):
            equality = vars(parent)["__eq__"]
            by_program = getattr(equality, "__globals__", None) is vars(sys.modules[PROGRAM])
            return by_program or parent.__module__ == PROGRAM
    return False


def _claims_equality(value: Any, other: Any) -> bool:
    try:
        return bool(value == other)
    except Exception:
        return False
