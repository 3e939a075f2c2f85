"""Stage: probe. The untouched target scores every demonstration and samples its own solutions.

Samples that finish without a loop show the target's style, right or wrong: the cap of the gain, percentiles and lengths
come from them. Those with the right answer are verified: they are a fallback at synthesis, and the thresholds of gates
come from them.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.schema import RewardConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.row_store import Rows, RowWriter, open_rows, write_rows
from dartune.data.run_records import OwnSample, ProbeRow, StyleSample
from dartune.engines.base import Engine, Sample, SampleSpec, TokenStats
from dartune.engines.meter import Meter, counters
from dartune.engines.seeds import PROBE, sampling_seed
from dartune.errors import counted
from dartune.gates.gate_input import GateThresholds
from dartune.gates.wording import copied_share, filler_share
from dartune.rewards.alignment import AlignmentScore, Reference, gain_cap, style_means, typical_alignment
from dartune.rewards.references import source_answer, source_stats
from dartune.rewards.reward import GatedReward, Rewrite, alignment_score
from dartune.rewards.thresholds import gate_thresholds
from dartune.run.cost import Cost
from dartune.run.files import atomic_write_json
from dartune.run.progress import Progress
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.names import DIAGNOSIS, probe_stage
from dartune.stages.own_samples import is_verified
from dartune.stages.probe_references import Calibration, References, median_tokens, recorded_typical_alignment
from dartune.text.features import known_names

RAW = "raw.jsonl"
"""File of raw rows that a diagnosis leaves for the probe."""
CHUNK, BLOCK = 64, 1024
"""Rows that are sampled together, and rows that are scored together and then written. `CHUNK` is part of the sampling
seeds; an interrupted probe loses at most a block."""
RawRow = dict[str, Any]
RawSample = dict[str, Any]
"""Rows as they are written first: with all token statistics, which alignments need the samples of all rows for."""


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
    calibration: Calibration | None = None,
    measured: Mapping[str, RawRow] | None = None,
    block_rows: int | None = None,
) -> Cost:
    """Write `probe.jsonl` (one `ProbeRow` per demonstration) and `thresholds.json` into `folder`.

    Blocks of rows that an interrupted call left there are kept.

    Args:
        spent: returns what the engines have spent so far.
        calibration: of an earlier probe; None: measured on these rows.
        measured: raw rows by id that `raw_rows` returned before for the same settings; they are not measured again.
        block_rows: a multiple of `CHUNK` to use in the place of `BLOCK`; samples do not depend on it.

    Returns:
        What all calls together spent.
    """
    path, measured, block_rows = folder / "probe.jsonl", measured or {}, block_rows or BLOCK
    thresholds = first_thresholds(config, prompt)
    with RowWriter(path if distributed.is_main() else None) as spool:
        if len(spool) < len(demonstrations):
            spool.cut(len(spool) // block_rows * block_rows)
        done = distributed.broadcast(len(spool))
        if progress and done:
            progress.advance_to(done)
        for low in range(done, len(demonstrations), block_rows):
            block, before = list(demonstrations[low : low + block_rows]), spent()
            places = [(low + index, row) for index, row in enumerate(block) if row.id not in measured]
            new = raw_rows(
                [row for _, row in places],
                [place for place, _ in places],
                target,
                renderer,
                checker,
                config,
                thresholds,
                max_new_tokens,
                seed,
                progress,
            )
            by_id = {row["id"]: row for row in new}
            rows = [by_id.get(row.id) or measured[row.id] for row in block]
            earlier = sum((Cost(**row["spent"]) for row in rows), Cost())
            rows = [row | {"spent": {}} for row in rows]
            rows[0]["spent"] = counters(spent() - before + earlier)
            for row in rows:
                spool.add(row)
            spool.keep()
            if progress and len(new) < len(block):
                progress.update(len(block) - len(new))
    finish_probe(demonstrations, config, prompt, folder, calibration)
    return sum((Cost(**row["spent"]) for row in open_rows(path)), Cost())


def raw_rows(
    rows: Sequence[Demonstration],
    places: Sequence[int],
    target: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    config: RewardConfig,
    thresholds: GateThresholds,
    max_new_tokens: int,
    seed: int,
    progress: Progress | None = None,
    weight: int = 1,
) -> list[RawRow]:
    """What the target makes of `rows`, before alignments, which need the samples of all rows.

    Args:
        places: of the rows in the data. They decide the seeds, so the samples of a row do not depend on which other
            rows are measured with it.
        thresholds: of the gates that judge the target's own samples.
        weight: what a row counts in `progress`.
    """
    if not rows:
        return []
    score, own = alignment_score(config), config.own_samples
    pairs = [(renderer.prompt_ids(row.question), renderer.response_ids(row.solution)) for row in rows]
    source = source_stats(target, renderer, rows, score)
    seeds = [sampling_seed(seed, place // CHUNK * CHUNK, PROBE) for place in places]
    references = {
        row.id: Reference(len(solution), 0.0, None, len(solution))
        for row, (_, solution) in zip(rows, pairs, strict=True)
    }
    reward = GatedReward(target, renderer, checker, thresholds, references, score=score, at_temperature=False)
    raw: list[RawRow] = []
    for start in range(0, len(rows), CHUNK):
        chunk = slice(start, start + CHUNK)
        prompts = [question for question, _ in pairs[chunk]]
        if progress:
            progress.begin(len(prompts) * weight)
        spec = partial(SampleSpec, own, max_new_tokens, config.own_temperature, renderer.stop_ids)
        samples = target.generate(prompts, spec(tuple(seeds[chunk]))) if own else [[] for _ in prompts]
        scored = reward(rows[chunk], samples)
        raw += [
            _raw_row(renderer, *each)
            for each in zip(rows[chunk], pairs[chunk], source[chunk], samples, scored, strict=True)
        ]
        if progress:
            drawn = sum(row["drawn"] for row in raw)
            figures = {"own_correct": sum(row["own_correct"] for row in raw) / drawn} if drawn else {}
            progress.update(len(prompts) * weight, **figures)
    return raw


def finish_probe(
    demonstrations: Sequence[Demonstration],
    config: RewardConfig,
    prompt: str,
    folder: Path,
    calibration: Calibration | None = None,
) -> None:
    """Add alignments to the raw rows in `probe.jsonl`, and write `thresholds.json`; see `probe`."""
    path = folder / "probe.jsonl"
    if distributed.is_main():
        if not _is_complete(open_rows(path)):
            write_rows(path, _aligned(open_rows(path), alignment_score(config), calibration))
        if calibration is None:
            thresholds = _final_thresholds(config, prompt, demonstrations, open_rows(path))
        else:
            thresholds = calibration.thresholds
        atomic_write_json(folder / "thresholds.json", asdict(thresholds) | {"names": sorted(thresholds.names)})
    distributed.barrier()


def load_probe(
    folder: Path, calibration: Calibration | None = None
) -> tuple[Rows[ProbeRow], References, GateThresholds]:
    """What `probe` wrote: its rows, a reference per demonstration id, and the thresholds.

    Args:
        calibration: the one that `probe` was called with.
    """
    rows = open_rows(folder / "probe.jsonl")
    saved = json.loads((folder / "thresholds.json").read_text())
    saved |= {"leak_phrases": tuple(saved["leak_phrases"]), "names": frozenset(saved["names"])}
    return rows, References(rows, calibration.style if calibration else None), GateThresholds(**saved)


def load_calibration(folder: Path) -> Calibration:
    """What the probe in `folder` measured over all of its rows."""
    rows, references, thresholds = load_probe(folder)
    lengths = array("q", (sample["tokens"] for row in rows for sample in row["style"]))
    return Calibration(thresholds, references.pooled, median_tokens(lengths), recorded_typical_alignment(rows))


def _raw_row(
    renderer: Renderer,
    row: Demonstration,
    pair: tuple[Sequence[int], Sequence[int]],
    source: TokenStats,
    drawn: Sequence[Sample],
    scored: Sequence[Rewrite],
) -> RawRow:
    """What the target makes of one row, before alignments, which need the samples of all rows."""
    style = [item for item in scored if item.gates["finished"] and item.gates["no_loop"]]
    return {
        "id": row.id,
        "length": len(pair[1]),
        "source": _rounded(source),
        "source_answer": source_answer(row, source.logprobs, renderer),
        "samples": [_raw_sample(row, item, verified=is_verified(row, item.gates)) for item in style],
        "drawn": len(drawn),
        "own_correct": sum(is_verified(row, item.gates) for item in scored),
        "spent": {},
    }


def _raw_sample(row: Demonstration, item: Rewrite, *, verified: bool) -> RawSample:
    """A finished sample without a loop; the text is kept of verified ones."""
    wording = {
        "copied": copied_share(row.question, item.text),
        "filler": filler_share(row.question, row.solution, item.text),
    }
    verified_fields = {
        "text": item.text,
        "ids": list(item.ids),
        "answer_logprob": item.answer_logprob,
        "gates": item.gates,
    }
    return {"verified": verified, "stats": _rounded(item.stats), **wording, **(verified_fields if verified else {})}


def _rounded(stats: TokenStats) -> dict[str, list[Any]]:
    names = ("logprobs", "entropies", "ranks")
    numbers: dict[str, list[Any]] = {name: [round(value, 4) for value in getattr(stats, name)] for name in names}
    return numbers | {"content": list(stats.content)}


def _stats(rounded: dict[str, list[Any]]) -> TokenStats:
    return TokenStats(**{name: tuple(values) for name, values in rounded.items()})


def _is_complete(rows: Sequence[RawRow]) -> bool:
    """Whether the rows have their alignments."""
    return not len(rows) or "cap" in rows[0]


def _aligned(rows: Sequence[RawRow], score: AlignmentScore, calibration: Calibration | None) -> Iterator[ProbeRow]:
    """The rows with alignments and caps: a score may compare with own samples of all rows, so these are read first."""
    means = [array("d", sorted(mean(s["stats"]["logprobs"]) for s in row["samples"])) for row in rows]
    pooled = array("d", np.sort(np.concatenate(means))) if means else array("d")
    pooled = calibration.style if calibration else pooled
    expected = list(_expected_tokens(rows, calibration))
    measured: list[tuple[float, list[float]]] = []
    for row, own, tokens in zip(rows, means, expected, strict=True):
        reference = Reference(row["length"], 0.0, None, tokens, style_means(own, pooled))
        source = score(_stats(row["source"]), reference)
        measured.append((source, [score(_stats(sample["stats"]), reference) for sample in row["samples"]]))
    own_alignments = array("d", (value for _, values in measured for value in values))
    typical = calibration.typical_alignment if calibration else typical_alignment(own_alignments)
    for row, tokens, (source, values) in zip(rows, expected, measured, strict=True):
        samples = zip(row["samples"], values, strict=True)
        yield {
            "id": row["id"],
            "length": row["length"],
            "expected_tokens": tokens,
            "source_alignment": source,
            "source_logprobs": row["source"]["logprobs"],
            "source_answer": row["source_answer"],
            "cap": gain_cap(source, values, typical),
            "style": [_style(sample, value) for sample, value in zip(row["samples"], values, strict=True)],
            "own": [_own_row(sample, value) for sample, value in samples if sample["verified"]],
            "drawn": row["drawn"],
            "own_correct": row["own_correct"],
            "spent": row["spent"],
        }


def _expected_tokens(rows: Sequence[RawRow], calibration: Calibration | None = None) -> Iterator[int]:
    """What the length gate compares a row's rewrites with: the longer of the source and the target's own solutions.

    A row without finished samples takes the median of all rows: beside a terse demonstration every rewrite in the
    target's own words would be too long.
    """
    lengths = [[len(sample["stats"]["logprobs"]) for sample in row["samples"]] for row in rows]
    every = array("q", (tokens for own in lengths for tokens in own))
    typical = calibration.typical_tokens if calibration else median_tokens(every)
    for row, own in zip(rows, lengths, strict=True):
        yield max(row["length"], int(median(own)) if own else typical)


def _style(sample: RawSample, alignment: float) -> StyleSample:
    """What is kept of every finished sample."""
    logprobs = sample["stats"]["logprobs"]
    return {
        "alignment": alignment,
        "mean_logprob": mean(logprobs),
        "tokens": len(logprobs),
        "copied": sample["copied"],
        "filler": sample["filler"],
    }


def _own_row(sample: RawSample, alignment: float) -> OwnSample:
    """A verified own sample."""
    return {
        "text": sample["text"],
        "ids": sample["ids"],
        "answer_logprob": sample["answer_logprob"],
        "gates": sample["gates"],
        "logprobs": sample["stats"]["logprobs"],
        "alignment": alignment,
    }


def first_thresholds(config: RewardConfig, prompt: str) -> GateThresholds:
    """Thresholds for the own samples, which the measured thresholds come from: these reject none of them."""
    thresholds = gate_thresholds(config, prompt)
    if config.answer_logprob is None:
        thresholds = replace(thresholds, answer_logprob=float("-inf"))
    return replace(thresholds, length_low=0.0, length_high=float("inf"))


def _final_thresholds(
    config: RewardConfig, prompt: str, demonstrations: Sequence[Demonstration], rows: Sequence[ProbeRow]
) -> GateThresholds:
    """Thresholds from percentiles of the demonstrations and of the target's own finished samples; that of the answer's
    log-probability from its verified samples."""
    copied, filler, ratios = array("d"), array("d"), array("d")
    own_answers, source_answers = array("d"), array("d")
    for demonstration, row in zip(demonstrations, rows, strict=True):
        question, source = demonstration.question, demonstration.solution
        copied.extend([copied_share(question, source), *(sample["copied"] for sample in row["style"])])
        filler.extend([filler_share(question, source, source), *(sample["filler"] for sample in row["style"])])
        own_answers.extend(own["answer_logprob"] for own in row["own"] if own["answer_logprob"] is not None)
        source_answers.extend([] if row["source_answer"] is None else [row["source_answer"]])
        ratios.extend(
            length / row["expected_tokens"]
            for length in (row["length"], *(sample["tokens"] for sample in row["style"]))
        )
    names = known_names((demonstration.question, demonstration.solution) for demonstration in demonstrations)
    thresholds = gate_thresholds(config, prompt, names, own_answers, source_answers)
    low, high = np.percentile(np.asarray(ratios), [1.0, 99.0])
    return replace(
        thresholds,
        question_copied=max(thresholds.question_copied, float(np.percentile(copied, 99.0))),
        filler=max(thresholds.filler, float(np.percentile(filler, 99.0))),
        length_low=0.5 * float(low),
        length_high=3.0 * max(1.0, float(high)),
    )


class ProbeTarget(Stage):
    """What the untouched target makes of the demonstrations: references, thresholds, own samples."""

    block_rows: int | None = None

    def __init__(self, context: StageContext, adaptation: str):
        super().__init__(context, probe_stage(adaptation))
        self.config, self.models = context.view(adaptation)

    def inputs(self) -> StageInputs:
        return {
            "data": self.context.key("data"),
            "target": self.models.target_fingerprint,
            "reward": self.config.reward.model_dump(),
            "prompt": self.config.mapper.prompt,
            "max_new_tokens": self.config.mapper.max_new_tokens,
        }

    def run(self, folder: Path) -> Cost:
        context, target = self.context, self.models.target_engine
        meter = Meter(target)
        measured = self._diagnosed_rows()
        if measured:
            context.log(f"{self.name}: {counted(len(measured), 'row')} of the diagnosis are reused")
        with context.progress(len(context.data.train), self.name) as progress:
            return probe(
                context.data.train,
                target,
                self.models.renderer,
                context.checker,
                self.config.reward,
                self.config.mapper.prompt,
                self.config.mapper.max_new_tokens,
                0,
                folder,
                progress,
                meter.cost,
                context.calibration,
                measured,
                self.block_rows,
            )

    def _diagnosed_rows(self) -> dict[str, RawRow]:
        """Raw rows by id that a diagnosis in the same run folder measured with the same inputs."""
        record = self.context.run_folder.noted_inputs(DIAGNOSIS) or {}
        inputs = json.loads(json.dumps(self.inputs()))
        if any(record.get(name) != value for name, value in inputs.items()):
            return {}
        return {row["id"]: row for row in open_rows(self.context.folder(DIAGNOSIS) / RAW)}
