"""Schema of results.json and of the evaluation records that it is computed from (docs/results-schema.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dartune.errors import InputError

SCHEMA_VERSION = 2


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Evaluation(_Strict):
    """Answer of one arm to one question: a row of the evaluation stage."""

    arm: str
    seed: int
    suite: str
    id: str
    correct: bool | None
    steps_correct: bool | None = None
    names_correct: bool | None = None
    avg_at_k: float | None = None
    pass_at_k: bool | None = None
    announced: bool | None = None
    finish: str
    n_tokens: int


class Estimate(_Strict):
    estimate: float
    low: float
    high: float


class Suite(_Strict):
    name: str
    group: str
    questions: int


class SolutionMetrics(_Strict):
    """Means over solutions, beside the accuracy; None where no record has the measure."""

    step_accuracy: float | None
    names_accuracy: float | None
    avg_at_k: float | None
    pass_at_k: float | None
    announced: float | None = None
    mean_tokens: float
    truncated: float


class Cell(SolutionMetrics):
    """One arm on one suite with one seed."""

    arm: str
    suite: str
    seed: int
    n: int
    accuracy: float


class Summary(SolutionMetrics):
    """One arm on one suite or one group of suites, over all seeds."""

    arm: str
    level: str
    name: str
    n: int
    accuracy: Estimate
    by_seed: dict[str, float]


class Difference(Estimate):
    """Paired difference `arm - against` on one suite or group, over all seeds."""

    arm: str
    against: str
    measure: str
    level: str
    name: str
    n: int
    by_seed: dict[str, float]
    verdict: str


class Costs(_Strict):
    stages: dict[str, dict[str, float]]
    arms: dict[str, dict[str, dict[str, float]]]
    shared: list[str]
    break_even_rows: float | None


class Mapper(_Strict):
    """Training of one seed's mapper: metrics per step, and their means before, during and after training."""

    steps: list[dict[str, Any]]
    edge_steps: int
    phases: dict[str, dict[str, Any]]


class Adapted(_Strict):
    """One seed's adapted data set."""

    provenance: dict[str, int]
    accounting: dict[str, int]
    reasons: dict[str, int]
    gates: dict[str, float]
    hacks: dict[str, float]
    hacks_refused: dict[str, float]
    skeletons: float
    alignment_before: float | None
    alignment_after: float | None
    quality: dict[str, Any] | None


class LearningRate(_Strict):
    chosen: float | str
    dev: dict[str, float | None]


class Example(_Strict):
    """A demonstration before and after adaptation; tokens are [text, log-probability in nats or null]."""

    id: str
    question: str
    source_solution: str
    solution: str | None
    provenance: str
    tokens_before: list[list[Any]] = []
    tokens_after: list[list[Any]] = []
    rejected: list[dict[str, Any]] = []
    alignment_before: float | None = None
    alignment_after: float | None = None
    reason: str | None = None


class Results(_Strict):
    """The file results.json; see docs/results-schema.md."""

    schema_version: int
    name: str
    config: dict[str, Any]
    arms: list[str]
    seeds: list[int]
    suites: list[Suite]
    groups: list[str]
    cells: list[Cell]
    summaries: list[Summary]
    differences: list[Difference]
    costs: Costs
    mapper: dict[str, dict[str, Mapper]]
    adapted: dict[str, dict[str, Adapted]]
    learning_rates: dict[str, dict[str, LearningRate]]
    examples: list[Example]
    notes: list[str]


def validate_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return `results` unchanged if they follow the schema.

    Raises:
        InputError: another schema version, or deviations from the schema, all of which are listed.
    """
    version = results.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"results.json has schema version {version!r}, but this version of dartune reads version {SCHEMA_VERSION}. "
            "Write the report again with `dartune report`, or use the version of dartune that wrote it."
        )
    try:
        Results.model_validate(results)
    except ValidationError as error:
        raise InputError("results.json does not follow the schema", _problems(error)) from None
    return dict(results)


def validate_evaluations(evaluations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the records as dicts.

    Raises:
        InputError: there are no records, or some are malformed; all malformed fields are listed.
    """
    if not evaluations:
        raise InputError("nothing to report: there are no evaluation records. Run the evaluation stage first.")
    try:
        TypeAdapter(list[Evaluation]).validate_python(list(evaluations))
    except ValidationError as error:
        raise InputError("malformed evaluation records", [f"record {line}" for line in _problems(error)]) from None
    return [dict(record) for record in evaluations]


def _problems(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
