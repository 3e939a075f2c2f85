"""Stage: synthesis. The trained mapper rewrites every demonstration; the best accepted rewrite is kept.

The gates are those of mapper training. If all rewrites of a row fail, the fallbacks of `synthesise.ladder` are tried in
order. Every row records its provenance and the reason; no row is lost.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dartune import distributed
from dartune.config.arms import ADAPTATIONS
from dartune.config.schema import SynthesiseConfig
from dartune.data.adapted_dataset import accounting, write_adapted
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.row_store import Rows, RowWriter, open_rows, write_rows
from dartune.data.run_records import AdaptedRow, AdaptedSolution, ProbeRow, RejectedRewrite
from dartune.engines.base import Engine, SampleSpec
from dartune.engines.meter import Meter, counters
from dartune.engines.seeds import SYNTHESIS, sampling_seed
from dartune.rewards.reward import Reward, Rewrite
from dartune.run.cost import Cost
from dartune.run.progress import Progress
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.data import data_name, model_name
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.stages.names import mapper_stage, probe_stage, synthesis_stage
from dartune.text.features import same_text

CHUNK = 32
"""Rows that are sampled and scored together. Part of the sampling seeds, so changing it changes the rewrites."""
KEPT_REJECTED = 2
"""Rejected rewrites that are kept of a row without an accepted one."""
LOWEST_ALIGNMENT_PERCENTILE = 5
"""A solution below this percentile of the demonstrations' alignment is too unnatural to train on."""


@dataclass(frozen=True, slots=True)
class OriginalsDecision:
    """What becomes of rows without a solution that is worth more than the original; see `settled`.

    Args:
        natural: originals suit the target and are trained on.
        lowest_alignment: an accepted solution below it does not replace an original that is not trained on.
    """

    natural: bool
    lowest_alignment: float


def synthesise(
    demonstrations: Sequence[Demonstration],
    probe_rows: Sequence[ProbeRow],
    mapper: Engine,
    target: Engine,
    reward: Reward,
    renderer: Renderer,
    config: SynthesiseConfig,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    path: Path,
    progress: Progress | None = None,
    spent: Callable[[], Cost] = Cost,
    decision: OriginalsDecision | None = None,
) -> Rows[AdaptedRow]:
    """Append one adapted row per demonstration to `path`; rows already there are kept, not redone, and not read.

    A chunk's samples depend on its position and the seed alone, so a resumed synthesis ends with the rows of an
    uninterrupted one. `spent` returns what the engines have spent so far; a chunk's first row records the chunk's cost.
    `decision` is that of an earlier data set; without it, it is made for these rows.
    """
    done = distributed.broadcast(_kept(path, demonstrations) if distributed.is_main() else 0)
    if progress and done:
        progress.advance_to(done)
    written = rewritten = 0
    with RowWriter(path if distributed.is_main() else None) as spool:
        # Where all rows are there, the last chunk, if it is short, must not be begun again.
        first = done // CHUNK * CHUNK if done < len(demonstrations) else done
        for low in range(first, len(demonstrations), CHUNK):
            chunk = list(demonstrations[low : low + CHUNK])
            spec = SampleSpec(
                config.samples,
                max_new_tokens,
                temperature,
                renderer.stop_ids,
                sampling_seed(seed, low, SYNTHESIS),
            )
            prompts = [renderer.prompt_ids(mapper_prompt(prompt, row)) for row in chunk]
            before = spent()
            if progress:
                progress.begin(low + len(chunk) - max(low, done), calls=2 if "guided" in config.ladder else 1)
            scored = {"rewrite": reward(chunk, mapper.generate(prompts, spec))}
            if "guided" in config.ladder:
                scored["guided"] = reward(chunk, target.generate(prompts, spec))
            cost = counters(spent() - before)
            for index in range(max(0, done - low), len(chunk)):
                rewrites = {fallback: groups[index] for fallback, groups in scored.items()}
                row = adapted_row(chunk[index], probe_rows[low + index], rewrites, config.ladder, renderer)
                spool.add(row | {"spent": {} if index else cost})
                written, rewritten = written + 1, rewritten + (row["provenance"] == "rewrite")
            spool.keep()
            if progress:
                progress.update(low + len(chunk) - max(low, done), rewritten=rewritten / written)
    write_rows(path, settled(open_rows(path), decision) if distributed.is_main() else ())
    distributed.barrier()
    return open_rows(path)


def _kept(path: Path, demonstrations: Sequence[Demonstration]) -> int:
    """Rows that an earlier attempt left; those of other demonstrations are removed."""
    rows: Sequence[dict[str, Any]] = open_rows(path) if path.exists() else []
    count = len(rows)
    if count and (count > len(demonstrations) or rows[-1]["id"] != demonstrations[count - 1].id):
        path.unlink()
        return 0
    return count


def synthesis_cost(rows: Iterable[AdaptedRow]) -> Cost:
    """What all attempts that these rows come from spent on them."""
    return sum((Cost(**row["spent"]) for row in rows), Cost())


def decide_on_originals(rows: Iterable[AdaptedRow]) -> OriginalsDecision:
    """The decision for a data set, from rows before or after `settled`: only what it does not change is read."""
    with_accepted = without_gain = 0
    alignment_before = array("d")
    for row in rows:
        alignment_before.append(row["alignment_before"])
        with_accepted += bool(row["accepted"])
        without_gain += row["runner_up"] is not None
    floor = float(np.percentile(alignment_before, LOWEST_ALIGNMENT_PERCENTILE))
    return OriginalsDecision(2 * without_gain > with_accepted, floor)


def settled(rows: Sequence[AdaptedRow], decision: OriginalsDecision | None = None) -> Iterator[AdaptedRow]:
    """The rows with the final decision on originals, which depends on the whole data set.

    The demonstrations suit the target if most rows with an accepted solution have none with more reward than the
    original: then originals become `natural` and are trained on. Otherwise originals are not trained on: a few
    solutions in an unnatural style teach the target that style for the questions they belong to, usually the hardest
    ones. In that case the best accepted solution replaces the original even if its alignment is lower, because the
    alternative is no row at all; but not if it is less natural than all but 5% of the demonstrations.

    Args:
        decision: that of an earlier data set; None: that of these rows.
    """
    decision = decision or decide_on_originals(rows)

    def final(row: AdaptedRow) -> AdaptedRow:
        if decision.natural:
            return {**row, "provenance": "natural"} if row["provenance"] == "original" else row
        runner_up = row["runner_up"]
        if runner_up is None or row["provenance"] not in ("natural", "original", "dropped"):
            return row
        alignment = runner_up["alignment_after"]
        return {**row, **runner_up} if alignment is not None and alignment >= decision.lowest_alignment else row

    return map(final, rows)


def adapted_row(
    demonstration: Demonstration,
    probe: ProbeRow,
    rewrites: Mapping[str, Sequence[Rewrite]],
    fallbacks: Sequence[str],
    renderer: Renderer,
) -> AdaptedRow:
    """The row's first fallback with an accepted solution that has a surplus; "original" always applies.

    A row for which every fallback fails is dropped. Of several solutions the one with the highest surplus is kept, the
    first one if several are equal.

    Args:
        rewrites: fallback ("rewrite", "guided") -> its scored samples.
        fallbacks: what to try, in order (`synthesise.ladder`).
    """
    reasons: list[str] = []
    accepted: list[tuple[str, Rewrite]] = []
    result: tuple[str, Rewrite | None] = ("dropped", None)
    for fallback in fallbacks:
        if fallback == "original":
            result = ("original", _original(demonstration, probe, renderer))
            break
        own = fallback == "own"
        candidates = _own_samples(probe) if own else [rewrite for rewrite in rewrites[fallback] if rewrite.accepted]
        accepted += [(fallback, candidate) for candidate in candidates]
        best = max(candidates, key=lambda candidate: candidate.surplus, default=None)
        if best is not None and best.surplus > 0:
            row = _row(demonstration, probe, fallback, best, "; ".join(reasons), rewrites)
            texts = dict.fromkeys(c.text for c in candidates if c.surplus > 0 and c.text != best.text)
            row["alternatives"] = list(texts)
            return {**row, "accepted": len(accepted), "rejected": [], "runner_up": None, "spent": {}}
        reasons.append(f"{fallback}: {_failure(fallback, candidates, demonstration.solution, rewrites)}")
    reason = "; ".join(reasons)
    most_natural = max(accepted, key=lambda pair: pair[1].alignment, default=None)
    runner_up = _row(demonstration, probe, *most_natural, reason, rewrites) if most_natural else None
    row = _row(demonstration, probe, *result, reason, rewrites)
    rejected = [] if accepted else _nearest_to_acceptance(rewrites)
    return {**row, "accepted": len(accepted), "rejected": rejected, "runner_up": runner_up, "spent": {}}


def _nearest_to_acceptance(rewrites: Mapping[str, Sequence[Rewrite]]) -> list[RejectedRewrite]:
    """The rejected rewrites with the fewest failed gates, the most natural first."""
    distinct = {rewrite.text: rewrite for scored in rewrites.values() for rewrite in scored}
    nearest = sorted(distinct.values(), key=lambda rewrite: (len(rewrite.failed), -rewrite.alignment))
    return [
        {
            "text": rewrite.text,
            "failed": rewrite.failed,
            "alignment": rewrite.alignment,
            "ids": list(rewrite.ids),
            "logprobs": [round(value, 4) for value in rewrite.logprobs],
        }
        for rewrite in nearest[:KEPT_REJECTED]
    ]


def _own_samples(probe: ProbeRow) -> list[Rewrite]:
    """The target's verified samples; their reward is their gain in alignment, uncapped."""
    samples = []
    for own in probe["own"]:
        gain = own["alignment"] - probe["source_alignment"]
        samples.append(
            Rewrite(
                text=own["text"],
                ids=tuple(own["ids"]),
                logprobs=tuple(own["logprobs"]),
                alignment=own["alignment"],
                gain=gain,
                reward=gain,
                gates=own["gates"],
                accepted=True,
                surplus=gain,
            )
        )
    return samples


def _original(demonstration: Demonstration, probe: ProbeRow, renderer: Renderer) -> Rewrite:
    return Rewrite(
        text=demonstration.solution,
        ids=tuple(renderer.response_ids(demonstration.solution)),
        logprobs=tuple(probe["source_logprobs"]),
        alignment=probe["source_alignment"],
        gain=0.0,
        reward=0.0,
    )


def _failure(fallback: str, accepted: Sequence[Rewrite], source: str, rewrites: Mapping[str, Sequence[Rewrite]]) -> str:
    """Why a fallback gave no solution, for the row's `reason`."""
    if accepted:
        copies = sum(same_text(rewrite.text, source) for rewrite in accepted)
        note = f" ({copies} of them its verbatim copies)" if copies else ""
        return f"{len(accepted)} passed the gate, none is worth more than the original{note}"
    if fallback == "own":
        return "the target has no verified sample of its own"
    failures = Counter(name for rewrite in rewrites[fallback] for name in rewrite.failed)
    failed = ", ".join(f"{name} {count}x" for name, count in failures.most_common())
    return f"none of {len(rewrites[fallback])} passed the gate ({failed})"


def _row(
    demonstration: Demonstration,
    probe: ProbeRow,
    provenance: str,
    kept: Rewrite | None,
    reason: str,
    rewrites: Mapping[str, Sequence[Rewrite]],
) -> AdaptedSolution:
    solution = kept.text if kept else ""
    hacks_refused = {name for scored in rewrites.values() for rewrite in scored for name in rewrite.hacks}
    return {
        "id": demonstration.id,
        "question": demonstration.question,
        "solution": solution,
        "messages": [
            {"role": "user", "content": demonstration.question},
            {"role": "assistant", "content": solution},
        ],
        "source_solution": demonstration.solution,
        "answer": demonstration.answer,
        "provenance": provenance,
        "alignment_before": probe["source_alignment"],
        "alignment_after": kept.alignment if kept else None,
        "reward": {"reward": kept.reward, "gain": kept.gain} | kept.penalties if kept else {},
        "gates": kept.gates if kept else {},
        "hacks": list(kept.hacks) if kept else [],
        "hacks_refused": sorted(hacks_refused),
        "reason": reason or "the best accepted candidate",
        "alternatives": [],
        "ids": list(kept.ids) if kept else [],
        "logprobs": [round(value, 4) for value in kept.logprobs] if kept else [],
    }


class Synthesise(Stage):
    """The adapted data set: `rows.jsonl` with everything, `adapted/` to publish and train on."""

    def __init__(self, context: StageContext, adaptation: str, seed: int):
        super().__init__(context, synthesis_stage(adaptation, seed))
        self.adaptation, self.seed = adaptation, seed
        self.config, self.models = context.view(adaptation)
        self.mapper = mapper_stage(adaptation, seed) if ADAPTATIONS[adaptation].trained else None

    def inputs(self) -> StageInputs:
        untrained = [self.models.mapper_fingerprint, self.context.key(probe_stage(self.adaptation))]
        return {
            "mapper": self.context.key(self.mapper) if self.mapper else untrained,
            "synthesise": self.config.synthesise.model_dump(),
            "temperature": self.config.mapper.temperature,
            "seed": self.seed,
        }

    def run(self, folder: Path) -> Cost:
        context, config, models = self.context, self.config, self.models
        probed, reward = context.probe_and_reward(self.adaptation)
        trained = models.mapper(context.folder(self.mapper) / "model") if self.mapper else None
        with trained or nullcontext(models.start_engine) as mapper:
            meter = Meter(mapper, models.target_engine)
            with context.progress(len(context.data.train), self.name) as progress:
                rows = synthesise(
                    context.data.train,
                    probed,
                    mapper,
                    models.target_engine,
                    reward,
                    models.renderer,
                    config.synthesise,
                    context.mapper_config(self.adaptation).prompt,
                    config.mapper.max_new_tokens,
                    config.mapper.temperature,
                    self.seed,
                    folder / "rows.jsonl",
                    progress,
                    meter.cost,
                    context.originals,
                )
        accounting(rows, len(context.data.train))
        write_adapted(
            folder / "adapted",
            rows,
            provenance_note=self.provenance_note(),
            chat=models.renderer.template is not None,
            system_prompt=models.renderer.system_prompt,
        )
        return synthesis_cost(rows)

    def provenance_note(self) -> dict[str, Any]:
        """What the data set was made from, for a card that may be published: without paths of this machine."""
        config = self.config
        paths = {"target": config.target.path, "mapper": config.mapper.path or config.target.path}
        return {"run": config.name, "data": data_name(config.data.path), **public_names(paths), "seed": self.seed}


def public_names(paths: Mapping[str, str]) -> dict[str, str]:
    """Names of models for publication, from their addresses."""
    return {what: model_name(path, is_folder=Path(path).expanduser().is_dir()) for what, path in paths.items()}
