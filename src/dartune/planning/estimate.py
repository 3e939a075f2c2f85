"""What a run takes on this machine: the work of its stages at the speed of its models, measured for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import TYPE_CHECKING

from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import SampleSpec
from dartune.models.flops import FORWARD, TRAINING, multiplied_weights
from dartune.planning.work import Lengths, Sizes, Work, WorkOfStages
from dartune.run.files import read_json
from dartune.run.number_format import estimated_duration, gigabytes, thousands
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.stages.names import DIAGNOSIS

if TYPE_CHECKING:
    from dartune.stages.context import StageContext
    from dartune.stages.models import RunModels

SCORED_ROWS, SAMPLED_TOKENS = (8, 64), (4, 16)
"""Sizes of the calls that the speed is measured with; only as many as take `LONG_ENOUGH`."""
LONG_ENOUGH = 0.2
"""Seconds of a call that is long enough to be measured."""
SAMPLED_ROWS = 64
"""Rows whose lengths stand for those of all."""
PHASES = {
    "probe": ("probe",),
    "warm-up of the mapper": ("warmup",),
    "mapper training": ("mapper",),
    "synthesis": ("synthesise", "greedy", "renew", "own"),
    "training of the arms": ("train",),
    "evaluation": ("evaluate",),
}
"""Line of the table -> how the names of its stages begin."""


@dataclass(frozen=True)
class Speed:
    """Seconds per token of sampling and of a forward of the target; its multiplied weights, and the mapper's."""

    sampled: float
    forward: float
    weights: int
    mapper_weights: int

    def seconds(self, work: Work) -> float:
        """Seconds of some work; a backward takes twice as long as a forward."""
        return self.sampled * work.sampled + self.forward * (work.forward + TRAINING / FORWARD * work.backward)


@dataclass(frozen=True)
class Estimate:
    """Tokens, FLOPs and seconds of the stages that are left, by line of the table; bytes of the largest training."""

    phases: dict[str, dict[str, float]]
    total: dict[str, float]
    memory: float | None

    def lines(self) -> list[str]:
        """The estimate as a table in plain text."""
        heads = ("", "generated tokens", "scored", "trained", "time")
        rows = [*self.phases.items(), ("total", self.total)]
        cells = [
            (name, *(thousands(row[key]) for key in ("generated", "scored", "trained")), _time(row["seconds"]))
            for name, row in rows
        ]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        table = [
            "  ".join(
                text.ljust(width) if place == 0 else text.rjust(width)
                for place, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (heads, *cells)
        ]
        memory = [f"memory of the largest training: about {gigabytes(self.memory)}"] if self.memory else []
        return [*table, *memory]


def _time(seconds: float) -> str:
    return f"about {estimated_duration(seconds)}"


def measure_speed(models: RunModels, rows: Sequence[Demonstration]) -> Speed:
    """Score and sample with the target, a little more each time until it takes long enough to be measured.

    Nothing in the run depends on it.
    """
    engine, renderer, mapper = models.target_engine, models.renderer, models.config.mapper

    def score(count: int) -> int:
        pairs = [(renderer.prompt_ids(row.question), renderer.response_ids(row.solution)) for row in rows[:count]]
        engine.score(pairs)
        return sum(len(prompt) + len(ids) for prompt, ids in pairs)

    # A group of a training step, without an end token, so that every sample has the same number of tokens.
    prompts = [renderer.prompt_ids(row.question) for row in rows[: mapper.questions_per_step]]

    def sample(tokens: int) -> int:
        engine.generate(prompts, SampleSpec(mapper.group_size, tokens, 1.0, (), 0))
        return len(prompts) * mapper.group_size * tokens

    forward_seconds, read = _measured(score, SCORED_ROWS)
    forward = forward_seconds / read
    seconds, tokens = _measured(sample, SAMPLED_TOKENS)
    sampled = max(seconds - forward * sum(map(len, prompts)), 0.0) / tokens
    return Speed(sampled, forward, multiplied_weights(engine.model), multiplied_weights(models.start_engine.model))


def _measured(work: Callable[[int], int], sizes: Sequence[int]) -> tuple[float, int]:
    """Seconds and tokens of the first of `sizes` that takes long enough, or of the last."""
    seconds, tokens = 0.0, 0
    work(sizes[0])  # the first call takes longer
    for size in sizes:
        began = time.perf_counter()
        tokens = work(size)
        seconds = time.perf_counter() - began
        if seconds >= LONG_ENOUGH:
            break
    return seconds, tokens


def lengths_of(
    rows: Sequence[Demonstration], config: Config, renderer: Renderer, own: float | None, rewrite: float | None
) -> Lengths:
    """Mean lengths, from a few rows.

    Args:
        own, rewrite: of a diagnosis. None: taken to be as long as the demonstrations.
    """
    chosen = [rows[place] for place in range(0, len(rows), max(1, len(rows) // SAMPLED_ROWS))][:SAMPLED_ROWS]
    solution = mean(len(renderer.response_ids(row.solution)) for row in chosen)
    limit, settings = config.mapper.max_new_tokens, config.mapper
    request = mean(len(renderer.prompt_ids(mapper_prompt(settings.prompt, row))) for row in chosen)
    return Lengths(
        question=mean(len(renderer.prompt_ids(row.question)) for row in chosen),
        request=request * (1 + settings.examples),
        solution=solution,
        own=min(solution, limit) if own is None else own,
        rewrite=min(solution, limit) if rewrite is None else rewrite,
    )


def estimate(
    config: Config,
    sizes: Sizes,
    lengths: Lengths,
    speed: Speed,
    finished: Sequence[str] = (),
    memory: float | None = None,
) -> Estimate:
    """Estimate the stages of `config` that are not in `finished`."""
    stages = WorkOfStages(config, sizes, lengths, speed.seconds, speed.mapper_weights / speed.weights)()
    left = {name: work for name, work in stages.items() if name not in finished}
    phases = {}
    for phase, prefixes in PHASES.items():
        works = [work for name, work in left.items() if name.split("-")[0] in prefixes]
        if works:
            phases[phase] = _amounts(sum(works, Work()), speed)
    return Estimate(phases, _amounts(sum(left.values(), Work()), speed), memory)


def _amounts(work: Work, speed: Speed) -> dict[str, float]:
    tokens = asdict(work)
    return {
        "generated": tokens["generated"],
        "scored": tokens["scored"],
        "trained": tokens["trained"],
        "flops": speed.weights * work.flops_per_weight(),
        "seconds": speed.seconds(work),
    }


class Planner:
    """Estimates runs with the data and models of a context, at the speed they have on this machine.

    Texts that models write are as long as a diagnosis in the run folder measured, and otherwise as long as the
    demonstrations. Creating it takes seconds, for the speed.
    """

    def __init__(self, context: StageContext):
        config, data, models = context.config, context.data, context.models
        findings = read_json(context.folder(DIAGNOSIS) / "findings.json") or {}
        self.diagnosed = bool(findings)
        self.context = context
        self.sizes = Sizes(len(data.train), len(data.dev), sum(map(len, data.suites.values())))
        own, rewrite = findings.get("mean_own_tokens"), findings.get("mean_rewrite_tokens")
        if own is not None and rewrite is not None:
            rewrite = max(own, rewrite)  # the trained mapper writes as the target does
        self.lengths = lengths_of(data.train, config, models.renderer, own, rewrite)
        with context.progress(None, "speed of the models"):
            self.speed = measure_speed(models, data.train)

    def estimate(self, arms: Sequence[str], finished: Sequence[str] = ()) -> Estimate:
        """Estimate a run of `arms` without the stages that have finished."""
        config = self.context.config.model_copy(update={"arms": tuple(arms)})
        memory = [footprint.total for footprint in self.context.models.footprints(config.arms).values()]
        return estimate(config, self.sizes, self.lengths, self.speed, finished, max(memory, default=None))

    def log_lines(self) -> list[str]:
        """What is left of the context's run, as lines for its log; none if nothing is."""
        run = self.context.run_folder
        left = self.estimate(self.context.config.arms, run.finished_stages())
        if not left.phases:
            return []
        basis = (
            "lengths as diagnosed" if self.diagnosed else "rewrites as long as the demonstrations; diagnose measures it"
        )
        return [f"Estimated cost of what is left ({basis}):", *(f"  {line}" for line in left.lines())]
