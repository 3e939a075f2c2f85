"""How an adapted data set is made: the target is probed, the mapper trained, every demonstration rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from dartune.arm_settings import rollouts
from dartune.arms import ADAPTATIONS, tagged
from dartune.config import Config, MapperConfig
from dartune.errors import InputError
from dartune.inputs import data_name, model_name
from dartune.job import Job
from dartune.progress import Progress, follow
from dartune.roster import Meter
from dartune.run import Cost, read_json

STUCK_STEPS = 3
"""After this many first steps with equal rewards a line is logged."""
EMPTY_STEPS = 5
"""After this many first steps without a rewrite that passes the run stops: there is nothing to learn from."""


def probe_stage(adaptation: str) -> str:
    return tagged("probe", adaptation if ADAPTATIONS[adaptation].own_probe else "dart")


def mapper_stage(adaptation: str, seed: int) -> str:
    return f"{tagged('mapper', adaptation)}-s{seed}"


def synthesis_stage(adaptation: str, seed: int) -> str:
    return f"{tagged('synthesise', adaptation)}-s{seed}"


def warmup_stage(adaptation: str) -> str:
    return tagged("warmup", adaptation if ADAPTATIONS[adaptation].other_target else "dart")


def preparing(job: Job, adaptation: str, seed: int) -> list[str]:
    """The stages that make an adapted data set."""
    warmed = [warmup_stage(adaptation)] if job.config.mapper.format_steps else []
    trained = [mapper_stage(adaptation, seed)] if ADAPTATIONS[adaptation].trained else []
    return [probe_stage(adaptation), *warmed, *trained, synthesis_stage(adaptation, seed)]


def probe(job: Job, adaptation: str) -> None:
    """What the untouched target makes of the demonstrations: references, thresholds, own samples."""
    from dartune.stages.probe import probe

    config, models = job.view(adaptation)
    stage_inputs = {
        "data": job.run.key("data"),
        "target": models.target_fingerprint,
        "reward": config.reward.model_dump(),
        "prompt": config.mapper.prompt,
        "max_new_tokens": config.mapper.max_new_tokens,
    }

    def work(out: Path) -> Cost:
        meter = Meter(models.target_engine)
        with job.progress(len(job.data.train), probe_stage(adaptation)) as progress:
            return probe(
                job.data.train,
                models.target_engine,
                models.renderer,
                job.checker,
                config.reward,
                config.mapper.prompt,
                config.mapper.max_new_tokens,
                0,
                out,
                progress,
                meter.cost,
            )

    job.run.stage(probe_stage(adaptation), stage_inputs, work)


def own_stage(seed: int) -> str:
    return f"own-samples-s{seed}"


def sample_own(job: Job, seed: int) -> None:
    """The target's own right solutions, from as many samples as `dart` spends."""
    from dartune.stages.own_samples import sample_own
    from dartune.stages.probe import load_probe

    config, models = job.config, job.models
    name, samples = own_stage(seed), rollouts(config, len(job.data.train))
    limit, temperature = config.mapper.max_new_tokens, config.reward.own_temperature
    stage_inputs = {
        "probe": job.run.key(probe_stage("dart")),
        "samples": samples,
        "temperature": temperature,
        "max_new_tokens": limit,
        "seed": seed,
    }

    def work(out: Path) -> Cost:
        _, _, thresholds = load_probe(job.run.stage_folder(probe_stage("dart")))
        meter = Meter(models.target_engine)
        with job.progress(len(job.data.train), name) as progress:
            return sample_own(
                job.data.train,
                models.target_engine,
                models.renderer,
                job.checker,
                thresholds,
                samples,
                temperature,
                limit,
                seed,
                out / "rows.jsonl",
                progress,
                meter.cost,
            )

    job.run.stage(name, stage_inputs, work)


def _reward(job: Job, adaptation: str):
    """The probe's rows, and the reward that stands on them."""
    from dartune.rewards.reward import build_reward
    from dartune.stages.probe import load_probe

    config, models = job.view(adaptation)
    rows, references, thresholds = load_probe(job.run.stage_folder(probe_stage(adaptation)))
    target, renderer = models.target_engine, models.renderer
    return rows, build_reward(config.reward, target, renderer, job.checker, thresholds, references)


def mapper_settings(job: Job, adaptation: str) -> MapperConfig:
    """The config's `mapper`, with the worked examples that it asks for in front of its request."""
    from dartune.stages.probe import load_probe
    from dartune.train.mapper import with_examples, worked_examples

    mapper = job.view(adaptation)[0].mapper
    if not mapper.examples:
        return mapper
    rows, _, _ = load_probe(job.run.stage_folder(probe_stage(adaptation)))
    shown = worked_examples(job.data.train, rows, mapper.examples)
    if len(shown) < mapper.examples:
        job.run.log(
            f"mapper.examples: {len(shown)} of {mapper.examples} worked examples, for the target solved no more rows"
        )
    return mapper.model_copy(update={"prompt": with_examples(mapper.prompt, shown)})


def warm_up(job: Job, adaptation: str) -> None:
    """Teach the mapper's start the form of a rewrite, once for all adaptations that start from it."""
    from dartune.stages.format_warmup import described, warm_up

    config, models = job.view(adaptation)
    name = warmup_stage(adaptation)
    if not config.mapper.format_steps or models.mapper_path == str(job.run.stage_folder(name) / "model"):
        return
    stage_inputs = {
        "probe": job.run.key(probe_stage(adaptation)),
        "sft": config.sft.model_dump(),
        "mapper": config.mapper.model_dump(
            include={"prompt", "examples", "group_size", "max_new_tokens", "temperature"}
        ),
        "format_steps": config.mapper.format_steps,
        "start": models.mapper_fingerprint,
    }

    def work(out: Path) -> Cost:
        probed, reward = _reward(job, adaptation)
        meter = Meter(models.start_engine, models.target_engine)
        model, cost = warm_up(
            models.to_train(models.mapper_path, config.sft),
            job.data.train,
            probed,
            models.start_engine,
            reward,
            models.renderer,
            mapper_settings(job, adaptation),
            config.sft,
            out,
            config.execution,
        )
        models.keep(model, out)
        job.run.log(f"{name}: {described(read_json(out / 'examples.json'))}")
        return cost + meter.cost()

    folder = job.run.stage(name, stage_inputs, work)
    models.start_from(folder / "model", job.run.key(name))


def train_mapper(job: Job, adaptation: str, seed: int) -> None:
    """Reinforcement learning of the mapper against the frozen target; nothing where the start is taken as it is."""
    if not ADAPTATIONS[adaptation].trained:
        return
    from dartune.stages.gold_probe import GoldProbe
    from dartune.train.mapper import train_mapper

    config, models = job.view(adaptation)
    name = mapper_stage(adaptation, seed)
    stage_inputs = {
        "probe": job.run.key(probe_stage(adaptation)),
        "sft": config.sft.model_dump() if config.mapper.probe_every else None,
        "mapper": config.mapper.model_dump(),
        "start": models.mapper_fingerprint,
        "seed": seed,
    }

    def work(out: Path) -> Cost:
        _, reward = _reward(job, adaptation)
        data = job.data
        target_copy = partial(models.to_train, models.target_path, config.sft)
        settings = mapper_settings(job, adaptation)
        asking = config.model_copy(update={"mapper": settings})
        for limit in reward.limits():
            job.run.log(limit)
        probe = GoldProbe(asking, target_copy, data.train, data.dev, reward, models.renderer, job.checker)
        with job.progress(config.mapper.steps, name) as progress:
            model, cost = train_mapper(
                models.mapper_to_train(),
                data.train,
                reward,
                models.start_engine,
                models.renderer,
                settings,
                seed,
                out,
                describe=job.describe,
                probe=probe,
                policy=partial(models.policy, stage_folder=out),
                execution=config.execution,
                on_step=job.tracking.follow(name, out, watched(job.run.log, progress, out)),
            )
        models.keep(model, out)
        return cost

    job.run.stage(name, stage_inputs, work)


def watched(say: Callable[[str], None], progress: Progress, folder: Path) -> Callable[[int, dict[str, Any]], None]:
    """A step callback that follows the progress, says once when the first steps have equal rewards, and stops the run
    when no rewrite passes.

    `folder` is the stage's, where samples can be read.
    """
    shown = follow(progress, "reward", "gate_pass", "alignment_after")
    first: list[dict[str, Any]] = []

    def step_done(step: int, row: dict[str, Any]) -> None:
        shown(step, row)
        if len(first) == EMPTY_STEPS:
            return
        first.append(row)
        if len(first) == STUCK_STEPS and all(one["zero_variance"] == 1 for one in first):
            say(f"All rewards were equal in the first {STUCK_STEPS} steps: no gradient signal. {_why(first, folder)}")
        if len(first) == EMPTY_STEPS and not any(one["gate_pass"] for one in first):
            raise InputError(
                f"no rewrite passed the gates in {EMPTY_STEPS} steps of mapper training", _advice(first, folder)
            )

    return step_done


def _why(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    if any(row["gate_pass"] for row in rows):
        return (
            "Rewrites pass the gates, but none is worth more than its demonstration to the target: the mapper's start "
            "does not write as the target does. Take one that does (mapper.path: null is the target itself)."
        )
    return "No rewrite passes the gates: " + "; ".join(_advice(rows, folder))


def _advice(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """What the rewrites fail, where they can be read, and what helps."""
    failing = {gate: mean(1 - row["gates"][gate] for row in rows) for gate in rows[0]["gates"]}
    worst = [gate for gate in sorted(failing, key=failing.__getitem__, reverse=True) if failing[gate]][:3]
    return [
        f"failed most: {', '.join(f'{gate} ({failing[gate]:.0%})' for gate in worst)}",
        f"read some rewrites in {folder / 'samples.jsonl'}",
        "a small model rambles at temperature 1: try mapper.temperature: 0.5",
        "a model that does not follow requests needs a warm-up (mapper.format_steps: 50) or examples "
        "(mapper.examples: 3)",
        "rewrites that are cut need more mapper.max_new_tokens",
    ]


def _model_names(config: Config) -> dict[str, str]:
    """Target and mapper start for a card that may be published: without paths of this machine."""
    paths = {"target": config.target.path, "mapper": config.mapper.path or config.target.path}
    return {what: model_name(path, is_folder=Path(path).expanduser().is_dir()) for what, path in paths.items()}


def synthesise(job: Job, adaptation: str, seed: int) -> None:
    """The adapted data set: `rows.jsonl` with everything, `adapted/` to publish and train on."""
    from dartune.data.adapted import accounting, write_adapted
    from dartune.stages.synthesise import synthesis_cost, synthesise

    config, models = job.view(adaptation)
    trained, name = ADAPTATIONS[adaptation].trained, synthesis_stage(adaptation, seed)
    mapper = mapper_stage(adaptation, seed)
    stage_inputs = {
        "mapper": job.run.key(mapper) if trained else [models.mapper_fingerprint, job.run.key(probe_stage(adaptation))],
        "synthesise": config.synthesise.model_dump(),
        "seed": seed,
    }

    def work(out: Path) -> Cost:
        probed, reward = _reward(job, adaptation)
        writing = models.mapper(job.run.stage_folder(mapper) / "model") if trained else nullcontext(models.start_engine)
        with writing as writer, job.progress(len(job.data.train), name) as progress:
            meter = Meter(writer, models.target_engine)
            rows = synthesise(
                job.data.train,
                probed,
                writer,
                models.target_engine,
                reward,
                models.renderer,
                config.synthesise,
                mapper_settings(job, adaptation).prompt,
                config.mapper.max_new_tokens,
                seed,
                out / "rows.jsonl",
                progress,
                meter.cost,
            )
        note = {"run": config.name, "data": data_name(config.data.path), **_model_names(config), "seed": seed}
        accounting(rows, len(job.data.train))
        chat = models.renderer.template is not None
        write_adapted(
            out / "adapted", rows, provenance_note=note, chat=chat, system_prompt=models.renderer.system_prompt
        )
        return synthesis_cost(rows)

    job.run.stage(name, stage_inputs, work)
