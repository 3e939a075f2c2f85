"""What a process of a group does in tests/test_processes.py: `torchrun ... fixtures_processes.py SHARDING FOLDER`.

With `looks` for a sharding it tells what it sees of its own inside.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from dartune import processes
from dartune.config import ExecutionConfig, MapperConfig, SFTConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.files import atomic_write_json
from dartune.models.engine import SampleSpec
from dartune.models.parallel_engine import engine_on
from dartune.models.sharding import gathered, shard
from dartune.models.shared_prefix import sequence_logprobs
from dartune.train import checkpoint
from dartune.train.loop import LoopConfig, build_optimizers, train_as_set
from dartune.train.policy import PolicyObjective
from dartune.train.sft import fine_tune
from dartune.train.updates import Updates
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
    settings = SFTConfig(steps=STEPS, batch_size=5)
    execution = ExecutionConfig(checkpoint_every=2, sharding=sharding)
    rows = [(row.question, row.solution) for row in ROWS]
    return fine_tune(model(), rows, RENDERER, settings, 1e-3, 0, folder, execution=execution)[0]


def learn_by_reward(sharding: str, folder: Path):
    settings = MapperConfig(questions_per_step=5, group_size=4, max_new_tokens=10, warmup_steps=0)
    # So small that the processes have different numbers of microbatches.
    execution = ExecutionConfig(checkpoint_every=2, microbatch_tokens=80, sharding=sharding)

    def objective(trained):
        start = engine_on(model())
        return LengthPaid(ROWS, engine_on(trained), start, RENDERER, settings, 0, folder / "samples.jsonl", execution)

    words = {"steps": STEPS, "learning_rate": 1e-3, "checkpoint_every": 10, "decay": 0.0}
    return train_as_set(model(), objective, settings, folder, seed=0, execution=execution, **words)[0]


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


def steps_with_a_part_that_text_does_not_reach() -> dict:
    """Two steps of four microbatches by DDP: how often gradients went round in each, and where the weights end."""
    trained = model()
    torch.manual_seed(0)
    trained.tower = torch.nn.Linear(2, 2)
    ways = Updates(trained, partial(build_optimizers, config=LoopConfig(2, 1e-2)), "ddp", 1.0)
    sent = []
    ways.model.register_comm_hook(None, lambda state, bucket: sent.append(1) or allreduce_hook(state, bucket))
    rounds = []
    for step in range(2):
        rounds.append([])
        for number in range(4):
            before = len(sent)
            with ways.accumulating(last=number == 3):
                rows = [([1, 2, 3], [4, 5 + processes.rank(), 6 + number + step])]
                ways.backward(-sequence_logprobs(ways.model, rows)[0].sum())
            rounds[-1].append(len(sent) > before)
        if step and processes.rank():  # what was not reached before is, by one process
            trained.tower.weight.grad = torch.ones(2, 2)
        ways.step(1e-2)
    ends = [sum(float(p.detach().double().sum()) for p in part.parameters()) for part in (trained, trained.tower)]
    return {"rounds": rounds, "ends": ends, "cast": "forward" in vars(trained)}


def gathered_and_saved() -> dict:
    """A spread model with tied weights and buffers of its own, gathered; and what a process keeps of a checkpoint."""
    plain = tiny_model("gemma3", 300, pad=0, eos=1).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = plain(ids).logits
    spread = shard(plain)
    kept = len(checkpoint._gathered(spread.named_parameters()))
    whole = gathered(spread)
    with torch.no_grad():
        far = float((whole(ids).logits - expected).abs().max())
    same = whole.get_input_embeddings().weight is whole.get_output_embeddings().weight
    return {"kept": kept, "far": far, "tied": same, "trained": all(p.requires_grad for p in whole.parameters())}


def look(folder: Path) -> None:
    """Leave every process's view of its own inside, twice joined."""
    with processes.joined():
        first = processes.everyones(processes.rank())
    alone = processes.count()
    with processes.joined():
        joined = [first, alone, processes.everyones(processes.rank())]
        seen = {"joined": joined, **steps_with_a_part_that_text_does_not_reach(), **gathered_and_saved()}
        everyone = processes.everyones(seen)
        if processes.is_first():
            atomic_write_json(folder / "found.json", everyone)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "looks":
        look(Path(sys.argv[2]))
    else:
        with processes.joined():
            main(sys.argv[1], Path(sys.argv[2]))
