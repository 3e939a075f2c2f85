"""Format warm-up: a mapper start that hardly ever passes the gates first learns what a rewrite looks like.

Reinforcement learning needs some rewrites that are paid. The start is fine-tuned on pairs of its own prompt and a
solution that passed: the target's own right solutions, and those of its own rewrites that do pass. Where these are
none, it is fine-tuned on the demonstrations themselves: it then starts as a copier whose rewrites pass the gates and
gain nothing, and RL moves it from there. Beside examples that passed, demonstrations do harm: they are easier, and
even in equal parts the mapper copies nearly always (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune.config import LOCAL, ExecutionConfig, MapperConfig, SFTConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, SampleSpec
from dartune.rewards.reward import Reward
from dartune.run import Cost, atomic_write_json
from dartune.train.mapper import mapper_prompt
from dartune.train.sft import fine_tune

TRIED_ROWS, OWN_ROWS = 64, 512
"""Demonstrations that the start is tried on, with a group of rewrites each; demonstrations whose right own solutions
are taken, which cost nothing more."""


def examples(
    demonstrations: Sequence[Demonstration],
    probed: Sequence[dict[str, Any]],
    start: Engine,
    reward: Reward,
    renderer: Renderer,
    config: MapperConfig,
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(prompt, solution) pairs that show the format, and how many there are of each kind.

    Args:
        probed: the probe's rows, with the target's own verified solutions.
    """
    rows = demonstrations[:TRIED_ROWS]
    prompts = [mapper_prompt(config.prompt, row) for row in rows]
    solved = zip(demonstrations[:OWN_ROWS], probed[:OWN_ROWS], strict=True)
    own = [(mapper_prompt(config.prompt, row), one["text"]) for row, known in solved for one in known["own"]]
    spec = SampleSpec(config.group_size, config.max_new_tokens, config.temperature, renderer.stop_ids, 0)
    scored = reward(rows, start.generate([renderer.prompt_ids(prompt) for prompt in prompts], spec))
    passed = [
        (prompt, one.text) for prompt, group in zip(prompts, scored, strict=True) for one in group if one.accepted
    ]
    found = list(dict.fromkeys([*own, *passed]))
    copies = [(prompt, row.solution) for prompt, row in zip(prompts, rows, strict=True)] if not found else []
    tried = len(rows) * config.group_size
    return [*found, *copies], {"own": len(own), "passed": len(passed), "tried": tried, "demonstrations": len(copies)}


def described(kinds: Mapping[str, int]) -> str:
    """What the mapper started from, in words for the log and the report; `kinds` is what `examples.json` holds."""
    accepted = (
        f"{kinds['own']} right solutions of the target, {kinds['passed']} of {kinds['tried']} rewrites that passed"
    )
    if not kinds["demonstrations"]:
        return f"the mapper starts from a warm-up on {accepted}"
    return f"the mapper starts as a copier, from a warm-up on {kinds['demonstrations']} demonstrations ({accepted})"


def warm_up(
    model: Any,
    demonstrations: Sequence[Demonstration],
    probed: Sequence[dict[str, Any]],
    start: Engine,
    reward: Reward,
    renderer: Renderer,
    mapper: MapperConfig,
    sft: SFTConfig,
    folder: Path,
    execution: ExecutionConfig = LOCAL,
) -> tuple[Any, Cost]:
    """Fine-tune `model`, a copy of the mapper's start, for `mapper.format_steps`; `examples.json` says on what.

    Settings other than the steps are those of fine-tuning the target, at the middle one of its learning rates.
    """
    pairs, kinds = examples(demonstrations, probed, start, reward, renderer, mapper)
    atomic_write_json(folder / "examples.json", kinds)
    rate = sorted(sft.learning_rates)[len(sft.learning_rates) // 2]
    settings = sft.model_copy(update={"steps": mapper.format_steps})
    return fine_tune(model, pairs, renderer, settings, rate, 0, folder, execution=execution)
