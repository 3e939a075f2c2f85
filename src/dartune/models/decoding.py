"""The decode loop: preallocated keys and values, and rows that leave the batch once they have finished.

On a GPU a step of a small model is mostly Python telling the device what to do, so the step is recorded once
(a CUDA graph) and played back. What is recorded has fixed shapes and places: it attends over all the room there is, of
which the mask shows what has been written.
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

from dartune.models.caches import selected
from dartune.models.shared_prefix import FILL_ID, Prefix

logger = logging.getLogger(__name__)

# Asking a GPU whether rows have finished stalls its queue, so it is asked rarely.
GPU_CHECK_EVERY = 8
# Words whose probabilities are summed one by one.
BLOCK = 1024


class Decoder:
    """Feeds tokens to A samples that share prompts.

    A row of the batch holds one prompt and up to C of its samples. Its cache is prompt | step 0 of
    columns 0..C-1 | step 1 of columns 0..C-1 | ..., and the mask shows a column the prompt and its own
    tokens, so a prompt's keys and values are stored and read once per row. A model with sliding windows that the
    texts outgrow, or with an attention that takes no such masks, gets one sample per row and transformers' own masks.
    """

    def __init__(self, model: nn.Module, prefix: Prefix, owner: list[int], room: int) -> None:
        """`room` is the most steps; the keys and values of `prefix` are taken over."""
        self.model, self.prefix, self.owner, self.room = model, prefix, owner, room
        self.device = prefix.logits.device
        self.width, self.t = prefix.valid.shape[1], 0
        plain = all(_sees_all(layer, self.width + room) for layer in prefix.cache.layers)
        self.packed = plain and model.config._attn_implementation in ("sdpa", "eager") and not _biased(model)
        self.fixed = self.packed and records(self.device) and model not in UNRECORDABLE
        if self.fixed:
            self.room += -(self.width + room) % 8  # kernels want rows of a mask that begin at such places
        self.row, self.column = torch.arange(len(owner), device=self.device), 0
        if self.packed:
            self.cache = copy.copy(prefix.cache)
            # Under autocast keys come in float32, and would be rounded anew in every step.
            kind = prefix.logits.dtype
            layers, prefix.cache.layers = prefix.cache.layers, []
            self.cache.layers = [PackedLayer(x.keys.to(kind), x.values.to(kind), self.width) for x in layers]
            nowhere = torch.empty(0, dtype=torch.long, device=self.device)
            self._pack(range(len(prefix.lengths)), (nowhere, nowhere))
        else:
            self.cache = selected(prefix.cache, owner)
            index = torch.tensor(owner, device=self.device)
            self.mask = nn.functional.pad(prefix.valid[index], (0, room), value=True)
            self.positions = prefix.lengths[index, None]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to every sample, (A,), and return the logits of the next ones, (A, V)."""
        if self.fixed:
            self.t += 1
            return self.recording(tokens)
        ids = tokens.new_full(self.positions.shape, FILL_ID)
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
        """Drop all samples but these."""
        self.owner = [self.owner[i] for i in alive]
        if self.packed:
            places = self.row[alive], self.column[alive]
            self._pack(dict(zip(self.owner, places[0].tolist(), strict=True)), places)
            return
        index = torch.tensor(alive, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.positions = self.mask[index], self.positions[index]
        self.row = self.row[: len(alive)]

    def _pack(self, home: Mapping[int, int] | range, old: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Lay the samples out anew: they were at `old` (row, column), prompt g in row `home[g]`."""
        columns = self._columns()
        prompts: list[int] = []  # of each row
        places: list[tuple[int, int]] = []
        for g in self.owner:
            column = places[-1][1] + 1 if prompts and prompts[-1] == g else columns
            if column == columns:
                prompts.append(g)
                column = 0
            places.append((len(prompts) - 1, column))
        self.row, self.column = torch.tensor(places, device=self.device).T
        source = torch.tensor([home[g] for g in prompts], device=self.device)
        new = (self.row, self.column)
        seen = self.room if self.fixed else self.t
        for i, layer in enumerate(self.cache.layers):  # one after the other: an old one goes before the next is made
            self.cache.layers[i] = layer.moved(source, old, new, columns, self.t, self.room, seen)
        index = torch.tensor(prompts, device=self.device)
        own = torch.eye(columns, dtype=torch.bool, device=self.device).repeat(1, self.room)
        shape = (len(prompts), 1, columns, -1)
        shown = torch.cat([self.prefix.valid[index, None, None].expand(shape), own.expand(shape)], dim=-1)
        self.mask = torch.zeros(shown.shape, dtype=self.prefix.logits.dtype, device=self.device)
        self.mask.masked_fill_(~shown, float("-inf"))
        self.positions = self.prefix.lengths[index, None].expand(-1, columns)
        if self.fixed:
            self.recording = Recording(self, columns)

    def _columns(self) -> int:
        """The C that makes attention cheapest, over the steps to come.

        Measured: time goes with the keys read, and a key costs about 24 + C for C queries. Beyond one
        query, transformers copies grouped keys out to every query head.
        """
        if self.fixed:
            return 1  # attention with a mask is slow on several queries there
        groups = Counter(self.owner).values()
        config = self.model.config.get_text_config()
        copies = config.num_attention_heads // self.cache.layers[0].keys.shape[1]
        steps = (self.t + self.room) / 2

        def cost(columns: int) -> float:
            rows = sum(math.ceil(size / columns) for size in groups)
            return rows * (self.width + columns * steps) * (24 + columns) * (copies if columns > 1 else 1)

        return min(range(1, max(groups) + 1), key=cost)


def _sees_all(layer: Any, tokens: int) -> bool:
    """Whether a layer keeps all keys and values of rows of so many tokens."""
    if type(layer) is DynamicSlidingWindowLayer:
        return layer.sliding_window >= tokens
    return type(layer) is DynamicLayer


def _biased(model: nn.Module) -> bool:
    """Whether attention makes distances of its masks (ALiBi), which must then be transformers' own."""
    config = model.config.get_text_config()
    return bool(getattr(config, "alibi", False)) or config.model_type in ("bloom", "mpt")


UNRECORDABLE: WeakSet[nn.Module] = WeakSet()
"""Models whose step could not be recorded."""


def records(device: torch.device) -> bool:
    """Whether a device gains by steps that are recorded."""
    return device.type == "cuda"


class Recording:
    """`Decoder`'s step with fixed shapes and places; on CUDA it is recorded the second time and then played back.

    The first step is taken as usual, which lets libraries set themselves up. A model that cannot be recorded (whose
    forward asks the device for a value) goes on as it began.
    """

    def __init__(self, decoder: Decoder, columns: int) -> None:
        device, width = decoder.device, decoder.width
        self.model, self.cache = decoder.model, decoder.cache
        self.row, self.column = decoder.row, decoder.column
        self.ids = torch.full(decoder.positions.shape, FILL_ID, dtype=torch.long, device=device)
        self.columns = columns
        # Where each column's next token goes.
        self.places = torch.arange(columns, device=device) + width + decoder.t * columns
        self.positions = decoder.positions + decoder.t
        self.mask = decoder.mask.clone()
        self.mask[..., width + decoder.t * columns :] = float("-inf")
        for layer in self.cache.layers:
            layer.places = self.places
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.ids[self.row, self.column] = tokens
        self.steps += 1
        if self.steps == 2 and self.ids.is_cuda:
            self._record()
        if self.graph is None:
            return self._step()
        self.graph.replay()
        return self.logits

    def _step(self) -> torch.Tensor:
        shown = self.places[None, None, :, None].expand(*self.mask.shape[:3], 1)
        self.mask.scatter_(3, shown, 0.0)
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.places += self.columns
        self.positions += 1
        return output.logits[self.row, self.column]

    def _record(self) -> None:
        # `torch.cuda.graph` would empty the allocator's cache first, which takes longer than many steps.
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
            raise  # says nothing of the model: the engine goes on with smaller batches
        except RuntimeError as error:
            UNRECORDABLE.add(self.model)
            logger.warning("decoding goes on without a CUDA graph: %s", error)
        torch.cuda.current_stream(self.ids.device).wait_stream(stream)


class PackedLayer(DynamicLayer):
    """Keys and values of `Decoder`'s rows, with room for all steps: a step copies no earlier ones.

    Where `places` says so, new ones go there, and all the room is returned.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, width: int, columns: int = 1) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (R, heads, width + steps * C, head size)
        self.width, self.columns, self.length = width, columns, width
        self.places: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.places is not None:
            self.keys.index_copy_(2, self.places, key_states.to(self.keys.dtype))
            self.values.index_copy_(2, self.places, value_states.to(self.values.dtype))
            return self.keys, self.values
        start, self.length = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def moved(
        self, source: torch.Tensor, old: tuple, new: tuple, columns: int, t: int, room: int, seen: int
    ) -> PackedLayer:
        """A layer of `columns` columns after `t` steps: prompts from rows `source`, samples from `old` to `new`.

        Of its `room` for steps the first `seen` are attended to before they are written.
        """
        width = self.width

        def move(states: torch.Tensor) -> torch.Tensor:
            _, heads, _, size = states.shape
            fresh = states.new_empty(len(source), heads, width + columns * room, size)
            # Zeros, since a place without a sample is masked, and only finite values can be masked.
            fresh[:, :, width : width + columns * seen] = 0.0
            fresh[:, :, :width] = states[source, :, :width]
            if t:
                before = states[:, :, width:].unflatten(2, (-1, self.columns))
                after = fresh[:, :, width:].unflatten(2, (-1, columns))
                after[new[0], :, :t, new[1]] = before[old[0], :, :t, old[1]]
            return fresh

        layer = PackedLayer(move(self.keys), move(self.values), width, columns)
        layer.length = width + t * columns
        return layer


def draw(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its log-probability, by inverting the cumulative distribution at `uniform`.

    One random number per token keeps a sample's randomness independent of the rest of the batch;
    float64 sums keep the rare tokens of a large vocabulary at their probability.
    """
    logits = logits.float()
    if temperature > 0:
        logits = logits / temperature
    logprobs = logits.log_softmax(dim=-1)
    tokens = logits.argmax(dim=-1, keepdim=True) if temperature == 0 else _at(logprobs.exp(), uniform)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


def _at(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the cumulative sums of `weights`, (A, V), reach a share `uniform`, (A,), of their total: (A, 1).

    Of a large vocabulary first which block of words, then which of these: sums of all words take longer than a layer.
    """
    words = weights.shape[-1]
    if words <= BLOCK:
        cumulative = weights.cumsum(dim=-1, dtype=uniform.dtype)
        return _reached(cumulative, uniform[:, None] * cumulative[:, -1:])
    blocks = nn.functional.pad(weights, (0, -words % BLOCK)).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(dim=-1, dtype=uniform.dtype)
    cumulative = sums.cumsum(dim=-1)
    goal = uniform[:, None] * cumulative[:, -1:]
    block = _reached(cumulative, goal)
    within = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].cumsum(dim=-1, dtype=uniform.dtype)
    place = _reached(within, goal - (cumulative - sums).gather(-1, block))
    return (block * BLOCK + place).clamp(max=words - 1)


def _reached(cumulative: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.searchsorted(cumulative, goal, right=True).clamp(max=cumulative.shape[-1] - 1)
