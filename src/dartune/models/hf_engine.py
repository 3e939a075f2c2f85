"""In-process engine on a Hugging Face model: prompts are read once, and nothing is computed twice.

Rows are sorted by prompt length; a batch reads its unique prompts in one forward and copies their
keys and values to every sample. The decode loop writes into preallocated buffers, and finished rows
leave the batch. Each sample's random numbers depend on the seed, its prompt and its index alone, so
samples depend on batch size and on the other prompts only as far as floating point does: by
rounding.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from dartune.errors import InputError
from dartune.models.adapter import without_adapter
from dartune.models.decoding import GPU_CHECK_EVERY, Decoder, draw
from dartune.models.engine import Sample, SampleSpec, TokenIds, TokenStats
from dartune.models.flops import FORWARD, multiplied_weights
from dartune.models.head import evaluating
from dartune.models.loading import context_length
from dartune.models.precision import rounding_once
from dartune.models.sharding import whole
from dartune.models.shared_prefix import (
    device_of,
    forward_costs,
    of_like_length,
    read_completions,
    read_prompts,
)
from dartune.models.token_stats import token_stats

# Tokens whose keys and values are held at a time: on a CPU more gain nothing (measured); on a GPU as many as fit into
# half of its free memory, if more.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2**15, 2**16
# Tokens per forward: enough to hide the overhead of small operations; on a CPU more leaves its caches, the sooner the
# wider the model is.
CPU_FORWARD_TOKENS, GPU_FORWARD_TOKENS = 2**10, 2**15
CPU_FEWEST_TOKENS, CPU_STATES = 2**9, 2**18
# Where memory still runs out with so few tokens at a time, smaller batches do not help.
FEWEST_BATCH_TOKENS = 256
# Finished rows are dropped once fewer than this share of a batch is still being sampled; on a GPU, which records its
# steps anew then, more of them are waited for.
CPU_COMPACT_BELOW, GPU_COMPACT_BELOW = 0.7, 0.5


class HFEngine:
    """Samples from and scores with a causal LM in this process (see `Engine` for the contract).

    The model is used as it stands at each call, so a policy may be sampled while it is being
    trained, without a `sync`.

    Args:
        model: any transformers causal LM, LoRA-wrapped or not.
        adapter: False takes the model as it is without the LoRA adapter that it carries, now or later.
        max_batch_tokens: most tokens (rows x longest row) whose keys and values are held at a time (None: by
            the memory of the device); halved whenever memory runs out.
        progress: called with (rows done, rows in this call) after every batch.

    A model whose layers keep something other than keys and values (Mamba, linear attention) is refused
    with an InputError at its first use.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        adapter: bool = True,
        max_batch_tokens: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.adapter = model, adapter
        self.max_batch_tokens = max_batch_tokens or _tokens_that_fit(model)
        self.progress = progress or (lambda done, total: None)
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.flops = 0.0
        self._flops_per_token = FORWARD * multiplied_weights(model)
        self.version = 0
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        on_cpu = device_of(model).type == "cpu"
        self.forward_tokens = min(self.max_batch_tokens, _cpu_tokens(model) if on_cpu else GPU_FORWARD_TOKENS)
        self.check_every = 1 if on_cpu else GPU_CHECK_EVERY
        self.compact_below = CPU_COMPACT_BELOW if on_cpu else GPU_COMPACT_BELOW
        self.context = context_length(model)

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`; a prompt given twice is sampled twice, with different random numbers."""
        self._check([(prompt, ()) for prompt in prompts], spec.max_new_tokens)
        draws = _uniforms(prompts, spec)
        ids = torch.zeros(draws.shape, dtype=torch.long)  # (prompts, n, max_new_tokens)
        logprobs = torch.zeros(draws.shape)
        # Longest first: a batch that does not fit in memory fails at once, not after an hour.
        order = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
        rows = [(p, j) for p in order for j in range(spec.n)]
        new, done = spec.max_new_tokens, 0
        with self._frozen():

            def sample(batch: list[tuple[int, int]]) -> None:
                p, j = torch.tensor(batch).T
                ids[p, j], logprobs[p, j] = self._sample(batch, prompts, spec, draws[p, j])

            for batch in self._worked_off(rows, lambda p, _: (len(prompts[p]) + new) / self.max_batch_tokens, sample):
                done += len(batch)
                self.progress(done, len(rows))
        samples = _cut(ids, logprobs, spec)
        generated = sum(len(sample.ids) for group in samples for sample in group)
        self.generated_tokens += generated
        self.flops += self._flops_per_token * (generated + sum(map(len, prompts)))
        return samples

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`; pairs are grouped by prompt, and equal pairs scored once."""
        self._check(pairs)
        keys = [(tuple(prompt), tuple(completion)) for prompt, completion in pairs]
        groups: dict[TokenIds, dict[TokenIds, list[float]]] = {}
        for prompt, completion in keys:
            groups.setdefault(prompt, {})[completion] = []
        groups = dict(sorted(groups.items(), key=lambda item: -len(item[0])))
        total, done = sum(map(len, groups.values())), 0
        with self._frozen():
            rows = list(groups.items())
            score = partial(self._score, temperature=temperature)
            for batch in self._worked_off(rows, lambda prompt, _: len(prompt) / self.forward_tokens, score):
                done += sum(len(group) for _, group in batch)
                self.progress(done, total)
        scored = sum(len(completion) for group in groups.values() for completion in group)
        self.scored_tokens += scored
        self.flops += self._flops_per_token * (scored + sum(map(len, groups)))
        return [groups[prompt][completion] for prompt, completion in keys]

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """See `Engine.token_stats`."""
        self._check(pairs)
        with self._frozen():
            found = token_stats(self.model, pairs)
        scored = sum(len(completion) for _, completion in pairs)
        self.scored_tokens += scored
        self.flops += self._flops_per_token * (scored + sum(len(prompt) for prompt, _ in pairs))
        return found

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Copy weights into the model; names left out must be tied to one that is given.

        Raises:
            InputError: names that do not match the model; all are listed.
        """
        own = self.model.state_dict()
        given = {own[name].data_ptr() for name in state_dict if name in own}
        problems = [f"unknown weight {name}" for name in state_dict if name not in own]
        problems += [f"missing weight {name}" for name in own if own[name].data_ptr() not in given]
        if problems:
            raise InputError("these weights belong to another model", problems)
        self.model.load_state_dict(state_dict, strict=False)
        self.version = version

    def close(self) -> None:
        """Nothing to free: the model belongs to the caller."""

    def _worked_off(
        self, rows: list[tuple], share: Callable[[Any, Any], float], work: Callable[[list[tuple]], None]
    ) -> Iterator[list[tuple]]:
        """Batches of `rows`, largest first, after `work` on each; `share` is the part of a batch that a row takes.

        Where memory runs out, batches are halved, now and from then on.
        """
        start = 0
        while start < len(rows):
            # The last batch is no smaller than the others: a batch of few rows takes nearly as long.
            left, most = len(rows) - start, max(1, int(1 / share(*rows[start])))
            batch = rows[start : start + math.ceil(left / math.ceil(left / most))]
            try:
                work(batch)
                start += len(batch)
                full = False
            except torch.OutOfMemoryError:
                if self.max_batch_tokens <= FEWEST_BATCH_TOKENS:
                    raise
                full = True
            if full:  # outside the handler, which holds on to what the forward had made
                self.max_batch_tokens, self.forward_tokens = self.max_batch_tokens // 2, self.forward_tokens // 2
                torch.cuda.empty_cache()
            else:
                yield batch

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """The model as this engine sees it: no gradients, no dropout, all weights, with or without its adapter."""
        seen = nullcontext() if self.adapter else without_adapter(self.model)
        with torch.no_grad(), evaluating(self.model), whole(self.model), seen, rounding_once(self.model):
            yield

    def _score(self, groups: list[tuple[TokenIds, dict[TokenIds, list[float]]]], temperature: float) -> None:
        """Fill in the scores of (prompt, {completion: scores}) groups."""
        prefix = read_prompts(self.model, [prompt for prompt, _ in groups])
        width = prefix.valid.shape[1]
        rows = [(p, completion) for p, (_, group) in enumerate(groups) for completion in group]

        def most(longest: int) -> int:
            fit = min(self.forward_tokens // max(1, longest), self.max_batch_tokens // (width + longest))
            return max(1, fit)

        alike = of_like_length([len(row) for _, row in rows], forward_costs(prefix.logits.device), most)
        for batch in reversed(alike):  # longest first
            owner, completions = zip(*(rows[i] for i in batch), strict=True)
            logprobs, _, _ = read_completions(self.model, prefix, owner, completions, temperature=temperature)
            for p, completion, row in zip(owner, completions, logprobs.tolist(), strict=True):
                groups[p][1][completion] = row[: len(completion)]

    def _sample(
        self, batch: list[tuple[int, int]], prompts: Sequence[TokenIds], spec: SampleSpec, draws: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities of B samples, (B, max_new_tokens); what follows a stop token is noise.

        Args:
            batch: (prompt, sample) of each, samples of a prompt side by side.
            draws: uniform random numbers, (B, max_new_tokens).
        """
        unique = {p: i for i, p in enumerate(dict.fromkeys(p for p, _ in batch))}
        owner = [unique[p] for p, _ in batch]
        prefix = read_prompts(self.model, [prompts[p] for p in unique])
        device = prefix.logits.device
        ids = torch.zeros(draws.shape, dtype=torch.long, device=device)
        logprobs = torch.zeros(draws.shape, device=device)
        draws = draws.to(device, torch.float32 if device.type == "mps" else torch.float64)
        stops = torch.tensor(spec.stop_ids, dtype=torch.long, device=device)
        rows = torch.arange(len(batch), device=device)  # those still being sampled
        done = torch.zeros(len(batch), dtype=torch.bool, device=device)
        logits = prefix.logits[torch.tensor(owner, device=device)]
        decoder = Decoder(self.model, prefix, owner, spec.max_new_tokens)
        for t in range(spec.max_new_tokens):
            tokens, chosen = draw(logits, spec.temperature, draws[rows, t])
            ids[rows, t], logprobs[rows, t] = tokens, chosen
            if t + 1 == spec.max_new_tokens:
                break
            done |= torch.isin(tokens, stops)
            if t % self.check_every == 0:
                alive = done.logical_not().nonzero()[:, 0]
                if len(alive) == 0:
                    break
                if len(alive) < self.compact_below * len(rows):
                    rows, done, tokens = rows[alive], done[alive], tokens[alive]
                    decoder.keep(alive.tolist())
            logits = decoder.step(tokens)
        return ids.cpu(), logprobs.cpu()

    def _check(self, pairs: Sequence[tuple[TokenIds, TokenIds]], room: int = 0) -> None:
        """Refuse what the model cannot read; `room` tokens will follow each pair."""
        problems = []
        for i, (prompt, completion) in enumerate(pairs):
            tokens, length = (*prompt, *completion), len(prompt) + len(completion) + room
            if len(prompt) == 0:
                problems.append(f"prompt {i} is empty: start it with a BOS token or an instruction")
            if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocabulary:
                problems.append(f"row {i} has a token outside the model's vocabulary of {self.vocabulary}")
            if length > self.context:
                problems.append(f"row {i} takes {length} tokens, and the context length is {self.context}")
        if problems:
            raise InputError("the model cannot read these prompts; shorten or drop them", problems)


def _cpu_tokens(model: nn.Module) -> int:
    """Most tokens of a forward on a CPU."""
    width = model.config.get_text_config().hidden_size
    return max(CPU_FEWEST_TOKENS, min(CPU_FORWARD_TOKENS, CPU_STATES // width))


def _tokens_that_fit(model: nn.Module) -> int:
    device = device_of(model)
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * next(model.parameters()).element_size()
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(GPU_BATCH_TOKENS, free // 2 // token)


def _uniforms(prompts: Sequence[TokenIds], spec: SampleSpec) -> torch.Tensor:
    """Uniform random numbers in float64, (prompts, n, max_new_tokens), from the seed and the prompt alone."""
    draws = torch.empty(len(prompts), spec.n, spec.max_new_tokens, dtype=torch.float64)
    if spec.temperature == 0:
        return draws.zero_()
    seen: Counter[bytes] = Counter()
    for p, prompt in enumerate(prompts):
        content = array("q", prompt).tobytes()
        digest = hashlib.blake2b(content, digest_size=8, key=f"{spec.seed}/{seen[content]}".encode()).digest()
        seen[content] += 1
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        torch.rand(draws[p].shape, generator=generator, dtype=draws.dtype, out=draws[p])
    return draws


def _cut(ids: torch.Tensor, logprobs: torch.Tensor, spec: SampleSpec) -> list[list[Sample]]:
    """Samples from tokens and log-probabilities (prompts, n, max_new_tokens), cut after a stop token."""
    stops = torch.isin(ids, torch.tensor(spec.stop_ids, dtype=torch.long))
    stopped = stops.any(dim=-1)
    lengths = torch.where(stopped, stops.int().argmax(dim=-1) + 1, ids.shape[-1])
    columns = (ids.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist())
    return [
        [
            Sample(tuple(row[:length]), tuple(values[:length]), "stop" if ended else "length", spec.temperature or 1.0)
            for row, values, length, ended in zip(*group, strict=True)
        ]
        for group in zip(*columns, strict=True)
    ]
