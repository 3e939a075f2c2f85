"""Measure a few rows: what the target makes of the demonstrations, and what the untrained mapper makes of them.

The target scores each demonstration and samples its own solutions (the probe of a run); the mapper rewrites each
demonstration several times, and the reward of a run judges the rewrites.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.row_store import write_rows
from dartune.data.run_records import ProbeRow
from dartune.engines.base import Engine, SampleSpec
from dartune.engines.meter import Meter, counters
from dartune.engines.seeds import DIAGNOSIS, sampling_seed
from dartune.rewards.reward import GatedReward, Rewrite, build_reward
from dartune.run.cost import Cost
from dartune.run.progress import Progress
from dartune.stages.mapper_prompt import mapper_prompt, with_examples, worked_examples
from dartune.stages.models import RunModels
from dartune.stages.own_samples import is_verified
from dartune.stages.probe import RAW, finish_probe, first_thresholds, load_probe, raw_rows
from dartune.stages.probe_references import Calibration

CHUNK = 8
"""Rows that are sampled together. Few, so that progress is shown early."""


class MeasuredRewrite(TypedDict):
    """One rewrite of the untrained mapper. Log-probabilities are in nats; one entry per token of `ids`."""

    text: str
    accepted: bool
    failed: list[str]
    hacks: list[str]
    alignment: float
    gain: float
    reward: float
    finish: str
    ids: list[int]
    logprobs: list[float]


class MeasuredRow(TypedDict):
    """One demonstration with what target and mapper make of it."""

    id: str
    question: str
    solution: str
    answer: str | None
    length: int
    prompt_length: int
    alignment: float
    cap: float | None
    tokens: list[int]
    logprobs: list[float]
    own_alignments: list[float]
    own_lengths: list[int]
    """Of the target's solutions that end without a loop, right or wrong."""
    drawn: int
    right: int
    rewrites: list[MeasuredRewrite]


def completions(config: Config, samples: int) -> tuple[int, int, int]:
    """Return how many completions a row takes: own solutions of the probe, further ones, rewrites."""
    own = config.reward.own_samples
    return own, max(0, samples - own), samples


def random_places(total: int, count: int) -> list[int]:
    """Return the places of `count` rows (all, if there are fewer) chosen at random, ascending."""
    return sorted(random.Random(0).sample(range(total), min(count, total)))


def measure(
    data: Sequence[Demonstration],
    places: Sequence[int],
    config: Config,
    models: RunModels,
    mapper: Engine,
    checker: AnswerChecker,
    samples: int,
    folder: Path,
    *,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> tuple[list[MeasuredRow], GatedReward, Cost]:
    """Probe some rows of `data` and rewrite them.

    Args:
        places: of the rows in the data.
        samples: rewrites per row, and solutions of the target per row (at least `reward.own_samples`).
        folder: receives the probe's files.
        progress: counts completions, of which a row takes the sum of `completions`.
        calibration: of a finished run; None measures it on these rows.

    Returns:
        The rows, the reward that judged them, and what was spent.
    """
    rows = [data[place] for place in places]
    target, renderer, settings = models.target_engine, models.renderer, config.mapper
    meter, (own, further, rewrites) = Meter(target, mapper), completions(config, samples)
    raw = raw_rows(
        rows,
        places,
        target,
        renderer,
        checker,
        config.reward,
        first_thresholds(config.reward, settings.prompt),
        settings.max_new_tokens,
        0,
        progress,
        own,
    )
    raw[0]["spent"] = counters(meter.cost())
    if distributed.is_main():
        for name in (RAW, "probe.jsonl"):
            write_rows(folder / name, raw)
    finish_probe(rows, config.reward, settings.prompt, folder, calibration)
    probed, references, thresholds = load_probe(folder, calibration)
    reward = build_reward(config.reward, target, renderer, checker, thresholds, references)
    prompt = with_examples(settings.prompt, worked_examples(rows, probed, settings.examples))
    measured: list[MeasuredRow] = []
    for low in range(0, len(rows), CHUNK):
        chunk = list(rows[low : low + CHUNK])
        if progress:
            progress.begin(len(chunk) * (further + rewrites), calls=2 if further else 1)
        seed = sampling_seed(0, low, DIAGNOSIS)
        more = _own_samples(chunk, config, models, reward, further, seed)
        spec = SampleSpec(samples, settings.max_new_tokens, settings.temperature, renderer.stop_ids, seed)
        groups = mapper.generate([renderer.prompt_ids(mapper_prompt(prompt, row)) for row in chunk], spec)
        finishes = [[sample.finish for sample in group] for group in groups]
        for index, (row, scored) in enumerate(zip(chunk, reward(chunk, groups), strict=True)):
            measured.append(_row(row, probed[low + index], more[index], scored, finishes[index], models.renderer))
        if progress:
            done = [item for row in measured for item in row["rewrites"]]
            accepted = sum(item["accepted"] for item in done) / max(1, len(done))
            progress.update(len(chunk) * (further + rewrites), accepted=accepted)
    return measured, reward, meter.cost()


def _own_samples(
    chunk: Sequence[Demonstration], config: Config, models: RunModels, reward: GatedReward, count: int, seed: int
) -> list[list[Rewrite]]:
    """More solutions of the target than the probe sampled, so that pass@k can be estimated."""
    if count <= 0:
        return [[] for _ in chunk]
    spec = SampleSpec(
        count, config.mapper.max_new_tokens, config.reward.own_temperature, models.renderer.stop_ids, seed
    )
    prompts = [models.renderer.prompt_ids(row.question) for row in chunk]
    return reward(chunk, models.target_engine.generate(prompts, spec))


def _row(
    row: Demonstration,
    probed: ProbeRow,
    more: Sequence[Rewrite],
    rewrites: Sequence[Rewrite],
    finishes: Sequence[str],
    renderer: Renderer,
) -> MeasuredRow:
    finished = [item for item in more if item.gates["finished"] and item.gates["no_loop"]]
    return {
        "id": row.id,
        "question": row.question,
        "solution": row.solution,
        "answer": row.answer,
        "length": probed["length"],
        "prompt_length": len(renderer.prompt_ids(row.question)),
        "alignment": probed["source_alignment"],
        "cap": probed["cap"],
        "tokens": list(renderer.response_ids(row.solution)),
        "logprobs": list(probed["source_logprobs"]),
        "own_alignments": [sample["alignment"] for sample in probed["style"]] + [item.alignment for item in finished],
        "own_lengths": [sample["tokens"] for sample in probed["style"]] + [len(item.ids) for item in finished],
        "drawn": probed["drawn"] + len(more),
        "right": probed["own_correct"] + sum(is_verified(row, item.gates) for item in more),
        "rewrites": [
            {
                "text": item.text,
                "accepted": item.accepted,
                "failed": item.failed,
                "hacks": list(item.hacks),
                "alignment": item.alignment,
                "gain": item.gain,
                "reward": item.reward,
                "finish": finish,
                "ids": list(item.ids),
                "logprobs": [round(value, 4) for value in item.logprobs],
            }
            for item, finish in zip(rewrites, finishes, strict=True)
        ],
    }
