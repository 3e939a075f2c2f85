"""Stages: rewrites outside synthesis, for arms that need them without the gates, or anew for a half-trained target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.data.records import Demonstration
from dartune.data.row_store import open_rows, write_rows
from dartune.data.run_records import AdaptedRow
from dartune.engines.base import Engine, SampleSpec
from dartune.engines.meter import Meter
from dartune.engines.seeds import RENEWAL, sampling_seed
from dartune.rewards.reward import Rewrite, build_reward
from dartune.run.cost import Cost
from dartune.stages.arm_training import start_of
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.stages.names import greedy_stage, mapper_stage, probe_stage, renewed_stage, synthesis_stage
from dartune.stages.probe import load_probe
from dartune.stages.synthesise import CHUNK


class RewriteGreedily(Stage):
    """The initial mapper's most likely rewrite of every demonstration, without gates and without a reward.

    Rewrites that are cut at `mapper.max_new_tokens` are left out: they would teach the target not to end.
    """

    def __init__(self, context: StageContext):
        super().__init__(context, greedy_stage())

    def inputs(self) -> StageInputs:
        context = self.context
        return {
            "data": context.key("data"),
            "probe": context.key(probe_stage("dart")) if context.config.mapper.examples else None,
            "mapper": context.models.mapper_fingerprint,
            "prompt": context.config.mapper.prompt,
            "examples": context.config.mapper.examples,
            "max_new_tokens": context.config.mapper.max_new_tokens,
        }

    def run(self, folder: Path) -> Cost:
        context, models = self.context, self.context.models
        mapper, meter = models.start_engine, Meter(models.start_engine)
        settings = context.mapper_config("dart")
        rows: list[dict[str, Any]] = []
        with context.progress(len(context.data.train), self.name) as progress:
            for chunk in _chunks(context.data.train):
                progress.begin(len(chunk))
                spec = SampleSpec(1, settings.max_new_tokens, 0.0, models.renderer.stop_ids, 0)
                groups = _rewrites(mapper, chunk, settings.prompt, spec, context)
                for row, [sample] in zip(chunk, groups, strict=True):
                    text = models.renderer.decode(sample.ids)
                    kept = [text] if sample.finish == "stop" and text.strip() else []
                    rows.append({"id": row.id, "question": row.question, "solutions": kept})
                progress.update(len(chunk), complete=sum(bool(row["solutions"]) for row in rows) / len(rows))
        cut = sum(not row["solutions"] for row in rows)
        if cut:
            context.log(f"{self.name}: {cut} of {len(rows)} rewrites were cut or empty, and are left out")
        write_rows(folder / "rows.jsonl", rows)
        distributed.barrier()
        return meter.cost()


class RenewRewrites(Stage):
    """The trained mapper's rewrites, sampled again and selected for the model that the arm starts from.

    The gates and their thresholds are those of the run. Among the accepted rewrites of a row, the one most natural to
    the new model is kept; a row without one keeps what it had in the adapted data set.
    """

    def __init__(self, context: StageContext, arm: str, seed: int):
        super().__init__(context, renewed_stage(arm, seed))
        self.arm, self.seed = arm, seed

    def inputs(self) -> StageInputs:
        return {
            "adapted": self.context.key(synthesis_stage("dart", self.seed)),
            "model": start_of(self.context, self.arm, self.seed)[1],
            "samples": self.context.config.synthesise.samples,
            "seed": self.seed,
        }

    def run(self, folder: Path) -> Cost:
        context, models, config = self.context, self.context.models, self.context.config
        _, references, thresholds = load_probe(context.folder(probe_stage("dart")))
        start = models.frozen(start_of(context, self.arm, self.seed)[0])
        reward = build_reward(config.reward, start, models.renderer, context.checker, thresholds, references)
        earlier = open_rows(context.folder(synthesis_stage("dart", self.seed)) / "rows.jsonl")
        prompt = context.mapper_config("dart").prompt
        rows: list[AdaptedRow] = []
        trained = models.mapper(context.folder(mapper_stage("dart", self.seed)) / "model")
        with trained as mapper, context.progress(len(context.data.train), self.name) as progress:
            meter = Meter(mapper, start)
            for chunk in _chunks(context.data.train):
                progress.begin(len(chunk))
                spec = SampleSpec(
                    config.synthesise.samples,
                    config.mapper.max_new_tokens,
                    config.mapper.temperature,
                    models.renderer.stop_ids,
                    sampling_seed(self.seed, len(rows), RENEWAL),
                )
                groups = reward(chunk, _rewrites(mapper, chunk, prompt, spec, context))
                rows += [renewed(earlier[len(rows) + index], group) for index, group in enumerate(groups)]
                progress.update(len(chunk), rewritten=sum(row["provenance"] == "rewrite" for row in rows) / len(rows))
            cost = meter.cost()
        write_rows(folder / "rows.jsonl", rows)
        distributed.barrier()
        return cost


def renewed(row: AdaptedRow, rewrites: Sequence[Rewrite]) -> AdaptedRow:
    """The row with the accepted rewrite of the highest alignment, the first of equals; as it was if none is."""
    best = max((item for item in rewrites if item.accepted), key=lambda item: item.alignment, default=None)
    if best is None:
        return row
    return {
        **row,
        "solution": best.text,
        "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": best.text}],
        "provenance": "rewrite",
        "alignment_after": best.alignment,
        "reward": {"reward": best.reward, "gain": best.gain} | best.penalties,
        "gates": best.gates,
        "hacks": list(best.hacks),
        "ids": list(best.ids),
        "logprobs": [round(value, 4) for value in best.logprobs],
        "reason": "renewed for the half-trained target",
        "alternatives": [],
        "rejected": [],
    }


def _chunks(rows: Sequence[Demonstration]) -> list[Sequence[Demonstration]]:
    return [rows[low : low + CHUNK] for low in range(0, len(rows), CHUNK)]


def _rewrites(mapper: Engine, rows: Sequence[Demonstration], prompt: str, spec: SampleSpec, context: StageContext):
    """The mapper's samples, one group per row."""
    return mapper.generate([context.models.renderer.prompt_ids(mapper_prompt(prompt, row)) for row in rows], spec)
