"""Use dartune's reward in verl, for mappers that need hundreds of GPUs: verl samples and trains, dartune scores.

1. Write the training file (Parquet, in verl's columns):

       python examples/verl_reward.py --data my.jsonl --out mapper.parquet

2. Set this file as verl's reward function, with its batch reward manager (one call scores many rewrites):

       python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_files=mapper.parquet \\
           reward_model.reward_manager=batch \\
           custom_reward_function.path=examples/verl_reward.py custom_reward_function.name=compute_score \\
           +custom_reward_function.reward_kwargs.target=path/to/target \\
           +custom_reward_function.reward_kwargs.data=my.jsonl \\
           +custom_reward_function.reward_kwargs.max_response_length=1024 ...

verl passes text, so rewrites are tokenised again here. If the tokens differ from the sampled ones, the alignment is
that of the text. Each reward worker holds a copy of the target.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dartune.answers.checker import AnswerChecker
from dartune.config.schema import MapperConfig
from dartune.data.chat_template import Renderer
from dartune.data.load import load_demonstrations
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.engines.hf import HFEngine
from dartune.gates.gate_input import GateThresholds
from dartune.models.loading import load_model, load_tokenizer
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward
from dartune.stages.mapper_prompt import mapper_prompt


@lru_cache(maxsize=1)
def reward_of(target: str, data: str) -> GatedReward:
    """Return the reward under a target, with references from the demonstrations; loaded once per worker."""
    engine, renderer = HFEngine(load_model(target)), Renderer(load_tokenizer(target))
    references = source_references(engine, renderer, load_demonstrations(data))
    return GatedReward(engine, renderer, AnswerChecker(), GateThresholds(length_high=8.0), references)


def compute_score(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[str],
    extra_infos: Sequence[dict[str, Any]],
    *,
    target: str,
    data: str,
    max_response_length: int,
    **_: Any,
) -> list[dict[str, Any]]:
    """Score rewrites for verl's batch reward manager. A failed answer check gives score 0 and `judged` False."""
    reward = reward_of(target, data)
    rows = [Demonstration(info["id"], info["question"], info["solution"], info.get("answer")) for info in extra_infos]
    replies = [tuple(reward.renderer.response_ids(text)) for text in solution_strs]
    samples = [[Sample(ids, (), "stop" if len(ids) <= max_response_length else "length")] for ids in replies]
    return [
        {"score": one.reward if one.judged else 0.0, "passes": one.accepted, "gain": one.gain, "judged": one.judged}
        for (one,) in reward(rows, samples)
    ]


def verl_rows(demonstrations: Sequence[Demonstration], prompt: str) -> list[dict[str, Any]]:
    """Return rows in verl's columns; `extra_info` carries the inputs of the reward."""
    return [
        {
            "data_source": "dartune",
            "prompt": [{"role": "user", "content": mapper_prompt(prompt, row)}],
            "ability": "rewriting",
            "reward_model": {"style": "rule", "ground_truth": row.answer or ""},
            "extra_info": {"id": row.id, "question": row.question, "solution": row.solution, "answer": row.answer},
        }
        for row in demonstrations
    ]


if __name__ == "__main__":
    from datasets import Dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt", default=MapperConfig().prompt)
    options = parser.parse_args()
    Dataset.from_list(verl_rows(load_demonstrations(options.data), options.prompt)).to_parquet(options.out)
