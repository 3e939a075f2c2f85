"""The rows that stages write and later stages read, one JSON object a line.

They are typed dicts: what is in memory is what is on disk.
"""

from __future__ import annotations

from typing import Any, TypedDict

Spent = dict[str, Any]
"""Tokens and FLOPs by name (`engines.base.COUNTERS`); only on the first row of each chunk, empty on the others."""


class OwnSample(TypedDict):
    """A verified sample of the untouched target."""

    text: str
    ids: list[int]
    logprobs: list[float]
    answer_logprob: float | None
    gates: dict[str, bool]
    alignment: float


class StyleSample(TypedDict):
    """A finished sample of the untouched target, right or wrong: what is kept to describe the target's style."""

    alignment: float
    mean_logprob: float
    tokens: int
    copied: float
    filler: float


class ProbeRow(TypedDict):
    """`probe.jsonl`: what the untouched target makes of one demonstration. Log-probabilities are in nats."""

    id: str
    length: int
    expected_tokens: int
    source_alignment: float
    source_logprobs: list[float]
    source_answer: float | None
    cap: float | None
    style: list[StyleSample]
    own: list[OwnSample]
    drawn: int
    own_correct: int
    spent: Spent


class OwnSolutionsRow(TypedDict):
    """`own-samples/rows.jsonl`: the target's verified solutions of one question."""

    id: str
    question: str
    solutions: list[str]
    drawn: int
    spent: Spent


class AdaptedSolution(TypedDict):
    """What one demonstration became, and why."""

    id: str
    question: str
    solution: str
    messages: list[dict[str, str]]
    source_solution: str
    answer: str | None
    provenance: str
    alignment_before: float
    alignment_after: float | None
    reward: dict[str, float]
    gates: dict[str, bool]
    hacks: list[str]
    hacks_refused: list[str]
    reason: str
    alternatives: list[str]
    ids: list[int]
    logprobs: list[float]


class RejectedRewrite(TypedDict):
    """A rewrite that did not pass the gates, kept to be read."""

    text: str
    failed: list[str]
    alignment: float
    ids: list[int]
    logprobs: list[float]


class AdaptedRow(AdaptedSolution):
    """`synthesise/rows.jsonl`: the solution of one demonstration (docs/data-format.md).

    `rejected` has the rewrites that came nearest to acceptance, of a row for which none was accepted.
    """

    accepted: int
    rejected: list[RejectedRewrite]
    runner_up: AdaptedSolution | None
    spent: Spent


class EvaluationRecord(TypedDict):
    """`evaluate/records.jsonl`: one solution of one test question (docs/results-schema.md)."""

    suite: str
    id: str
    correct: bool | None
    steps_correct: bool | None
    names_correct: bool | None
    avg_at_k: float | None
    pass_at_k: bool | None
    announced: bool
    finish: str
    n_tokens: int
    text: str


class RewriteSample(TypedDict):
    """`mapper/samples.jsonl`: a rewrite of mapper training, kept to be read."""

    step: int
    id: str
    question: str
    source: str
    rewrite: str
    reward: float
    alignment: float
    failed: list[str]
    hacks: list[str]


StepMetrics = dict[str, Any]
"""`metrics.jsonl`: the metrics of one training step, by name; nested for groups such as `gates` and `hacks`. `step` and
the token counts are always there, the others depend on the objective."""
