"""What the config says for an arm or an adaptation, and what keeps the arms from being run."""

from __future__ import annotations

import math
from typing import Any

from dartune.arms import ADAPTATIONS, ARMS, adaptations
from dartune.config import Config

LOW_RATES = 0.1
"""The low-learning-rate arm tries every rate of the grid times this."""


def adapted_config(config: Config, adaptation: str, rows: int) -> Config:
    """The run's config as this adaptation reads it, for a data set of so many rows."""
    how = ADAPTATIONS[adaptation]
    changes: dict[str, Any] = {}
    if how.reward:
        changes["reward"] = config.reward.model_copy(update=dict(how.reward))
    if how.other_target:
        changes["target"] = config.target.model_copy(update={"path": config.target.other})
        changes["execution"] = config.execution.model_copy(update={"server": None})  # it serves the target
    if how.matched:
        samples = rollouts(config, rows)
        changes["synthesise"] = config.synthesise.model_copy(update={"samples": samples})
    return config.model_copy(update=changes)


def rollouts(config: Config, rows: int) -> int:
    """Rewrites a row that `dart` draws in training and synthesis together, rounded up."""
    mapper = config.mapper
    drawn = mapper.steps * min(mapper.questions_per_step, rows) * mapper.group_size
    return config.synthesise.samples + math.ceil(drawn / max(1, rows))


def rates(config: Config, arm: str) -> tuple[float, ...]:
    """The learning rates an arm tries; dev accuracy chooses."""
    if ARMS[arm].budget:
        return config.direct_rl.learning_rates
    grid = config.sft.learning_rates
    return tuple(float(f"{rate * LOW_RATES:.6g}") for rate in grid) if ARMS[arm].low_rates else grid


def problems(config: Config, *, in_lab: bool) -> list[str]:
    """What keeps the arms of `config` from being run."""
    found = []
    if "gold" in config.arms and not in_lab:
        found.append("arms: gold needs the lab's worlds (data.path lab:...); take it out for data of your own")
    if "wrong_target" in config.arms and not config.target.other:
        found.append("arms: wrong_target needs target.other, a model that the data are adapted for instead")
    if config.execution.server:
        found += _server_problems(config)
    return found


def _server_problems(config: Config) -> list[str]:
    """What a server that serves the target and its adapters cannot do."""
    found = []
    if config.mapper.path or config.mapper.format_steps:
        found.append(
            "execution.server: the mapper must start from the served target: no mapper.path, no mapper.format_steps"
        )
    trained = any(ADAPTATIONS[name].trained for name in adaptations(config.arms))
    if trained and config.mapper.adapter != "lora":
        found.append("execution.server: a server takes over adapters, not whole models; set mapper.adapter: lora")
    return found
