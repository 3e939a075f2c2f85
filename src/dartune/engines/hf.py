"""Engine on a Hugging Face model in this process.

Rows are sorted by prompt length. A batch reads its unique prompts in one forward, and all samples of a prompt share its
keys and values. The decode loop writes into preallocated buffers, and finished rows leave the batch. The random numbers
of a sample depend only on the seed, its prompt and its index, so batch size and the other prompts change a sample only
through floating-point rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from dartune.engines.base import Sample, SampleSpec, TokenIds, TokenStats, prompt_seeds
from dartune.engines.decoding import GPU_CHECK_EVERY, Decoder, sample_tokens
from dartune.engines.logprobs import batch_by_length, forward_overhead, read_completions, read_prompts
from dartune.engines.sliced_head import eval_mode
from dartune.engines.token_statistics import token_stats
from dartune.errors import InputError
from dartune.models.device import device_of
from dartune.models.flops import FORWARD, multiplied_weights
from dartune.models.fsdp import unsharded
from dartune.models.language_model import LanguageModel
from dartune.models.loading import context_length
from dartune.models.lora import without_adapter
from dartune.models.precision import cached_casts
from dartune.run.progress import Call, call

# Tokens whose keys and values are held at a time. On a CPU, larger batches are not faster (measured). On a GPU this is
# the minimum: the batch grows to what fits into half of the free memory.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2**15, 2**16
# Tokens per forward: enough to hide the overhead of small operations. On a CPU, a larger forward exceeds the caches,
# and a wider model reaches that point with fewer tokens: CPU_STATES is the number of hidden-state elements that fit.
CPU_FORWARD_TOKENS, GPU_FORWARD_TOKENS = 2**10, 2**15
CPU_MIN_FORWARD_TOKENS, CPU_STATES = 2**9, 2**18
# If memory runs out even with this few tokens, smaller batches do not help.
MIN_BATCH_TOKENS = 256
# Finished rows are dropped once less than this share of a batch is still being sampled. The GPU threshold is lower,
# because a smaller batch needs a new CUDA graph.
CPU_COMPACT_BELOW, GPU_COMPACT_BELOW = 0.7, 0.5


class HFEngine:
    """Samples from and scores with a causal LM in this process (see `Engine` for the contract).

    Each call uses the model's current weights, so a policy can be sampled during training without a `sync`. The
    first call with a model that caches something other than keys and values (Mamba, linear attention) raises an
    InputError.

    Args:
        model: any transformers causal LM, with or without LoRA.
        adapter: if False, the model is used without its LoRA adapter, also one that is added later.
        max_batch_tokens: most tokens (rows x longest row) whose keys and values are held at a time; None derives it
            from the memory of the device. It is halved whenever memory runs out.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        adapter: bool = True,
        max_batch_tokens: int | None = None,
    ) -> None:
        self.model, self.adapter = model, adapter
        self.max_batch_tokens = max_batch_tokens or _default_batch_tokens(model)
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.flops = 0.0
        self._flops_per_token = FORWARD * multiplied_weights(model)
        self.version = 0
        self.vocabulary = model.get_input_embeddings().weight.shape[0]
        on_cpu = device_of(model).type == "cpu"
        self.forward_tokens = min(self.max_batch_tokens, _cpu_forward_tokens(model) if on_cpu else GPU_FORWARD_TOKENS)
        self.check_every = 1 if on_cpu else GPU_CHECK_EVERY
        self.compact_below = CPU_COMPACT_BELOW if on_cpu else GPU_COMPACT_BELOW
        self.context = context_length(model)

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`; repeated prompts are sampled independently."""
        self._check([(prompt, ()) for prompt in prompts], spec.max_new_tokens)
        uniform = _random_numbers(prompts, spec)  # (prompts, n, max_new_tokens), as are ids and logprobs
        ids = torch.zeros(uniform.shape, dtype=torch.long)
        logprobs = torch.zeros(uniform.shape)
        # Longest first: a batch that does not fit in memory fails at once, not after an hour.
        order = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
        rows = [(p, j) for p in order for j in range(spec.n)]
        rows_done = tokens_done = 0  # of finished batches
        with self._inference(), call("sampling", len(rows)) as running:

            def report(batch_rows: float, batch_tokens: int, batch_ended: int) -> None:
                running.at(rows_done + batch_rows, tokens_done + batch_tokens, rows_done + batch_ended)

            def sample(batch: list[tuple[int, int]]) -> None:
                p, j = torch.tensor(batch).T
                ids[p, j], logprobs[p, j] = self._sample(batch, prompts, spec, uniform[p, j], report)

            def batch_share(p: int, _: int) -> float:
                return self._batch_share(prompts[p], spec.max_new_tokens)

            for batch in self._run_batches(rows, batch_share, sample):
                rows_done, tokens_done = rows_done + len(batch), running.tokens
            samples = _to_samples(ids, logprobs, spec)
            generated = sum(len(sample.ids) for group in samples for sample in group)
            running.at(len(rows), generated)
        self.generated_tokens += generated
        self.flops += self._flops_per_token * (generated + sum(map(len, prompts)))
        return samples

    def prompts_at_once(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> int:
        """See `Engine.prompts_at_once`: the first batch of a call with one sample per prompt."""
        longest = max(prompts, key=len)
        return _even_batch(len(prompts), self._batch_share(longest, max_new_tokens))

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`; pairs are grouped by prompt, and equal pairs are scored once."""
        self._check(pairs)
        keys = [(tuple(prompt), tuple(completion)) for prompt, completion in pairs]
        groups: dict[TokenIds, dict[TokenIds, list[float]]] = {}  # prompt -> completion -> scores
        for prompt, completion in keys:
            groups.setdefault(prompt, {})[completion] = []
        # Longest first, as in `generate`.
        groups = dict(sorted(groups.items(), key=lambda group: -len(group[0])))
        with self._inference(), call("scoring", sum(map(len, groups.values()))) as running:
            score = partial(self._score, temperature=temperature, running=running)
            batches = self._run_batches(
                list(groups.items()), lambda prompt, _: len(prompt) / self.forward_tokens, score
            )
            for _ in batches:
                pass
            scored = sum(len(completion) for group in groups.values() for completion in group)
            running.at(running.total, scored)
        self.scored_tokens += scored
        self.flops += self._flops_per_token * (scored + sum(map(len, groups)))
        return [groups[prompt][completion] for prompt, completion in keys]

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """See `Engine.token_stats`."""
        self._check(pairs)
        with self._inference(), call("scoring", len(pairs)) as running:
            stats = token_stats(self.model, pairs, running.add)
        scored = sum(len(completion) for _, completion in pairs)
        self.scored_tokens += scored
        self.flops += self._flops_per_token * (scored + sum(len(prompt) for prompt, _ in pairs))
        return stats

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Copies weights into the model; a weight may be left out only if it is tied to one in `state_dict`.

        Raises:
            InputError: names do not match the model; all are listed, and no weight is changed.
        """
        weights = self.model.state_dict()
        # By memory address, because tied weights have several names and one storage.
        provided = {weights[name].data_ptr() for name in state_dict if name in weights}
        problems = [f"unknown weight {name}" for name in state_dict if name not in weights]
        problems += [f"missing weight {name}" for name in weights if weights[name].data_ptr() not in provided]
        if problems:
            raise InputError("these weights do not match the model's", problems)
        self.model.load_state_dict(state_dict, strict=False)
        self.version = version

    def close(self) -> None:
        """Does nothing: the model belongs to the caller."""

    def _run_batches(
        self, rows: list[tuple], batch_share: Callable[[Any, Any], float], run: Callable[[list[tuple]], None]
    ) -> Iterator[list[tuple]]:
        """Calls `run` on batches of `rows`, and yields each batch afterwards.

        If memory runs out, the batch size is halved for this and all later batches.

        Args:
            rows: the rows, largest first.
            batch_share: the share of a full batch that a row takes.
            run: processes a batch.
        """
        start = 0
        while start < len(rows):
            batch = rows[start : start + _even_batch(len(rows) - start, batch_share(*rows[start]))]
            try:
                run(batch)
                start += len(batch)
                out_of_memory = False
            except torch.OutOfMemoryError:
                if self.max_batch_tokens <= MIN_BATCH_TOKENS:
                    raise
                out_of_memory = True
            # Outside the handler: within it, the traceback keeps the tensors of the failed forward alive.
            if out_of_memory:
                self.max_batch_tokens, self.forward_tokens = self.max_batch_tokens // 2, self.forward_tokens // 2
                torch.cuda.empty_cache()
            else:
                yield batch

    def _batch_share(self, prompt: TokenIds, max_new_tokens: int) -> float:
        """Returns the share of a full batch that a sample takes."""
        return (len(prompt) + max_new_tokens) / self.max_batch_tokens

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Prepares the model: no gradients, no dropout, unsharded, with or without its adapter."""
        adapter_context = nullcontext() if self.adapter else without_adapter(self.model)
        with (
            torch.no_grad(),
            eval_mode(self.model),
            unsharded(self.model),
            adapter_context,
            cached_casts(self.model),
        ):
            yield

    def _score(
        self, groups: list[tuple[TokenIds, dict[TokenIds, list[float]]]], temperature: float, running: Call
    ) -> None:
        """Fills in the scores of (prompt, {completion: scores}) groups."""
        prefix = read_prompts(self.model, [prompt for prompt, _ in groups])
        width = prefix.valid.shape[1]
        rows = [(p, completion) for p, (_, group) in enumerate(groups) for completion in group]

        def max_rows(longest: int) -> int:
            # Two limits: the tokens of the forward itself, and the keys and values of prompt and completion.
            rows_that_fit = min(self.forward_tokens // max(1, longest), self.max_batch_tokens // (width + longest))
            return max(1, rows_that_fit)

        lengths = [len(completion) for _, completion in rows]
        batches = batch_by_length(lengths, forward_overhead(prefix.logits.device), max_rows)
        for batch in reversed(batches):  # longest first
            owner, completions = zip(*(rows[i] for i in batch), strict=True)
            logprobs, _, _ = read_completions(self.model, prefix, owner, completions, temperature=temperature)
            for p, completion, row in zip(owner, completions, logprobs.tolist(), strict=True):
                groups[p][1][completion] = row[: len(completion)]
            running.add(len(batch), sum(map(len, completions)))

    def _sample(
        self,
        batch: list[tuple[int, int]],
        prompts: Sequence[TokenIds],
        spec: SampleSpec,
        uniform: torch.Tensor,
        report: Callable[[float, int, int], None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Samples a batch of B rows.

        Args:
            batch: (prompt, sample) indices of each row, samples of a prompt side by side.
            prompts: the prompts of the call.
            spec: the sampling parameters.
            uniform: uniform random numbers, (B, max_new_tokens).
            report: called with the rows of the batch that are done, with the share of unfinished ones, its tokens, and
                the rows that have ended.

        Returns:
            Token ids and log-probabilities, (B, max_new_tokens) each; the values after a stop token are undefined.
        """
        index_of_prompt = {p: i for i, p in enumerate(dict.fromkeys(p for p, _ in batch))}
        owner = [index_of_prompt[p] for p, _ in batch]
        prefix = read_prompts(self.model, [prompts[p] for p in index_of_prompt])
        device = prefix.logits.device
        ids = torch.zeros(uniform.shape, dtype=torch.long, device=device)
        logprobs = torch.zeros(uniform.shape, device=device)
        uniform = uniform.to(device, torch.float32 if device.type == "mps" else torch.float64)  # no float64 on MPS
        stops = torch.tensor(spec.stop_ids, dtype=torch.long, device=device)
        active = torch.arange(len(batch), device=device)  # rows that are in the decoder, (A,)
        finished = torch.zeros(len(batch), dtype=torch.bool, device=device)  # of these, (A,)
        logits = prefix.logits[torch.tensor(owner, device=device)]  # (A, V)
        decoder = Decoder(self.model, prefix, owner, spec.max_new_tokens)
        generated = 0
        for t in range(spec.max_new_tokens):
            tokens, chosen = sample_tokens(logits, spec.temperature, uniform[active, t])
            ids[active, t], logprobs[active, t] = tokens, chosen
            if t + 1 == spec.max_new_tokens:
                break
            finished |= torch.isin(tokens, stops)
            if t % self.check_every == 0:
                alive = finished.logical_not().nonzero()[:, 0]
                # The tokens of rows that ended since the last check are not counted; `generate` has the exact number.
                generated += len(alive) * (self.check_every if t else 1)
                ended = len(batch) - len(alive)
                report(ended + len(alive) * (t + 1) / spec.max_new_tokens, generated, ended)
                if len(alive) == 0:
                    break
                # Dropping rows copies the cache, so it is done only when enough rows have finished.
                if len(alive) < self.compact_below * len(active):
                    active, finished, tokens = active[alive], finished[alive], tokens[alive]
                    decoder.keep(alive.tolist())
            logits = decoder.step(tokens)
        report(len(batch), generated, len(batch))
        return ids.cpu(), logprobs.cpu()

    def _check(self, pairs: Sequence[tuple[TokenIds, TokenIds]], new_tokens: int = 0) -> None:
        """Raises an InputError if pairs, followed by `new_tokens` tokens each, are not valid inputs of the model."""
        problems = []
        for i, (prompt, completion) in enumerate(pairs):
            tokens, length = (*prompt, *completion), len(prompt) + len(completion) + new_tokens
            if len(prompt) == 0:
                problems.append(f"prompt {i} is empty: start it with a BOS token or an instruction")
            if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocabulary:
                problems.append(f"row {i} has a token outside the model's vocabulary of {self.vocabulary}")
            if length > self.context:
                problems.append(f"row {i} takes {length} tokens, and the context length is {self.context}")
        if problems:
            raise InputError("the model cannot read these prompts; shorten or drop them", problems)


def _even_batch(rows: int, share: float) -> int:
    """Returns the size of the next batch of `rows` rows, each of which takes at most `share` of a full batch.

    Batches have equal sizes instead of full ones and a small rest: a batch of few rows takes nearly as long.
    """
    return math.ceil(rows / math.ceil(rows / max(1, int(1 / share))))


def _cpu_forward_tokens(model: LanguageModel) -> int:
    """Returns the most tokens of a forward on a CPU."""
    width = model.config.get_text_config().hidden_size
    return max(CPU_MIN_FORWARD_TOKENS, min(CPU_FORWARD_TOKENS, CPU_STATES // width))


def _default_batch_tokens(model: LanguageModel) -> int:
    """Returns the most tokens whose keys and values are held at a time, from the free memory of the device."""
    device = device_of(model)
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Bytes of a token's keys and values in all layers.
    token_bytes = 2 * config.num_hidden_layers * heads * size * next(model.parameters()).element_size()
    # Memory that the allocator has reserved but does not use counts as free.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(GPU_BATCH_TOKENS, free // 2 // token_bytes)


def _random_numbers(prompts: Sequence[TokenIds], spec: SampleSpec) -> torch.Tensor:
    """Returns uniform random numbers in float64, (prompts, n, max_new_tokens), that depend on seed and prompt only.

    With a larger n the first samples of a prompt keep their numbers.
    """
    uniform = torch.empty(len(prompts), spec.n, spec.max_new_tokens, dtype=torch.float64)
    if spec.temperature == 0:
        return uniform.zero_()
    for p, seed in enumerate(prompt_seeds(prompts, spec.seed)):
        generator = torch.Generator().manual_seed(seed >> 1)  # within a signed 64-bit integer
        torch.rand(uniform[p].shape, generator=generator, dtype=uniform.dtype, out=uniform[p])
    return uniform


def _to_samples(ids: torch.Tensor, logprobs: torch.Tensor, spec: SampleSpec) -> list[list[Sample]]:
    """Returns samples from token ids and log-probabilities, (prompts, n, max_new_tokens), cut after a stop token."""
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
