"""The measured parts of docs/gpu.md: tables from results/full-pass.json and results/large-lab.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import fill, table

from dartune.report.summary import difference_of, summary_of
from dartune.run.number_format import percent, percent_interval, points_interval

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "gpu.md"
SOURCES = {"full-pass": ROOT / "results" / "full-pass.json", "large-lab": ROOT / "results" / "large-lab.json"}
PARTS = ("full-pass", "where-a-step-goes", "pretraining", "large-lab", "large-lab-costs")
NOT_YET = "Not measured yet."
WORK = {
    "generate": "sampling",
    "reward/score": "scoring under the target",
    "reward/gates": "gates",
    "reward": "the reward's rest",
    "score": "scoring under the mapper's start",
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "rehearsal": "rehearsal of the largest microbatch",
    "rehearsal/forward": "rehearsal of the largest microbatch",
}


def fill_document() -> None:
    fill(DOCUMENT, parts())


def parts() -> dict[str, str]:
    """Every measured part of the document, by name; one that has not been run says so."""
    found = {name: json.loads(path.read_text("utf-8")) for name, path in SOURCES.items() if path.exists()}
    made = dict.fromkeys(PARTS, NOT_YET)
    if "full-pass" in found:
        made |= {"full-pass": _stages(found["full-pass"]), "where-a-step-goes": _mapper_step(found["full-pass"])}
    if "large-lab" in found:
        made |= {"pretraining": _pretraining(found["large-lab"])}
        if "main" in found["large-lab"]["results"]:
            made |= {"large-lab": _arms(found["large-lab"]), "large-lab-costs": _costs(found["large-lab"])}
    return made


def _about(found: Mapping[str, Any]) -> str:
    versions = found["environment"]["packages"]
    return f"{found['device']}, torch {versions['torch']}, transformers {versions['transformers']}."


def _stages(found: Mapping[str, Any]) -> str:
    """Seconds, tokens a second and peak memory of every stage that used a model."""
    kinds = ("generated", "scored", "trained")
    rows = []
    for name, stage in found["stages"].items():
        if "parts" in stage and any(stage.get(f"{kind}_tokens") for kind in kinds):
            speeds = (stage.get(f"{kind}_tokens_per_second") for kind in kinds)
            told = (f"{speed:,.0f}" if speed else "-" for speed in speeds)
            peak = f"{stage['peak_gb']:.1f}" if "peak_gb" in stage else "-"
            rows.append([f"`{name}`", f"{stage['seconds']:.1f}", *told, peak])
    header = ["stage", "seconds", *(f"tokens {kind} a second" for kind in kinds), "peak memory, GB"]
    steps = ", ".join(
        f"{kind} {found[kind]['steps_per_second']:.2f}" for kind in ("mapper", "sft") if found[kind]["steps_per_second"]
    )
    total = f"Steps a second, the first left out: {steps}. All in all {found['seconds_so_far']:.0f} s."
    return f"{_about(found)}\n\n{table(header, rows)}\n\n{total}"


def _mapper_step(found: Mapping[str, Any]) -> str:
    """Where the time of mapper training goes, largest first."""
    stage = found["stages"]["mapper-s0"]
    spent = dict.fromkeys((*WORK.values(), "the rest"), 0.0)
    for path, part in stage["parts"].items():
        spent[WORK.get(path, "the rest")] += part["seconds"]
    rows = [
        [name, f"{seconds:.2f}", percent(seconds / stage["seconds"])]
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
        if seconds
    ]
    return table(["mapper training", "seconds", "%"], rows)


def _pretraining(found: Mapping[str, Any]) -> str:
    plan = found["plan"]
    shape = plan["recipe"]
    told = (
        f"{_about(found)} {shape['layers']} layers of width {shape['hidden']}, {plan['batch']} examples "
        f"a step, peak learning rate {plan['learning_rate']:g}. Right in every step, %, on questions no suite asks:"
    )
    rows = []
    for name, measured in found["models"].items():
        for row in measured:
            right = [row.get("retention_short"), row.get("retention_long"), row.get("steps_right")]
            cells = ["-" if share is None else percent(share) for share in right]
            rows.append([f"`{name}`", f"{row['seconds']:.0f}", f"{row['step']:,}", f"{row['loss']:.3f}", *cells])
    header = ["model", "seconds", "steps", "loss, nats", "2-5 steps", "6-8 steps", "rewrites of `values`"]
    return f"{told}\n\n{table(header, rows)}"


def _arms(found: Mapping[str, Any]) -> str:
    """Accuracy of every arm by group of suites; then what dart is ahead of each by."""
    runs = found["results"]
    main = runs["main"]
    groups = main["groups"]
    shown = {f"`{arm}`": (main, arm) for arm in main["arms"]}
    if "beside" in runs:  # part of the main run by now, unless that was cut short
        shown = {f"`{arm}`": (runs["beside"], arm) for arm in runs["beside"]["arms"]} | shown
    if "gold" in runs:
        shown["`gold`"] = (runs["gold"], "sft")
    tables = {
        "answers right, %": lambda one: percent_interval(one["accuracy"]),
        "right in every step, %": lambda one: percent(one["step_accuracy"]),
    }
    blocks = [
        table(
            [name, *groups],
            [[arm, *(cell(summary_of(*which, group)) for group in groups)] for arm, which in shown.items()],
        )
        for name, cell in tables.items()
    ]
    gaps = [
        [f"dart - {arm}", *(points_interval(difference_of(main, "dart", arm, group)) for group in groups)]
        for arm in main["arms"]
        if arm != "dart"
    ]
    return "\n\n".join([*blocks, table(["points", *groups], gaps), _data(main)])


def _data(main: Mapping[str, Any]) -> str:
    told = []
    for name, by_seed in main["adapted"].items():
        for data in by_seed.values():
            counts = ", ".join(f"{count} {source}" for source, count in data["provenance"].items() if count)
            told.append(f"`{name}`: {counts}; {percent(data['quality']['step_correct'])}% right in every step")
    rates = ", ".join(
        f"{arm} {choice['chosen']:g}" for arm, seeds in main["learning_rates"].items() for choice in seeds.values()
    )
    return f"Adapted rows: {'. '.join(told)}. Learning rates chosen on dev: {rates}."


def _costs(found: Mapping[str, Any]) -> str:
    main = found["results"]["main"]
    rows = [
        [
            f"`{arm}`",
            f"{cost['seconds']:.0f}",
            f"{cost['flops'] / 1e12:.0f}",
            *(f"{cost[f'{kind}_tokens'] / 1e6:.2f}" for kind in ("generated", "scored", "trained")),
        ]
        for arm, cost in main["costs"].items()
        if arm != "base"
    ]
    units = ["seconds", "operations, 1e12", *(f"{kind}, M tokens" for kind in ("generated", "scored", "trained"))]
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["seconds"].items())
    return f"{table(['arm, all learning rates', *units], rows)}\n\nWall clock: {spent}."
