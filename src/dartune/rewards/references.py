"""References: alignment and length of the demonstrations' own solutions, which rewrites are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dartune.answers.task_families import TASKS
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Engine, TokenIds, TokenStats
from dartune.gates.quantities import calculates
from dartune.rewards.alignment import AlignmentScore, Reference, content_logprob
from dartune.rewards.content_tokens import answer_tokens, content_mask


def response_stats(
    target: Engine, score: AlignmentScore, pairs: Sequence[tuple[TokenIds, TokenIds]]
) -> list[TokenStats]:
    """Return the token statistics of each (prompt, completion) pair.

    They are log-probabilities, and entropies and ranks only if the score uses them, because those need the whole
    distribution over the vocabulary.
    """
    if getattr(score, "needs_distribution", False):
        return target.token_stats(pairs)
    return [TokenStats(tuple(row)) for row in target.score(pairs)]


def with_content(
    tokens: TokenStats, ids: Sequence[int], text: str, renderer: Renderer, family: str = "math"
) -> TokenStats:
    """Return the statistics with the mask of tokens that count.

    The mask depends on numbers, so task families that are not solved with numbers have none, and all tokens count.
    """
    if "quantities" in TASKS[family].inapplicable_gates:
        return tokens
    return replace(tokens, content=content_mask(ids, text, renderer.decode))


def source_stats(
    target: Engine, renderer: Renderer, demonstrations: Sequence[Demonstration], score: AlignmentScore
) -> list[TokenStats]:
    """Return the token statistics of each demonstration's own solution, given its question alone."""
    pairs = [(renderer.prompt_ids(row.question), renderer.response_ids(row.solution)) for row in demonstrations]
    return [
        with_content(tokens, ids, row.solution, renderer, row.task)
        for row, (_, ids), tokens in zip(demonstrations, pairs, response_stats(target, score, pairs), strict=True)
    ]


def source_answer(demonstration: Demonstration, logprobs: Sequence[float], renderer: Renderer) -> float | None:
    """Return the log-probability (nats) of a demonstration's answer after its reasoning.

    It is read where the answer is first stated: a demonstration such as `168 / 7 = 24`, `#### 24` copies its last line
    with certainty, and a threshold from that would reject rewrites that state the answer only once. None if the
    solution calculates nothing: its answer does not follow from anything in the text.

    Args:
        logprobs: log-probabilities of the tokens of the rendered solution.
    """
    task = TASKS[demonstration.task]
    if not task.of_numbers or not calculates(demonstration.solution):
        return None
    ids = renderer.response_ids(demonstration.solution)
    positions = answer_tokens(ids, demonstration.solution, renderer, task, worked_out=True)
    return sum(logprobs[i] for i in positions) if positions else None


def source_references(
    target: Engine,
    renderer: Renderer,
    demonstrations: Sequence[Demonstration],
    score: AlignmentScore = content_logprob,
) -> dict[str, Reference]:
    """Return references from the sources alone, by demonstration id.

    They have no cap and no own samples of the target; the probe of a run adds both.
    """
    return references_from(demonstrations, source_stats(target, renderer, demonstrations, score), score)


def references_from(
    demonstrations: Sequence[Demonstration], all_stats: Sequence[TokenStats], score: AlignmentScore
) -> dict[str, Reference]:
    """Return the same as `source_references`, from the `source_stats` of the demonstrations."""
    references = {}
    for row, stats in zip(demonstrations, all_stats, strict=True):
        length = len(stats.logprobs)
        # Scores need a reference for its length, so the source's own score is computed with an incomplete one.
        incomplete = Reference(length, 0.0, None, length)
        references[row.id] = replace(incomplete, source_alignment=score(stats, incomplete))
    return references
