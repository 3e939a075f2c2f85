"""Settings of an arm or an adaptation, derived from the config; problems that prevent an arm from running."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dartune.config.arm_checks import arm_problems
from dartune.config.arms import ADAPTATIONS, ARMS, adaptations, with_dependencies
from dartune.config.plugins import USER_DEFINED, plain_name
from dartune.config.schema import Config, DirectRLSettings
from dartune.errors import InputError

LOW_RATE_FACTOR = 0.1
"""The arm sft_low_lr multiplies every learning rate of the grid by this factor."""


def adapted_config(config: Config, adaptation: str, rows: int) -> Config:
    """Return the run's config with the changes of an adaptation, for a data set of `rows` training rows."""
    spec = ADAPTATIONS[adaptation]
    changes: dict[str, Any] = {}
    if spec.reward:
        changes["reward"] = config.reward.model_copy(update=dict(spec.reward))
    if spec.other_target:
        changes["target"] = config.target.model_copy(update={"path": config.target.other})
        changes["execution"] = config.execution.model_copy(update={"server": None})  # the server serves the target only
    if spec.matched:
        samples = samples_per_row(config, rows)
        changes["synthesise"] = config.synthesise.model_copy(update={"samples": samples})
    return config.model_copy(update=changes)


def samples_per_row(config: Config, rows: int) -> int:
    """Return the rewrites per row that `dart` samples in training and synthesis together, rounded up."""
    mapper = config.mapper
    training_samples = mapper.steps * min(mapper.questions_per_step, rows) * mapper.group_size
    return config.synthesise.samples + math.ceil(training_samples / max(1, rows))


def learning_rates(config: Config, arm: str) -> tuple[float, ...]:
    """Return the learning rates that an arm tries; dev accuracy selects one."""
    if ARMS[arm].budget:
        return config.direct_rl.learning_rates
    grid = config.sft.learning_rates
    return tuple(float(f"{rate * LOW_RATE_FACTOR:.6g}") for rate in grid) if ARMS[arm].low_rates else grid


def direct_rl_settings(config: Config) -> DirectRLSettings:
    """Return the settings of direct RL: the section's own, the mapper's batch and adapter, evaluation's length."""
    mapper = config.mapper
    return DirectRLSettings(
        lora_rank=mapper.lora_rank,
        questions_per_step=mapper.questions_per_step,
        group_size=mapper.group_size,
        kl=config.direct_rl.kl,
        temperature=mapper.temperature,
        max_new_tokens=config.evaluate.max_new_tokens,
    )


def problems(config: Config, *, in_lab: bool) -> list[str]:
    """Return the problems that prevent the arms of `config` from running."""
    messages, usable = [], []
    for arm in config.arms:
        try:
            broken = arm_problems(ARMS[arm]) if USER_DEFINED.fullmatch(arm) else []
        except InputError as error:
            messages.append(error.message)
            continue
        messages += [f"arms: {arm}: {line}" for line in broken]
        if not broken:
            usable.append(arm)
    arms = with_dependencies(usable)
    if len(set(map(plain_name, arms))) < len(arms):
        messages.append("arms: two arms have the same name; rename the user-defined one")
    if any(ARMS[arm].rows == "gold" for arm in arms) and not in_lab:
        messages.append("arms: gold needs the lab's worlds (data.path lab:...); remove it for your own data")
    if any(ARMS[arm].rows == "wrong_target" for arm in arms) and not config.target.other:
        messages.append("arms: wrong_target needs target.other, the model that the data are adapted to instead")
    moving = [arm for arm in arms if ARMS[arm].teacher_update]
    if moving and (config.sft.lora_rank is not None or config.execution.sharding == "fsdp2"):
        messages.append(
            f"arms: {', '.join(moving)}: teacher_update needs training of all weights in one piece; set "
            "sft.lora_rank: null and execution.sharding: ddp, or teacher_update=0"
        )
    if any(ARMS[arm].teacher == "mapper" for arm in moving) and config.mapper.lora_rank is not None:
        messages.append(
            f"arms: {', '.join(moving)}: an adapter as the teacher cannot follow the model; set "
            "mapper.lora_rank: null, or teacher_update=0"
        )
    if config.execution.server:
        messages += _server_problems(config, arms)
    return messages


def _server_problems(config: Config, arms: Sequence[str]) -> list[str]:
    """Return the settings that a server, which holds the target and LoRA adapters of it, cannot support."""
    messages = []
    if config.mapper.path or config.mapper.format_steps:
        messages.append(
            "execution.server: the mapper must start from the served target: no mapper.path, no mapper.format_steps"
        )
    trained = any(ADAPTATIONS[name].trained for name in adaptations(arms))
    if trained and config.mapper.lora_rank is None:
        messages.append("execution.server: a server can load adapters, not full models; set mapper.lora_rank: 16")
    return messages
