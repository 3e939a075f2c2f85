"""Use dartune's reward in a stock TRL trainer: train a mapper for a target of the lab.

    python examples/trl_grpo.py --steps 20

Needs `trl` (in dartune's `dev` extra). TRL provides the loop, the sampling and the loss; dartune provides the reward.
"""

from __future__ import annotations

import argparse
import tempfile

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from dartune.answers.checker import AnswerChecker
from dartune.data.chat_template import Renderer
from dartune.engines.hf import HFEngine
from dartune.gates.gate_input import GateThresholds
from dartune.lab.build import MAPPER_PROMPT
from dartune.lab.source import model_folder
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.models.loading import load_model, load_tokenizer
from dartune.rewards.references import source_references
from dartune.rewards.reward import GatedReward
from dartune.rewards.trl import as_reward_func


def train(steps: int, target: str = "lab:backward", rows: int = 64) -> list[float]:
    """Train for `steps` steps; returns the mean reward of each step."""
    folder = model_folder(target)
    engine, renderer = HFEngine(load_model(folder)), Renderer(load_tokenizer(folder))
    demonstrations = write_demonstrations(demonstration_problems(rows, 0, 128), "values")
    data = Dataset.from_list(
        [
            {
                "prompt": [
                    {"role": "user", "content": MAPPER_PROMPT.format(question=row.question, solution=row.solution)}
                ],
                "id": row.id,
                "question": row.question,
                "solution": row.solution,
                "answer": row.answer,
            }
            for row in demonstrations
        ]
    )
    with AnswerChecker() as checker, tempfile.TemporaryDirectory() as output:
        references = source_references(engine, renderer, demonstrations)
        reward = GatedReward(engine, renderer, checker, GateThresholds(length_high=8.0), references)
        trainer = GRPOTrainer(
            model=load_model(model_folder("lab:mapper")),
            processing_class=load_tokenizer(model_folder("lab:mapper")),
            reward_funcs=[as_reward_func(reward, renderer.end_id)],
            train_dataset=data,
            args=GRPOConfig(
                output_dir=output,
                max_steps=steps,
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=128,
                learning_rate=3e-4,
                scale_rewards=False,
                beta=0.0,
                bf16=False,
                gradient_checkpointing=False,
                logging_steps=1,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
            ),
        )
        trainer.train()
        return [row["reward"] for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    print(train(parser.parse_args().steps))
