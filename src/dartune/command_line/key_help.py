"""Help on the keys of the config: the most important ones with examples (`--help`), or all (`--help-all`)."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from dartune.config.arms import ARMS, GROUPS
from dartune.config.load import describe_keys, load_config
from dartune.config.recipe import SHIPPED
from dartune.config.schema import Config, is_section

RUN_KEYS = {
    "data.path": "--data my.jsonl",
    "target.path": "--target Qwen/Qwen3-0.6B",
    "output": "--output runs/mine",
    "arms": "--arms base,sft,best_of_k,dart",
    "data.limit": "--data.limit 200",
    "mapper.steps": "--mapper.steps 40",
    "mapper.learning_rate": "--mapper.learning_rate 1e-5",
    "mapper.max_new_tokens": "--mapper.max_new_tokens 256",
    "sft.learning_rates": '--sft.learning_rates "[3e-6, 1e-5, 3e-5]"',
    "evaluate.suites": '--evaluate.suites "{gsm8k: hub:openai/gsm8k:main#test}"',
}
"""Key -> example, for the commands that read a recipe: what a first run with other data and another model needs."""
DEMO_KEYS = RUN_KEYS | {
    "data.path": "--data lab:skipping",
    "target.path": "--target lab:recall",
    "mapper.learning_rate": "--mapper.learning_rate 1e-4",
    "sft.learning_rates": '--sft.learning_rates "[3e-4, 1e-3]"',
    "evaluate.suites": '--evaluate.suites "{mine: my.jsonl}"',
}
"""Key -> example for the demo, which runs in the lab."""
REWARD_KEYS = {
    "target.path": "--target Qwen/Qwen3-0.6B",
    "data.task": "--data.task numeric",
    "target.system_prompt": '--target.system_prompt "Think step by step."',
    "reward.alignment": "--reward.alignment mean_logprob",
    "reward.form": "--reward.form passes",
    "reward.gates": "--reward.gates all,my_gates:no_emoji",
    "reward.penalties": '--reward.penalties "{collapse: 0.1}"',
    "reward.quantity_coverage": "--reward.quantity_coverage 0.8",
    "reward.answer_logprob": "--reward.answer_logprob -2.3",
    "reward.leak_phrases": '--reward.leak_phrases "[as shown above]"',
}
"""Key -> example for check-reward, which has its own rows."""
EXAMPLES = {
    "run": (
        "run mine.yaml",
        "run --data my.jsonl --target Qwen/Qwen3-0.6B --output runs/mine",
        "run gsm8k-qwen3-0.6b --data.limit 200 --mapper.steps 10 --output runs/trial",
    ),
    "check": ("check mine.yaml", "check --data my.jsonl --target Qwen/Qwen3-0.6B --all"),
    "diagnose": (
        "diagnose mine.yaml --rows 32",
        "diagnose --data my.jsonl --target Qwen/Qwen3-0.6B --output runs/mine",
    ),
    "preview": ("preview mine.yaml", "preview --data my.jsonl --target Qwen/Qwen3-0.6B --mapper runs/mine"),
    "score": ("score --data my.jsonl --target Qwen/Qwen3-0.6B --output scores.parquet",),
    "check-reward": ("check-reward", "check-reward my-fixtures.jsonl --target Qwen/Qwen3-0.6B"),
    "show": ("show data mine.yaml", "show rewrites runs/mine", "show config gsm8k-qwen3-0.6b"),
    "demo": ("demo", "demo --mapper.steps 10 --output runs/short-demo"),
}
"""Command -> command lines, without `dartune`."""
INDENT = " " * 6
WIDTH = 110
"""Most columns of the help; longer lines are hard to read."""


def important_keys(verb: str) -> str:
    """Return the ten most important keys of a command with an example each, and examples of the command."""
    keys = {"check-reward": REWARD_KEYS, "demo": DEMO_KEYS}.get(verb, RUN_KEYS)
    base = _base(verb)
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - 2
    lines = [f"The most important keys of the config, each with an example ({_count()} keys: --help-all):"]
    for key, example in keys.items():
        field = config_fields()[key]
        default = "" if field.is_required() and base is None else f" Default: {_default(key, field, base)}."
        text = f"{field.description.replace('listed below', 'listed by --help-all')}{default}"
        lines += ["", f"  {example}", *textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT)]
    examples = (f"  dartune {example}" for example in EXAMPLES[verb])
    return "\n".join([*lines, "", "Examples:", *examples])


def all_keys(verb: str) -> str:
    """Return all keys of a command, with their values and descriptions, and all arms."""
    groups = [[(name, arm) for name, arm in ARMS.items() if arm.group == group] for group in GROUPS]
    arms = "\n".join(
        f"  {group}\n" + "\n".join(f"    {name:20}{arm.description}" for name, arm in members)
        for group, members in zip(GROUPS, groups, strict=True)
    )
    base = _base(verb)
    values = "their defaults" if base is None else "the values of the demo"
    return f"Keys, with {values}:\n{describe_keys(base)}\n\nArms:\n{arms}"


def _base(verb: str) -> Config | None:
    """Return the config whose values a command starts from; None for the defaults."""
    return load_config(SHIPPED / "lab.yaml") if verb == "demo" else None


def config_fields() -> dict[str, Any]:
    """Return the pydantic field of every key of the config, by its dotted name."""

    def fields() -> Iterator[tuple[str, Any]]:
        for name, field in Config.model_fields.items():
            if is_section(field.annotation):
                yield from ((f"{name}.{key}", inner) for key, inner in field.annotation.model_fields.items())
            else:
                yield name, field

    return dict(fields())


def _count() -> int:
    return len(config_fields())


def _default(key: str, field: Any, base: Config | None) -> str:
    """Return a default, or the value in `base`, as a flag would give it."""
    value = field.get_default(call_default_factory=True) if base is None else attrgetter(key)(base)
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return str(value) if value != {} else "none"
