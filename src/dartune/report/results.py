"""results.json: everything a run measured, as one plain dict with a versioned schema.

The page, the plots and the terminal summary read nothing else; every field is in docs/results-schema.md.
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
from dartune.report.adaptation import adapted_summary, mapper_summary, mean_known
from dartune.report.costs import cost_table
from dartune.report.judged import judged, told
from dartune.report.schema import SCHEMA_VERSION, checked_evaluations, validate_results

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
    """Everything a run measured, ready for `validate_results`, `write_report` and `summarise`.

    Args:
        evaluations: records of every arm, suite and seed (see `Evaluation`).
        costs: stage name -> cost.
        break_even_rows: from so many rows on training the mapper costs less than best of K.
        charged: arm -> `prepare`, `train`, `evaluate` -> the stages whose cost it bears.
        mapper_metrics: adaptation -> seed -> one row per mapper step.
        adapted: adaptation -> seed -> rows of the adapted data set, dropped rows included.
        adapted_quality: adaptation -> seed -> measurements only the lab can make (numbers, or dicts of numbers).
        learning_rates: arm -> seed -> {"chosen": rate, "dev": {rate: accuracy}}.
        examples: rows with `tokens_before` and `tokens_after`, [[text, log-probability in nats], ...].
        input_rows: demonstrations that went into synthesis; rows that vanished are reported.
        templates: arm -> hash of its renderer.
        notes: sentences to print with the results, such as how the learning rate was chosen.

    Raises:
        InputError: a malformed record, arms that differ in questions, seeds or templates, or not a single verdict.
    """
    asked = _index(checked_evaluations(evaluations))
    arms, suites, seeds = _comparable(asked, _order(config, asked), templates or {})
    records, left_out = judged(asked, lambda record: record["correct"])
    results = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "config": config,
        **_compared(records, arms, [suite for suite in suites if suite in records[arms[0]]], seeds),
        "costs": cost_table(costs or {}, {arm: (charged or {}).get(arm, {}) for arm in arms}, break_even_rows),
        "mapper": {
            name: {str(seed): mapper_summary(_plain(rows)) for seed, rows in sorted(by_seed.items()) if rows}
            for name, by_seed in (mapper_metrics or {}).items()
        },
        "adapted": {
            name: _adapted(by_seed, input_rows, (adapted_quality or {}).get(name, {}))
            for name, by_seed in (adapted or {}).items()
        },
        "learning_rates": {arm: dict(sorted(rates.items())) for arm, rates in (learning_rates or {}).items()},
        "examples": list(examples),
        "notes": [*notes, *told(left_out, asked[arms[0]])],
    }
    return validate_results(_plain(results))


def _adapted(
    by_seed: BySeed, input_rows: int | None, quality: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {
        str(seed): adapted_summary(map(_plain, rows), input_rows, quality.get(seed))
        for seed, rows in sorted(by_seed.items())
    }


def _compared(records: Records, arms: list[str], suites: list[str], seeds: list[int]) -> dict[str, Any]:
    """The part of the results that comes from the evaluation records."""
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
            {"name": suite, "group": group_of(suite), "questions": _distinct(records, arms[0], [suite])}
            for suite in suites
        ],
        "groups": list(groups),
        "cells": [_cell(records, arm, suite, seed) for arm in arms for suite in suites for seed in seeds],
        "summaries": [_summary(records, arm, *level) for arm in arms for level in levels],
        "differences": [difference for difference in differences if difference],
    }


def read_results(path: Path) -> dict[str, Any]:
    """A results.json written earlier; InputError when it is missing, damaged or of another schema."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Run the pipeline to its end, or `dartune report`.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Write it again with `dartune report`.") from None
    if not isinstance(results, dict):
        raise InputError(f"{path} does not hold results: expected an object, found {type(results).__name__}.")
    return validate_results(results)


def group_of(suite: str) -> str:
    """Group a suite is averaged in; a suite of the user's own is a group by itself."""
    for prefix, group in GROUPS.items():
        if suite.startswith(prefix):
            return group
    return {"in_distribution": "in distribution", "format_shift": "format shift"}.get(suite, suite)


def arm_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (arm, against): dart with every arm, and sft with base; without dart every arm with sft (or the first)."""
    against = "sft" if "sft" in arms else arms[0]
    wanted = [("dart", "sft"), ("dart", "base"), ("sft", "base")]
    wanted += [("dart", arm) for arm in arms] if "dart" in arms else [(arm, against) for arm in arms]
    return [pair for pair in dict.fromkeys(wanted) if pair[0] != pair[1] and set(pair) <= set(arms)]


def _index(evaluations: Iterable[dict[str, Any]]) -> Records:
    records: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    twice = []
    for record in evaluations:
        answers = records[record["arm"]][record["suite"]][record["seed"]]
        if record["id"] in answers:
            twice.append("arm {arm}, suite {suite}, seed {seed}: question {id} twice".format_map(record))
        answers[record["id"]] = record
    if twice:
        raise InputError("questions answered twice: delete these evaluation stages and run again", twice)
    return records


def _order(config: Mapping[str, Any], records: Records) -> list[str]:
    listed = [arm for arm in config.get("arms") or [] if arm in records]
    return listed + [arm for arm in records if arm not in listed]


def _comparable(
    records: Records, arms: list[str], templates: Mapping[str, str]
) -> tuple[list[str], list[str], list[int]]:
    """Arms, suites and seeds; InputError unless all arms answered the same questions in the same template."""
    suites = list(dict.fromkeys(suite for arm in arms for suite in records[arm]))
    seeds = sorted({seed for arm in arms for answers in records[arm].values() for seed in answers})
    problems = []
    for suite in suites:
        for seed in seeds:
            asked = {arm: records[arm].get(suite, {}).get(seed, {}).keys() for arm in arms}
            everything = set().union(*asked.values())
            for arm in arms:
                missing = sorted(everything - asked[arm])
                if missing:
                    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
                    problems.append(
                        f"suite {suite}, seed {seed}: arm {arm} lacks {len(missing)} of {len(everything)} "
                        f"questions that another arm answered: {shown}"
                    )
    if len(set(templates.values())) > 1:
        problems.append("prompt templates differ: " + ", ".join(f"{arm} {key[:12]}" for arm, key in templates.items()))
    if problems:
        raise InputError(
            "these arms cannot be compared: all must answer the same questions, seed by seed, in the same "
            "template. Evaluate the arms named here again, or leave them out of `arms`.",
            problems,
        )
    return arms, suites, seeds


def _grouped(suites: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for suite in suites:
        groups.setdefault(group_of(suite), []).append(suite)
    return groups


def _distinct(records: Records, arm: str, suites: Iterable[str]) -> int:
    return sum(len({key for answers in records[arm][suite].values() for key in answers}) for suite in suites)


def _outcomes(records: Records, arm: str, suite: str, measure: str) -> dict[int, dict[str, float]] | None:
    """Outcome of every question as 0 or 1; None when some record lacks the measure."""
    table = records[arm][suite]
    if any(record.get(measure) is None for answers in table.values() for record in answers.values()):
        return None
    return {seed: {key: float(r[measure]) for key, r in answers.items()} for seed, answers in table.items()}


def _share(rows: Sequence[Mapping[str, Any]], measure: str) -> float | None:
    """Share of the rows that have the measure; None when none has."""
    known = [row[measure] for row in rows if row.get(measure) is not None]
    return sum(known) / len(known) if known else None


def _cell(records: Records, arm: str, suite: str, seed: int) -> dict[str, Any]:
    rows = list(records[arm][suite][seed].values())
    return {
        "arm": arm,
        "suite": suite,
        "seed": seed,
        "n": len(rows),
        **{name: _share(rows, measure) for measure, name in MEASURES.items()},
        "announced": _share(rows, "announced"),
        "mean_tokens": sum(row["n_tokens"] for row in rows) / len(rows),
        "truncated": sum(row["finish"] == "length" for row in rows) / len(rows),
    }


def _summary(records: Records, arm: str, level: str, name: str, suites: list[str]) -> dict[str, Any]:
    cells = [_cell(records, arm, suite, seed) for suite in suites for seed in records[arm][suite]]
    strata = stats.pool([stats.strata_of(_outcomes(records, arm, suite, "correct")) for suite in suites])
    by_seed = defaultdict(list)
    for cell in cells:
        by_seed[cell["seed"]].append(cell["accuracy"])
    return {
        "arm": arm,
        "level": level,
        "name": name,
        "n": _distinct(records, arm, suites),
        "accuracy": _as_dict(stats.accuracy_interval(strata)),
        "by_seed": {str(seed): mean_known(values) for seed, values in sorted(by_seed.items())},
        **{
            key: mean_known(cell[key] for cell in cells)
            for key in (*list(MEASURES.values())[1:], "announced", "mean_tokens", "truncated")
        },
    }


def _difference(
    records: Records, pair: tuple[str, str], measure: str, level: str, name: str, suites: list[str]
) -> dict[str, Any] | None:
    ours, theirs = ([_outcomes(records, arm, suite, measure) for suite in suites] for arm in pair)
    if None in ours or None in theirs:
        return None
    gaps = [stats.subtract(a, b) for a, b in zip(ours, theirs, strict=True)]
    interval = stats.difference_interval(stats.pool([stats.strata_of(gap) for gap in gaps]))
    seeds = sorted(gaps[0])
    return {
        "arm": pair[0],
        "against": pair[1],
        "measure": MEASURES[measure],
        "level": level,
        "name": name,
        "n": _distinct(records, pair[0], suites),
        **_as_dict(interval),
        "by_seed": {str(seed): mean_known(mean_known(gap[seed].values()) for gap in gaps) for seed in seeds},
        "verdict": interval.verdict,
    }


def _as_dict(interval: stats.Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _plain(value: Any) -> Any:
    """JSON types only: string keys, no NaN or infinity (null instead), tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)
