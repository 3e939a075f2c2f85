"""From YAML text and dotted flags to plain values, keeping the place of each for messages."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dartune.errors import InputError

SHIPPED = Path(__file__).parent / "recipes"
"""Recipes that come with the package, by name."""
FLAG_NAMES = {"data": "data.path", "target": "target.path"}
"""Flags that are short for a key."""
SAID = {
    "model_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "too_short": "should have at least one item",
    "string_type": "should be text",
    "string_too_short": "should not be empty",
    "string_pattern_mismatch": "should be letters, digits, _ and - only",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "tuple_type": "should be a list, as in [a, b]",
    "bool_type": "should be true or false",
}
"""What pydantic says in terms of Python."""
UNREADABLE = (ValueError, LookupError, AttributeError, TypeError)
"""What PyYAML raises for such as the date 2026-99-99, `!!int ""` and `!!bool perhaps`."""
DATA_NAME = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz)?$")
"""Files that are data where a recipe is expected."""
DATA_ADDRESSES = ("hub:", "gym:", "lab:")
LONGEST_VALUE = 80
"""Characters of a value that a message shows."""


DEEPEST = 30


class _Loader(yaml.SafeLoader):
    """Builds no objects, and nothing that is larger or deeper than what is written."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: an alias (*name) is not read; write the value out")
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: it is nested too deeply")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    pass


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Texts of several lines as they are read, not escaped."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
for _kind in (_Loader, _Dumper):
    # YAML 1.1 wants a dot in `2e-5`; everyone else reads a number.
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def dump(values: dict[str, Any]) -> str:
    """YAML that `read_recipe` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass
class Recipe:
    """Nested values, the place of every dotted key, and what was wrong with the text."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, key: str) -> str:
        """Where `key` was set: line and key, or the flag; the key alone where it was not set."""
        parts = key.split(".")
        for n in range(len(parts), 0, -1):
            if where := self.places.get(".".join(parts[:n])):
                return where if where.startswith("--") else f"{where} {key}"
        return key


def located(path: Path) -> Path:
    """The file itself or, where there is none, the shipped recipe of that name."""
    shipped = SHIPPED / f"{path}.yaml"
    return shipped if len(path.parts) == 1 and not path.exists() and shipped.is_file() else path


def _is_data(path: Path) -> bool:
    return DATA_NAME.search(path.name.lower()) is not None or path.as_posix().startswith(DATA_ADDRESSES)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file, or the shipped one of that name.

    Raises:
        InputError: there is no such file, or it is not a YAML mapping.
    """
    path = located(path)
    if _is_data(path):
        raise InputError(f"{path} is data, not a recipe: give it as --data {path}, and a model as --target MODEL")
    if path.is_dir():
        hint = path / "config.resolved.yaml"
        more = f"; to repeat that run, give {hint}" if hint.exists() else f"; if it holds data, give --data {path}"
        raise InputError(f"{path} is a folder, not a recipe{more}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        others = [*shipped, *(file.as_posix() for file in path.parent.glob("*.yaml"))]
        close = difflib.get_close_matches(path.as_posix(), others, n=1)
        meant = f", did you mean {close[0]}?" if close else f"; shipped with dartune: {', '.join(shipped)}"
        raise InputError(f"there is no recipe {path}{meant}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error
    recipe = Recipe()
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return recipe
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path} is not a recipe: it must map keys to values, as in `name: lab`")
        _walk(root, "", path, recipe)
        recipe.values = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML", [" ".join(str(error).split())]) from error
    except InputError:
        raise  # it is a ValueError too
    except UNREADABLE as error:
        raise InputError(f"{path} holds a value that cannot be read: {error}") from error
    finally:
        loader.dispose()
    return recipe


def _walk(node: yaml.MappingNode, prefix: str, path: Path, recipe: Recipe) -> None:
    """Note the line of every key; a key given twice is a problem, YAML would take the last silently."""
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        key = f"{prefix}{name}"
        if name in seen:
            recipe.problems.append(f"{path}:{line} {key} is given twice, first in line {seen[name]}")
        seen[name] = line
        recipe.places[key] = f"{path}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            _walk(value_node, f"{key}.", path, recipe)


def place_override(recipe: Recipe, schema: type[BaseModel], flag: str, text: str) -> list[str]:
    """Put the value of `--flag text` into the recipe; returns what is wrong with it."""
    key = FLAG_NAMES.get(flag, flag)
    found = _annotation(schema, key)
    if found is None:
        if now := _moved(schema, key):
            return [f"--{flag} is --{now} now"]
        return [f"unknown flag --{flag}{_meant(schema, key, '--')}"]
    if _section(found):
        inner = next(iter(_section(found).model_fields))
        return [f"--{flag} is a section; set one of its keys, as in --{key}.{inner}"]
    try:
        value = _parse(text, found)
    except (yaml.YAMLError, *UNREADABLE):
        return [f"--{flag}: {_shown(text)} cannot be read as a value; quote it for YAML"]
    *parents, last = key.split(".")
    at = recipe.values
    for parent in parents:
        if not isinstance(at.get(parent), dict):
            at[parent] = {}
        at = at[parent]
    at[last] = value
    recipe.places[key] = f"--{flag}"
    return []


def _parse(text: str, annotation: Any) -> Any:
    """A flag's text as the type its key wants: text stays text, `a,b` is a list where one is wanted."""
    wanted = _alternatives(annotation)
    if text in ("null", "none", "~") and type(None) in wanted:
        return None
    if str in wanted:
        return text
    value = yaml.load(text, _Loader)
    if any(get_origin(kind) is tuple for kind in wanted) and not isinstance(value, (list, type(None))):
        value = yaml.load(f"[{text}]", _Loader)
    return value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, `Annotated` and `Literal` of text taken off."""
    if hasattr(annotation, "__metadata__"):
        return _alternatives(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _alternatives(part))
    if get_args(annotation) and all(isinstance(choice, str) for choice in get_args(annotation)):
        return (str,)
    return (annotation,)


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _annotation(schema: type[BaseModel], key: str) -> Any:
    """The type of a dotted key, None for an unknown one; any name inside a mapping is a key."""
    first, _, rest = key.partition(".")
    if first not in schema.model_fields:
        return None
    annotation = schema.model_fields[first].annotation
    if not rest:
        return annotation
    if inner := _section(annotation):
        return _annotation(inner, rest)
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, part in schema.model_fields.items():
        yield prefix + name
        if inner := _section(part.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _meant(schema: type[BaseModel], key: str, dashes: str = "") -> str:
    """`, did you mean mapper.steps?`: the nearest name beside it, else the same name elsewhere."""
    keys = [k for k in _keys(schema) if "." in k or "." not in key]
    section, _, last = key.rpartition(".")
    siblings = [k for k in keys if k.rpartition(".")[0] == section]
    close = (
        difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
        or [k for k in keys if k.rpartition(".")[2] == last]
        or difflib.get_close_matches(key, keys, n=1)
    )
    return f", did you mean {' or '.join(dashes + k for k in close)}?" if close else ""


FORMERLY = {
    "server": "execution.server, with the address as its value",
    "server.url": "execution.server",
    "server.model": "execution.server_model",
}
"""Keys of earlier versions that have another place and another name."""


def _moved(schema: type[BaseModel], key: str) -> str | None:
    """Where a key of an earlier version is now; None if it was none."""
    section, _, name = key.rpartition(".")
    if section in ("mapper", "sft", "direct_rl", "target") and f"execution.{name}" in _keys(schema):
        return f"execution.{name}"
    return FORMERLY.get(key)


def explain(error: ValidationError, recipe: Recipe, schema: type[BaseModel]) -> list[str]:
    """One line per problem: place, key, value, what it should be."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"] if part != "[key]")
        place, kind, given = recipe.place(key), item["type"], item["input"]
        shown = _shown(given)
        if kind == "extra_forbidden":
            if now := _moved(schema, key):
                lines.append(f"{place.removesuffix(key)}{key} is {now} now")
            else:
                lines.append(f"{place.removesuffix(key)}unknown key {key}{_meant(schema, key)}")
        elif kind == "missing" and isinstance(item["loc"][-1], int):
            lines.append(f"{recipe.place(key.rpartition('.')[0])} is {shown} but should have more items")
        elif kind == "missing":
            lines.append(f"{key} is not set: put it into a recipe, or add --{_short(key)}")
        elif kind == "too_short" and given:
            pass  # its items are wrong, and said to be
        else:
            lines.append(f"{place} is {shown} but {_wanted(item)}")
    return lines


def _wanted(item: Mapping[str, Any]) -> str:
    if item["type"] == "string_pattern_mismatch" and "://" in item["ctx"]["pattern"]:
        return "should be http://host:port"
    return SAID.get(item["type"]) or _said(item["msg"])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _said(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input ")


def _short(key: str) -> str:
    return next((flag for flag, full in FLAG_NAMES.items() if full == key), key)
