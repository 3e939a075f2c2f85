"""The names of stages, which are their folders' names in `stages/` of a run folder."""

from __future__ import annotations

from collections.abc import Sequence

from dartune.config.arm_config import learning_rates
from dartune.config.arms import ADAPTATIONS, ARMS, adaptation_stage
from dartune.config.plugins import plain_name
from dartune.config.schema import Config

DIAGNOSIS = "diagnosis"
"""Measures a few rows before a run."""


def probe_stage(adaptation: str) -> str:
    return adaptation_stage("probe", adaptation if ADAPTATIONS[adaptation].own_probe else "dart")


def mapper_stage(adaptation: str, seed: int) -> str:
    return f"{adaptation_stage('mapper', adaptation)}-s{seed}"


def synthesis_stage(adaptation: str, seed: int) -> str:
    return f"{adaptation_stage('synthesise', adaptation)}-s{seed}"


def warmup_stage(adaptation: str) -> str:
    return adaptation_stage("warmup", adaptation if ADAPTATIONS[adaptation].other_target else "dart")


def own_stage(arm: str, seed: int) -> str:
    """The target's own solutions; arms that take all samples of the untouched target share them."""
    own = ARMS[arm].share == 1.0 and not ARMS[arm].renewed
    return f"own-samples-s{seed}" if own else f"own-samples-{plain_name(arm)}-s{seed}"


def greedy_stage() -> str:
    return "greedy-rewrites"


def renewed_stage(arm: str, seed: int) -> str:
    return f"renew-{plain_name(arm)}-s{seed}"


def train_stage(arm: str, seed: int, rate: float) -> str:
    return f"train-{plain_name(arm)}-s{seed}-lr{rate:g}"


def evaluation_stage(arm: str, seed: int) -> str:
    name = f"evaluate-{plain_name(arm)}"
    return f"{name}-s{seed}" if ARMS[arm].trained else name


def adaptation_stages(config: Config, adaptation: str, seed: int) -> list[str]:
    """The stages that make an adapted data set."""
    warmed = [warmup_stage(adaptation)] if config.mapper.format_steps else []
    trained = [mapper_stage(adaptation, seed)] if ADAPTATIONS[adaptation].trained else []
    return [probe_stage(adaptation), *warmed, *trained, synthesis_stage(adaptation, seed)]


def train_stages(config: Config, arm: str, seeds: Sequence[int]) -> list[str]:
    """The stages in which an arm's learning rates are tried."""
    if not ARMS[arm].trained:
        return []
    return [train_stage(arm, seed, rate) for seed in seeds for rate in learning_rates(config, arm)]
