"""What the report is made from: everything that a run's stages left, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dartune.adapt import mapper_stage, own_stage, preparing, probe_stage, synthesis_stage, warmup_stage
from dartune.arms import ADAPTATIONS, ARMS, adaptations, in_order
from dartune.data.rows import open_rows
from dartune.errors import InputError
from dartune.job import Job
from dartune.report.gather import EXAMPLES, adapted_quality, examples
from dartune.run import END_IT, read_json, read_jsonl
from dartune.stages.format_warmup import described
from dartune.train_arms import chosen_rate, evaluation_stage, train_stages, training_rows

Rows = list[dict[str, Any]]


def measured(job: Job) -> dict[str, Any]:
    """The arguments of `build_results`.

    Raises:
        InputError: a stage has not finished.
    """
    config = job.config
    arms = [arm for arm in in_order(config.arms) if arm in config.arms]
    made = adaptations(config.arms)
    adapted = {
        name: {seed: _on_disk(job, synthesis_stage(name, seed), "rows") for seed in config.seeds} for name in made
    }
    mappers = {
        name: {seed: _rows(job, mapper_stage(name, seed), "metrics") for seed in config.seeds}
        for name in made
        if ADAPTATIONS[name].trained
    }
    quality = {
        name: {seed: adapted_quality(rows, job.judge) for seed, rows in by_seed.items()}
        for name, by_seed in adapted.items()
        if job.judge
    }
    return {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "evaluations": [
            {"arm": arm, "seed": seed, **record}
            for arm in arms
            for seed in config.seeds
            for record in _rows(job, evaluation_stage(arm, seed), "records")
        ],
        "costs": {name: asdict(job.run.cost(name)) for name in job.run.finished_stages()},
        "break_even_rows": _break_even(job) if {"dart", "best_of_k"} <= set(made) else None,
        "charged": {arm: _charged(job, arm) for arm in arms},
        "mapper_metrics": mappers,
        "adapted": adapted,
        "adapted_quality": quality,
        "learning_rates": _learning_rates(job, arms),
        "examples": _examples(job, adapted),
        "input_rows": len(job.data.train),
        "templates": dict.fromkeys(arms, job.models.renderer.hash),
        "notes": [*job.data.notes, *_starts(job, made), *_stops(mappers), *_idle(job, arms)],
    }


def _starts(job: Job, made: list[str]) -> list[str]:
    """What the mapper started from."""
    trained = [name for name in made if ADAPTATIONS[name].trained]
    if not trained:
        return []
    if not job.config.mapper.format_steps:
        path = job.config.mapper.path
        return [f"Mapper initialisation: {'a copy of the target' if path is None else path}, without a warm-up."]
    stages = dict.fromkeys(map(warmup_stage, trained))
    folders = [job.run.stage_folder(stage) for stage in stages]
    return [f"Mapper initialisation: {described(read_json(folder / 'examples.json'))}." for folder in folders]


def _idle(job: Job, arms: list[str]) -> list[str]:
    """Arms for which nothing was accepted: they are the untouched target, whatever their accuracy."""
    return [
        f"{arm}, seed {seed}: no row was adapted, so there was nothing to train on and the arm is the untouched target."
        for arm in arms
        for seed in job.config.seeds
        if ARMS[arm].trained and not ARMS[arm].budget and not training_rows(job, arm, seed)[0]
    ]


def _rows(job: Job, stage: str, name: str) -> Rows:
    _refuse_unfinished(job, stage)
    return read_jsonl(job.run.stage_folder(stage) / f"{name}.jsonl")


def _refuse_unfinished(job: Job, stage: str) -> None:
    if not job.run.finished(stage):
        raise InputError(f"the stage {stage} has not finished; {END_IT.format(job.run.folder)}")


def _on_disk(job: Job, stage: str, name: str) -> Sequence[dict[str, Any]]:
    _refuse_unfinished(job, stage)
    return open_rows(job.run.stage_folder(stage) / f"{name}.jsonl")


def _charged(job: Job, arm: str) -> dict[str, list[str]]:
    """Stages whose cost an arm bears: making its data (or what it starts from), its training, its evaluation."""
    seeds, spec = job.config.seeds, ARMS[arm]
    prepare: list[str] = []
    if spec.rows in ADAPTATIONS:
        prepare += [stage for seed in seeds for stage in preparing(job, spec.rows, seed)]
    if spec.rows == "own":
        prepare += [probe_stage("dart"), *(own_stage(seed) for seed in seeds)]
    if spec.start:
        earlier = _charged(job, spec.start)
        prepare += [*earlier["prepare"], *earlier["train"]]
    return {
        "prepare": list(dict.fromkeys(prepare)),
        "train": train_stages(job, arm, seeds),
        "evaluate": list(dict.fromkeys(evaluation_stage(arm, seed) for seed in seeds)),
    }


def _break_even(job: Job) -> float | None:
    """Rows from which on training the mapper costs less than trying more rewrites of the untrained one, in operations.

    None where a row costs as much with the trained mapper. Mean over the seeds.
    """
    rows, seeds = len(job.data.train), job.config.seeds

    def spent(stage: str) -> float:
        return job.run.cost(stage).flops

    training = sum(spent(mapper_stage("dart", seed)) for seed in seeds)
    saved = sum(spent(synthesis_stage("best_of_k", s)) - spent(synthesis_stage("dart", s)) for s in seeds) / rows
    return training / saved if saved > 0 else None


def _learning_rates(job: Job, arms: list[str]) -> dict[str, dict[int, dict[str, Any]]]:
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in (arm for arm in arms if ARMS[arm].trained):
        for seed in job.config.seeds:
            chosen, dev = chosen_rate(job, arm, seed)
            found.setdefault(arm, {})[seed] = {"chosen": chosen, "dev": dev}
    return found


def _stops(mappers: dict[str, dict[int, Rows]]) -> list[str]:
    return [
        f"Mapper of {name}, seed {seed}: stopped, {row['stop']}."
        for name, by_seed in mappers.items()
        for seed, rows in by_seed.items()
        for row in rows
        if "stop" in row
    ]


def _examples(job: Job, adapted: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The first rows of the first adapted data set, before and after."""
    if not adapted:
        return []
    name, by_seed = next(iter(adapted.items()))
    _, models = job.view(name)
    probed = _on_disk(job, probe_stage(name), "probe")
    sources = {
        row.id: (models.renderer.response_ids(row.solution), known["source_logprobs"])
        for row, known in zip(job.data.train[:EXAMPLES], probed[:EXAMPLES], strict=True)
    }
    return examples(by_seed[job.config.seeds[0]], sources, models.renderer.decode)
