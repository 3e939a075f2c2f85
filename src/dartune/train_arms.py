"""How an arm is trained and evaluated: its rows, its loss, every learning rate of its grid, the best one on dev."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from dartune.adapt import own_stage, preparing, synthesis_stage
from dartune.arm_settings import rates
from dartune.arms import ARMS
from dartune.data.adapted import VIEWS
from dartune.data.rows import open_rows, taken
from dartune.job import Job
from dartune.lab import source as lab
from dartune.progress import follow
from dartune.roster import Meter
from dartune.run import Cost, atomic_write_json, write_jsonl

Pairs = list[tuple[str, str]]


def training_rows(job: Job, arm: str, seed: int) -> tuple[Pairs, str]:
    """(question, solution) rows an arm is fine-tuned on, and the key of the stage they come from."""
    source = ARMS[arm].rows
    if source == "demonstrations":
        return [(row.question, row.solution) for row in job.data.train], job.run.key("data")
    if source == "gold":
        gold = lab.native_solutions(job.config.target.path, job.data.train)
        return [(row.question, row.solution) for row in gold], job.run.key("data")
    if source == "own":
        name = own_stage(seed)
        rows = open_rows(job.run.stage_folder(name) / "rows.jsonl")
        return [(row["question"], text) for row in rows for text in row["solutions"]], job.run.key(name)
    name = synthesis_stage(source, seed)
    wanted = VIEWS[ARMS[arm].view].provenances
    rows = open_rows(job.run.stage_folder(name) / "rows.jsonl")
    rows = taken(rows, np.flatnonzero([row["provenance"] in wanted for row in rows]))
    if share := ARMS[arm].select:
        rows = selected(rows, share)
    pairs = [(row["question"], row["solution"]) for row in rows]
    if ARMS[arm].augment:
        pairs += [(row["question"], text) for row in rows for text in row["alternatives"]]
    return pairs, job.run.key(name)


def selected(rows: Sequence[dict[str, Any]], share: float) -> Sequence[dict[str, Any]]:
    """The adapted rows with the most gain, in their order, up to a share of all tokens.

    Gain is measured per token already, so long and short rows compare as they are.
    """
    facts = [(row["alignment_before"] - row["alignment_after"], len(row["ids"])) for row in rows]
    room = share * sum(tokens for _, tokens in facts)
    chosen = np.zeros(len(rows), bool)
    for index in sorted(range(len(rows)), key=lambda index: facts[index][0]):
        tokens = facts[index][1]
        if tokens <= room:
            room -= tokens
            chosen[index] = True
    return taken(rows, np.flatnonzero(chosen))


def train_stage(arm: str, seed: int, rate: float) -> str:
    return f"train-{arm}-s{seed}-lr{rate:g}"


def train_arm(job: Job, arm: str, seed: int) -> None:
    """Train the target once per learning rate; dev accuracy chooses, alike for every arm."""
    if not ARMS[arm].trained:
        return
    if ARMS[arm].budget:
        _train_directly(job, arm, seed)
    else:
        _fine_tune(job, arm, seed)


def _start(job: Job, arm: str, seed: int) -> tuple[str, str]:
    """Path of the model that an arm starts from, and what identifies it."""
    start = ARMS[arm].start
    if start is None:
        return job.models.target_path, job.models.target_fingerprint
    stage = train_stage(start, seed, chosen_rate(job, start, seed)[0])
    return str(job.run.stage_folder(stage) / "model"), job.run.key(stage)


def _fine_tune(job: Job, arm: str, seed: int) -> None:
    from dartune.train.sft import fine_tune

    rows, source = training_rows(job, arm, seed)
    start, identity = _start(job, arm, seed)
    settings = job.config.sft
    if other := ARMS[arm].trains_as_much_as:
        steps = round(settings.steps * _mean_tokens(job, training_rows(job, other, seed)[0]) / _mean_tokens(job, rows))
        settings = settings.model_copy(update={"steps": max(1, steps)})
    for rate in rates(job.config, arm):
        name = train_stage(arm, seed, rate)
        stage_inputs = {
            "rows": source,
            "target": identity,
            "sft": settings.model_dump(exclude={"learning_rates"}),
            "arm": {key: getattr(ARMS[arm], key) for key in ("rows", "loss", "keep_original", "select", "augment")},
            "learning_rate": rate,
            "seed": seed,
            "max_new_tokens": job.config.evaluate.max_new_tokens,
        }

        def work(out: Path, name: str = name, rate: float = rate) -> Cost:
            if not rows:  # nothing to learn from: the target stays as it is
                return _keep(job, job.models.to_train(start, settings), out)
            with job.progress(settings.steps, name) as progress:
                model, cost = fine_tune(
                    job.models.to_train(start, settings),
                    rows,
                    job.models.renderer,
                    settings,
                    rate,
                    seed,
                    out,
                    loss=ARMS[arm].loss,
                    anchor=job.models.target_engine.model if ARMS[arm].loss == "asft" else None,
                    execution=job.config.execution,
                    on_step=job.tracking.follow(name, out, follow(progress, "loss")),
                )
            return cost + _keep(job, model, out)

        job.run.stage(name, stage_inputs, work)


def _mean_tokens(job: Job, rows: Pairs) -> float:
    return mean(len(job.models.renderer.response_ids(solution)) for _, solution in rows) if rows else 0.0


def _train_directly(job: Job, arm: str, seed: int) -> None:
    from dartune.train.direct_rl import Budget, train_directly

    config = job.config.direct_rl
    start, identity = _start(job, arm, seed)
    spent, times = dart_cost(job, seed), ARMS[arm].times
    tokens = ARMS[arm].budget == "tokens"
    limit = times * (spent.generated_tokens if tokens else spent.seconds)
    budget = Budget(generated_tokens=limit) if tokens else Budget(seconds=limit)
    for rate in rates(job.config, arm):
        name = train_stage(arm, seed, rate)
        stage_inputs = {
            "data": job.run.key("data"),
            "target": identity,
            "direct_rl": config.model_dump(exclude={"learning_rates"}),
            # Tokens are the same in every run of a config, seconds are not: what dart was is what counts.
            "budget": limit if tokens else [times, job.run.key(synthesis_stage("dart", seed))],
            "learning_rate": rate,
            "seed": seed,
            "max_new_tokens": job.config.evaluate.max_new_tokens,
        }

        def work(out: Path, name: str = name, rate: float = rate) -> Cost:
            with job.progress(round(limit), name) as progress:

                def spent(step: int, row: dict[str, Any]) -> None:
                    progress.advance_to(
                        round(row["spent_tokens"] if tokens else row["spent_seconds"]), reward=row["reward"]
                    )

                model, cost = train_directly(
                    job.models.to_train(start, config),
                    job.data.train,
                    job.models.frozen(start),
                    job.models.renderer,
                    job.checker,
                    config,
                    rate,
                    budget,
                    seed,
                    out,
                    execution=job.config.execution,
                    on_step=job.tracking.follow(name, out, spent),
                )
            return cost + _keep(job, model, out)

        job.run.stage(name, stage_inputs, work)


def dart_cost(job: Job, seed: int) -> Cost:
    """What making the data of `dart` and fine-tuning on it (once) took."""
    stages = [*preparing(job, "dart", seed), train_stage("dart", seed, chosen_rate(job, "dart", seed)[0])]
    total = Cost()
    for stage in stages:
        total = total + job.run.cost(stage)
    return replace(total, peak_memory_mb=0.0)


def _keep(job: Job, model: Any, out: Path) -> Cost:
    """Dev accuracy of a trained model, and the model itself, in the stage's folder; what measuring cost."""
    from dartune.stages.evaluate import accuracy, evaluate

    engine = job.models.engine(model)
    meter = Meter(engine)
    limit = job.config.evaluate.max_new_tokens
    dev = evaluate({"dev": job.data.dev}, engine, job.models.renderer, job.checker, limit)
    write_jsonl(out / "dev.jsonl", dev)
    atomic_write_json(out / "dev.json", {"accuracy": accuracy(dev), "n": len(dev)})
    job.models.keep(model, out)
    return meter.cost()


def chosen_rate(job: Job, arm: str, seed: int) -> tuple[float, dict[str, float]]:
    """The learning rate of best dev accuracy (the smaller one of equals), and every rate's accuracy."""
    dev = {}
    for rate in sorted(rates(job.config, arm)):
        folder = job.run.stage_folder(train_stage(arm, seed, rate))
        dev[rate] = json.loads((folder / "dev.json").read_text())["accuracy"]
    best = max(dev, key=lambda rate: (dev[rate], -rate))
    return best, {f"{rate:g}": value for rate, value in dev.items()}


def evaluation_stage(arm: str, seed: int) -> str:
    return f"evaluate-{arm}-s{seed}" if ARMS[arm].trained else f"evaluate-{arm}"


def evaluate_arm(job: Job, arm: str, seed: int) -> None:
    """Solutions of every suite, by the arm's chosen model."""
    from dartune.stages.evaluate import evaluate

    models, name = job.models, evaluation_stage(arm, seed)
    identity, folder = models.target_fingerprint, None
    if ARMS[arm].trained:
        stage = train_stage(arm, seed, chosen_rate(job, arm, seed)[0])
        identity, folder = job.run.key(stage), job.run.stage_folder(stage)
    settings = job.config.evaluate
    stage_inputs = {
        "model": identity,
        "suites": job.data.suites_fingerprint,
        "max_new_tokens": settings.max_new_tokens,
        "samples": settings.samples,
    }

    def work(out: Path) -> Cost:
        engine = models.trained(folder / "model") if folder else models.target_engine
        meter = Meter(engine)
        with job.progress(sum(map(len, job.data.suites.values())), name) as progress:
            records = evaluate(
                job.data.suites,
                engine,
                models.renderer,
                job.checker,
                settings.max_new_tokens,
                samples=settings.samples,
                judge=job.judge,
                progress=progress,
            )
        write_jsonl(out / "records.jsonl", records)
        return meter.cost()

    job.run.stage(name, stage_inputs, work)


def train_stages(job: Job, arm: str, seeds: Sequence[int]) -> list[str]:
    """The stages in which an arm's learning rates were tried."""
    if not ARMS[arm].trained:
        return []
    return [train_stage(arm, seed, rate) for seed in seeds for rate in rates(job.config, arm)]
