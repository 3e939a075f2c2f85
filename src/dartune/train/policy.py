"""On-policy reinforcement learning, alike for the mapper and for a target trained directly.

A step draws questions, samples a group of responses per question from the current policy, has them rewarded and takes
one policy-gradient step. A prompt is read once per group in sampling, scoring and training. Log-probabilities in the
ratio and the KL penalty are taken at the sampling temperature: it is the tempered policy that is sampled and trained.
What differs, prompts and rewards, is in the subclasses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from dartune import processes
from dartune.config import LOCAL, ExecutionConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample, SampleSpec
from dartune.models.flops import TRAINING, multiplied_weights
from dartune.models.head import is_sharded
from dartune.models.memory import tokens_at_once
from dartune.models.parallel_engine import LocalEngine
from dartune.models.shared_prefix import Group, group_logprobs
from dartune.run import Cost, read_jsonl, write_jsonl
from dartune.train.loop import shuffled_rows
from dartune.train.microbatches import Piece, cut, padded_tokens, pieces
from dartune.train.objectives import grpo

CHECKPOINT_EVERY = 10
"""Steps between checkpoints, unless the config says."""
SAMPLES_ON_DISK = 5  # a step
REHEARSED = 1000  # longest prompts that are cut into tokens to find the heaviest microbatch
COUNTED = ("generated_tokens", "scored_tokens", "trained_tokens", "flops")
"""Of a step's metrics, what it spent."""


class PolicyConfig(Protocol):
    """The settings that a policy's steps read."""

    questions_per_step: int
    group_size: int
    temperature: float
    max_new_tokens: int
    kl: float


@dataclass(frozen=True, slots=True)
class Microbatch:
    groups: list[Group]
    advantages: torch.Tensor
    start_logprobs: list[list[float]]
    tokens: int


class PolicyObjective:
    """An `Objective` that samples from the model it trains; `prompts` and `rewarded` are the subclass's."""

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        policy: LocalEngine,
        start: Engine,
        renderer: Renderer,
        config: PolicyConfig,
        seed: int,
        samples_path: Path,
        execution: ExecutionConfig = LOCAL,
    ):
        """`start` scores under the policy's initial weights; `samples_path` keeps a few samples of every step."""
        self.demonstrations, self.policy, self.start = demonstrations, policy, start
        self.renderer, self.config, self.seed, self.samples_path = renderer, config, seed, samples_path
        self.execution = execution
        self.engines: list[Engine] = [policy, start]
        self._weights = multiplied_weights(policy.model)
        self._resumed = False
        self._said: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _engine_flops(self) -> float:
        return sum(engine.flops for engine in {id(engine): engine for engine in self.engines}.values())

    def prompt(self, row: Demonstration) -> str:
        """What the policy is asked."""
        raise NotImplementedError

    def rewarded(
        self, step: int, rows: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Advantages, (questions, group size), and the step's metrics."""
        raise NotImplementedError

    def begin(self, step: int) -> list[Microbatch]:
        config = self.config
        if not self._resumed:
            self._forget_samples_after(step)
            self._resumed = True
        n = min(config.questions_per_step, len(self.demonstrations))
        rows = [self.demonstrations[i] for i in shuffled_rows(len(self.demonstrations), n, step, self.seed)]
        prompts = [self.renderer.prompt_ids(self.prompt(row)) for row in rows]
        spec = SampleSpec(
            n=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop_ids=self.renderer.stop_ids,
            seed=self.seed * 1_000_003 + step,
        )
        self.policy.model.eval()
        before = self._engine_flops()
        samples = self.policy.generate(prompts, spec)
        # A verdict that timed out in one process only must not set the processes apart.
        advantages, self._row = processes.agreed(self.rewarded(step, rows, samples))
        pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, samples, strict=True) for sample in group]
        start = self.start.score(pairs, config.temperature)
        tokens = sum(len(ids) for _, ids in pairs)
        trained = TRAINING * self._weights * (tokens + sum(map(len, prompts)))
        flops = self._engine_flops() - before + trained
        self._step_tokens, self._step_flops, self._said = tokens, flops, {}
        return self._microbatches(prompts, samples, advantages, start)

    def _microbatches(
        self,
        prompts: list[list[int]],
        samples: list[list[Sample]],
        advantages: torch.Tensor,
        start: list[list[float]],
    ) -> list[Microbatch]:
        """Groups of like length together."""
        limit, shared = self._forward()
        size = self.config.group_size
        ids = [[sample.ids for sample in group] for group in samples]
        order = processes.share(sorted(range(len(prompts)), key=lambda i: max(map(len, ids[i]))))
        parts = [piece for i in order for piece in pieces(prompts[i], ids[i], i, limit, shared)]

        def groups(batch: Sequence[Piece]) -> list[Group]:
            return [(prompts[one.group], ids[one.group][one.low : one.high]) for one in batch]

        def tokens(batch: Sequence[Piece]) -> int:
            return padded_tokens(groups(batch), shared)

        return [
            Microbatch(
                groups=groups(batch),
                advantages=torch.cat([advantages[one.group, one.low : one.high] for one in batch]),
                start_logprobs=[row for one in batch for row in start[one.group * size :][one.low : one.high]],
                tokens=self._step_tokens,
            )
            for batch in cut(parts, tokens, limit)
        ]

    def _forward(self) -> tuple[int, bool]:
        """Most tokens of a forward, and whether a prompt is read once for its group (see `group_logprobs`)."""
        model, execution = self.policy.model, self.execution
        shared = not (execution.gradient_checkpointing or is_sharded(model))
        return tokens_at_once(model, execution.microbatch_tokens), shared

    def heaviest(self) -> Microbatch:
        """Prompts as a step may draw them, with samples of the length that fills a forward best."""
        config = self.config
        limit, shared = self._forward()
        texts = nlargest(REHEARSED, map(self.prompt, self.demonstrations), key=len)
        prompts = [self.renderer.prompt_ids(text) for text in texts]
        prompts = sorted(prompts * 2, key=len, reverse=True)  # a step across two epochs can have one twice
        share = math.ceil(min(config.questions_per_step, len(self.demonstrations)) / processes.count())
        first, counts, length = fullest(
            [len(prompt) for prompt in prompts], share, config.group_size, config.max_new_tokens, limit, shared
        )
        n = sum(counts)
        return Microbatch(
            groups=[
                (prompt, [(self.renderer.end_id,) * length] * count)
                for prompt, count in zip(prompts[first:], counts, strict=False)
            ],
            advantages=torch.zeros(n),
            start_logprobs=[[0.0] * length] * n,
            tokens=n * length,
        )

    def loss(self, model: torch.nn.Module, microbatch: Microbatch) -> torch.Tensor:
        logprobs, mask, entropy = group_logprobs(
            model, microbatch.groups, with_entropy=True, temperature=self.config.temperature
        )
        start = pad_sequence([torch.tensor(row) for row in microbatch.start_logprobs], batch_first=True).to(logprobs)
        advantages = microbatch.advantages.to(logprobs)
        loss, kl = grpo(logprobs, start * mask, advantages, mask, microbatch.tokens, self.config.kl)
        # By microbatch, for an idle process asks for one again.
        self._said.setdefault(id(microbatch), (kl.detach(), (entropy * mask).sum()))
        return loss

    def shown(self, microbatch: Microbatch) -> list[dict[str, Any]]:
        spell = self.renderer.tokenizer.decode
        flat = [(prompt, ids) for prompt, completions in microbatch.groups for ids in completions]
        numbers = zip(microbatch.advantages.tolist(), map(sum, microbatch.start_logprobs), strict=True)
        return [
            {"prompt": spell(prompt), "response": spell(ids), "advantage": str(advantage), "start": str(logprob)}
            for (prompt, ids), (advantage, logprob) in zip(flat, numbers, strict=True)
        ]

    def end(self, step: int) -> dict[str, Any]:
        kl, entropy = (sum(float(said[i]) for said in self._said.values()) for i in range(2))
        sums = processes.totals({"kl": kl, "entropy": entropy})
        return {
            **self._row,
            "kl": sums["kl"] / max(1, self._step_tokens),
            "entropy": sums["entropy"] / max(1, self._step_tokens),
            "generated_tokens": self._step_tokens,
            "scored_tokens": self._step_tokens,
            "trained_tokens": self._step_tokens,
            "flops": self._step_flops,
        }

    def _forget_samples_after(self, step: int) -> None:
        """Samples that an interrupted run wrote after its last checkpoint are drawn again."""
        if self.samples_path.exists():
            write_jsonl(self.samples_path, [row for row in read_jsonl(self.samples_path) if row["step"] <= step])


def fullest(
    prompts: Sequence[int], share: int, size: int, most: int, limit: int, shared: bool
) -> tuple[int, list[int], int]:
    """The microbatch of the most tokens that a step can come to.

    Args:
        prompts: lengths of all prompts that a step may draw from, longest first.
        share: groups of a step that one process trains on.
        size: samples of a group, of `most` tokens at most.
        limit: tokens of a forward, which only a single sample may exceed.
        shared: a prompt is read once for its group.

    Returns:
        The first of the prompts, which follow each other; the samples of each; tokens of a sample.
    """
    best, found = prompts[0] + most, (0, [1], most)
    for first, prompt in enumerate(prompts):
        groups = min(share, len(prompts) - first)
        read = groups if shared else groups * size
        if best >= limit or min(limit, read * prompt + groups * size * most) <= best:
            break
        for n in range(1, groups + 1):
            for samples in range(n, n * size + 1):
                read = (n if shared else samples) * prompt
                length = min(most, (limit - read) // samples)
                if length > 0 and read + samples * length > best:
                    best = read + samples * length
                    found = (first, [samples // n + (i < samples % n) for i in range(n)], length)
    return found


def zero_variance(rewards: torch.Tensor) -> float:
    """Share of the groups (rows) whose rewards are all equal, and which therefore teach nothing."""
    return float((rewards.std(dim=1) < 1e-6).float().mean())


def a_few(items: Sequence[Any]) -> Sequence[Any]:
    """About `SAMPLES_ON_DISK` of a step's items, evenly spread."""
    return items[:: max(1, len(items) // SAMPLES_ON_DISK)][:SAMPLES_ON_DISK]


def totals(history: Sequence[dict[str, Any]]) -> Cost:
    """Tokens and operations over a run's metric rows."""
    return Cost(**{key: sum(row[key] for row in history) for key in COUNTED})
