"""Penalties: graded deductions for behaviour that games the alignment score, weighted in the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample
from dartune.rewards.text import mentions, numbers

MAX_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Rewritten:
    """One rewrite of a batch: `logprobs` are the target's, given the question alone, in nats per response token;
    `sampled_logprobs` the same at the temperature that the sample was drawn at."""

    demonstration: Demonstration
    sample: Sample
    text: str
    logprobs: Sequence[float]
    sampled_logprobs: Sequence[float] = ()


class Penalty(Protocol):
    """A penalty of one's own: named in the config by its dotted path, `module:function`, with its weight."""

    def __call__(self, rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
        """A deduction of at least 0 for each row of the batch, in the reward's unit before the weight."""


def peeking(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """How much surer the mapper, who sees the demonstration, is of its tokens than the target, who does not.

    Mean plus 0.01 times the maximum over the tokens of log q(y_t | x, s) - log p_S(y_t | x), at least 0, in nats
    (after RLT, arXiv 2506.08388), both at the rewrite's sampling temperature. Costs nothing: both are known.
    """
    found = []
    for row in rows:
        ratios = [q - p for q, p in zip(row.sample.logprobs, row.sampled_logprobs, strict=False)]
        found.append(max(0.0, mean(ratios) + MAX_WEIGHT * max(ratios)) if ratios else 0.0)
    return found


def question_independence(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """How much less a rewrite owes to its question than the source does, in nats per source token, at least 0.

    What a text owes is log p_S(y | x) - log p_S(y | an empty question). Costs a scoring pass without the question,
    and two passes for every source.
    """
    empty = renderer.prompt_ids("")
    demonstrations = list({row.demonstration.id: row.demonstration for row in rows}.values())
    sources = {d.id: renderer.response_ids(d.solution) for d in demonstrations}
    given = target.score([(renderer.prompt_ids(d.question), sources[d.id]) for d in demonstrations])
    alone = target.score([(empty, sources[d.id]) for d in demonstrations])
    owed = {d.id: sum(a) - sum(b) for d, a, b in zip(demonstrations, given, alone, strict=True)}
    without = target.score([(empty, row.sample.ids) for row in rows])
    return [
        max(0.0, owed[row.demonstration.id] - (sum(row.logprobs) - sum(free)))
        / max(1, len(sources[row.demonstration.id]))
        for row, free in zip(rows, without, strict=True)
    ]


def collapse(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """1 where a rewrite fits another question of the batch better than its own, by the names and numbers it shares.

    One text for every row is told by this. Costs a set intersection per pair; 0 where the batch has one question.
    """
    known = {row.demonstration.id: _facts(row.demonstration.question) for row in rows}
    found = []
    for row in rows:
        used = _facts(row.text)
        shared = {name: len(used & facts) / max(1, len(facts)) for name, facts in known.items()}
        own = shared.pop(row.demonstration.id)
        found.append(float(any(other > own for other in shared.values()) or (bool(shared) and not own)))
    return found


def _facts(text: str) -> set[str]:
    return {*numbers(text), *(word for word in mentions(text) if word[0].isupper())}


PENALTIES: dict[str, Penalty] = {penalty.__name__: penalty for penalty in (peeking, question_independence, collapse)}
