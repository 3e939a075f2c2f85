"""A data-parallel engine: each process does its share of a call, and all processes get all results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from dartune import distributed
from dartune.engines.base import Sample, SampleSpec, TokenIds, TokenStats
from dartune.engines.hf import HFEngine
from dartune.engines.served import ServedEngine

T = TypeVar("T")
Pair = tuple[TokenIds, TokenIds]


def engine_on(model: nn.Module, *, adapter: bool = True) -> LocalEngine:
    """Returns an engine on a model in this process, data-parallel where there are several processes."""
    return parallel_engine(HFEngine(model, adapter=adapter))


def parallel_engine(engine: HFEngine | ServedEngine) -> LocalEngine:
    """Returns the engine, wrapped in a `ParallelEngine` where there are several processes."""
    return ParallelEngine(engine) if distributed.world_size() > 1 else engine


class ParallelEngine:
    """An `Engine` that splits each call over all processes; its counters are the sums over all processes.

    Every process must make the same calls with the same arguments. All occurrences of a prompt are handled by the same
    process, so the samples are the same for every world size.
    """

    def __init__(self, engine: HFEngine | ServedEngine) -> None:
        self.engine, self.model = engine, engine.model
        self.generated_tokens: int = 0
        self.scored_tokens: int = 0
        self.flops: float = 0.0

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`."""
        seeds = spec.seed if isinstance(spec.seed, tuple) else (spec.seed,) * len(prompts)

        def generate(shard: list[tuple[TokenIds, int]]) -> list[list[Sample]]:
            return self.engine.generate(
                [prompt for prompt, _ in shard], replace(spec, seed=tuple(seed for _, seed in shard))
            )

        return self._split(list(zip(prompts, seeds, strict=True)), lambda item: tuple(item[0]), generate)

    def prompts_at_once(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> int:
        """See `Engine.prompts_at_once`; the same in all processes, although their free memory differs."""
        return distributed.world_size() * distributed.broadcast(self.engine.prompts_at_once(prompts, max_new_tokens))

    def score(self, pairs: Sequence[Pair], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`."""
        return self._split(pairs, lambda pair: tuple(pair[0]), partial(self.engine.score, temperature=temperature))

    def token_stats(self, pairs: Sequence[Pair]) -> list[TokenStats]:
        """See `Engine.token_stats`."""
        return self._split(pairs, lambda pair: tuple(pair[0]), self.engine.token_stats)

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """See `Engine.sync`."""
        self.engine.sync(state_dict, version)

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()

    def _split(
        self, inputs: Sequence[Any], prompt_of: Callable[[Any], TokenIds], call: Callable[[list[Any]], list[T]]
    ) -> list[T]:
        """Returns the results of `call` on all inputs, in order; this process calls it on its own share.

        Inputs with the same prompt stay together: the engine numbers repeated prompts to seed them differently, and
        reads a prompt once for all its completions.
        """
        indices_by_prompt: dict[TokenIds, list[int]] = {}
        for index, value in enumerate(inputs):
            indices_by_prompt.setdefault(prompt_of(value), []).append(index)
        # Sorted by length, so that each process gets prompts of all lengths.
        prompts = distributed.shard(sorted(indices_by_prompt, key=len))
        indices = [index for prompt in prompts for index in indices_by_prompt[prompt]]
        before = (self.engine.generated_tokens, self.engine.scored_tokens, self.engine.flops)
        results = call([inputs[index] for index in indices])
        after = (self.engine.generated_tokens, self.engine.scored_tokens, self.engine.flops)
        cost: list[Any] = [now - then for now, then in zip(after, before, strict=True)]
        result_by_index: dict[int, T] = {}
        for shard_results, (generated, scored, flops) in distributed.all_gather(
            (dict(zip(indices, results, strict=True)), cost)
        ):
            result_by_index |= shard_results
            self.generated_tokens += generated
            self.scored_tokens += scored
            self.flops += flops
        return [result_by_index[index] for index in range(len(inputs))]


LocalEngine = HFEngine | ServedEngine | ParallelEngine
"""An engine whose model is in this process."""
