"""The reward inside a stock `trl.GRPOTrainer`: one more entry of its `reward_funcs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dartune.data.records import Demonstration
from dartune.models.engine import Sample
from dartune.rewards.reward import Reward


def as_reward_func(reward: Reward, end_id: int) -> Callable[..., list[float | None]]:
    """A function for `reward_funcs`; the training data has the columns `id, question, solution[, answer]`.

    A completion that does not end with `end_id` counts as cut. Where the answer checker failed the result is None,
    which TRL leaves out of the sum.
    """

    def dart_reward(
        completion_ids: Sequence[Sequence[int]],
        id: Sequence[str],
        question: Sequence[str],
        solution: Sequence[str],
        answer: Sequence[str | None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        answers = answer or [None] * len(question)
        rows = [Demonstration(*row) for row in zip(id, question, solution, answers, strict=True)]
        samples = [
            [Sample(tuple(ids), (), "stop" if len(ids) and ids[-1] == end_id else "length")] for ids in completion_ids
        ]
        return [scored.reward if scored.judged else None for (scored,) in reward(rows, samples)]

    return dart_reward
