"""Parse recipes (YAML) and dotted flags into plain values, and record the location of each for error messages."""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dartune.errors import InputError

SHIPPED = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes that are part of the package."""
FLAG_NAMES = {"data": "data.path", "target": "target.path"}
"""Short flag -> key."""
EXPECTATIONS = {
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
"""Type of a pydantic error -> what the value should be, in terms of YAML instead of Python."""
UNREADABLE = (ValueError, LookupError, AttributeError, TypeError)
"""Exceptions that PyYAML raises for invalid scalars, such as the date 2026-99-99, `!!int ""` or `!!bool perhaps`."""
DATA_NAME = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz)?$")
"""Names of data files; giving one instead of a recipe is a common mistake with its own error message."""
DATA_ADDRESSES = ("hub:", "gym:", "lab:")
DIRECT_RL = re.compile("grpo|:")
"""Occurs in the names of arms that use `direct_rl`, and of user-defined arms, which may use it."""
LONGEST_VALUE = 80
"""Characters of a value that an error message shows."""
MAX_DEPTH = 30
"""Maximum nesting of YAML. PyYAML is recursive, and deeply nested text raises RecursionError."""


class _Loader(yaml.SafeLoader):
    """YAML loader for untrusted files: no Python objects, no aliases (they can expand exponentially), limited depth."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: an alias (*name) is not read; write the value out")
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: it is nested too deeply")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Dumper(yaml.SafeDumper):
    pass


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write text of several lines as a literal block, so that prompts stay readable."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
for _yaml_class in (_Loader, _Dumper):
    # YAML 1.1 reads `2e-5` as text because it has no dot; learning rates are usually written that way.
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def dump(values: dict[str, Any]) -> str:
    """Return YAML that `read_recipe` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass
class Recipe:
    """A parsed recipe: nested values, the location of every dotted key, and the problems found while parsing."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def place(self, key: str) -> str:
        """Return where `key` was set: `file:line key`, or the flag; the key alone if it was not set."""
        parts = key.split(".")
        for n in range(len(parts), 0, -1):
            if location := self.places.get(".".join(parts[:n])):
                return location if location.startswith("--") else f"{location} {key}"
        return key


def located(path: Path) -> Path:
    """Return the path itself or, if there is no such file, the shipped recipe of that name."""
    shipped = SHIPPED / f"{path}.yaml"
    return shipped if len(path.parts) == 1 and not path.exists() and shipped.is_file() else path


def _is_data(path: Path) -> bool:
    return DATA_NAME.search(path.name.lower()) is not None or path.as_posix().startswith(DATA_ADDRESSES)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from a YAML file, or the shipped recipe of that name.

    Raises:
        InputError: there is no such file, or it is not a YAML mapping.
    """
    path = located(path)
    if _is_data(path):
        raise InputError(f"{path} is data, not a recipe: give it as --data {path}, and a model as --target MODEL")
    if path.is_dir():
        resolved = path / "config.resolved.yaml"
        hint = f"to repeat that run, give {resolved}" if resolved.exists() else f"if it holds data, give --data {path}"
        raise InputError(f"{path} is a folder, not a recipe; {hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        candidates = [*shipped, *(file.as_posix() for file in path.parent.glob("*.yaml"))]
        close = difflib.get_close_matches(path.as_posix(), candidates, n=1)
        suggestion = f", did you mean {close[0]}?" if close else f"; shipped with dartune: {', '.join(shipped)}"
        raise InputError(f"there is no recipe {path}{suggestion}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from error
    recipe = Recipe()
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return recipe
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path} is not a recipe: it must map keys to values, as in `output: runs/lab`")
        _record_places(root, "", path, recipe)
        recipe.values = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML", [" ".join(str(error).split())]) from error
    except InputError:
        raise  # an InputError is also a ValueError, which the next clause catches
    except UNREADABLE as error:
        raise InputError(f"{path} holds a value that cannot be read: {error}") from error
    finally:
        loader.dispose()
    return recipe


def _record_places(node: yaml.MappingNode, prefix: str, path: Path, recipe: Recipe) -> None:
    """Record the line of every key. A repeated key is a problem, because PyYAML silently uses the last one."""
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        key = f"{prefix}{name}"
        if name in first_lines:
            recipe.problems.append(f"{path}:{line} {key} is given twice, first in line {first_lines[name]}")
        first_lines[name] = line
        recipe.places[key] = f"{path}:{line}"
        if isinstance(value_node, yaml.MappingNode):
            _record_places(value_node, f"{key}.", path, recipe)


def place_override(recipe: Recipe, schema: type[BaseModel], flag: str, text: str) -> list[str]:
    """Set the value of `--flag text` in the recipe; return the problems with it."""
    key = FLAG_NAMES.get(flag, flag)
    annotation = _annotation(schema, key)
    if annotation is None:
        if key in REMOVED:
            return [f"--{flag} was removed; {REMOVED[key].message}"]
        if new_key := _new_key(schema, key):
            return [f"--{flag} was replaced by --{new_key}"]
        return [f"unknown flag --{flag}{_suggestion(schema, key, '--')}"]
    if section := _section(annotation):
        example = next(iter(section.model_fields))
        return [f"--{flag} is a section; set one of its keys, as in --{key}.{example}"]
    try:
        value = _parse(text, annotation)
    except (yaml.YAMLError, *UNREADABLE):
        return [f"--{flag}: {_format_value(text)} cannot be read as a value; quote it for YAML"]
    *parents, last = key.split(".")
    values = recipe.values
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value
    recipe.places[key] = f"--{flag}"
    return []


def _parse(text: str, annotation: Any) -> Any:
    """Parse a flag's text for the type of its key: text stays text, and `a,b` becomes a list if the key is a list."""
    types_of_key = _alternatives(annotation)
    if text in ("null", "none", "~") and type(None) in types_of_key:
        return None
    if str in types_of_key:  # text that looks like a number or a boolean must not be converted
        return text
    value = yaml.load(text, _Loader)
    if any(get_origin(kind) is tuple for kind in types_of_key) and not isinstance(value, (list, type(None))):
        value = yaml.load(f"[{text}]", _Loader)
    return value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, with `Annotated` unwrapped and `Literal` of text replaced by `str`."""
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
    """Return the type of a dotted key, or None if it is unknown. Inside a mapping, every name is a key."""
    first, _, rest = key.partition(".")
    if first not in schema.model_fields:
        return None
    annotation = schema.model_fields[first].annotation
    if not rest:
        return annotation
    if section := _section(annotation):
        return _annotation(section, rest)
    return get_args(annotation)[1] if get_origin(annotation) is dict else None


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a schema, those of sections included."""
    for name, field_info in schema.model_fields.items():
        yield prefix + name
        if section := _section(field_info.annotation):
            yield from _keys(section, f"{prefix}{name}.")


def _suggestion(schema: type[BaseModel], key: str, dashes: str = "") -> str:
    """Return `, did you mean mapper.steps?`, or an empty text.

    A close name in the same section comes first, then the same name in another section, then any close key.
    """
    keys = [name for name in _keys(schema) if "." in name or "." not in key]
    section, _, last = key.rpartition(".")
    siblings = [name for name in keys if name.rpartition(".")[0] == section]
    close = (
        difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
        or [name for name in keys if name.rpartition(".")[2] == last]
        or difflib.get_close_matches(key, keys, n=1)
    )
    return f", did you mean {' or '.join(dashes + name for name in close)}?" if close else ""


RENAMED = {
    "server": "execution.server, whose value is the address",
    "server.url": "execution.server",
}
"""Keys of earlier versions that changed both section and name."""


@dataclass(frozen=True)
class Removed:
    """A key of an earlier version that no longer exists.

    Args:
        message: what applies instead.
        value: the value that applies now; a config of an earlier run with this value is still read.
        key: the key whose value applies now, in place of `value`.
    """

    message: str
    value: Any = None
    key: str | None = None


REMOVED = {
    "mapper.max_grad_norm": Removed("it is always 1", 1.0),
    "sft.max_grad_norm": Removed("it is always 1", 1.0),
    "direct_rl.max_grad_norm": Removed("it is always 1", 1.0),
    "mapper.warmup_steps": Removed("it is always 3 in reinforcement learning", 3),
    "direct_rl.warmup_steps": Removed("it is always 3 in reinforcement learning", 3),
    "mapper.probe_rows": Removed("it is always 200", 200),
    "sft.weight_decay": Removed("it is always 0", 0.0),
    "reward.entity_coverage": Removed(
        "it is always 1; leave out the gate entities in reward.gates if it rejects good rewrites", 1.0
    ),
    "reward.max_repeats": Removed("it is always 5; leave out the gate no_loop in reward.gates for data with tables", 5),
    "reward.length_band": Removed(
        "it always comes from the data; leave out the gate length in reward.gates, or add your own", None
    ),
    "synthesise.temperature": Removed("synthesis samples at mapper.temperature", key="mapper.temperature"),
    "direct_rl.adapter": Removed("direct RL uses mapper.lora_rank", key="mapper.adapter"),
    "direct_rl.lora_rank": Removed("direct RL uses mapper.lora_rank", key="mapper.lora_rank"),
    "direct_rl.questions_per_step": Removed(
        "direct RL uses mapper.questions_per_step", key="mapper.questions_per_step"
    ),
    "direct_rl.group_size": Removed("direct RL uses mapper.group_size", key="mapper.group_size"),
    "direct_rl.max_new_tokens": Removed("direct RL uses evaluate.max_new_tokens", key="evaluate.max_new_tokens"),
    "execution.server_model": Removed("the first model that the server lists is used", None),
    "server.model": Removed("the first model that the server lists is used", None),
    "name": Removed("the run's name is the last part of output, as in `output: runs/mine`"),
    "data.split": Removed(
        "write the split after the path of the folder or Hub data set, as in `path: data/folder#test`", "train"
    ),
    "mapper.adapter": Removed("set `mapper.lora_rank: 16` for LoRA, null to train all weights", "full"),
    "sft.adapter": Removed("set `sft.lora_rank: 16` for LoRA, null to train all weights", "full"),
    "sft.warmup_steps": Removed("it is always a quarter of sft.steps, at most 10"),
    "evaluate.questions": Removed("set data.test, which the lab uses as questions per suite", key="data.test"),
    "direct_rl.temperature": Removed("direct RL samples at mapper.temperature", key="mapper.temperature"),
}
"""Keys of earlier versions that no longer exist."""


def run_name(output: str) -> str:
    """Return the name of a run: the last part of the path of its run folder."""
    return os.path.basename(os.path.abspath(output)) or "run"


def sft_warmup_steps(steps: int) -> int:
    """Return over how many of the steps of a fine-tuning the learning rate rises."""
    return min(10, steps // 4)


def drop_removed_keys(values: dict[str, Any], *, recorded: bool = False) -> None:
    """Remove, in place, keys of earlier versions whose value has the same meaning now; others are reported later.

    Args:
        recorded: the values were written by a run. They hold all keys, also those without any effect on that run.
    """
    if recorded:
        _convert_recorded(values)
    _convert(values)
    for key, removed in REMOVED.items():
        own, name = _parent(values, key)
        if name not in own:
            continue
        expected = removed.value
        if removed.key:
            other, other_name = _parent(values, removed.key)
            if other_name not in other:
                continue
            expected = other[other_name]
        if own[name] == expected:
            del own[name]
            if name == "adapter" and removed.key is None:
                own["lora_rank"] = None  # the rank had no effect


def _parent(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the mapping that holds a dotted key (an empty one if there is none), and the key's last part."""
    section, _, name = key.rpartition(".")
    parent = values.get(section) if section else values
    return (parent if isinstance(parent, dict) else {}), name


def _convert(values: dict[str, Any]) -> None:
    """Drop removed keys whose value follows from other keys."""
    if "name" in values and isinstance(values.get("output"), str) and values["name"] == run_name(values["output"]):
        del values["name"]
    sft, _ = _parent(values, "sft.steps")
    if type(sft.get("steps")) is int and sft.get("warmup_steps") == sft_warmup_steps(sft["steps"]):
        del sft["warmup_steps"]
    # Direct RL used the adapter of its own section, which is compared before the mapper's is dropped.
    direct_rl, mapper = (_parent(values, f"{section}.adapter")[0] for section in ("direct_rl", "mapper"))
    if "adapter" in direct_rl and direct_rl["adapter"] == (adapter := mapper.get("adapter")):
        del direct_rl["adapter"]
        if adapter == "full":
            direct_rl.pop("lora_rank", None)
    for section in ("mapper", "sft"):
        own, _ = _parent(values, f"{section}.adapter")
        if own.get("adapter") == "lora" and type(own.get("lora_rank")) is int:
            del own["adapter"]


def _convert_recorded(values: dict[str, Any]) -> None:
    """Drop or convert removed keys of a run's own record, where that run's results do not depend on them."""
    values.pop("name", None)
    data, evaluate, direct_rl = (_parent(values, f"{section}.")[0] for section in ("data", "evaluate", "direct_rl"))
    path, split, suites = data.get("path"), data.get("split"), evaluate.get("suites")
    if isinstance(path, str) and isinstance(split, str):
        del data["split"]
        if split != "train":
            data["path"] = _with_split(path, split)
            if isinstance(suites, dict):
                evaluate["suites"] = {name: _with_split(suite, split) for name, suite in suites.items()}
    if "questions" in evaluate:
        questions = evaluate.pop("questions")
        if isinstance(path, str) and path.startswith("lab:"):
            data["test"] = questions
    arms = values.get("arms")
    if isinstance(arms, list) and not any(DIRECT_RL.search(str(arm)) for arm in arms):
        for key in REMOVED:
            if key.startswith("direct_rl."):
                direct_rl.pop(key.removeprefix("direct_rl."), None)


def _with_split(address: Any, split: str) -> Any:
    """Return an address with the split that was a setting of its own; files, the lab and gym have no splits."""
    if (
        not isinstance(address, str)
        or "#" in address
        or address.startswith(("lab:", "gym:"))
        or DATA_NAME.search(address.lower())
    ):
        return address
    return f"{address}#{split}"


def _new_key(schema: type[BaseModel], key: str) -> str | None:
    """Return the current key for a key of an earlier version, or None."""
    section, _, name = key.rpartition(".")
    if section in ("mapper", "sft", "direct_rl", "target") and f"execution.{name}" in _keys(schema):
        return f"execution.{name}"
    return RENAMED.get(key)


def explain(error: ValidationError, recipe: Recipe, schema: type[BaseModel]) -> list[str]:
    """Return one line per validation error: location, key, value, and what the value should be."""
    lines = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        place, kind, value = recipe.place(key), detail["type"], detail["input"]
        if kind == "extra_forbidden":
            if key in REMOVED:
                lines.append(f"{place.removesuffix(key)}{key} was removed; {REMOVED[key].message}")
            elif new_key := _new_key(schema, key):
                lines.append(f"{place.removesuffix(key)}{key} was replaced by {new_key}")
            else:
                lines.append(f"{place.removesuffix(key)}unknown key {key}{_suggestion(schema, key)}")
        elif kind == "missing" and isinstance(detail["loc"][-1], int):
            lines.append(f"{recipe.place(key.rpartition('.')[0])} is {_format_value(value)} but should have more items")
        elif kind == "missing":
            lines.append(f"{key} is not set: put it into a recipe, or add --{_short_flag(key)}")
        elif kind == "too_short" and value:
            pass  # pydantic removed the invalid items first; each of them has its own line
        else:
            lines.append(f"{place} is {_format_value(value)} but {_expectation(detail)}")
    return lines


def _expectation(detail: Mapping[str, Any]) -> str:
    """Say what a value should be: `should be a whole number`."""
    if detail["type"] == "string_pattern_mismatch" and "://" in detail["ctx"]["pattern"]:
        return "should be http://host:port"
    return EXPECTATIONS.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").removeprefix("Input ")


def _format_value(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _short_flag(key: str) -> str:
    return next((flag for flag, full in FLAG_NAMES.items() if full == key), key)
