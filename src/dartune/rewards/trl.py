"""The reward as an entry of `reward_funcs` in a stock `trl.GRPOTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.rewards.reward import Reward


def as_reward_func(reward: Reward, end_id: int) -> Callable[..., list[float | None]]:
    """Return a function for `reward_funcs`. The training data needs the columns `id, question, solution[, answer]`.

    Args:
        reward: the reward that scores the completions.
        end_id: the end token. A completion without it at the end counts as cut at the token limit.

    Returns:
        A function that returns one reward per completion, or None if the answer check failed; TRL leaves None out of
        the sum.
    """

    def dart_reward(
        completion_ids: Sequence[Sequence[int]],
        id: Sequence[str],
        question: Sequence[str],
        solution: Sequence[str],
        answer: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        # TRL calls the function with one entry per completion, so every group has one sample.
        answers = answer or [None] * len(question)
        rows = [Demonstration(*row) for row in zip(id, question, solution, answers, strict=True)]
        # TRL does not pass the policy's log-probabilities, so the penalty `peeking` is 0 here.
        samples = [
            [Sample(tuple(ids), (), "stop" if len(ids) and ids[-1] == end_id else "length")] for ids in completion_ids
        ]
        return [scored.reward if scored.judged else None for (scored,) in reward(rows, samples)]

    return dart_reward
