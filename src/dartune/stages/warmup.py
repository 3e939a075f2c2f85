"""Stage: format warm-up, supervised training of an initial mapper whose rewrites seldom pass the gates.

Reinforcement learning needs some rewrites with a positive reward. The initial mapper is fine-tuned on pairs of its
prompt and an accepted solution: the target's own right solutions, and those of its own rewrites that pass. If there are
none, it is fine-tuned on the demonstrations: it then starts as a copier whose rewrites pass the gates and gain nothing,
and RL moves it from there. Demonstrations are not mixed with accepted solutions: they are easier to learn, and even in
equal parts the mapper then copies nearly always (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune.config.schema import DEFAULT_EXECUTION, ExecutionConfig, MapperConfig, SFTConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.run_records import ProbeRow
from dartune.engines.base import Engine, SampleSpec
from dartune.engines.meter import Meter
from dartune.rewards.reward import Reward
from dartune.run.cost import Cost
from dartune.run.files import atomic_write_json, read_json
from dartune.run.progress import Progress, follow
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.stages.names import probe_stage, warmup_stage
from dartune.train.sft import fine_tune

TRIED_ROWS, OWN_ROWS = 64, 512
"""How many demonstrations the initial mapper rewrites, a group of samples each; and how many the target's own right
solutions are taken from, which cost nothing because the probe has sampled them."""


def examples(
    demonstrations: Sequence[Demonstration],
    probe_rows: Sequence[ProbeRow],
    start: Engine,
    reward: Reward,
    renderer: Renderer,
    config: MapperConfig,
    progress: Progress | None = None,
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(prompt, solution) pairs that show the format, and how many there are of each kind.

    Args:
        probe_rows: with the target's own verified solutions.
        progress: shows the share of the mapper's rewrites that passed.
    """
    rows = demonstrations[:TRIED_ROWS]
    prompts = [mapper_prompt(config.prompt, row) for row in rows]
    solved = zip(demonstrations[:OWN_ROWS], probe_rows[:OWN_ROWS], strict=True)
    own = [(mapper_prompt(config.prompt, row), sample["text"]) for row, probe in solved for sample in probe["own"]]
    spec = SampleSpec(config.group_size, config.max_new_tokens, config.temperature, renderer.stop_ids, 0)
    scored = reward(rows, start.generate([renderer.prompt_ids(prompt) for prompt in prompts], spec))
    passed = [
        (prompt, rewrite.text)
        for prompt, rewrites in zip(prompts, scored, strict=True)
        for rewrite in rewrites
        if rewrite.accepted
    ]
    accepted = list(dict.fromkeys([*own, *passed]))
    copies = [(prompt, row.solution) for prompt, row in zip(prompts, rows, strict=True)] if not accepted else []
    tried = len(rows) * config.group_size
    if progress:
        progress.update(0, gate_pass=len(passed) / max(1, tried))
    return [*accepted, *copies], {"own": len(own), "passed": len(passed), "tried": tried, "demonstrations": len(copies)}


def describe_warmup(kinds: Mapping[str, int]) -> str:
    """The initialisation as a sentence for the log and the report; `kinds` is the content of `examples.json`."""
    accepted = (
        f"{kinds['own']} right solutions of the target, {kinds['passed']} of {kinds['tried']} rewrites that passed"
    )
    if not kinds["demonstrations"]:
        return f"the mapper starts from a warm-up on {accepted}"
    return f"the mapper starts as a copier, from a warm-up on {kinds['demonstrations']} demonstrations ({accepted})"


def warm_up(
    model: Any,
    demonstrations: Sequence[Demonstration],
    probe_rows: Sequence[ProbeRow],
    start: Engine,
    reward: Reward,
    renderer: Renderer,
    mapper: MapperConfig,
    sft: SFTConfig,
    folder: Path,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    progress: Progress | None = None,
) -> tuple[Any, Cost]:
    """Fine-tune `model`, a copy of the initial mapper, for `mapper.format_steps`; writes `examples.json`.

    The other settings are those of fine-tuning the target, with the middle one of its learning rates.
    """
    pairs, kinds = examples(demonstrations, probe_rows, start, reward, renderer, mapper, progress)
    atomic_write_json(folder / "examples.json", kinds)
    rate = sorted(sft.learning_rates)[len(sft.learning_rates) // 2]
    settings = sft.model_copy(update={"steps": mapper.format_steps})
    on_step = follow(progress, "loss") if progress else None
    return fine_tune(model, pairs, renderer, settings, rate, 0, folder, execution=execution, on_step=on_step)


class WarmUp(Stage):
    """Warm-up of the initial mapper, once for all adaptations that start from it."""

    def __init__(self, context: StageContext, adaptation: str):
        super().__init__(context, warmup_stage(adaptation))
        self.adaptation = adaptation
        self.config, self.models = context.view(adaptation)

    def inputs(self) -> StageInputs:
        mapper = self.config.mapper
        return {
            "probe": self.context.key(probe_stage(self.adaptation)),
            "sft": self.config.sft.model_dump(),
            "mapper": mapper.model_dump(include={"prompt", "examples", "group_size", "max_new_tokens", "temperature"}),
            "format_steps": mapper.format_steps,
            "start": self.models.mapper_fingerprint,
        }

    def run(self, folder: Path) -> Cost:
        context, models = self.context, self.models
        probed, reward = context.probe_and_reward(self.adaptation)
        meter = Meter(models.start_engine, models.target_engine)
        with context.progress(self.config.mapper.format_steps, self.name) as progress:
            model, cost = warm_up(
                models.to_train(models.mapper_path, self.config.sft),
                context.data.train,
                probed,
                models.start_engine,
                reward,
                models.renderer,
                context.mapper_config(self.adaptation),
                self.config.sft,
                folder,
                self.config.execution,
                progress,
            )
        models.keep(model, folder)
        context.log(f"{self.name}: {describe_warmup(read_json(folder / 'examples.json') or {})}")
        return cost + meter.cost()

    def completed(self, folder: Path) -> None:
        self.models.start_from(folder / "model", self.context.key(self.name))
