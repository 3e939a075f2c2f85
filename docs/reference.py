"""Writes cli.md and settings.md, the reference pages, from the command line's parsers and the config.

    python docs/reference.py

`tests/test_docs.py` fails where a page differs from what this writes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dartune import cli
from dartune.config.arms import ARMS
from dartune.config.schema import Config

HERE = Path(__file__).parent
MADE = "<!-- Written by `python docs/reference.py`; change the code it describes, not this page. -->"
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def pages() -> dict[Path, str]:
    """Every page this file writes, with its text."""
    return {HERE / "cli.md": commands(), HERE / "settings.md": settings()}


def commands() -> str:
    """The command line: every verb with its usage and arguments."""
    parser = cli.build_parser()
    lines = [MADE, "", "# Commands", "", parser.description or "", "", "```text", parser.epilog or "", "```", ""]
    for verb in verbs(parser):
        lines += [f"## {verb.prog}", "", sentence(verb.description), ""]
        parts = list(verbs(verb))
        if verb.usage:
            lines += ["```text", verb.usage, "```", ""]
        lines += arguments(verb)
        if verb.prog.split()[-1] in cli.CONFIGURED:
            lines += ["Every key of the [settings](settings.md) is a flag of this command.", ""]
        for part in parts:
            lines += [f"### {part.prog}", "", sentence(part.description), "", *arguments(part)]
    return "\n".join(lines).rstrip() + "\n"


def verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a parser's commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def arguments(parser: argparse.ArgumentParser) -> list[str]:
    """A table of what a command takes, itself described by its help texts; nothing where it takes nothing."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        name = (action.metavar or action.dest.upper()).replace("|", " or ")
        shown = " ".join([*action.option_strings, name]) if action.option_strings else name
        rows.append(f"| {code(shown)} | {cell(action.help or '')} |")
    return ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []


def settings() -> str:
    """Every key of the config with its values and its default, section by section; and the arms."""
    schema = Config.model_json_schema()
    top = {name: field for name, field in Config.model_fields.items() if not section(field.annotation)}
    lines = [MADE, "", "# Settings", "", Config.__doc__ or "", ""]
    lines += ["A key stands in a recipe (YAML), and is a flag as well: `--mapper.steps 40`. `--data` and `--target`"]
    lines += ["are short for `--data.path` and `--target.path`. What is unknown or wrong is refused, all at once.", ""]
    lines += ["## The run", "", *table("", top, schema["properties"], schema)]
    for name, field in Config.model_fields.items():
        if inner := section(field.annotation):
            properties = schema["$defs"][inner.__name__]["properties"]
            about = (inner.__doc__ or "").splitlines()[0]
            lines += [f"## {name}", "", about, "", *table(f"{name}.", inner.model_fields, properties, schema)]
    lines += ["## Arms", "", "What `arms` can name; [the comparison](comparison.md) says more.", ""]
    lines += [
        "| arm | what it is |",
        "|---|---|",
        *(f"| `{name}` | {cell(arm.description)} |" for name, arm in ARMS.items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def section(annotation: Any) -> type[BaseModel] | None:
    """The section of the config that a field holds, if it does."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def table(
    prefix: str, fields: Mapping[str, Any], properties: Mapping[str, Any], schema: Mapping[str, Any]
) -> list[str]:
    rows = []
    for name, field in fields.items():
        default = "*required*" if field.is_required() else code(shown_default(field))
        about = values(properties[name], schema)
        rows.append(f"| `{prefix}{name}` | {default} | {cell(about)} | {cell(field.description or '')} |")
    return ["| key | default | values | meaning |", "|---|---|---|---|", *rows, ""]


def shown_default(field: Any) -> str:
    return json.dumps(field.get_default(call_default_factory=True))


def values(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(values(one, root) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        names = schema.get("enum", [schema.get("const")])
        return "an arm (below)" if set(names) == set(ARMS) else " ".join(f"`{name}`" for name in names)
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(values(one, root) for one in schema['prefixItems'])}]"
        return f"list of: {values(schema['items'], root)}" if schema.get("items") else "list"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {"": {}}).values()))
        return f"map of names to: {values(inner, root)}" if isinstance(inner, Mapping) and inner else "map"
    bounds = [f"{word} {schema[name]:g}" for name, word in BOUNDS.items() if name in schema]
    return ", ".join([WORDS.get(schema.get("type", ""), "any value"), *bounds])


def sentence(text: str | None) -> str:
    text = text or ""
    return text[:1].upper() + text[1:] + "."


def code(text: str) -> str:
    return f"`{text}`"


def cell(text: str) -> str:
    """Text for a table's cell: what looks like HTML is shown as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path)
