"""Probe: what the untouched target makes of the data, before any mapper is trained.

For every demonstration it scores the source and draws the target's own samples. Own samples that
pass the gate set the cap of the gain, the thresholds and one rung of the fallback ladder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from dartune.config import RewardConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample, SampleSpec
from dartune.progress import Progress
from dartune.rewards.alignment import MIN_VERIFIED, AlignmentScore, Reference, gain_caps, lower_threshold
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.items import GateThresholds
from dartune.rewards.reward import GatedReward, Scored, alignment_score, response_stats
from dartune.rewards.text import known_names
from dartune.rewards.wording import copied_share, filler_share
from dartune.run import atomic_write_json, read_jsonl, write_jsonl

CHUNK = 64
ANSWER_LOGPROB = float(np.log(0.5))
"""The answer must be at least this likely after the reasoning, unless the target's own verified samples are laxer."""


def probe(
    demonstrations: Sequence[Demonstration],
    target: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    config: RewardConfig,
    prompt: str,
    max_new_tokens: int,
    seed: int,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Write `probe.jsonl` (one row a demonstration) and `thresholds.json` into `folder`."""
    lengths = [len(renderer.response_ids(d.solution)) for d in demonstrations]
    pairs = [(renderer.prompt_ids(d.question), renderer.response_ids(d.solution)) for d in demonstrations]
    score = alignment_score(config)
    source = response_stats(target, score, pairs)
    drawn: list[list[Sample]] = []
    for start in range(0, len(demonstrations), CHUNK):
        chunk = demonstrations[start : start + CHUNK]
        prompts = [renderer.prompt_ids(d.question) for d in chunk]
        if config.own_samples:
            spec = SampleSpec(config.own_samples, max_new_tokens, 1.0, (renderer.end_id,), seed * 1_000_003 + start)
            drawn += target.generate(prompts, spec)
        else:
            drawn += [[] for _ in chunk]
        if progress:
            progress.update(len(chunk))
    rows = _rows(demonstrations, lengths, source, drawn, score)
    thresholds = _first_thresholds(config, prompt)
    references = {
        row["id"]: Reference(row["length"], row["source_alignment"], None, row["expected_tokens"]) for row in rows
    }
    scored = GatedReward(target, renderer, checker, thresholds, references, score=score)(demonstrations, drawn)
    for row, group in zip(rows, scored, strict=True):
        row["own"] = [_own_row(sample) for sample in group if sample.accepted]
        row["own_correct"] = sum(sample.gates["correct_answer"] for sample in group)
    caps = gain_caps([r["source_alignment"] for r in rows], [[o["alignment"] for o in r["own"]] for r in rows])
    for row, cap in zip(rows, caps, strict=True):
        row["cap"] = cap
    thresholds = _final_thresholds(config, prompt, demonstrations, rows)
    write_jsonl(folder / "probe.jsonl", rows)
    atomic_write_json(folder / "thresholds.json", asdict(thresholds) | {"names": sorted(thresholds.names)})


def load_probe(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Reference], GateThresholds]:
    """What `probe` wrote: its rows, a reference per demonstration id, and the thresholds."""
    rows = read_jsonl(folder / "probe.jsonl")
    own = {row["id"]: sorted(mean(one["logprobs"]) for one in row["own"]) for row in rows}
    everyones = tuple(sorted(value for values in own.values() for value in values))
    references = {
        row["id"]: Reference(
            row["length"],
            row["source_alignment"],
            row["cap"],
            row["expected_tokens"],
            tuple(own[row["id"]]) if len(own[row["id"]]) >= MIN_VERIFIED else everyones,
        )
        for row in rows
    }
    saved = json.loads((folder / "thresholds.json").read_text())
    saved |= {"leak_phrases": tuple(saved["leak_phrases"]), "names": frozenset(saved["names"])}
    return rows, references, GateThresholds(**saved)


def _rows(demonstrations, lengths, source, drawn, score: AlignmentScore) -> list[dict[str, Any]]:
    rows = []
    for demonstration, length, tokens, group in zip(demonstrations, lengths, source, drawn, strict=True):
        own = [len(sample.ids) for sample in group if sample.finish == "stop"]
        rows.append(
            {
                "id": demonstration.id,
                "length": length,
                "source_alignment": score(tokens, Reference(length, 0.0, None, length)),
                "source_logprobs": [round(value, 4) for value in tokens.logprobs],
                "expected_tokens": max(length, int(median(own)) if own else 0),
            }
        )
    return rows


def _own_row(sample: Scored) -> dict[str, Any]:
    """A verified own sample."""
    return {
        "text": sample.text,
        "ids": list(sample.ids),
        "logprobs": [round(value, 4) for value in sample.logprobs],
        "alignment": sample.alignment,
        "answer_logprob": sample.answer_logprob,
        "gates": sample.gates,
    }


def _first_thresholds(config: RewardConfig, prompt: str) -> GateThresholds:
    """Thresholds to verify own samples with, before there are percentiles to take them from."""
    low, high = config.length_band or (0.0, float("inf"))
    return GateThresholds(
        quantity_coverage=config.quantity_coverage,
        entity_coverage=config.entity_coverage,
        answer_logprob=config.answer_logprob if config.answer_logprob is not None else float("-inf"),
        length_low=low,
        length_high=high,
        max_repeats=config.max_repeats,
        leak_phrases=tuple(config.leak_phrases),
        instruction=prompt.replace("{question}", " ").replace("{solution}", " "),
    )


def _final_thresholds(
    config: RewardConfig, prompt: str, demonstrations: Sequence[Demonstration], rows: Sequence[dict[str, Any]]
) -> GateThresholds:
    """Where the lines are drawn: percentiles of the originals and of the target's own verified samples."""
    thresholds = _first_thresholds(config, prompt)
    honest = [
        (demonstration, text)
        for demonstration, row in zip(demonstrations, rows, strict=True)
        for text in (demonstration.solution, *(own["text"] for own in row["own"]))
    ]
    copied = [copied_share(demonstration.question, text) for demonstration, text in honest]
    filler = [filler_share(demonstration.question, demonstration.solution, text) for demonstration, text in honest]
    thresholds = replace(
        thresholds,
        names=known_names((demonstration.question, demonstration.solution) for demonstration in demonstrations),
        question_copied=max(thresholds.question_copied, float(np.percentile(copied, 99.0))),
        filler=max(thresholds.filler, float(np.percentile(filler, 99.0))),
    )
    if config.answer_logprob is None:
        lows = [own["answer_logprob"] for row in rows for own in row["own"] if own["answer_logprob"] is not None]
        thresholds = replace(thresholds, answer_logprob=lower_threshold(lows, 1.0, ANSWER_LOGPROB))
    if config.length_band is None:
        ratios = [row["length"] / row["expected_tokens"] for row in rows]
        ratios += [len(own["ids"]) / row["expected_tokens"] for row in rows for own in row["own"]]
        low, high = np.percentile(np.asarray(ratios), [1.0, 99.0])
        thresholds = replace(thresholds, length_low=0.5 * float(low), length_high=3.0 * max(1.0, float(high)))
    return thresholds
