"""Stage: sample and verify the target's own solutions, for rejection-sampling fine-tuning (`rft`).

As many samples per row as `dart` uses in training and synthesis together. A sample is verified as in the probe: it is
finished, has no loop, states the right answer, and its equations hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.arm_config import samples_per_row
from dartune.config.arms import ARMS
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.row_store import RowWriter, open_rows
from dartune.data.run_records import OwnSolutionsRow
from dartune.engines.base import Engine, SampleSpec
from dartune.engines.meter import Meter, counters
from dartune.engines.seeds import OWN_SAMPLES, sampling_seed
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import run_gates
from dartune.run.cost import Cost
from dartune.run.progress import Progress
from dartune.stages.arm_training import start_of
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.names import own_stage, probe_stage

CHUNK = 32
VERIFIED = ("finished", "no_loop", "correct_answer", "true_sums")
"""Gates that an own sample must pass. Gates that compare with the demonstration are not among them: a right solution by
another method is right. `true_sums` is, because small models often reach the right answer with wrong steps
(`17 / 8 = 6`)."""


def sample_own(
    demonstrations: Sequence[Demonstration],
    target: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    thresholds: GateThresholds,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    path: Path,
    progress: Progress | None = None,
    spent: Callable[[], Cost] = Cost,
) -> Cost:
    """Append a row per demonstration to `path`: {id, question, solutions, drawn, spent}; whole chunks are kept.

    Args:
        samples: drawn per row; `solutions` are the different verified ones among them.

    Returns:
        What all calls spent.
    """
    with RowWriter(path if distributed.is_main() else None) as spool:
        if len(spool) < len(demonstrations):
            spool.cut(len(spool) // CHUNK * CHUNK)
        done = distributed.broadcast(len(spool))
        if progress and done:
            progress.advance_to(done)
        solved = 0
        for low in range(done, len(demonstrations), CHUNK):
            chunk, before = list(demonstrations[low : low + CHUNK]), spent()
            if progress:
                progress.begin(len(chunk))
            sampling = sampling_seed(seed, low, OWN_SAMPLES)
            spec = SampleSpec(samples, max_new_tokens, temperature, renderer.stop_ids, sampling)
            groups = target.generate([renderer.prompt_ids(row.question) for row in chunk], spec)
            inputs = [
                GateInput(
                    question=row.question,
                    solution=row.solution,
                    rewrite=renderer.decode(sample.ids),
                    answer=row.answer,
                    finish=sample.finish,
                    token_ids=sample.ids,
                    family=row.task,
                )
                for row, group in zip(chunk, groups, strict=True)
                for sample in group
            ]
            verdicts = iter(zip(inputs, run_gates(inputs, thresholds, checker), strict=True))
            cost = counters(spent() - before)
            for row, group in zip(chunk, groups, strict=True):
                checked = [next(verdicts) for _ in group]
                right = [item.rewrite for item, gates in checked if is_verified(row, gates)]
                solutions: OwnSolutionsRow = {
                    "id": row.id,
                    "question": row.question,
                    "solutions": list(dict.fromkeys(right)),
                    "drawn": len(group),
                    "spent": cost if row is chunk[0] else {},
                }
                spool.add(solutions)
                solved += bool(right)
            spool.keep()
            if progress:
                progress.update(len(chunk), solved=solved / (low + len(chunk) - done))
    distributed.barrier()
    return sum((Cost(**row["spent"]) for row in open_rows(path)), Cost())


def is_verified(row: Demonstration, gates: dict[str, bool]) -> bool:
    """Whether a sample of the target's own is a solution to train on; never where the row has no answer."""
    return row.answer is not None and all(gates.get(name, True) for name in VERIFIED)


class SampleOwn(Stage):
    """A model's own right solutions, from as many samples as `dart` spends, or the arm's share of them.

    The model is the untouched target, or the one that the arm starts from if its rows are renewed.
    """

    def __init__(self, context: StageContext, arm: str, seed: int):
        super().__init__(context, own_stage(arm, seed))
        self.arm, self.seed = arm, seed
        self.samples = math.ceil(ARMS[arm].share * samples_per_row(context.config, len(context.data.train)))

    def inputs(self) -> StageInputs:
        config = self.context.config
        return {
            "probe": self.context.key(probe_stage("dart")),
            "samples": self.samples,
            "temperature": config.reward.own_temperature,
            "max_new_tokens": config.mapper.max_new_tokens,
            "seed": self.seed,
        } | ({"model": start_of(self.context, self.arm, self.seed)[1]} if ARMS[self.arm].renewed else {})

    def run(self, folder: Path) -> Cost:
        from dartune.stages.probe import load_probe

        context, models = self.context, self.context.models
        _, _, thresholds = load_probe(context.folder(probe_stage("dart")))
        renewed = ARMS[self.arm].renewed
        model = models.frozen(start_of(context, self.arm, self.seed)[0]) if renewed else models.target_engine
        meter = Meter(model)
        with context.progress(len(context.data.train), self.name) as progress:
            return sample_own(
                context.data.train,
                model,
                models.renderer,
                context.checker,
                thresholds,
                self.samples,
                context.config.reward.own_temperature,
                context.config.mapper.max_new_tokens,
                self.seed,
                folder / "rows.jsonl",
                progress,
                meter.cost,
            )
