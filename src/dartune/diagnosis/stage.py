"""Stage: diagnosis. A few rows are measured before a run, in the run's own folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from dartune import distributed
from dartune.data.row_store import open_rows, write_rows
from dartune.diagnosis.findings import Findings, RowFinding, TokenFinding, find
from dartune.diagnosis.measure import MeasuredRow, completions, measure, random_places
from dartune.run.cost import Cost
from dartune.run.files import atomic_write_json
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.names import DIAGNOSIS

SAMPLES = 8
"""Rewrites, and solutions of the target, per row."""


class Diagnose(Stage):
    """The measured rows (`rows.jsonl`) and their figures (`findings.json`)."""

    def __init__(self, context: StageContext, count: int):
        super().__init__(context, DIAGNOSIS)
        self.count = count

    def inputs(self) -> StageInputs:
        config, models = self.context.config, self.context.models
        return {
            "data": self.context.key("data"),
            "target": models.target_fingerprint,
            "mapper": models.mapper_fingerprint,
            "reward": config.reward.model_dump(),
            "prompt": config.mapper.prompt,
            "examples": config.mapper.examples,
            "max_new_tokens": config.mapper.max_new_tokens,
            "temperature": config.mapper.temperature,
            "rows": self.count,
        }

    def run(self, folder: Path) -> Cost:
        context, config, models = self.context, self.context.config, self.context.models
        places = random_places(len(context.data.train), self.count)
        with context.progress(len(places) * sum(completions(config, SAMPLES)), self.name) as progress:
            measured, reward, cost = measure(
                context.data.train,
                places,
                config,
                models,
                models.start_engine,
                context.checker,
                SAMPLES,
                folder,
                progress=progress,
            )
        findings = find(
            measured, len(context.data.train), SAMPLES, config.mapper.max_new_tokens, models.renderer.decode
        )
        if distributed.is_main():
            write_rows(folder / "rows.jsonl", measured)
            atomic_write_json(folder / "findings.json", asdict(findings) | {"limits": reward.limits()})
        distributed.barrier()
        return cost


def load_diagnosis(folder: Path) -> tuple[Findings, list[str], list[MeasuredRow]]:
    """What a finished diagnosis wrote: its figures, warnings about the reward, and its rows."""
    values = json.loads((folder / "findings.json").read_text("utf-8"))
    limits = values.pop("limits")
    values["least_natural_tokens"] = [TokenFinding(**token) for token in values["least_natural_tokens"]]
    values["least_natural_rows"] = [RowFinding(**row) for row in values["least_natural_rows"]]
    return Findings(**values), limits, list(open_rows(folder / "rows.jsonl"))
