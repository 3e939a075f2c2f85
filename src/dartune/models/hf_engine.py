"""In-process engine on a Hugging Face model: prompts are read once, and nothing is computed twice.

Rows are sorted by prompt length; a batch reads its unique prompts in one forward and copies their
keys and values to every sample. The decode loop writes into preallocated buffers, and finished rows
leave the batch. Each sample's random numbers depend on the seed, its prompt and its index alone, so
samples depend on batch size and on the other prompts only as far as floating point does: by
rounding, which changes a token about once in a million.
"""

from __future__ import annotations

import copy
import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer

from dartune.errors import InputError
from dartune.models.engine import Sample, SampleSpec, TokenIds
from dartune.models.loading import context_length
from dartune.models.shared_prefix import device_of, read_completions, read_prompts, select_rows

# Keys and values held at a time while sampling, in tokens; a 1M-parameter model on a CPU is fastest
# well below what would fit, since a batch beyond the processor's caches gains nothing.
CPU_TOKENS, GPU_TOKENS = 2**15, 2**16
# Completion tokens per scoring forward on a CPU: enough to hide the overhead of small operations.
CPU_SCORED_TOKENS = 2**11
# Most logits (tokens x vocabulary) of one scoring forward.
MAX_LOGITS = 2**28
# Finished rows are dropped once fewer than this share of a batch is still being sampled.
COMPACT_BELOW = 0.7
# Asking a GPU whether rows have finished stalls its queue, so it is asked rarely.
GPU_CHECK_EVERY = 8

Row = tuple[int, int]
"""A sample to draw or a completion to score: (prompt, index within the prompt)."""


class HFEngine:
    """Samples from and scores with a causal LM in this process (see `Engine` for the contract).

    The model is used as it stands at each call, so a policy may be sampled while it is being
    trained, without a `sync`. It must attend by SDPA or eagerly, as `load_model` makes it.

    Args:
        model: any transformers causal LM, LoRA-wrapped or not.
        max_batch_tokens: most tokens (rows x longest row) whose keys and values are held at a time;
            lower it when memory runs out.
        progress: called with (rows done, rows in this call) after every batch.

    Raises:
        InputError: a model whose layers keep something other than keys and values (Mamba, linear
            attention): their state cannot be shared between completions.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        max_batch_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model
        self.on_cpu = device_of(model).type == "cpu"
        self.max_batch_tokens = max_batch_tokens or (CPU_TOKENS if self.on_cpu else GPU_TOKENS)
        self.progress = progress or (lambda done, total: None)
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.version = 0
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        self.context = context_length(model)

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`; a prompt given twice is sampled twice, with different random numbers."""
        self._check(prompts, [spec.max_new_tokens] * len(prompts))
        if not prompts or spec.n < 1:
            return [[] for _ in prompts]
        draws = _uniforms(prompts, spec)
        ids = torch.zeros(len(prompts), spec.n, spec.max_new_tokens, dtype=torch.long)
        logprobs = torch.zeros(ids.shape)
        # Longest first: a batch that does not fit in memory fails at once, not after an hour.
        order = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
        rows = [(p, j) for p in order for j in range(spec.n)]
        done = 0
        with torch.no_grad(), evaluating(self.model):
            for batch in _batches(rows, lambda p, j: len(prompts[p]) + spec.max_new_tokens, self.max_batch_tokens):
                self._sample(batch, prompts, spec, draws, ids, logprobs)
                done += len(batch)
                self.progress(done, len(rows))
        samples = _cut(ids, logprobs, spec.stop_ids)
        self.generated_tokens += sum(len(sample.ids) for group in samples for sample in group)
        return samples

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[list[float]]:
        """See `Engine.score`; pairs are grouped by prompt, equal pairs are scored once."""
        self._check([prompt for prompt, _ in pairs], [len(completion) for _, completion in pairs])
        keys = [(tuple(prompt), tuple(completion)) for prompt, completion in pairs]
        groups: dict[TokenIds, dict[TokenIds, None]] = {}
        for prompt, completion in keys:
            groups.setdefault(prompt, {})[completion] = None
        scores: dict[tuple[TokenIds, TokenIds], list[float]] = {}
        prompts = sorted(groups, key=len, reverse=True)
        total = sum(len(group) for group in groups.values())
        with torch.no_grad(), evaluating(self.model):
            for batch in _batches([(p, 0) for p in range(len(prompts))], lambda p, _: len(prompts[p]), self._scored()):
                chosen = [prompts[p] for p, _ in batch]
                scores |= self._score(chosen, [list(groups[prompt]) for prompt in chosen])
                self.progress(len(scores), total)
        self.scored_tokens += sum(len(completion) for _, completion in scores)
        return [scores[key] for key in keys]

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Copy weights into the model; names left out must be tied to one that is given.

        Raises:
            InputError: names that do not match the model; all are listed.
        """
        own = self.model.state_dict()
        given = {own[name].data_ptr() for name in state_dict if name in own}
        problems = [f"unknown weight {name}" for name in state_dict if name not in own]
        problems += [f"missing weight {name}" for name, w in own.items() if w.data_ptr() not in given]
        if problems:
            raise InputError("these weights belong to another model", problems)
        self.model.load_state_dict(state_dict, strict=False)
        self.version = version

    def close(self) -> None:
        """Nothing to free: the model belongs to the caller."""

    def _scored(self) -> int:
        return min(self.max_batch_tokens, CPU_SCORED_TOKENS) if self.on_cpu else self.max_batch_tokens

    def _score(self, prompts: list[TokenIds], groups: list[list[TokenIds]]) -> dict[tuple, list[float]]:
        prefix = read_prompts(self.model, prompts)
        width = prefix.valid.shape[1]
        rows = [(p, j) for p, group in enumerate(groups) for j in range(len(group))]
        rows.sort(key=lambda row: -len(groups[row[0]][row[1]]))
        cost = width if not self.on_cpu else 0
        scores = {}

        def length(p: int, j: int) -> int:
            return len(groups[p][j])

        longest = max(map(len, (c for g in groups for c in g)))
        fits = max(1, MAX_LOGITS // self.vocabulary)
        for batch in _batches(rows, lambda p, j: length(p, j) + cost, self._scored()):
            pass
        return scores
