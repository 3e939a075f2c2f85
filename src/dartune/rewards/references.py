"""What the demonstrations' own solutions are worth: the references that rewrites are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, TokenIds, TokenStats
from dartune.rewards.alignment import AlignmentScore, Reference, content_logprob
from dartune.rewards.content import answer_tokens, content_mask
from dartune.rewards.quantities import calculates
from dartune.rewards.tasks import TASKS


def response_stats(
    target: Engine, score: AlignmentScore, pairs: Sequence[tuple[TokenIds, TokenIds]]
) -> list[TokenStats]:
    """Token statistics of each (prompt, response): log-probabilities; entropies and ranks if the score uses them."""
    if getattr(score, "needs_distribution", False):
        return target.token_stats(pairs)
    return [TokenStats(tuple(row)) for row in target.score(pairs)]


def with_content(
    tokens: TokenStats, ids: Sequence[int], text: str, renderer: Renderer, family: str = "math"
) -> TokenStats:
    """The statistics with the tokens that count; all do in task families that are not worked out in numbers."""
    if "quantities" in TASKS[family].unfit:
        return tokens
    return replace(tokens, content=content_mask(ids, text, renderer.decode))


def source_stats(
    target: Engine, renderer: Renderer, demonstrations: Sequence[Demonstration], score: AlignmentScore
) -> list[TokenStats]:
    """What a score needs of each demonstration's own solution."""
    pairs = [(renderer.prompt_ids(row.question), renderer.response_ids(row.solution)) for row in demonstrations]
    return [
        with_content(tokens, ids, row.solution, renderer, row.task)
        for row, (_, ids), tokens in zip(demonstrations, pairs, response_stats(target, score, pairs), strict=True)
    ]


def source_answer(demonstration: Demonstration, logprobs: Sequence[float], renderer: Renderer) -> float | None:
    """Log-probability (nats) of a demonstration's answer after its reasoning; None where nothing is calculated.

    Args:
        logprobs: of the tokens of the rendered solution.
    """
    task = TASKS[demonstration.task]
    if not task.of_numbers or not calculates(demonstration.solution):
        return None
    positions = answer_tokens(renderer.response_ids(demonstration.solution), demonstration.solution, renderer, task)
    return sum(logprobs[i] for i in positions) if positions else None


def source_references(
    target: Engine,
    renderer: Renderer,
    demonstrations: Sequence[Demonstration],
    score: AlignmentScore = content_logprob,
) -> dict[str, Reference]:
    """References from the sources alone: no cap, and no own samples; the pipeline's probe gives both."""
    return references_from(demonstrations, source_stats(target, renderer, demonstrations, score), score)


def references_from(
    demonstrations: Sequence[Demonstration], all_stats: Sequence[TokenStats], score: AlignmentScore
) -> dict[str, Reference]:
    """As `source_references`, from the `source_stats` of the demonstrations."""
    found = {}
    for row, stats in zip(demonstrations, all_stats, strict=True):
        length = len(stats.logprobs)
        plain = Reference(length, 0.0, None, length)
        found[row.id] = replace(plain, source_alignment=score(stats, plain))
    return found
