"""results.json: all measurements of a run as one plain dict with a versioned schema.

It is the only input of the page, the plots and the terminal summary. Its fields are described in
docs/results-schema.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from dartune.errors import InputError
from dartune.report import stats
from dartune.report.adaptation import adapted_summary, mapper_summary, mean_of_known
from dartune.report.costs import cost_table
from dartune.report.schema import SCHEMA_VERSION, SolutionMetrics, validate_evaluations, validate_results
from dartune.report.ungraded import graded_records, ungraded_notes

GROUPS = {"ood_": "out of distribution", "retention": "retention"}
MEASURES = {
    "correct": "accuracy",
    "steps_correct": "step_accuracy",
    "names_correct": "names_accuracy",
    "avg_at_k": "avg_at_k",
    "pass_at_k": "pass_at_k",
}
COMPARED = ("correct", "steps_correct", "avg_at_k", "pass_at_k")

BySeed = Mapping[int, Sequence[Mapping[str, Any]]]
Records = Mapping[str, Mapping[str, Mapping[int, Mapping[str, dict]]]]  # arm -> suite -> seed -> id -> record


def build_results(
    *,
    name: str,
    config: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float]] | None = None,
    charged: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    break_even_rows: float | None = None,
    mapper_metrics: Mapping[str, BySeed] | None = None,
    adapted: Mapping[str, BySeed] | None = None,
    adapted_quality: Mapping[str, Mapping[int, Mapping[str, Any]]] | None = None,
    learning_rates: Mapping[str, Mapping[int, Mapping[str, Any]]] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
    input_rows: int | None = None,
    templates: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all measurements of a run, for `validate_results`, `write_report` and `summarise`.

    Args:
        name: the name of the run.
        config: the run's config as plain data.
        evaluations: records of every arm, suite and seed (see `Evaluation`).
        costs: stage name -> cost.
        charged: arm -> `prepare`, `train`, `evaluate` -> names of the stages whose cost the arm bears.
        break_even_rows: number of rows above which training the mapper costs fewer FLOPs than best of K.
        mapper_metrics: adaptation -> seed -> one row per mapper step.
        adapted: adaptation -> seed -> rows of the adapted data set, dropped rows included.
        adapted_quality: adaptation -> seed -> measurements that need the lab (numbers, or dicts of numbers).
        learning_rates: arm -> seed -> {"chosen": rate, "dev": {rate: accuracy}}.
        examples: rows with `tokens_before` and `tokens_after`, [[text, log-probability in nats], ...].
        input_rows: number of demonstrations that went into synthesis; missing rows are reported.
        templates: arm -> hash of its prompt template.
        notes: sentences to print with the results, for example how the learning rate was chosen.

    Raises:
        InputError: a record is malformed, the arms differ in questions, seeds or templates, or no question has a
            verdict.
    """
    all_records = _index(validate_evaluations(evaluations))
    arms, suites, seeds = _check_comparable(all_records, _order(config, all_records), templates or {})
    records, excluded = graded_records(all_records, lambda record: record["correct"])
    results = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "config": config,
        **_comparison(records, arms, [suite for suite in suites if suite in records[arms[0]]], seeds),
        "costs": cost_table(costs or {}, {arm: (charged or {}).get(arm, {}) for arm in arms}, break_even_rows),
        "mapper": {
            name: {str(seed): mapper_summary(_to_json(rows)) for seed, rows in sorted(by_seed.items()) if rows}
            for name, by_seed in (mapper_metrics or {}).items()
        },
        "adapted": {
            name: _adapted(by_seed, input_rows, (adapted_quality or {}).get(name, {}))
            for name, by_seed in (adapted or {}).items()
        },
        "learning_rates": {arm: dict(sorted(rates.items())) for arm, rates in (learning_rates or {}).items()},
        "examples": list(examples),
        "notes": [*notes, *ungraded_notes(excluded, all_records[arms[0]])],
    }
    return validate_results(_to_json(results))


def _adapted(
    by_seed: BySeed, input_rows: int | None, quality: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {
        str(seed): adapted_summary(map(_to_json, rows), input_rows, quality.get(seed))
        for seed, rows in sorted(by_seed.items())
    }


def _comparison(records: Records, arms: list[str], suites: list[str], seeds: list[int]) -> dict[str, Any]:
    """The fields of the results that are computed from the evaluation records."""
    groups = _grouped(suites)
    levels = [("group", group, members) for group, members in groups.items()]
    levels += [("suite", suite, [suite]) for suite in suites]
    differences = (
        _difference(records, pair, measure, *level)
        for pair in arm_pairs(arms)
        for level in levels
        for measure in COMPARED
    )
    return {
        "arms": arms,
        "seeds": seeds,
        "suites": [
            {"name": suite, "group": group_of(suite), "questions": _count_questions(records, arms[0], [suite])}
            for suite in suites
        ],
        "groups": list(groups),
        "cells": [_cell(records, arm, suite, seed) for arm in arms for suite in suites for seed in seeds],
        "summaries": [_summary(records, arm, *level) for arm in arms for level in levels],
        "differences": [difference for difference in differences if difference],
    }


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json.

    Raises:
        InputError: the file is missing, is not valid JSON, or has another schema.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist. Finish the run with `dartune run`, or write it with `dartune report`."
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Write it again with `dartune report`.") from None
    if not isinstance(results, dict):
        raise InputError(f"{path} does not contain results: expected an object, got {type(results).__name__}.")
    return validate_results(results)


def group_of(suite: str) -> str:
    """Name of the group that a suite belongs to; a user's own suite forms a group by itself."""
    for prefix, group in GROUPS.items():
        if suite.startswith(prefix):
            return group
    return {"in_distribution": "in distribution", "format_shift": "format shift"}.get(suite, suite)


def arm_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs (arm, against) to compare.

    These are dart with every other arm, and sft with base. Without dart, every arm is compared with sft, or with the
    first arm if there is no sft.
    """
    against = "sft" if "sft" in arms else arms[0]
    pairs = [("dart", "sft"), ("dart", "base"), ("sft", "base")]
    pairs += [("dart", arm) for arm in arms] if "dart" in arms else [(arm, against) for arm in arms]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and set(pair) <= set(arms)]


def _index(evaluations: Iterable[dict[str, Any]]) -> Records:
    """Index records by arm, suite, seed and question id."""
    records: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    duplicates = []
    for record in evaluations:
        answers = records[record["arm"]][record["suite"]][record["seed"]]
        if record["id"] in answers:
            duplicates.append("arm {arm}, suite {suite}, seed {seed}: question {id} twice".format_map(record))
        answers[record["id"]] = record
    if duplicates:
        raise InputError("questions answered twice: delete these evaluation stages and run again", duplicates)
    return records


def _order(config: Mapping[str, Any], records: Records) -> list[str]:
    """The arms in the order of the config."""
    listed = [arm for arm in config.get("arms") or [] if arm in records]
    return listed + [arm for arm in records if arm not in listed]


def _check_comparable(
    records: Records, arms: list[str], templates: Mapping[str, str]
) -> tuple[list[str], list[str], list[int]]:
    """Return arms, suites and seeds.

    Raises:
        InputError: the arms did not answer the same questions with the same seeds, or their templates differ.
    """
    suites = list(dict.fromkeys(suite for arm in arms for suite in records[arm]))
    seeds = sorted({seed for arm in arms for answers in records[arm].values() for seed in answers})
    problems = []
    for suite in suites:
        for seed in seeds:
            asked = {arm: records[arm].get(suite, {}).get(seed, {}).keys() for arm in arms}
            union = set().union(*asked.values())
            for arm in arms:
                missing = sorted(union - asked[arm])
                if missing:
                    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
                    problems.append(
                        f"suite {suite}, seed {seed}: arm {arm} lacks {len(missing)} of {len(union)} "
                        f"questions that another arm answered: {shown}"
                    )
    if len(set(templates.values())) > 1:
        problems.append("prompt templates differ: " + ", ".join(f"{arm} {key[:12]}" for arm, key in templates.items()))
    if problems:
        raise InputError(
            "these arms cannot be compared: all arms must answer the same questions with the same seeds and the same "
            "prompt template. Evaluate the arms listed here again, or remove them from `arms`.",
            problems,
        )
    return arms, suites, seeds


def _grouped(suites: Iterable[str]) -> dict[str, list[str]]:
    """Group -> its suites."""
    groups: dict[str, list[str]] = {}
    for suite in suites:
        groups.setdefault(group_of(suite), []).append(suite)
    return groups


def _count_questions(records: Records, arm: str, suites: Iterable[str]) -> int:
    """Number of distinct questions; a question asked under several seeds counts once."""
    return sum(len({key for answers in records[arm][suite].values() for key in answers}) for suite in suites)


def _outcomes(records: Records, arm: str, suite: str, measure: str) -> dict[int, dict[str, float]] | None:
    """Outcome of every question per seed, in [0, 1]; None if some record lacks the measure."""
    table = records[arm][suite]
    if any(record.get(measure) is None for answers in table.values() for record in answers.values()):
        return None
    return {seed: {key: float(r[measure]) for key, r in answers.items()} for seed, answers in table.items()}


def _share(rows: Sequence[Mapping[str, Any]], measure: str) -> float | None:
    """Mean of a measure over the rows that have it; None if no row has it."""
    return mean_of_known(row.get(measure) for row in rows)


def _cell(records: Records, arm: str, suite: str, seed: int) -> dict[str, Any]:
    rows = list(records[arm][suite][seed].values())
    return {
        "arm": arm,
        "suite": suite,
        "seed": seed,
        "n": len(rows),
        "accuracy": _share(rows, "correct"),
        **_solution_metrics(rows),
    }


def _solution_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The fields of `SolutionMetrics` from evaluation records."""
    return {
        "step_accuracy": _share(rows, "steps_correct"),
        "names_accuracy": _share(rows, "names_correct"),
        "avg_at_k": _share(rows, "avg_at_k"),
        "pass_at_k": _share(rows, "pass_at_k"),
        "announced": _share(rows, "announced"),
        "mean_tokens": sum(row["n_tokens"] for row in rows) / len(rows),
        "truncated": sum(row["finish"] == "length" for row in rows) / len(rows),
    }


def _summary(records: Records, arm: str, level: str, name: str, suites: list[str]) -> dict[str, Any]:
    cells = [_cell(records, arm, suite, seed) for suite in suites for seed in records[arm][suite]]
    outcomes = (_outcomes(records, arm, suite, "correct") or {} for suite in suites)
    strata = stats.pool([stats.strata_of(one) for one in outcomes])
    by_seed = defaultdict(list)
    for cell in cells:
        by_seed[cell["seed"]].append(cell["accuracy"])
    return {
        "arm": arm,
        "level": level,
        "name": name,
        "n": _count_questions(records, arm, suites),
        "accuracy": _as_dict(stats.accuracy_interval(strata)),
        "by_seed": {str(seed): mean_of_known(values) for seed, values in sorted(by_seed.items())},
        **{key: mean_of_known(cell[key] for cell in cells) for key in SolutionMetrics.model_fields},
    }


def _difference(
    records: Records, pair: tuple[str, str], measure: str, level: str, name: str, suites: list[str]
) -> dict[str, Any] | None:
    ours, theirs = ([_outcomes(records, arm, suite, measure) for suite in suites] for arm in pair)
    gaps = [stats.subtract(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if len(gaps) < len(suites):
        return None
    interval = stats.difference_interval(stats.pool([stats.strata_of(gap) for gap in gaps]))
    seeds = sorted(gaps[0])
    return {
        "arm": pair[0],
        "against": pair[1],
        "measure": MEASURES[measure],
        "level": level,
        "name": name,
        "n": _count_questions(records, pair[0], suites),
        **_as_dict(interval),
        "by_seed": {str(seed): mean_of_known(mean_of_known(gap[seed].values()) for gap in gaps) for seed in seeds},
        "verdict": interval.verdict,
    }


def _as_dict(interval: stats.Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _to_json(value: Any) -> Any:
    """Convert to JSON types: string keys, lists instead of tuples, None instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(element) for element in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)
