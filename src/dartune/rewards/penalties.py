"""Penalties: graded deductions for behaviour that games the alignment score. The config gives each a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Engine, Sample
from dartune.text.features import numbers, words_as_written

# Weight of the maximum over tokens in `peeking`. Without the maximum, one token that reveals the demonstration would be
# averaged away in a long text.
MAX_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Rewritten:
    """One rewrite of a batch.

    Args:
        logprobs: the target's log-probabilities (nats) per completion token, given the question alone.
        sampled_logprobs: the same at the sample's temperature.
    """

    demonstration: Demonstration
    sample: Sample
    text: str
    logprobs: Sequence[float]
    sampled_logprobs: Sequence[float] = ()


class Penalty(Protocol):
    """Interface of a penalty. A user-defined one is named in the config by its dotted path, `module:function`."""

    def __call__(self, rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
        """Return a deduction of at least 0 for each row of the batch, in the reward's unit, before the weight."""
        ...


def peeking(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """Return by how much the mapper, which sees the demonstration, is more certain than the target, which does not.

    The value is the mean plus 0.01 times the maximum over the tokens of log q(y_t | x, s) - log p_S(y_t | x), at least
    0, in nats (after RLT, arXiv 2506.08388). Both are at the sampling temperature and already computed, so there is no
    further cost.
    """
    penalties = []
    for row in rows:
        # Not strict: a sample that the mapper did not generate (a fixture) has no log-probabilities and no penalty.
        log_ratios = [q - p for q, p in zip(row.sample.logprobs, row.sampled_logprobs, strict=False)]  # (tokens,)
        penalties.append(max(0.0, mean(log_ratios) + MAX_WEIGHT * max(log_ratios)) if log_ratios else 0.0)
    return penalties


def question_independence(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """Return by how much less a rewrite depends on its question than the source, in nats per source token, at least 0.

    The dependence of a text is log p_S(y | x) - log p_S(y | empty question). Cost: one scoring pass without the
    question, and two passes over the sources.
    """
    empty = renderer.prompt_ids("")
    demonstrations = list({row.demonstration.id: row.demonstration for row in rows}.values())
    sources = {d.id: renderer.response_ids(d.solution) for d in demonstrations}
    conditional = target.score([(renderer.prompt_ids(d.question), sources[d.id]) for d in demonstrations])
    unconditional = target.score([(empty, sources[d.id]) for d in demonstrations])
    source_dependence = {
        d.id: sum(with_question) - sum(without_question)
        for d, with_question, without_question in zip(demonstrations, conditional, unconditional, strict=True)
    }
    unconditional = target.score([(empty, row.sample.ids) for row in rows])
    return [
        max(0.0, source_dependence[row.demonstration.id] - (sum(row.logprobs) - sum(without_question)))
        / max(1, len(sources[row.demonstration.id]))
        for row, without_question in zip(rows, unconditional, strict=True)
    ]


def collapse(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """Return 1 for a rewrite that shares more names and numbers with another question of the batch than with its own.

    A rewrite that shares nothing with its own question gets 1 too, so one text for every row is detected. Cost: a set
    intersection per pair. The penalty is 0 if the batch has one question only.
    """
    facts_by_id = {row.demonstration.id: _facts(row.demonstration.question) for row in rows}
    penalties = []
    for row in rows:
        used = _facts(row.text)
        # As a share, so that a long question has no advantage over a short one.
        shared = {name: len(used & facts) / max(1, len(facts)) for name, facts in facts_by_id.items()}
        own = shared.pop(row.demonstration.id)
        penalties.append(float(any(share > own for share in shared.values()) or (bool(shared) and not own)))
    return penalties


def _facts(text: str) -> set[str]:
    """Return the numbers and the capitalised words of a text."""
    return {*numbers(text), *(word for word in words_as_written(text) if word[0].isupper())}


PENALTIES: dict[str, Penalty] = {penalty.__name__: penalty for penalty in (peeking, question_independence, collapse)}
