"""Collect the outputs of a run's stages as plain data, for `build_results`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dartune.config.arms import ADAPTATIONS, ARMS, adaptations, by_group, with_dependencies
from dartune.data.row_store import open_rows
from dartune.errors import InputError
from dartune.report.rewrite_examples import EXAMPLES, adapted_quality, examples
from dartune.run.files import read_json, read_jsonl
from dartune.run.folder import FINISH_HINT
from dartune.stages.arm_training import chosen_learning_rate
from dartune.stages.context import StageContext
from dartune.stages.finetune import training_rows
from dartune.stages.names import (
    adaptation_stages,
    evaluation_stage,
    greedy_stage,
    mapper_stage,
    own_stage,
    probe_stage,
    renewed_stage,
    synthesis_stage,
    train_stages,
    warmup_stage,
)
from dartune.stages.warmup import describe_warmup

Rows = list[dict[str, Any]]


def collect(context: StageContext) -> dict[str, Any]:
    """Return the keyword arguments of `build_results`.

    Raises:
        InputError: a stage has not finished.
    """
    config = context.config
    arms = by_group(arm for arm in with_dependencies(config.arms) if arm in config.arms)
    adaptation_names = adaptations(config.arms)
    adapted = {
        name: {seed: _on_disk(context, synthesis_stage(name, seed), "rows") for seed in config.seeds}
        for name in adaptation_names
    }
    mappers = {
        name: {seed: _rows(context, mapper_stage(name, seed), "metrics") for seed in config.seeds}
        for name in adaptation_names
        if ADAPTATIONS[name].trained
    }
    quality = {
        name: {seed: adapted_quality(rows, context.judge) for seed, rows in by_seed.items()}
        for name, by_seed in adapted.items()
        if context.judge
    }
    return {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "evaluations": [
            {"arm": arm, "seed": seed, **record}
            for arm in arms
            for seed in config.seeds
            for record in _rows(context, evaluation_stage(arm, seed), "records")
        ],
        "costs": {name: asdict(context.run_folder.cost(name)) for name in context.run_folder.finished_stages()},
        "break_even_rows": _break_even(context) if {"dart", "best_of_k"} <= set(adaptation_names) else None,
        "charged": {arm: _charged(context, arm) for arm in arms},
        "mapper_metrics": mappers,
        "adapted": adapted,
        "adapted_quality": quality,
        "learning_rates": _learning_rates(context, arms),
        "examples": _examples(context, adapted),
        "input_rows": len(context.data.train),
        "templates": dict.fromkeys(arms, context.models.renderer.hash),
        "notes": [
            *context.data.notes,
            *_mapper_origins(context, adaptation_names),
            *_stops(mappers),
            *_untrained_arms(context, arms),
        ],
    }


def _mapper_origins(context: StageContext, adaptation_names: list[str]) -> list[str]:
    """How the trained mappers were initialised, in sentences."""
    trained = [name for name in adaptation_names if ADAPTATIONS[name].trained]
    if not trained:
        return []
    if not context.config.mapper.format_steps:
        path = context.config.mapper.path
        return [f"Mapper initialisation: {'a copy of the target' if path is None else path}, without a warm-up."]
    stages = dict.fromkeys(map(warmup_stage, trained))
    folders = [context.folder(stage) for stage in stages]
    examples = [read_json(folder / "examples.json") or {} for folder in folders]
    return [f"Mapper initialisation: {describe_warmup(example)}." for example in examples]


def _untrained_arms(context: StageContext, arms: list[str]) -> list[str]:
    """A note for every arm and seed without training rows: its model equals the untouched target.

    Direct RL arms are left out; they train on questions, not on rows.
    """
    return [
        f"{arm}, seed {seed}: no row was adapted, so the arm was not trained and equals the untouched target."
        for arm in arms
        for seed in context.config.seeds
        if ARMS[arm].rows and not training_rows(context, arm, seed)[0]
    ]


def _rows(context: StageContext, stage: str, name: str) -> Rows:
    """Rows of a stage's JSON Lines file, in memory."""
    _check_finished(context, stage)
    path = context.folder(stage) / f"{name}.jsonl"
    return read_jsonl(path) if path.exists() else []  # a mapper without training steps has no metrics


def _check_finished(context: StageContext, stage: str) -> None:
    if not context.run_folder.finished(stage):
        raise InputError(f"the stage {stage} has not finished; {FINISH_HINT.format(context.run_folder.folder)}")


def _on_disk(context: StageContext, stage: str, name: str) -> Sequence[dict[str, Any]]:
    """Rows of a stage, read from disk on access: adapted data sets may not fit in memory."""
    _check_finished(context, stage)
    return open_rows(context.folder(stage) / f"{name}.jsonl")


def _charged(context: StageContext, arm: str) -> dict[str, list[str]]:
    """Names of the stages whose cost an arm bears, as `prepare`, `train` and `evaluate`.

    `prepare` holds the stages that made the arm's data. For an arm that continues another arm's model, it also holds
    the preparation and training of that arm.
    """
    seeds, spec = context.config.seeds, ARMS[arm]
    prepare: list[str] = []
    if spec.rows in ADAPTATIONS:
        prepare += [stage for seed in seeds for stage in adaptation_stages(context.config, spec.rows, seed)]
    if spec.teacher == "mapper":
        prepare += [stage for seed in seeds for stage in adaptation_stages(context.config, "dart", seed)[:-1]]
    if spec.rows == "own":
        prepare += [probe_stage("dart"), *(own_stage(arm, seed) for seed in seeds)]
    if spec.rows == "greedy" or spec.teacher == "target":
        config = context.config
        prepare += [probe_stage("dart")] if config.mapper.examples or config.mapper.format_steps else []
        prepare += [warmup_stage("dart")] if config.mapper.format_steps and spec.rows == "greedy" else []
    if spec.rows == "greedy":
        prepare.append(greedy_stage())
    if spec.rows == "dart" and spec.renewed:
        prepare += [renewed_stage(arm, seed) for seed in seeds]
    if spec.start:
        earlier = _charged(context, spec.start)
        prepare += [*earlier["prepare"], *earlier["train"]]
    return {
        "prepare": list(dict.fromkeys(prepare)),
        "train": train_stages(context.config, arm, seeds),
        "evaluate": list(dict.fromkeys(evaluation_stage(arm, seed) for seed in seeds)),
    }


def _break_even(context: StageContext) -> float | None:
    """Number of rows above which training the mapper costs fewer FLOPs than the additional rewrites of best of K.

    Computed from sums over all seeds. None if synthesis with the trained mapper is not cheaper per row.
    """
    rows, seeds = len(context.data.train), context.config.seeds

    def flops(stage: str) -> float:
        return context.run_folder.cost(stage).flops

    training = sum(flops(mapper_stage("dart", seed)) for seed in seeds)
    saved_per_row = (
        sum(flops(synthesis_stage("best_of_k", seed)) - flops(synthesis_stage("dart", seed)) for seed in seeds) / rows
    )
    return training / saved_per_row if saved_per_row > 0 else None


def _learning_rates(context: StageContext, arms: list[str]) -> dict[str, dict[int, dict[str, Any]]]:
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in (arm for arm in arms if ARMS[arm].trained):
        for seed in context.config.seeds:
            chosen, dev = chosen_learning_rate(context, arm, seed)
            by_arm.setdefault(arm, {})[seed] = {"chosen": chosen, "dev": dev}
    return by_arm


def _stops(mappers: dict[str, dict[int, Rows]]) -> list[str]:
    return [
        f"Mapper of {name}, seed {seed}: training stopped, {row['stop']}."
        for name, by_seed in mappers.items()
        for seed, rows in by_seed.items()
        for row in rows
        if "stop" in row
    ]


def _examples(
    context: StageContext, adapted: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """The first rows of the first adapted data set, before and after adaptation."""
    if not adapted:
        return []
    name, by_seed = next(iter(adapted.items()))
    _, models = context.view(name)
    probe_rows = _on_disk(context, probe_stage(name), "probe")
    sources = {
        row.id: (models.renderer.response_ids(row.solution), probe_row["source_logprobs"])
        for row, probe_row in zip(context.data.train[:EXAMPLES], probe_rows[:EXAMPLES], strict=True)
    }
    return examples(by_seed[context.config.seeds[0]], sources, models.renderer.decode)
