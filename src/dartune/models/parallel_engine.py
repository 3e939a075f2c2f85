"""An engine on every process: each does its share of a call, and all of them get all results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import nn

from dartune import processes
from dartune.models.engine import Sample, SampleSpec, TokenIds, TokenStats
from dartune.models.hf_engine import HFEngine
from dartune.models.served_engine import ServedEngine

T = TypeVar("T")
Pair = tuple[TokenIds, TokenIds]


def engine_on(model: nn.Module, *, adapter: bool = True) -> LocalEngine:
    """An engine on a model in this process, which works together with those on its copies in the others."""
    return shared(HFEngine(model, adapter=adapter))


def shared(engine: HFEngine | ServedEngine) -> LocalEngine:
    """The engine, working together with those of the other processes, if any."""
    return ParallelEngine(engine) if processes.count() > 1 else engine


class ParallelEngine:
    """An `Engine`; what it counts is the sum over all processes.

    Every process must make the same calls with the same arguments. Samples are those of one process: a prompt that is
    given several times stays with one process, which draws different random numbers each time.
    """

    def __init__(self, engine: HFEngine | ServedEngine) -> None:
        self.engine, self.model = engine, engine.model
        self.generated_tokens, self.scored_tokens, self.flops = 0, 0, 0.0

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`."""
        return self._shared_out(prompts, tuple, lambda mine: self.engine.generate(mine, spec))

    def score(self, pairs: Sequence[Pair], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`."""
        return self._shared_out(pairs, lambda pair: tuple(pair[0]), partial(self.engine.score, temperature=temperature))

    def token_stats(self, pairs: Sequence[Pair]) -> list[TokenStats]:
        """See `Engine.token_stats`."""
        return self._shared_out(pairs, lambda pair: tuple(pair[0]), self.engine.token_stats)

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """See `Engine.sync`."""
        self.engine.sync(state_dict, version)

    def close(self) -> None:
        """See `Engine.close`."""
        self.engine.close()

    def _shared_out(
        self, items: Sequence[Any], prompt: Callable[[Any], TokenIds], work: Callable[[list[Any]], list[T]]
    ) -> list[T]:
        """Results of `work` on all items, in their order; items of one prompt are worked on together."""
        places: dict[TokenIds, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(prompt(item), []).append(place)
        mine = [place for one in processes.share(sorted(places, key=len)) for place in places[one]]
        before = (self.engine.generated_tokens, self.engine.scored_tokens, self.engine.flops)
        results = work([items[place] for place in mine])
        after = (self.engine.generated_tokens, self.engine.scored_tokens, self.engine.flops)
        spent = [now - then for now, then in zip(after, before, strict=True)]
        found: dict[int, T] = {}
        for part, (generated, scored, flops) in processes.everyones((dict(zip(mine, results, strict=True)), spent)):
            found |= part
            self.generated_tokens += generated
            self.scored_tokens += scored
            self.flops += flops
        return [found[place] for place in range(len(items))]


LocalEngine = HFEngine | ServedEngine | ParallelEngine
"""An engine whose model is in this process."""
