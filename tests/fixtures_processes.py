"""Program of the processes in tests/test_processes.py: `torchrun ... fixtures_processes.py SHARDING FOLDER`.

With `inspect` instead of a sharding, each process reports its own state.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from dartune import distributed
from dartune.config.schema import ExecutionConfig, MapperConfig, SFTConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import SampleSpec
from dartune.engines.distributed import engine_on
from dartune.engines.logprobs import sequence_logprobs
from dartune.models.fsdp import gather_model, shard
from dartune.run.files import atomic_write_json
from dartune.train import checkpoint
from dartune.train.distillation import distil
from dartune.train.gradient_sync import GradientSync
from dartune.train.loop import LoopConfig, build_optimizers, train_from_config
from dartune.train.rl import PolicyObjective
from dartune.train.sft import fine_tune
from fixtures_models import byte_tokenizer, tiny_model

RENDERER = Renderer(byte_tokenizer())
ROWS = [Demonstration(str(i), f"what is {i} + 2? " * (1 + i % 3), f"{i} + 2 = {i + 2}. So {i + 2}") for i in range(10)]
STEPS = 4


class DistinctTokens(PolicyObjective):
    """Reinforcement learning whose reward is the number of distinct tokens."""

    def prompt(self, row):
        return row.question

    def score_samples(self, step, rows, samples):
        rewards = torch.tensor([[float(len(set(sample.ids))) for sample in group] for group in samples])
        return rewards - rewards.mean(dim=1, keepdim=True), {"reward": float(rewards.mean())}


def model():
    return tiny_model("llama", len(RENDERER.tokenizer), pad=0, eos=RENDERER.end_id).eval()


def learn_by_demonstration(sharding: str, folder: Path):
    settings = SFTConfig(steps=STEPS, batch_size=5)
    execution = ExecutionConfig(checkpoint_every=2, sharding=sharding)
    rows = [(row.question, row.solution) for row in ROWS]
    return fine_tune(model(), rows, RENDERER, settings, 1e-3, 0, folder, execution=execution)[0]


def learn_selected_tokens(sharding: str, folder: Path):
    settings = SFTConfig(steps=STEPS, batch_size=5)
    # Small, so that the processes have different numbers of microbatches.
    execution = ExecutionConfig(checkpoint_every=2, microbatch_tokens=80, sharding=sharding)
    rows = [(row.question, row.solution) for row in ROWS]
    target = sharp_model()
    return fine_tune(
        model(), rows, RENDERER, settings, 1e-3, 0, folder, loss="stm", anchor=target, execution=execution
    )[0]


def learn_from_teacher(sharding: str, folder: Path):
    settings = SFTConfig(steps=STEPS, batch_size=5)
    execution = ExecutionConfig(checkpoint_every=2, microbatch_tokens=120, sharding=sharding)

    def prompt(row: Demonstration) -> str:
        return f"{row.question} {row.solution} Now you:"

    return distil(
        model(), ROWS, sharp_model(), RENDERER, prompt, settings, 1e-3, 10, 0, folder, execution=execution
    )[0]


def sharp_model():
    """A model that finds some tokens likely; `model` finds all of them about equally likely."""
    sharp = model()
    with torch.no_grad():
        sharp.get_output_embeddings().weight.mul_(60.0)
    return sharp


def learn_by_reward(sharding: str, folder: Path):
    settings = MapperConfig(questions_per_step=5, group_size=4, max_new_tokens=10)
    # Small, so that the processes have different numbers of microbatches.
    execution = ExecutionConfig(checkpoint_every=2, microbatch_tokens=80, sharding=sharding)

    def objective(trained):
        policy, reference = engine_on(trained), engine_on(model())
        return DistinctTokens(ROWS, policy, reference, RENDERER, settings, 0, folder / "samples.jsonl", execution)

    options = {"steps": STEPS, "learning_rate": 1e-3, "checkpoint_every": 10, "decay": 0.0}
    return train_from_config(model(), objective, settings, folder, seed=0, execution=execution, **options)[0]


METHODS = (learn_by_demonstration, learn_selected_tokens, learn_from_teacher, learn_by_reward)


def main(sharding: str, folder: Path) -> None:
    """Train with every method; write the weights, and samples and scores of the untrained model."""
    weights = {}
    for learn in METHODS:
        trained = learn(sharding, folder / learn.__name__)
        weights[learn.__name__] = {name: p.tolist() for name, p in trained.named_parameters()}
    engine = engine_on(model())
    prompts = [RENDERER.prompt_ids(row.question) for row in (*ROWS, ROWS[3])]
    samples = engine.generate(prompts, SampleSpec(2, 8, 1.0, (RENDERER.end_id,), 7))
    pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, samples, strict=True) for sample in group]
    outputs = {
        "samples": [[list(sample.ids) for sample in group] for group in samples],
        "scores": engine.score(pairs),
        "ranks": [list(statistics.ranks) for statistics in engine.token_stats(pairs)],
        "spent": [engine.generated_tokens, engine.scored_tokens, engine.flops],
    }
    assert all(other == outputs for other in distributed.all_gather(outputs)), "the processes have different results"
    atomic_write_json(folder / "results.json", {"weights": weights, **outputs})


def steps_with_unused_parameters() -> dict:
    """Two DDP steps of four microbatches: whether gradients are reduced in each, and the sums of the final weights."""
    trained = model()
    torch.manual_seed(0)
    trained.tower = torch.nn.Linear(2, 2)
    updates = GradientSync(trained, partial(build_optimizers, config=LoopConfig(2, 1e-2)), "ddp", 1.0)
    calls = []
    updates.model.register_comm_hook(None, lambda state, bucket: calls.append(1) or allreduce_hook(state, bucket))
    reductions = []
    for step in range(2):
        reductions.append([])
        for number in range(4):
            before = len(calls)
            with updates.accumulating(last=number == 3):
                rows = [([1, 2, 3], [4, 5 + distributed.rank(), 6 + number + step])]
                updates.backward(-sequence_logprobs(updates.model, rows)[0].sum())
            reductions[-1].append(len(calls) > before)
        if step and distributed.rank():  # the unused part gets a gradient on one rank
            trained.tower.weight.grad = torch.ones(2, 2)
        updates.step(1e-2)
    sums = [sum(float(p.detach().double().sum()) for p in part.parameters()) for part in (trained, trained.tower)]
    return {"reductions": reductions, "sums": sums, "cast": "forward" in vars(trained)}


def gathered_and_saved() -> dict:
    """Gather a sharded model with tied weights and buffers; count the tensors of a checkpoint that this rank holds."""
    plain = tiny_model("gemma3", 300, pad=0, eos=1).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = plain(ids).logits
    sharded = shard(plain)
    held = len(checkpoint._gathered(sharded.named_parameters()))
    whole = gather_model(sharded)
    with torch.no_grad():
        difference = float((whole(ids).logits - expected).abs().max())
    tied = whole.get_input_embeddings().weight is whole.get_output_embeddings().weight
    trained = all(p.requires_grad for p in whole.parameters())
    return {"held": held, "difference": difference, "tied": tied, "trained": trained}


def inspect(folder: Path) -> None:
    """Enter a process group twice, and write what every process observes."""
    with distributed.process_group():
        first = distributed.all_gather(distributed.rank())
    between = distributed.world_size()
    with distributed.process_group():
        groups = [first, between, distributed.all_gather(distributed.rank())]
        view = {"groups": groups, **steps_with_unused_parameters(), **gathered_and_saved()}
        views = distributed.all_gather(view)
        if distributed.is_main():
            atomic_write_json(folder / "results.json", views)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "inspect":
        inspect(Path(sys.argv[2]))
    else:
        with distributed.process_group():
            main(sys.argv[1], Path(sys.argv[2]))
