"""The decode loop: preallocated keys and values, and rows that are dropped once they have finished.

On a GPU a decoding step of a small model spends most of its time in Python and kernel launches, so the step is captured
as a CUDA graph and replayed. A graph needs fixed shapes and addresses: it attends over the full preallocated length,
and the mask hides the positions that have not been written.

Shapes use these letters: A samples, G prompts of P tokens (left-padded), R rows of the packed batch, C samples per row,
V tokens in the vocabulary.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dartune.engines.kv_cache import select_rows
from dartune.engines.logprobs import FILL_ID, Prefix
from dartune.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

# Steps between checks for finished rows on a GPU. A check waits for the device and so empties its queue.
GPU_CHECK_EVERY = 8
# Size of the vocabulary blocks in `_invert_cdf`: only one block per row is summed token by token.
CDF_BLOCK = 1024


class Decoder:
    """Feeds tokens to A samples that share prompts.

    A row of the batch holds one prompt and up to C of its samples. Its cache is prompt | step 0 of columns 0..C-1 |
    step 1 of columns 0..C-1 | ..., and the mask shows a column the prompt and its own tokens, so the keys and values of
    a prompt are stored and read once per row. Two kinds of models get one sample per row and transformers' own masks
    instead: those with sliding windows that are shorter than the texts, and those whose attention does not take such
    masks.
    """

    def __init__(self, model: LanguageModel, prefix: Prefix, owner: list[int], max_steps: int) -> None:
        """Prepares the cache; the keys and values of `prefix` are moved into it.

        Args:
            prefix: the prompts.
            owner: index into `prefix` of each sample's prompt; samples of a prompt side by side.
            max_steps: most steps that will be taken.
        """
        self.model, self.prefix, self.owner, self.max_steps = model, prefix, owner, max_steps
        self.device = prefix.logits.device
        self.width, self.t = prefix.valid.shape[1], 0  # P, and the steps taken so far
        full_attention = all(_keeps_all_keys(layer, self.width + max_steps) for layer in prefix.cache.layers)
        self.packed = (
            full_attention and model.config._attn_implementation in ("sdpa", "eager") and not _uses_alibi(model)
        )
        self.fixed_shapes = self.packed and uses_cuda_graphs(self.device) and model not in NOT_CAPTURABLE
        if self.fixed_shapes:
            # Attention kernels expect each row of a mask to start at a multiple of 8 elements.
            self.max_steps += -(self.width + max_steps) % 8
        # Place of each sample in the batch, (A,) each.
        self.row = torch.arange(len(owner), device=self.device)
        self.column: Any = 0  # an int for all samples, or a tensor of one for each
        if self.packed:
            self.cache = copy.copy(prefix.cache)
            # Under autocast, keys are returned in float32 and would be rounded again in every step.
            dtype = prefix.logits.dtype
            layers, prefix.cache.layers = prefix.cache.layers, []
            self.cache.layers = [PackedLayer(x.keys.to(dtype), x.values.to(dtype), self.width) for x in layers]
            no_samples = torch.empty(0, dtype=torch.long, device=self.device)
            self._pack(range(len(prefix.lengths)), (no_samples, no_samples))
        else:
            self.cache = select_rows(prefix.cache, owner)
            index = torch.tensor(owner, device=self.device)
            self.mask = nn.functional.pad(prefix.valid[index], (0, max_steps), value=True)  # (A, P + max_steps)
            self.positions = prefix.lengths[index, None]  # (A, 1)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Appends one token to every sample, (A,), and returns the logits of the next ones, (A, V)."""
        if self.fixed_shapes:
            self.t += 1
            return self.fixed_step(tokens)
        ids = tokens.new_full(self.positions.shape, FILL_ID)  # (R, C)
        ids[self.row, self.column] = tokens
        self.t += 1
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask[..., : self.width + self.t * ids.shape[1]],
            position_ids=self.positions + (self.t - 1),
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[self.row, self.column]

    def keep(self, alive: list[int]) -> None:
        """Drops all samples whose index is not in `alive`."""
        self.owner = [self.owner[i] for i in alive]
        if self.packed:
            old_places = self.row[alive], self.column[alive]
            row_of_prompt = dict(zip(self.owner, old_places[0].tolist(), strict=True))
            self._pack(row_of_prompt, old_places)
            return
        index = torch.tensor(alive, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]
        self.row = self.row[: len(alive)]

    def _pack(self, row_of_prompt: Mapping[int, int] | range, old_places: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Assigns the samples to rows and columns, and copies the cache accordingly.

        Args:
            row_of_prompt: a row of the present cache that holds each prompt.
            old_places: row and column of each sample in the present cache, (A,) each; empty before the first step.
        """
        columns = self._columns()
        row_prompts: list[int] = []  # the prompt of each new row
        places: list[tuple[int, int]] = []  # new (row, column) of each sample
        for prompt in self.owner:
            column = places[-1][1] + 1 if row_prompts and row_prompts[-1] == prompt else columns
            if column == columns:
                row_prompts.append(prompt)
                column = 0
            places.append((len(row_prompts) - 1, column))
        self.row, self.column = torch.tensor(places, device=self.device).T
        source_rows = torch.tensor([row_of_prompt[prompt] for prompt in row_prompts], device=self.device)
        new_places = (self.row, self.column)
        attended_steps = self.max_steps if self.fixed_shapes else self.t
        # Layer by layer, so that the old layer is freed before the next copy is made.
        for i, layer in enumerate(self.cache.layers):
            self.cache.layers[i] = layer.repacked(
                source_rows, old_places, new_places, columns, self.t, self.max_steps, attended_steps
            )
        index = torch.tensor(row_prompts, device=self.device)
        # (C, C * max_steps): a column sees its own token of each step.
        own_tokens = torch.eye(columns, dtype=torch.bool, device=self.device).repeat(1, self.max_steps)
        shape = (len(row_prompts), 1, columns, -1)
        visible = torch.cat(
            [self.prefix.valid[index, None, None].expand(shape), own_tokens.expand(shape)], dim=-1
        )  # (R, 1, C, P + C * max_steps)
        # Additive, as the model's attention takes it: 0 where visible, -inf elsewhere.
        self.mask = torch.zeros(visible.shape, dtype=self.prefix.logits.dtype, device=self.device)
        self.mask.masked_fill_(~visible, float("-inf"))
        self.positions = self.prefix.lengths[index, None].expand(-1, columns)  # (R, C)
        if self.fixed_shapes:
            self.fixed_step = FixedShapeStep(self, columns)

    def _columns(self) -> int:
        """Returns the C that makes attention cheapest over the remaining steps.

        Measured: the time is proportional to the number of keys read, and a key costs about 24 + C for C queries. With
        more than one query, transformers copies grouped keys to every query head.
        """
        if self.fixed_shapes:
            return 1  # under a CUDA graph, attention with a mask is slow for more than one query
        group_sizes = Counter(self.owner).values()
        config = self.model.config.get_text_config()
        copies = config.num_attention_heads // self.cache.layers[0].keys.shape[1]
        steps = (self.t + self.max_steps) / 2  # on average

        def cost(columns: int) -> float:
            rows = sum(math.ceil(size / columns) for size in group_sizes)
            return rows * (self.width + columns * steps) * (24 + columns) * (copies if columns > 1 else 1)

        return min(range(1, max(group_sizes) + 1), key=cost)


def _keeps_all_keys(layer: Any, tokens: int) -> bool:
    """Returns whether a cache layer keeps all keys and values of rows of `tokens` tokens."""
    if type(layer) is DynamicSlidingWindowLayer:
        return layer.sliding_window >= tokens
    return type(layer) is DynamicLayer


def _uses_alibi(model: LanguageModel) -> bool:
    """Returns whether attention computes distances from the mask (ALiBi), which works with transformers' masks only."""
    config = model.config.get_text_config()
    return bool(getattr(config, "alibi", False)) or config.model_type in ("bloom", "mpt")


NOT_CAPTURABLE: WeakSet[nn.Module] = WeakSet()
"""Models whose decoding step could not be captured as a CUDA graph."""


def uses_cuda_graphs(device: torch.device) -> bool:
    """Returns whether decoding steps are captured as CUDA graphs on a device."""
    return device.type == "cuda"


class FixedShapeStep:
    """A step of `Decoder` with fixed shapes and addresses; on CUDA the second call captures a graph that is replayed.

    The first call runs eagerly, so that libraries can initialise, which is not possible during a capture. A model that
    cannot be captured, for example because its forward reads a value from the device, continues eagerly.
    """

    def __init__(self, decoder: Decoder, columns: int) -> None:
        device, width = decoder.device, decoder.width
        self.model, self.cache = decoder.model, decoder.cache
        self.row, self.column = decoder.row, decoder.column
        self.ids = torch.full(decoder.positions.shape, FILL_ID, dtype=torch.long, device=device)  # (R, C)
        self.columns = columns
        # Position in the cache of each column's next token, (C,). Updated in place, since a graph reads one address.
        self.write_positions = torch.arange(columns, device=device) + width + decoder.t * columns
        self.positions = decoder.positions + decoder.t
        self.mask = decoder.mask.clone()  # (R, 1, C, P + C * max_steps)
        self.mask[..., width + decoder.t * columns :] = float("-inf")
        for layer in self.cache.layers:
            layer.write_positions = self.write_positions
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.ids[self.row, self.column] = tokens
        self.steps += 1
        if self.steps == 2 and self.ids.is_cuda:
            self._capture()
        if self.graph is None:
            return self._step()
        self.graph.replay()
        return self.logits

    def _step(self) -> torch.Tensor:
        # Each column now also sees the token that it is about to write.
        new_tokens = self.write_positions[None, None, :, None].expand(*self.mask.shape[:3], 1)
        self.mask.scatter_(3, new_tokens, 0.0)
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.write_positions += self.columns
        self.positions += 1
        return output.logits[self.row, self.column]

    def _capture(self) -> None:
        # `torch.cuda.graph` would first empty the allocator's cache, which takes longer than many steps.
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.ids.device)
        stream.wait_stream(torch.cuda.current_stream(self.ids.device))
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self.logits = self._step()
                finally:
                    graph.capture_end()
            self.graph = graph
        except torch.OutOfMemoryError:
            raise  # not a property of the model: the engine retries with smaller batches
        except RuntimeError as error:
            NOT_CAPTURABLE.add(self.model)
            logger.warning("decoding continues without a CUDA graph: %s", error)
        torch.cuda.current_stream(self.ids.device).wait_stream(stream)


class PackedLayer(DynamicLayer):
    """Keys and values of the rows of `Decoder`, preallocated for all steps, so that a step copies no earlier ones.

    With `write_positions`, new keys and values are written there and the full preallocated length is returned.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, width: int, columns: int = 1) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (R, heads, P + max_steps * C, head size)
        self.width, self.columns, self.length = width, columns, width
        self.write_positions: torch.Tensor | None = None  # (C,)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        if self.write_positions is not None:
            self.keys.index_copy_(2, self.write_positions, key_states.to(self.keys.dtype))
            self.values.index_copy_(2, self.write_positions, value_states.to(self.values.dtype))
            return self.keys, self.values
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def repacked(
        self,
        source_rows: torch.Tensor,
        old_places: tuple,
        new_places: tuple,
        columns: int,
        t: int,
        max_steps: int,
        attended_steps: int,
    ) -> PackedLayer:
        """Returns a layer after `t` steps with `columns` samples per row.

        Args:
            source_rows: row of this layer that each new row's prompt is copied from, (R,).
            old_places: row and column of each sample in this layer, (A,) each.
            new_places: row and column of each sample in the new layer, (A,) each.
            columns: samples per row of the new layer.
            t: steps taken so far.
            max_steps: steps to allocate.
            attended_steps: the first steps of these, which attention reads before they are written.
        """
        width = self.width

        def repack(states: torch.Tensor) -> torch.Tensor:
            _, heads, _, size = states.shape
            repacked = states.new_empty(len(source_rows), heads, width + columns * max_steps, size)
            # Zeros, because a masked position must still be finite: 0 * NaN and 0 * inf are NaN.
            repacked[:, :, width : width + columns * attended_steps] = 0.0
            repacked[:, :, :width] = states[source_rows, :, :width]
            if t:
                old_steps = states[:, :, width:].unflatten(2, (-1, self.columns))  # (R, heads, steps, C, head size)
                new_steps = repacked[:, :, width:].unflatten(2, (-1, columns))
                new_steps[new_places[0], :, :t, new_places[1]] = old_steps[old_places[0], :, :t, old_places[1]]
            return repacked

        assert self.keys is not None and self.values is not None
        layer = PackedLayer(repack(self.keys), repack(self.values), width, columns)
        layer.length = width + t * columns
        return layer


def sample_tokens(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples one token per row by inverting the cumulative distribution at a uniform random number.

    One random number per token makes a sample's randomness independent of the rest of the batch. Sums in float64 keep
    the rare tokens of a large vocabulary at their probability.

    Args:
        logits: (A, V).
        temperature: 0 takes the most likely token.
        uniform: random numbers in [0, 1), (A,).

    Returns:
        The token ids, (A,), and their log-probabilities after temperature in nats, (A,).
    """
    logits = logits.float()
    if temperature > 0:
        logits = logits / temperature
    logprobs = logits.log_softmax(dim=-1)
    tokens = logits.argmax(dim=-1, keepdim=True) if temperature == 0 else _invert_cdf(logprobs.exp(), uniform)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


def _invert_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Returns where the cumulative sums of `weights`, (A, V), reach the share `uniform`, (A,), of their total: (A, 1).

    For a large vocabulary, the block that contains the token is searched first, then the token within it: a cumulative
    sum over all V tokens takes longer than a layer of the model.
    """
    vocabulary = weights.shape[-1]
    if vocabulary <= CDF_BLOCK:
        cumulative = weights.cumsum(dim=-1, dtype=uniform.dtype)
        return _first_above(cumulative, uniform[:, None] * cumulative[:, -1:])
    blocks = nn.functional.pad(weights, (0, -vocabulary % CDF_BLOCK)).unflatten(-1, (-1, CDF_BLOCK))
    block_sums = blocks.sum(dim=-1, dtype=uniform.dtype)  # (A, blocks)
    cumulative = block_sums.cumsum(dim=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]  # (A, 1)
    block = _first_above(cumulative, threshold)  # (A, 1)
    within = blocks.gather(1, block[..., None].expand(-1, -1, CDF_BLOCK))[:, 0].cumsum(dim=-1, dtype=uniform.dtype)
    offset = _first_above(within, threshold - (cumulative - block_sums).gather(-1, block))
    # The padding of the last block has weight 0, but rounding can reach it.
    return (block * CDF_BLOCK + offset).clamp(max=vocabulary - 1)


def _first_above(cumulative: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Returns the index of the first cumulative sum above the threshold, per row, (A, 1)."""
    return torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[-1] - 1)
