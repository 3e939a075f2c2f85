"""Load a config from a recipe (YAML) and dotted flags (`--mapper.steps 40`); all problems are reported at once."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined as UNSET

from dartune.config.recipe import Recipe, drop_removed_keys, dump, explain, place_override, read_recipe
from dartune.config.rewrite_prompts import GYM
from dartune.config.schema import Config, is_section
from dartune.errors import InputError
from dartune.run.redaction import redacted

RECORD = "config.resolved.yaml"
"""Name of the file in a run folder that holds the config of the run."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""A Hub id: `name` or `owner/name`."""


def load_config(path: str | Path | None, overrides: Mapping[str, str] | None = None) -> Config:
    """Load a config from a recipe and dotted overrides.

    Args:
        path: recipe file, or name of a shipped recipe; None uses the defaults of the schema.
        overrides: dotted key -> value as text, as given by flags.

    Raises:
        InputError: the recipe cannot be read, or the recipe or the overrides are invalid. All problems are listed,
            each with its key and its location (line of the recipe, or flag).
    """
    recipe = read_recipe(Path(path)) if path is not None else Recipe()
    # Before the flags: a flag changes the setting that an earlier key of the file stands for.
    drop_removed_keys(recipe.values, recorded=path is not None and Path(path).name == RECORD)
    problems = list(recipe.problems)
    for key, value in (overrides or {}).items():
        problems += place_override(recipe, Config, key, value)
    for name, field in Config.model_fields.items():
        # Missing sections become empty ones, so that the error names the missing key (data.path), not the section.
        if is_section(field.annotation) and recipe.values.get(name) is None:
            recipe.values[name] = {}
    rejected: set[str] = set()
    try:
        config = Config.model_validate(recipe.values)
    except ValidationError as error:
        problems += explain(error, recipe, Config)
        rejected = {".".join(str(part) for part in detail["loc"] if part != "[key]") for detail in error.errors()}
        config = None
    # A wrong setting does not hide missing files.
    values = recipe.values if config is None else config.model_dump()
    problems += _missing_paths(values, recipe, rejected) + secrets(values, recipe)
    if problems or config is None:
        raise InputError(f"{path or 'the settings'} cannot be used", problems)
    return config


def missing_paths(config: Config, recipe: Recipe) -> list[str]:
    """Return a problem for every file or folder that `config` names and that does not exist."""
    return _missing_paths(config.model_dump(), recipe)


def _missing_paths(values: Mapping[str, Any], recipe: Recipe, rejected: Collection[str] = ()) -> list[str]:
    """Return a problem for every missing file or folder in the values of a config, which need not be valid.

    Args:
        rejected: keys whose value has a problem already.
    """
    sections = {name: value for name, value in values.items() if isinstance(value, dict)}
    suites = sections.get("evaluate", {}).get("suites")
    models = {f"{name}.path": sections.get(name, {}).get("path") for name in ("target", "mapper")}
    paths = {"data.path": sections.get("data", {}).get("path"), **models}
    if isinstance(suites, dict):
        paths |= {f"evaluate.suites.{name}": file for name, file in suites.items()}
    problems = []
    for key, text in paths.items():
        if key in rejected or not isinstance(text, str) or text.startswith(("lab:", "hub:", GYM)) or _exists(text):
            continue
        if key in models and HUB_ID.fullmatch(text):
            continue
        kind = "model folder" if key in models else "file or folder"
        hub = f"; a data set of the Hub is written hub:{text}" if key not in models and _is_like_hub_id(text) else ""
        problems.append(f"{recipe.place(key)}: there is no {kind} {text!r} (looked for from {Path.cwd()}){hub}")
    return problems


def _is_like_hub_id(text: str) -> bool:
    """Whether a missing path is probably meant as `owner/name`: it has no suffix and no folder of the owner's name."""
    return "/" in text and bool(HUB_ID.fullmatch(text)) and not Path(text).suffix and not Path(text).parent.exists()


def recorded_yaml(folder: Path) -> str:
    """Return the config that a run recorded in its folder as YAML, without removed keys that have no effect now."""
    values = read_recipe(folder / RECORD).values
    drop_removed_keys(values, recorded=True)
    return dump(values)


def _exists(path: str) -> bool:
    """Return whether the path exists, or the folder in front of `#<split>`."""
    try:
        return Path(path).expanduser().exists() or Path(path.rpartition("#")[0] or path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # the name is too long or holds a NUL, or `~user` is unknown
        return False


def secrets(values: Any, recipe: Recipe, key: str = "") -> list[str]:
    """Return a problem for every value that contains a secret, because the config is written to the run folder."""
    if isinstance(values, dict):
        return [line for name, value in values.items() for line in secrets(value, recipe, f"{key}.{name}".strip("."))]
    if isinstance(values, (list, tuple)):
        return [line for value in values for line in secrets(value, recipe, key)]
    if isinstance(values, str) and redacted(values) != values:
        variables = "DARTUNE_VLLM_API_KEY for a server, HF_TOKEN for the Hub"
        return [f"{recipe.place(key)} holds a secret, which the run's files would show: set {variables}"]
    return []


def describe_keys(base: Config | None = None) -> str:
    """Return one line per key, with its value in `base` (or its default) and its description, for `--help`."""
    values = base.model_dump(mode="json") if base else {}
    lines = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if is_section(section):
            lines.append(f"\n{name}: {(section.__doc__ or '').splitlines()[0]}")
            set_values = values.get(name, {})
            for key, subfield in section.model_fields.items():
                lines.append(_key_line(f"{name}.{key}", subfield, set_values.get(key, UNSET)))
        else:
            lines.append(_key_line(name, field, values.get(name, UNSET)))
    return "\n".join(lines)


def _key_line(key: str, field: Any, value: Any) -> str:
    value = field.get_default(call_default_factory=True) if value is UNSET else value
    default = "required" if value is UNSET else " ".join(json.dumps(value).replace("\\n", " ").split())
    default = default if len(default) <= 40 else f"{default[:37]}..."
    return f"  --{key} [{default}]  {field.description}"
