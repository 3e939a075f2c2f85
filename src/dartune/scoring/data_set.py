"""`dartune score`: the alignment of every row of a data set under the target, written beside the row's own columns.

Scores of finished blocks are kept in a hidden file beside the output, so that the same command continues after an
interruption. At the end the output is written in one pass; an older file is replaced when the new one is complete.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, TypedDict

import numpy as np

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.schema import Config
from dartune.data.row_store import Rows, RowWriter, index_path
from dartune.data.table_writer import ROWS_AT_ONCE, table_writer
from dartune.engines.base import SampleSpec
from dartune.engines.seeds import PROBE, sampling_seed
from dartune.gates.gate_input import GateThresholds
from dartune.rewards.alignment import FEWEST_SAMPLES, AlignmentScore, Reference, mean_logprob
from dartune.rewards.references import source_stats
from dartune.rewards.reward import GatedReward, alignment_score
from dartune.run.number_format import decimals, percent_of, thousands
from dartune.run.progress import Progress
from dartune.run.redaction import shown
from dartune.scoring.checked_data import CheckedData, checked_data
from dartune.stages import data as run_data

CHUNK, BLOCK = 16, 256
"""Rows that are sampled together, and rows that are scored together and then kept."""
QUANTILES = (0, 10, 25, 50, 75, 90, 100)
LOW_PERCENTILE = 10
"""The summary counts the rows below this percentile of the target's own samples."""
LISTED_ROWS, LISTED_CHARS = 5, 70
"""Least natural rows in the summary, and characters of their solutions."""


class RowScore(TypedDict):
    """The columns that are added to a row.

    `alignment` is the alignment score of the solution given the question alone, in nats per token for the default
    score; `mean_logprob` the mean log-probability of all its tokens (nats); `tokens` their number, with the end token;
    `alignment_percentile` the share (0..1) of the target's own samples whose alignment is lower. It is None if there
    are fewer than `FEWEST_SAMPLES` of them.
    """

    alignment: float
    mean_logprob: float
    tokens: int
    alignment_percentile: float | None


class OwnSamples(TypedDict):
    """The target's own finished samples without a loop: alignments and mean log-probabilities, ascending."""

    alignments: list[float]
    mean_logprobs: list[float]
    rows: int
    drawn: int


def score_data(config: Config, output: Path) -> str:
    """Score every row of `config.data` under the target; write all rows, with the columns of `RowScore` added.

    The score is the one that `config.reward.alignment` names, as in a run. With several processes, each scores a part,
    and rank 0 writes.

    Args:
        output: a .parquet, .jsonl or .csv file.

    Returns:
        A summary; empty on all ranks but 0.

    Raises:
        InputError: the data, the target or a setting cannot be used (all problems are listed).
        MachineError: the file cannot be written.
    """
    with distributed.process_group():
        data = checked_data(config, output, tuple(RowScore.__annotations__))
        spool_path = output.with_name(f".{output.name}.scores.jsonl")
        with RowWriter(spool_path if distributed.is_main() else None) as spool:
            own = _own_samples(data, spool)
            _score_rows(data, own, spool)
            if not distributed.is_main():
                return ""
            scores: Rows[Any] = spool.rows()[1:]
            _write(data, scores, output)
        summary = _summary(data, scores, own, output)
        for path in (spool_path, index_path(spool_path)):
            path.unlink()
        return summary


def _key(data: CheckedData) -> dict[str, Any]:
    """What the scores depend on. Kept scores with another key are not continued."""
    reward = data.config.reward
    return {
        "data": run_data.fingerprint(data.rows),
        "target": data.models.target_fingerprint,
        "alignment": reward.alignment,
        "own_samples": reward.own_samples,
        "own_temperature": reward.own_temperature,
        "max_new_tokens": data.config.mapper.max_new_tokens,
    }


def _own_samples(data: CheckedData, spool: RowWriter) -> OwnSamples:
    """The target's own samples: from the first row of the file that keeps the scores, or drawn and put there."""
    key = _key(data)
    kept = spool.rows()[0] if len(spool) else {}
    own = distributed.broadcast(kept["own"] if kept.get("key") == key else None)
    if own is None:
        own = _draw(data, alignment_score(data.config.reward))
        spool.cut(0)
        spool.add({"key": key, "own": own})
        spool.keep()
    return own


def _draw(data: CheckedData, score: AlignmentScore) -> OwnSamples:
    """Sample the target's own solutions of some questions, and score them like the probe of a run."""
    rows, reward, models = data.sampled, data.config.reward, data.models
    target, renderer = models.target_engine, models.renderer
    references = {}
    for row in rows:
        length = len(renderer.response_ids(row.solution))
        references[row.id] = Reference(length, 0.0, None, length)
    prompts = [renderer.prompt_ids(row.question) for row in rows]
    # A sample that does not fit into the context is cut there; it is not finished and does not count.
    room = models.context - max(map(len, prompts), default=0)
    longest, style = min(data.config.mapper.max_new_tokens, room), []
    with AnswerChecker() as checker, Progress(len(rows), "own samples") as progress:
        gated = GatedReward(target, renderer, checker, GateThresholds(), references, score=score, at_temperature=False)
        for low in range(0, len(rows), CHUNK):
            chunk = rows[low : low + CHUNK]
            progress.begin(len(chunk))
            seed = sampling_seed(0, low, PROBE)
            spec = SampleSpec(reward.own_samples, longest, reward.own_temperature, renderer.stop_ids, seed)
            drawn = target.generate(prompts[low : low + CHUNK], spec)
            for row, group in zip(chunk, gated(chunk, drawn), strict=True):
                finished = (item for item in group if item.gates["finished"] and item.gates["no_loop"])
                style += [(references[row.id].length, item.stats) for item in finished]
            progress.update(len(chunk), complete=len(style) / ((low + len(chunk)) * reward.own_samples))
    means = sorted(mean(stats.logprobs) for _, stats in style)
    # A score may compare with the samples of all rows, so it is computed when all of them are known.
    alignments = sorted(score(stats, Reference(length, 0.0, None, length, means)) for length, stats in style)
    return {
        "alignments": alignments,
        "mean_logprobs": means,
        "rows": len(rows),
        "drawn": len(rows) * reward.own_samples,
    }


def _score_rows(data: CheckedData, own: OwnSamples, spool: RowWriter) -> None:
    """Append the scores of all rows that have none yet."""
    score, models, rows = alignment_score(data.config.reward), data.models, data.rows
    alignments = own["alignments"] if len(own["alignments"]) >= FEWEST_SAMPLES else []
    done, total = distributed.broadcast(len(spool) - 1), 0.0
    with Progress(len(rows), "scoring") as progress:
        if done:
            progress.advance_to(done)
        for low in range(done, len(rows), BLOCK):
            block = list(rows[low : low + BLOCK])
            progress.begin(len(block), kinds=["scoring"])
            for stats in source_stats(models.target_engine, models.renderer, block, score):
                length = len(stats.logprobs)
                reference = Reference(length, 0.0, None, length, own["mean_logprobs"])
                alignment = score(stats, reference)
                total += alignment
                row: RowScore = {
                    "alignment": alignment,
                    "mean_logprob": mean_logprob(stats, reference),
                    "tokens": length,
                    "alignment_percentile": bisect_left(alignments, alignment) / len(alignments)
                    if alignments
                    else None,
                }
                spool.add(row)
            spool.keep()
            progress.update(len(block), mean_alignment=total / (low + len(block) - done))


def _write(data: CheckedData, scores: Sequence[RowScore], output: Path) -> None:
    import pyarrow

    number = pyarrow.float64()
    added = {name: pyarrow.int64() if name == "tokens" else number for name in RowScore.__annotations__}
    with table_writer(output, data.types | added) as add:
        rows = ({**content, **score} for content, score in zip(data.contents(), scores, strict=True))
        while block := list(islice(rows, ROWS_AT_ONCE)):
            add(block)


def _summary(data: CheckedData, scores: Sequence[RowScore], own: OwnSamples, output: Path) -> str:
    alignments = np.asarray(array("d", (row["alignment"] for row in scores)))
    unit = "nats per token" if data.config.reward.alignment == "content_logprob" else data.config.reward.alignment
    quantiles = (
        f"{'median' if q == 50 else f'{q}%'} {decimals(float(value))}"
        for q, value in zip(QUANTILES, np.percentile(alignments, QUANTILES), strict=True)
    )
    lines = [
        f"{output}: {thousands(len(scores))} rows, with the columns {', '.join(RowScore.__annotations__)}",
        f"alignment ({unit}): {', '.join(quantiles)}",
        *_own_lines(alignments, own),
        "least natural rows (id, alignment, solution):",
    ]
    for index in np.argsort(alignments, kind="stable")[:LISTED_ROWS].tolist():
        row = data.rows[index]
        text = " ".join(row.solution.split())
        text = text if len(text) <= LISTED_CHARS else f"{text[:LISTED_CHARS]}..."
        lines.append(f"  {shown(row.id, 24)}  {decimals(scores[index]['alignment'])}  {text}")
    return "\n".join(lines)


def _own_lines(alignments: np.ndarray, own: OwnSamples) -> list[str]:
    """How the rows compare with the target's own samples."""
    finished = len(own["alignments"])
    drawn = f"{finished} of {own['drawn']} samples of {own['rows']} questions finished"
    if finished < FEWEST_SAMPLES:
        remedy = "reward.own_samples is 0" if not own["drawn"] else "raise mapper.max_new_tokens or reward.own_samples"
        return [f"alignment_percentile is empty: the target's own samples are too few ({drawn}); {remedy}"]
    low, median = (float(value) for value in np.percentile(own["alignments"], (LOW_PERCENTILE, 50)))
    below = int(np.count_nonzero(alignments < low))
    return [
        f"the target's own samples: {drawn}; {LOW_PERCENTILE}% {decimals(low)}, median {decimals(median)}",
        f"{thousands(below)} rows ({percent_of(below, len(alignments))}) are below the {LOW_PERCENTILE}th percentile "
        "of the target's own samples",
    ]
