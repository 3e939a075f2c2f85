"""Copies of the modules that unit tests use, made before the program under test runs.

A program could otherwise replace `math.isclose` and pass. A copy holds the attributes of its module, so both see the
same classes. The copy is shallow: a program that changes the code object of a library function, or a method of a
library class, changes it for the tests too.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

_SHARED = ("sys", "builtins")
"""Modules that tests change on purpose for the program, such as `sys.stdout`."""


class OwnModules:
    """Copies of the modules that a syntax tree imports. `imported` replaces `__import__` for the tests."""

    def __init__(self, tree: ast.Module, program: str, besides: Iterable[str] = ()) -> None:
        """Import and copy the modules.

        Args:
            tree: the tests.
            program: name of the module under test, which is not copied.
            besides: names of further modules to copy.
        """
        self._copies: dict[str, ModuleType] = {}
        self._import, self._shared = builtins.__import__, (*_SHARED, program)
        self._mentioned = set(_mentioned_names(tree))
        changed_by_tests = set(_names_with_set_attributes(tree))
        for name, parts, bound in _imports(tree):
            # Tests that set an attribute of a module, such as `random.choice`, mean to change it for the program.
            if changed_by_tests.isdisjoint(bound):
                self._add(name, parts)
        for name in besides:
            self._add(name, ())

    def get(self, name: str) -> ModuleType | None:
        """Return the copy of a module, or None."""
        return self._copies.get(name)

    def imported(
        self, name: str, names: Any = None, locals_: Any = None, fromlist: tuple[str, ...] = (), level: int = 0
    ) -> ModuleType:
        """Import a module as `__import__` does, but return its copy where there is one."""
        if level or name not in self._copies:
            return self._import(name, names, locals_, fromlist or (), level)
        return self._copies[name if fromlist else name.partition(".")[0]]

    def _add(self, name: str, parts: tuple[str, ...]) -> None:
        top = name.partition(".")[0]
        if top in self._shared:
            return
        with contextlib.suppress(Exception):  # not installed or broken: the tests' own import raises the error
            self._import(name, fromlist=parts)
        self._copy(top)

    def _copy(self, name: str) -> ModuleType | None:
        """Copy a loaded module, and those of its submodules that the tests mention."""
        module = sys.modules.get(name)
        if name not in self._copies and type(module) is ModuleType:
            copy = self._copies[name] = ModuleType(name)
            vars(copy).update(vars(module))
            for part in self._mentioned:
                submodule = self._copy(f"{name}.{part}")
                if submodule is not None and vars(copy).get(part) is sys.modules[f"{name}.{part}"]:
                    setattr(copy, part, submodule)
        return self._copies.get(name)


def _imports(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...], set[str]]]:
    """Yield (module, names imported from it, names it is bound to) for each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), {alias.asname or alias.name.partition(".")[0]}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = tuple(alias.name for alias in node.names)
            yield node.module, names, {alias.asname or alias.name for alias in node.names}


def _mentioned_names(tree: ast.Module) -> Iterator[str]:
    """Yield every attribute name and every part of an imported name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
    for name, parts, _ in _imports(tree):
        yield from (*name.split("."), *parts)


def _names_with_set_attributes(tree: ast.Module) -> Iterator[str]:
    """Yield the names whose attributes, at any depth, are set or deleted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            root: ast.AST = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name):
                yield root.id
