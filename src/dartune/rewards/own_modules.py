"""Modules as the tests of a program see them: copies from before the program ran, which it cannot reach.

A copy holds the attributes of its module, so classes are the same ones for both. What is inside an attribute is shared:
a program that changes the code of a library's function, or a method of its class, changes it for the tests, too.
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
"""What tests import to change it for the program."""


class OwnModules:
    """The modules that a tree imports, loaded now; `imported` stands in for `__import__`."""

    def __init__(self, tree: ast.Module, program: str, besides: Iterable[str] = ()) -> None:
        """`program` is the module under test, which stays what it is; `besides` are names of more modules."""
        self._copies: dict[str, ModuleType] = {}
        self._import, self._shared = builtins.__import__, (*_SHARED, program)
        self._mentioned = set(_mentioned(tree))
        set_by_tests = set(_set_attributes(tree))
        for name, parts, bound in _imports(tree):
            if set_by_tests.isdisjoint(bound):
                self._add(name, parts)
        for name in besides:
            self._add(name, ())

    def get(self, name: str) -> ModuleType | None:
        """The copy of a module, if there is one."""
        return self._copies.get(name)

    def imported(
        self, name: str, names: Any = None, locals_: Any = None, fromlist: tuple[str, ...] = (), level: int = 0
    ) -> ModuleType:
        """As `__import__`, with a copy where there is one."""
        if level or name not in self._copies:
            return self._import(name, names, locals_, fromlist or (), level)
        return self._copies[name if fromlist else name.partition(".")[0]]

    def _add(self, name: str, parts: tuple[str, ...]) -> None:
        top = name.partition(".")[0]
        if top in self._shared:
            return
        with contextlib.suppress(Exception):  # not installed, or broken: the tests' own import will say so
            self._import(name, fromlist=parts)
        self._copy(top)

    def _copy(self, name: str) -> ModuleType | None:
        """The copy of a loaded module; of its own modules those that the tests mention are copied, too."""
        module = sys.modules.get(name)
        if name not in self._copies and type(module) is ModuleType:
            copy = self._copies[name] = ModuleType(name)
            vars(copy).update(vars(module))
            for part in self._mentioned:
                inner = self._copy(f"{name}.{part}")
                if inner is not None and vars(copy).get(part) is sys.modules[f"{name}.{part}"]:
                    setattr(copy, part, inner)
        return self._copies.get(name)


def _imports(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...], set[str]]]:
    """Modules that are imported, what of each, and the names it is known by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, (), {alias.asname or alias.name.partition(".")[0]}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = tuple(alias.name for alias in node.names)
            yield node.module, names, {alias.asname or alias.name for alias in node.names}


def _mentioned(tree: ast.Module) -> Iterator[str]:
    """Names of all that is read of something, or imported from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
    for name, parts, _ in _imports(tree):
        yield from (*name.split("."), *parts)


def _set_attributes(tree: ast.Module) -> Iterator[str]:
    """Names whose attributes, at any depth, are set or deleted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            root: ast.AST = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name):
                yield root.id
