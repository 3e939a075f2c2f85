"""results.json: everything a run measured, as one plain dict with a versioned schema.

The page, the plots and the terminal summary read nothing else; every field is in docs/results-schema.md.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from dartune.errors import InputError
from dartune.report import stats
from dartune.report.schema import SCHEMA_VERSION, checked_evaluations, validate_results
from dartune.rewards.text import skeleton

GROUPS = {"ood_": "out of distribution", "retention": "retention"}
PROVENANCES = ("rewrite", "own", "original", "dropped")
MEASURES = {
    "correct": "accuracy",
    "steps_correct": "step_accuracy",
    "names_correct": "names_accuracy",
    "avg_at_k": "avg_at_k",
    "pass_at_k": "pass_at_k",
}
COMPARED = ("correct", "steps_correct", "avg_at_k", "pass_at_k")
COSTS = ("generated_tokens", "scored_tokens", "trained_tokens", "seconds", "peak_memory_mb")
PREPARING = ("probe", "mapper-", "synthesise-")  # stages that make the adapted data
SHARES = ("hacks", "dialects")
EDGE_STEPS = 5  # mapper steps averaged at either end for "before" and "after"

Records = Mapping[str, Mapping[str, Mapping[int, Mapping[str, dict]]]]  # arm -> suite -> seed -> id -> record


def build_results(
    *,
    name: str,
    config: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, float]] | None = None,
    mapper_metrics: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    adapted: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    adapted_quality: Mapping[int, Mapping[str, Any]] | None = None,
    learning_rates: Mapping[str, Mapping[int, Mapping[str, Any]]] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
    input_rows: int | None = None,
    templates: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything a run measured, ready for `validate_results`, `write_report` and `summarise`.

    Args:
        evaluations: records of every arm, suite and seed (see `Evaluation`).
        costs: stage name -> cost. Stages are named `probe`, `mapper-s0`, `synthesise-s0`,
            `train-<arm>-s0...`, `evaluate-<arm>-s0` (no `-s0` where no seed plays a part); what
            prepares the adapted data is charged to every arm whose name starts with `dart`.
        mapper_metrics: seed -> one row per mapper step.
        adapted: seed -> rows of the adapted data set, dropped rows included.
        adapted_quality: seed -> measurements only the lab can make (numbers, or dicts of numbers).
        learning_rates: arm -> seed -> {"chosen": rate, "dev": {rate: accuracy}}.
        examples: rows with `tokens_before` and `tokens_after`, [[text, log-probability in nats], ...].
        input_rows: demonstrations that went into synthesis; rows that vanished are reported.
        templates: arm -> hash of its renderer.
        notes: sentences to print with the results, such as how the learning rate was chosen.

    Raises:
        InputError: a malformed record, or arms that differ in questions, seeds or templates.
    """
    records = _index(checked_evaluations(evaluations))
    arms, suites, seeds = _comparable(records, _order(config, records), templates or {})
    results = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "config": config,
        **_compared(records, arms, suites, seeds),
        "costs": _costs(arms, costs or {}),
        "mapper": {str(seed): _mapper(_plain(rows)) for seed, rows in sorted((mapper_metrics or {}).items()) if rows},
        "adapted": {
            str(seed): _adapted(_plain(rows), input_rows, (adapted_quality or {}).get(seed))
            for seed, rows in sorted((adapted or {}).items())
        },
        "learning_rates": {
            arm: {str(seed): choice for seed, choice in sorted(choices.items())}
            for arm, choices in (learning_rates or {}).items()
        },
        "examples": list(examples),
        "notes": list(notes),
    }
    return validate_results(_plain(results))


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
    """Pairs (arm, against): every arm with sft (or the first arm, without sft), and dart with every arm."""
    against = "sft" if "sft" in arms else arms[0]
    wanted = [("dart", "sft"), ("dart", "base"), ("sft", "base")]
    wanted += [(arm, against) for arm in arms if (against, arm) not in wanted]
    wanted += [("dart", arm) for arm in arms]
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


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _cell(records: Records, arm: str, suite: str, seed: int) -> dict[str, Any]:
    rows = list(records[arm][suite][seed].values())
    return {
        "arm": arm,
        "suite": suite,
        "seed": seed,
        "n": len(rows),
        **{name: _share(rows, measure) for measure, name in MEASURES.items()},
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
        "by_seed": {str(seed): _mean(values) for seed, values in sorted(by_seed.items())},
        **{
            key: _mean(cell[key] for cell in cells)
            for key in (*list(MEASURES.values())[1:], "mean_tokens", "truncated")
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
        "by_seed": {str(seed): _mean(_mean(gap[seed].values()) for gap in gaps) for seed in seeds},
        "verdict": interval.verdict,
    }


def _as_dict(interval: stats.Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _add(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total = dict.fromkeys(COSTS, 0)
    for cost in costs:
        for key in COSTS:
            value = cost.get(key, 0)
            total[key] = max(total[key], value) if key == "peak_memory_mb" else total[key] + value
    return total


def _costs(arms: Sequence[str], stages: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Costs per stage, and per arm split into prepare, train and evaluate; summed over seeds."""
    preparing = [stage for stage in stages if stage.startswith(PREPARING)]
    charged: set[str] = set()
    table = {}
    for arm in arms:
        parts = {"prepare": preparing if arm.startswith("dart") else []}
        for part in ("train", "evaluate"):
            pattern = re.compile(rf"{part}-{re.escape(arm)}(-s\d+(-.*)?)?")
            parts[part] = [stage for stage in stages if pattern.fullmatch(stage)]
        charged.update(stage for names in parts.values() for stage in names)
        table[arm] = {part: _add(stages[stage] for stage in names) for part, names in parts.items()}
        table[arm]["total"] = _add(table[arm].values())
    return {
        "stages": {stage: _add([cost]) for stage, cost in stages.items()},
        "arms": table,
        "shared": [stage for stage in stages if stage not in charged],
    }


def _mapper(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The curve as it is, and the mean of every metric before, during and after training."""
    # A dialect or a hack that a step never saw is absent from its row: its share there is 0, not unknown.
    for part in SHARES:
        zeros = dict.fromkeys((key for row in rows for key in row.get(part) or {}), 0.0)
        rows = [{**row, part: zeros | dict(row.get(part) or {})} if zeros else row for row in rows]
    edge = max(1, min(EDGE_STEPS, len(rows) // 3))
    phases = {"before": rows[:edge], "during": rows[edge:-edge], "after": rows[-edge:]}
    return {
        "steps": list(rows),
        "edge_steps": edge,
        "phases": {phase: _average(part) for phase, part in phases.items() if part},
    }


def _average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every numeric field, through nested dicts; absent and null values are left out."""
    average: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values and all(isinstance(value, Mapping) for value in values):
            average[key] = _average(values)
        elif values and all(isinstance(value, (int, float)) for value in values):
            average[key] = sum(values) / len(values)
    return average


def _adapted(
    rows: Sequence[Mapping[str, Any]], input_rows: int | None, quality: Mapping[str, Any] | None
) -> dict[str, Any]:
    provenance = Counter(row["provenance"] for row in rows)
    kept = [row for row in rows if row["provenance"] != "dropped"]
    total = len(rows) if input_rows is None else input_rows
    gates = defaultdict(list)
    for row in rows:
        for gate, passed in (row.get("gates") or {}).items():
            gates[gate].append(float(passed))
    aligned = [
        row for row in kept if row.get("alignment_before") is not None and row.get("alignment_after") is not None
    ]
    written = [row for row in kept if row["provenance"] != "original"]
    return {
        "provenance": {source: provenance.pop(source, 0) for source in PROVENANCES} | dict(provenance),
        "accounting": {
            "input": total,
            "adapted": sum(row["provenance"] in ("rewrite", "own") for row in rows),
            "original": sum(row["provenance"] == "original" for row in rows),
            "dropped": len(rows) - len(kept),
            "unaccounted": total - len(rows),
        },
        "reasons": dict(Counter(row["reason"] for row in rows if row.get("reason")).most_common()),
        "gates": {gate: sum(passed) / len(passed) for gate, passed in gates.items()},
        "hacks": _rates(written, "hacks"),
        "hacks_refused": _rates(rows, "hacks_refused"),
        "skeletons": len({skeleton(row["solution"]) for row in written}) / max(1, len(written)),
        "alignment_before": _mean(row["alignment_before"] for row in aligned),
        "alignment_after": _mean(row["alignment_after"] for row in aligned),
        "quality": quality,
    }


def _rates(rows: Sequence[Mapping[str, Any]], field: str) -> dict[str, float]:
    """Share of rows whose list `field` has each name, most frequent first."""
    counts = Counter(name for row in rows for name in set(row.get(field) or []))
    return {name: count / len(rows) for name, count in counts.most_common()}


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
