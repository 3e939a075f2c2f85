"""What a process of a group does in tests/test_processes.py: `torchrun ... fixtures_processes.py SHARDING FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dartune import processes
from dartune.config import MapperConfig, SFTConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.files import atomic_write_json
from dartune.models.engine import SampleSpec
from dartune.models.parallel_engine import engine_on
from dartune.train.loop import train_as_set
from dartune.train.policy import PolicyObjective
from dartune.train.sft import fine_tune
from fixtures_models import byte_tokenizer, tiny_model

RENDERER = Renderer(byte_tokenizer())
ROWS = [Demonstration(str(i), f"what is {i} + 2? " * (1 + i % 3), f"{i} + 2 = {i + 2}. So {i + 2}") for i in range(10)]
STEPS = 4


class LengthPaid(PolicyObjective):
    """Reinforcement learning that pays for the number of different tokens."""

    def prompt(self, row):
        return row.question

    def rewarded(self, step, rows, samples):
        rewards = torch.tensor([[float(len(set(sample.ids))) for sample in group] for group in samples])
        return rewards - rewards.mean(dim=1, keepdim=True), {"reward": float(rewards.mean())}


def model():
    return tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id).eval()


def learn_by_demonstration(sharding: str, folder: Path):
    settings = SFTConfig(steps=STEPS, batch_size=5, checkpoint_every=2, sharding=sharding)
    rows = [(row.question, row.solution) for row in ROWS]
    return fine_tune(model(), rows, RENDERER, settings, 1e-3, 0, folder)[0]


def learn_by_reward(sharding: str, folder: Path):
    settings = MapperConfig(
        questions_per_step=5, group_size=4, max_new_tokens=10, checkpoint_every=2, warmup_steps=0, sharding=sharding
    )

    def objective(trained):
        start = engine_on(model())
        return LengthPaid(ROWS, engine_on(trained), start, RENDERER, settings, 0, folder / "samples.jsonl")

    return train_as_set(model(), objective, settings, folder, seed=0, steps=STEPS, learning_rate=1e-3, decay=0.0)[0]


def main(sharding: str, folder: Path) -> None:
    """Train both ways; leave the weights and what an engine on the untrained model says."""
    weights = {}
    for learn in (learn_by_demonstration, learn_by_reward):
        trained = learn(sharding, folder / learn.__name__)
        weights[learn.__name__] = {name: p.tolist() for name, p in trained.named_parameters()}
    engine = engine_on(model())
    prompts = [RENDERER.prompt_ids(row.question) for row in (*ROWS, ROWS[3])]
    samples = engine.generate(prompts, SampleSpec(2, 8, 1.0, (RENDERER.end_id,), 7))
    pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, samples, strict=True) for sample in group]
    said = {
        "samples": [[list(sample.ids) for sample in group] for group in samples],
        "scores": engine.score(pairs),
        "ranks": [list(one.ranks) for one in engine.token_stats(pairs)],
        "spent": [engine.generated_tokens, engine.scored_tokens, engine.flops],
    }
    assert all(other == said for other in processes.everyones(said)), "the processes see different results"
    atomic_write_json(folder / "found.json", {"weights": weights, **said})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined():
        main(sys.argv[1], Path(sys.argv[2]))
