"""The stages of one arm: its rows, if they are its own, its training at every learning rate, its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dartune.config.arm_config import learning_rates
from dartune.config.arms import ARMS, Arm
from dartune.stages.base import Stage
from dartune.stages.context import StageContext
from dartune.stages.direct_rl import DirectRL
from dartune.stages.distil import Distil
from dartune.stages.evaluate import Evaluate
from dartune.stages.finetune import FineTune
from dartune.stages.matched import FineTuneMatched
from dartune.stages.more_rewrites import RenewRewrites, RewriteGreedily
from dartune.stages.own_samples import SampleOwn


def arm_stages(context: StageContext, arm: str, seed: int) -> Iterator[Stage]:
    """The stages of an arm in order; a stage may only be made when those before it have been executed."""
    spec = ARMS[arm]
    if spec.rows == "own":
        yield SampleOwn(context, arm, seed)
    elif spec.rows == "greedy":
        yield RewriteGreedily(context)
    elif spec.renewed:
        yield RenewRewrites(context, arm, seed)
    if spec.trained:
        for learning_rate in learning_rates(context.config, arm):
            yield _training_stage(spec)(context, arm, seed, learning_rate)
    yield Evaluate(context, arm, seed)


def _training_stage(spec: Arm) -> Callable[[StageContext, str, int, float], Stage]:
    """The stage that trains an arm at one learning rate."""
    if spec.budget:
        return DirectRL
    if spec.teacher:
        return Distil
    return FineTuneMatched if spec.gains_as_much_as else FineTune
