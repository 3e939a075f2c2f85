"""A program against its unit tests, inside the sandbox: right where every assert holds and at least one was reached.

The tests are read and compiled before the program runs, with their own built-in functions and modules, and their
comparisons are made here, so that what the program does to `AssertionError`, `all`, `math` or `__eq__` changes no
verdict.
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

from dartune.rewards.own_modules import OwnModules

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
    tree = parsed_tests(tests)
    checks = compile(ast.fix_missing_locations(_Guarded().visit(parsed_tests(tests))), "tests", "exec")
    own_builtins = dict(vars(builtins))
    tally = _Tally()
    module = types.ModuleType(PROGRAM)
    try:
        needs = _Needs(tree, ast.parse(program))
        own = OwnModules(tree, PROGRAM, needs.modules.values())
        sys.modules[PROGRAM] = module
        exec(compile(program, f"{PROGRAM}.py", "exec", dont_inherit=True), vars(module))
        hidden = own_builtins.keys() - needs.tested_builtins
        given = {name: value for name, value in vars(module).items() if name not in hidden}
        names = {
            **given,
            **{name: copy for name, copy in needs.copies(own).items() if name in given},
            "__name__": "tests",
            "__builtins__": own_builtins | {"__import__": own.imported},
            _ASSERT: tally.asserted,
            _COMPARE: tally.compared,
        }
        exec(checks, names)
        for test in _test_functions(names, given):
            test()
    except BaseException:  # also SystemExit and KeyboardInterrupt, which the program may raise
        return False
    return tally.asserts > 0


class _Needs:
    """What tests use without making it: `modules`, the name that each is used by and its own, and built-in names that
    are no helpers of the tests' but what they are about (MBPP has a function `sum` to write)."""

    def __init__(self, tests: ast.Module, program: ast.Module) -> None:
        nodes = list(ast.walk(tests))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        free = {node.id for node in names if isinstance(node.ctx, ast.Load)} - set(_made(nodes))
        self._read: dict[str, set[str]] = {}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in free:
                self._read.setdefault(node.value.id, set()).add(node.attr)
        self.modules = {name: name for name in self._read if name in sys.stdlib_module_names or name in LIBRARIES}
        for alias in (one for node in ast.walk(program) if isinstance(node, ast.Import) for one in node.names):
            top = alias.name.partition(".")[0]
            if (alias.asname or top) in self._read:
                self.modules[alias.asname or top] = alias.name if alias.asname else top
        helpers = free & vars(builtins).keys()
        # Of several nobody can say which are under test, and which the tests rely on.
        one_alone = len(helpers) == 1 and free == helpers | self.modules.keys()
        self.tested_builtins = helpers if one_alone and not any(map(_names_program, nodes)) else set()

    def copies(self, own: OwnModules) -> dict[str, types.ModuleType]:
        """The modules that have all that the tests read of them, as `own` has them."""
        found = {name: own.get(module) for name, module in self.modules.items()}
        return {
            name: copy
            for name, copy in found.items()
            if copy is not None and all(hasattr(copy, attribute) for attribute in self._read[name])
        }


def _names_program(node: ast.AST) -> bool:
    """Whether a node says what the program is called."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module] if isinstance(node, ast.ImportFrom) else []
    names += [node.value] if isinstance(node, ast.Constant) else []
    return PROGRAM in names


def _made(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that a program binds, anywhere."""
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


def _test_functions(names: dict[str, Any], given: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    """What the tests define in pytest's manner: functions `test_...` without arguments."""
    for name, value in list(names.items()):
        new = name not in given or given[name] is not value
        if name.startswith("test") and new and inspect.isfunction(value) and not inspect.signature(value).parameters:
            yield value


class _Guarded(ast.NodeTransformer):
    """Asserts and comparisons as calls of our own."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        """All names of the program are there without an import, but for those that hide a built-in one."""
        everything = node.module == PROGRAM and node.names[0].name == "*"
        return ast.copy_location(ast.Pass(), node) if everything else node

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
