"""On-policy reinforcement learning, for the mapper and for direct training of the target.

A step selects questions, samples a group of responses per question from the current policy, computes their rewards and
takes one policy-gradient step. A prompt is read once per group in sampling, scoring and training. The ratio and the KL
penalty use log-probabilities at the sampling temperature, because the policy at that temperature is what is sampled and
trained. Prompts and rewards are defined by subclasses.
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

from dartune import distributed
from dartune.config.schema import DEFAULT_EXECUTION, ExecutionConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Engine, Sample, SampleSpec
from dartune.engines.distributed import LocalEngine
from dartune.engines.logprobs import Group, group_logprobs
from dartune.engines.sliced_head import is_sharded
from dartune.models.flops import TRAINING, multiplied_weights
from dartune.run.cost import Cost
from dartune.run.files import read_jsonl, write_jsonl
from dartune.train.loop import shuffled_rows
from dartune.train.losses import grpo
from dartune.train.memory import max_forward_tokens
from dartune.train.microbatches import GroupSlice, padded_tokens, slice_group, split_by_tokens

CHECKPOINT_EVERY = 10
"""Steps between checkpoints if the config does not set them."""
SAMPLES_ON_DISK = 5  # per step
# Prompts, longest first in characters, that are tokenised to find the largest microbatch. The longest in characters
# need not be the longest in tokens, and tokenising all prompts of a large data set takes long.
TOKENIZED_PROMPTS = 1000
COST_METRICS = ("generated_tokens", "scored_tokens", "trained_tokens", "flops")
"""Metrics of a step that are costs."""


class PolicyConfig(Protocol):
    """Settings of the steps of a policy."""

    questions_per_step: int
    group_size: int
    temperature: float
    max_new_tokens: int
    kl: float


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Groups of a step that go through one forward and backward.

    Args:
        groups: (prompt, completions) token ids; N completions in all.
        advantages: one per completion, (N,).
        reference_logprobs: log-probability of each token under the reference model, one list per completion.
        tokens: sampled tokens of the whole step, over all microbatches.
    """

    groups: list[Group]
    advantages: torch.Tensor
    reference_logprobs: list[list[float]]
    tokens: int


class PolicyObjective:
    """An `Objective` that samples from the model it trains; subclasses define `prompt` and `rewarded`."""

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        policy: LocalEngine,
        reference: Engine,
        renderer: Renderer,
        config: PolicyConfig,
        seed: int,
        samples_path: Path,
        execution: ExecutionConfig = DEFAULT_EXECUTION,
    ):
        """Sets up the objective.

        Args:
            demonstrations: the questions and their solutions.
            policy: an engine on the model that is trained.
            reference: scores under the reference model, the policy's initial weights.
            renderer: chat template and tokenizer.
            config: the settings of the steps.
            seed: seed of the order of questions and of sampling.
            samples_path: file for a few samples of every step.
            execution: how the training is executed.
        """
        self.demonstrations, self.policy, self.reference = demonstrations, policy, reference
        self.renderer, self.config, self.seed, self.samples_path = renderer, config, seed, samples_path
        self.execution = execution
        self.engines: list[Engine] = [policy, reference]
        self._weights = multiplied_weights(policy.model)
        self._resumed = False
        # KL estimate and entropy, summed over tokens, by microbatch.
        self._sums_by_microbatch: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _engine_flops(self) -> float:
        # One engine may have several roles and must be counted once.
        return sum(engine.flops for engine in {id(engine): engine for engine in self.engines}.values())

    def prompt(self, row: Demonstration) -> str:
        """Returns the prompt of the policy for a demonstration."""
        raise NotImplementedError

    def score_samples(
        self, step: int, rows: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Returns the advantages, (questions, group size), and the metrics of the step."""
        raise NotImplementedError

    def begin(self, step: int) -> list[Microbatch]:
        config = self.config
        if not self._resumed:
            self.discard_samples_after(step)
            self._resumed = True
        n = min(config.questions_per_step, len(self.demonstrations))
        rows = [self.demonstrations[i] for i in shuffled_rows(len(self.demonstrations), n, step, self.seed)]
        prompts = [self.renderer.prompt_ids(self.prompt(row)) for row in rows]
        spec = SampleSpec(
            n=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop_ids=self.renderer.stop_ids,
            seed=self.seed * 1_000_003 + step,  # unique per (seed, step) for up to a million steps
        )
        self.policy.model.eval()
        before = self._engine_flops()
        samples = self.policy.generate(prompts, spec)
        # An answer check that timed out in one process only would otherwise give the processes different rewards.
        advantages, self._row = distributed.broadcast(self.score_samples(step, rows, samples))
        pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, samples, strict=True) for sample in group]
        reference_logprobs = self.reference.score(pairs, config.temperature)
        tokens = sum(len(ids) for _, ids in pairs)
        trained = TRAINING * self._weights * (tokens + sum(map(len, prompts)))
        flops = self._engine_flops() - before + trained
        self._step_tokens, self._step_flops, self._sums_by_microbatch = tokens, flops, {}
        return self._microbatches(prompts, samples, advantages, reference_logprobs)

    def _microbatches(
        self,
        prompts: list[list[int]],
        samples: list[list[Sample]],
        advantages: torch.Tensor,
        reference_logprobs: list[list[float]],
    ) -> list[Microbatch]:
        """Returns this process's microbatches, with groups of similar length together.

        Args:
            prompts: token ids of each prompt.
            samples: the group of each prompt.
            advantages: (prompts, group size).
            reference_logprobs: one list per sample, group after group.
        """
        limit, shared = self._forward_limits()
        size = self.config.group_size
        ids = [[sample.ids for sample in group] for group in samples]
        # Sorted by the longest sample, so that padding is short and each process gets groups of all lengths.
        order = distributed.shard(sorted(range(len(prompts)), key=lambda i: max(map(len, ids[i]))))
        slices = [part for i in order for part in slice_group(prompts[i], ids[i], i, limit, shared)]

        def groups(batch: Sequence[GroupSlice]) -> list[Group]:
            return [(prompts[part.group], ids[part.group][part.start : part.stop]) for part in batch]

        def tokens(batch: Sequence[GroupSlice]) -> int:
            return padded_tokens(groups(batch), shared)

        def reference_rows(part: GroupSlice) -> list[list[float]]:
            return reference_logprobs[part.group * size :][part.start : part.stop]

        return [
            Microbatch(
                groups=groups(batch),
                advantages=torch.cat([advantages[part.group, part.start : part.stop] for part in batch]),
                reference_logprobs=[row for part in batch for row in reference_rows(part)],
                tokens=self._step_tokens,
            )
            for batch in split_by_tokens(slices, tokens, limit)
        ]

    def _forward_limits(self) -> tuple[int, bool]:
        """Returns the most tokens of a forward, and whether a group shares its prompt (see `group_logprobs`)."""
        model, execution = self.policy.model, self.execution
        shared = not (execution.gradient_checkpointing or is_sharded(model))
        return max_forward_tokens(model, execution.microbatch_tokens), shared

    def largest_microbatch(self) -> Microbatch:
        """Returns the largest microbatch that a step can have, with samples of end tokens and advantages of 0."""
        config = self.config
        limit, shared = self._forward_limits()
        texts = nlargest(TOKENIZED_PROMPTS, map(self.prompt, self.demonstrations), key=len)
        prompts = [self.renderer.prompt_ids(text) for text in texts]
        # Twice each, because a step that spans two epochs can have a prompt twice.
        prompts = sorted(prompts * 2, key=len, reverse=True)
        groups_per_process = math.ceil(
            min(config.questions_per_step, len(self.demonstrations)) / distributed.world_size()
        )
        first, counts, length = largest_microbatch(
            [len(prompt) for prompt in prompts],
            groups_per_process,
            config.group_size,
            config.max_new_tokens,
            limit,
            shared,
        )
        n = sum(counts)
        return Microbatch(
            groups=[
                (prompt, [(self.renderer.end_id,) * length] * count)
                for prompt, count in zip(prompts[first:], counts, strict=False)
            ],
            advantages=torch.zeros(n),
            reference_logprobs=[[0.0] * length] * n,
            tokens=n * length,
        )

    def loss(self, model: torch.nn.Module, microbatch: Microbatch) -> torch.Tensor:
        logprobs, mask, entropy = group_logprobs(
            model, microbatch.groups, with_entropy=True, temperature=self.config.temperature
        )
        rows = [torch.tensor(row) for row in microbatch.reference_logprobs]
        reference = pad_sequence(rows, batch_first=True).to(logprobs)  # (N, T), as are logprobs, mask and entropy
        advantages = microbatch.advantages.to(logprobs)
        assert entropy is not None  # requested above
        loss, kl = grpo(logprobs, reference * mask, advantages, mask, microbatch.tokens, self.config.kl)
        # By microbatch, because a process without work computes its first microbatch again.
        self._sums_by_microbatch.setdefault(id(microbatch), (kl.detach(), (entropy * mask).sum()))
        return loss

    def shown(self, microbatch: Microbatch) -> list[dict[str, Any]]:
        decode = self.renderer.tokenizer.decode
        pairs = [(prompt, ids) for prompt, completions in microbatch.groups for ids in completions]
        numbers = zip(microbatch.advantages.tolist(), map(sum, microbatch.reference_logprobs), strict=True)
        # "start" is the summed log-probability under the reference model; its name is part of the file format.
        return [
            {"prompt": decode(prompt), "response": decode(ids), "advantage": str(advantage), "start": str(logprob)}
            for (prompt, ids), (advantage, logprob) in zip(pairs, numbers, strict=True)
        ]

    def end(self, step: int) -> dict[str, Any]:
        kl, entropy = (sum(float(sums[i]) for sums in self._sums_by_microbatch.values()) for i in range(2))
        sums = distributed.all_reduce({"kl": kl, "entropy": entropy})
        return {
            **self._row,
            "kl": sums["kl"] / max(1, self._step_tokens),
            "entropy": sums["entropy"] / max(1, self._step_tokens),
            "generated_tokens": self._step_tokens,
            "scored_tokens": self._step_tokens,
            "trained_tokens": self._step_tokens,
            "flops": self._step_flops,
        }

    def discard_samples_after(self, step: int) -> None:
        """Removes the samples that an interrupted run wrote after its last checkpoint; they are sampled again."""
        discard_rows_after(self.samples_path, step)


def discard_rows_after(path: Path, step: int) -> None:
    """Removes the rows of later steps from a file of samples, which may not exist."""
    if path.exists():
        write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])


def largest_microbatch(
    prompt_lengths: Sequence[int], max_groups: int, group_size: int, max_new_tokens: int, limit: int, shared: bool
) -> tuple[int, list[int], int]:
    """Returns the microbatch with the most padded tokens that a step can have.

    Args:
        prompt_lengths: lengths of all prompts that a step may select, longest first.
        max_groups: groups of a step that one process trains on.
        group_size: samples of a group.
        max_new_tokens: most tokens of a sample.
        limit: most tokens of a forward, which only a single sample may exceed.
        shared: whether a prompt is read once for its group.

    Returns:
        The index of the first prompt, the others following it; the number of samples of each prompt; the tokens of
        each sample.
    """
    # A single sample of full length may exceed the limit, so it is the baseline.
    most_tokens, largest = prompt_lengths[0] + max_new_tokens, (0, [1], max_new_tokens)
    for first, prompt_length in enumerate(prompt_lengths):
        groups = min(max_groups, len(prompt_lengths) - first)
        prompts_read = groups if shared else groups * group_size
        upper_bound = min(limit, prompts_read * prompt_length + groups * group_size * max_new_tokens)
        # The prompts that follow are no longer than this one, so none of them can exceed the bound.
        if most_tokens >= limit or upper_bound <= most_tokens:
            break
        for n in range(1, groups + 1):
            for samples in range(n, n * group_size + 1):
                prompt_tokens = (n if shared else samples) * prompt_length
                length = min(max_new_tokens, (limit - prompt_tokens) // samples)
                if length > 0 and prompt_tokens + samples * length > most_tokens:
                    most_tokens = prompt_tokens + samples * length
                    largest = (first, [samples // n + (i < samples % n) for i in range(n)], length)
    return largest


def zero_variance(rewards: torch.Tensor) -> float:
    """Returns the share of groups whose rewards, (groups, samples), are all equal and so give no gradient signal."""
    return float((rewards.std(dim=1) < 1e-6).float().mean())


def evenly_spaced(items: Sequence[Any]) -> Sequence[Any]:
    """Returns up to `SAMPLES_ON_DISK` items of a step, evenly spaced."""
    return items[:: max(1, len(items) // SAMPLES_ON_DISK)][:SAMPLES_ON_DISK]


def total_cost(history: Sequence[dict[str, Any]]) -> Cost:
    """Returns the tokens and FLOPs of a run from the metrics of its steps."""
    return Cost(**{key: sum(row[key] for row in history) for key in COST_METRICS})
