"""Probe: what the untouched target makes of the data, before any mapper is trained.

For every demonstration it scores the source and draws the target's own samples. Own samples that
pass the gate set the cap of the gain, the thresholds and one rung of the fallback ladder.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dartune import processes
from dartune.config import RewardConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.data.rows import Rows, Spool, open_rows, write_rows
from dartune.models.engine import COUNTED, Engine, Sample, SampleSpec
from dartune.progress import Progress
from dartune.rewards.alignment import AlignmentScore, Reference, gain_cap, lower_threshold, typical_alignment
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.items import GateThresholds
from dartune.rewards.reward import GatedReward, Scored, alignment_score, response_stats
from dartune.rewards.text import known_names
from dartune.rewards.wording import copied_share, filler_share
from dartune.run import Cost, atomic_write_json
from dartune.stages.references import References

CHUNK, BLOCK = 64, 1024
"""Rows that are sampled at once, and rows that are scored at once and then kept."""
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
    spent: Callable[[], Cost] = Cost,
) -> Cost:
    """Write `probe.jsonl` (one row a demonstration) and `thresholds.json` into `folder`.

    Blocks of rows that an interrupted call left there are kept. `spent` says what the engines spent so far; what all
    calls spent is returned.
    """
    path, score = folder / "probe.jsonl", alignment_score(config)
    own = config.own_samples
    spec = partial(SampleSpec, own, max_new_tokens, 1.0, renderer.stop_ids) if own else None
    thresholds = _first_thresholds(config, prompt)
    with Spool(path if processes.is_first() else None) as spool:
        if len(spool) < len(demonstrations):
            spool.cut(len(spool) // BLOCK * BLOCK)
        done = processes.agreed(len(spool))
        if progress and done:
            progress.advance_to(done)
        for low in range(done, len(demonstrations), BLOCK):
            block, before = list(demonstrations[low : low + BLOCK]), spent()
            pairs = [(renderer.prompt_ids(row.question), renderer.response_ids(row.solution)) for row in block]
            source = response_stats(target, score, pairs)
            prompts = [question for question, _ in pairs]
            drawn = _drawn(prompts, target, spec, seed * 1_000_003 + low, progress)
            rows = _rows(block, [len(solution) for _, solution in pairs], source, drawn, score)
            references = {
                row["id"]: Reference(row["length"], row["source_alignment"], None, row["expected_tokens"])
                for row in rows
            }
            reward = GatedReward(target, renderer, checker, thresholds, references, score=score)
            for row, group in zip(rows, reward(block, drawn), strict=True):
                row["own"] = [_own_row(sample) for sample in group if sample.accepted]
                row["own_correct"] = sum(sample.gates["correct_answer"] for sample in group)
                row["spent"] = {}
            rows[0]["spent"] = {name: getattr(spent(), name) - getattr(before, name) for name in COUNTED}
            for row in rows:
                spool.add(row)
            spool.keep()
    if processes.is_first():
        write_rows(path, _capped(open_rows(path)))
        thresholds = _final_thresholds(config, prompt, demonstrations, open_rows(path))
        atomic_write_json(folder / "thresholds.json", asdict(thresholds) | {"names": sorted(thresholds.names)})
    processes.wait()
    return sum((Cost(**row["spent"]) for row in open_rows(path)), Cost())


def load_probe(folder: Path) -> tuple[Rows[dict[str, Any]], References, GateThresholds]:
    """What `probe` wrote: its rows, a reference per demonstration id, and the thresholds."""
    rows = open_rows(folder / "probe.jsonl")
    saved = json.loads((folder / "thresholds.json").read_text())
    saved |= {"leak_phrases": tuple(saved["leak_phrases"]), "names": frozenset(saved["names"])}
    return rows, References(rows), GateThresholds(**saved)


def _drawn(
    prompts: Sequence[list[int]],
    target: Engine,
    spec: Callable[[int], SampleSpec] | None,
    first: int,
    progress: Progress | None,
) -> list[list[Sample]]:
    """The target's own samples, chunk by chunk; `first` is the seed of the first one."""
    drawn: list[list[Sample]] = []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        drawn += target.generate(chunk, spec(first + start)) if spec else [[] for _ in chunk]
        if progress:
            progress.update(len(chunk))
    return drawn


def _capped(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    typical = typical_alignment(array("d", (own["alignment"] for row in rows for own in row["own"])))
    for row in rows:
        yield row | {"cap": gain_cap(row["source_alignment"], [own["alignment"] for own in row["own"]], typical)}


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
    copied, filler, ratios, lows = array("d"), array("d"), array("d"), array("d")
    for demonstration, row in zip(demonstrations, rows, strict=True):
        question, source = demonstration.question, demonstration.solution
        for text in (source, *(own["text"] for own in row["own"])):
            copied.append(copied_share(question, text))
            filler.append(filler_share(question, source, text))
        lows.extend(own["answer_logprob"] for own in row["own"] if own["answer_logprob"] is not None)
        ratios.extend(
            length / row["expected_tokens"] for length in (row["length"], *(len(o["ids"]) for o in row["own"]))
        )
    thresholds = _first_thresholds(config, prompt)
    thresholds = replace(
        thresholds,
        names=known_names((demonstration.question, demonstration.solution) for demonstration in demonstrations),
        question_copied=max(thresholds.question_copied, float(np.percentile(copied, 99.0))),
        filler=max(thresholds.filler, float(np.percentile(filler, 99.0))),
    )
    if config.answer_logprob is None:
        thresholds = replace(thresholds, answer_logprob=lower_threshold(lows, 1.0, ANSWER_LOGPROB))
    if config.length_band is None:
        low, high = np.percentile(np.asarray(ratios), [1.0, 99.0])
        thresholds = replace(thresholds, length_low=0.5 * float(low), length_high=3.0 * max(1.0, float(high)))
    return thresholds
