"""Schema of the config: every key with its type, range, default and description."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from dartune.config.arms import ARMS
from dartune.config.condition import Condition
from dartune.config.plugins import USER_DEFINED
from dartune.config.recipe import dump, run_name, sft_warmup_steps
from dartune.config.rewrite_prompts import DEFAULT_PROMPTS, task_family

FallbackName = Literal["rewrite", "own", "guided", "original"]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _reject_nul(text: str) -> str:
    if "\0" in text:  # no operating system accepts it in a path
        raise ValueError("must not contain a NUL character")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_reject_nul)]


def _named(*names: str) -> AfterValidator:
    """The validator of a name: one of `names`, or the dotted path of a user-defined part, `module:name`."""

    def check(value: str) -> str:
        if value not in names and not USER_DEFINED.fullmatch(value):
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(map(repr, names))} or module:name"})
        return value

    check.names = names  # read by the shell completion
    return AfterValidator(check)


def _check_condition(text: str) -> str:
    Condition(text)
    return text


ArmName = Annotated[str, _named(*ARMS)]
TaskName = Annotated[str, _named("math", "numeric", "exact", "choice", "code")]
TrackerName = Annotated[str, _named("tensorboard", "wandb", "trackio")]


def _reject_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("lists a value twice")
    return values


Distinct = AfterValidator(_reject_repeats)
# Lists are declared as `strict=False` tuples: YAML has no tuples, and a frozen config must not hold mutable lists. The
# items are still validated strictly.


class Section(BaseModel):
    """Base of all sections: strict (no type coercion, no unknown keys) and frozen."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


def _with_defaults(section: type[Section]) -> Any:
    return Field(default_factory=section)


def is_section(annotation: Any) -> TypeGuard[type[Section]]:
    """Return whether the type of a field is a section."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


class DataConfig(Section):
    """Demonstrations to adapt and train on, and the questions that are held out."""

    path: Text = Field(
        description="Demonstrations: a .jsonl, .json, .csv, .tsv or .parquet file, a folder, hub:<owner>/<name>, "
        "gym:<task>, or lab:<expert> (lab:deep/<expert> for longer chains). #<split> after a folder or hub: address "
        "selects a split; default: train."
    )
    task: TaskName = Field(
        "math",
        description="Answer type; selects how answers are read and compared, and which gates apply (docs/tasks.md). "
        "gym: data sets define their own. Your own as module:name.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="dartune's field -> your column, or a template of several columns: "
        '{question: "{Body} {Question}", answer: Result}. Set it if the layout is not recognised.',
    )
    where: Annotated[Text, AfterValidator(_check_condition)] | None = Field(
        None,
        description="Condition on the columns of the data; other rows are left out before splitting: "
        "'alignment_percentile > 0.1 and source in [\"web\"]' (docs/data-format.md). null: all rows. Suites are not "
        "filtered.",
    )
    limit: Positive | None = Field(
        None, description="Maximum number of training rows, sampled at random. null: all. Set it for a short trial run."
    )
    dev: Count = Field(
        64,
        description="Questions held out to choose the learning rate, at most a tenth of your questions. More make the "
        "choice more reliable.",
    )
    test: Count = Field(
        128,
        description="Questions held out as a test suite, at most a tenth of your questions. Set 0 if evaluate.suites "
        "has the test sets. In the lab: questions per test suite.",
    )


class TargetConfig(Section):
    """The target: the model to fine-tune."""

    path: Text = Field(
        description="Model to fine-tune: lab:<name>, a model folder (safetensors), or a Hub id owner/name."
    )
    other: Text | None = Field(
        None,
        description="Another model, to which the control arm wrong_target adapts the data. Only that arm needs it.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code shipped with the model. Enable it only for code that you trust."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Compute dtype. auto: bfloat16 where the GPU supports it, or where it is measured to be faster on "
        "the CPU (with AMX or AVX512-BF16, hidden states of 512 and more); float32 otherwise. Trained weights "
        "are always kept in float32.",
    )
    system_prompt: str | None = Field(
        None,
        description="System prompt of every question, in training and evaluation. Use the one of your deployment, and "
        "state the form of the final answer.",
    )
    thinking: bool = Field(
        False,
        description="Solutions begin with a <think> block, and rewrites must too. Set it for demonstrations with "
        "reasoning blocks.",
    )


class ExecutionConfig(Section):
    """Hardware and memory settings. No stage depends on them, so a run continues when they change (docs/scale.md)."""

    device: Text = Field(
        "auto", description="Device of the models: auto, cpu, cuda, cuda:1, ... auto: a GPU if there is one."
    )
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="Training with several processes. ddp: a copy of the model in each. fsdp2: the model is sharded, "
        "for full training that does not fit on one GPU; LoRA adapters are always replicated.",
    )
    microbatch_tokens: Positive = Field(
        16384,
        description="Maximum tokens per forward and backward pass, padding included; at most 4096 on a CPU. Lower it "
        "to save memory; results do not depend on it.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass. Saves memory and takes longer; prompts are then "
        "processed once per sample instead of once per group.",
    )
    checkpoint_every: Positive | None = Field(
        None,
        description="Training steps between checkpoints. null: 10 for reinforcement learning, 50 for fine-tuning. "
        "Lower it if jobs are often interrupted.",
    )
    server: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None,
        description="URL of a vLLM server for sampling, such as http://localhost:8000 (docs/engines.md). null: "
        "sample in this process. Requires mapper.lora_rank, no mapper.path and no mapper.format_steps.",
    )


DEFAULT_EXECUTION = ExecutionConfig.model_validate({})
"""Default execution settings: one process, automatic device."""


RL_WARMUP_STEPS = 3
"""Steps over which the learning rate rises in reinforcement learning."""


class Adapter(Section):
    """Settings shared by all sections that train a model."""

    max_grad_norm: ClassVar[float] = 1.0
    """Maximum norm of the gradient; larger gradients are scaled down to it. No run needed another value."""

    lora_rank: Positive | None = Field(
        None,
        description="null: train all weights. A number: train a LoRA adapter of this rank, which needs less memory and "
        "a higher learning rate; 16 is usual.",
    )


class MapperConfig(Adapter):
    """Reinforcement learning of the mapper, the model that rewrites the demonstrations."""

    warmup_steps: ClassVar[int] = RL_WARMUP_STEPS

    path: Text | None = Field(
        None,
        description="Initial mapper, with the tokenizer of the target. null: a copy of the target. A larger model of "
        "the same family helps if the target rewrites poorly.",
    )
    prompt: Text = Field(
        DEFAULT_PROMPTS["math"],
        description="Request for a rewrite, with the fields {question} and {solution}. The default depends on "
        "data.task. Change it for another language or answer format.",
    )
    objective: Literal["grpo", "vargrad"] = Field(
        "grpo",
        description="grpo: maximise the reward. vargrad: match the target's distribution over accepted rewrites, which "
        "keeps them more diverse (docs/rewards.md).",
    )
    steps: Count = Field(100, description="Reinforcement learning steps. 0: use the initial mapper without training.")
    examples: Count = Field(
        0,
        description="Few-shot examples in front of the request, from the target's own correct solutions. Set about 3 "
        "for a base or small model.",
    )
    format_steps: Count = Field(
        0,
        description="Supervised warm-up steps before reinforcement learning. Set about 50 if few rewrites of the "
        "initial mapper pass the gates.",
    )
    probe_every: Count = Field(
        0,
        description="Every N steps, run a gold probe: fine-tune a copy of the target briefly and measure dev "
        "accuracy; stop if it falls while the reward rises. 0: disabled.",
    )
    questions_per_step: Positive = Field(
        12,
        description="Questions sampled per step, over all processes. Fewer make steps faster and gradients noisier.",
    )
    group_size: Annotated[int, Field(ge=2)] = Field(
        8, description="Rewrites sampled per question and step. Time per step grows in proportion."
    )
    learning_rate: LearningRate = Field(
        1e-6,
        description="Learning rate. About 1e-6 for full training, 1e-5 for LoRA, 3e-4 for a model of a million "
        "parameters.",
    )
    kl: Weight = Field(
        0.05, description="KL coefficient towards the initial mapper. Higher values keep rewrites diverse."
    )
    temperature: PositiveFloat = Field(
        1.0,
        description="Sampling temperature of rewrites, in training and synthesis, and of direct RL. Set about 0.5 for "
        "a small model that is incoherent at 1.",
    )
    max_new_tokens: Positive = Field(
        512,
        description="Maximum tokens per rewrite; a longer one is cut and rejected. Raise it if the gate finished often "
        "fails.",
    )

    @field_validator("prompt")
    @classmethod
    def _require_fields(cls, prompt: str) -> str:
        if missing := [name for name in ("{question}", "{solution}") if name not in prompt]:
            raise ValueError(f"must contain {' and '.join(missing)}")
        return prompt


class RewardConfig(Section):
    """Gates and reward of a rewrite. Thresholds that are null are set from percentiles of the data."""

    alignment: Text = Field(
        "content_logprob",
        description="Alignment score, or your own as module:function. The other built-in scores are for "
        "comparison (docs/rewards.md).",
    )
    form: Text = Field(
        "gain_over_fallback",
        description="Combination of gates and alignment: gain_over_fallback, or for comparison correct_bonus, "
        "fixed_failure or passes; your own as module:function.",
    )
    gates: tuple[Text, ...] | None = Field(
        None,
        strict=False,
        description="Gates that a rewrite must pass. null: all. [all, module:function] adds your own.",
    )
    penalties: dict[Text, Weight] = Field(
        default_factory=dict,
        description="Penalty -> weight, in units of the reward, as in {peeking: 0.1}: peeking, "
        "question_independence, collapse or module:function. Set one if rewrites game the reward.",
    )
    own_samples: Count = Field(
        4,
        description="Solutions sampled from the target per question. They set the reward cap and the thresholds, and "
        "serve as fallbacks; more make these more reliable.",
    )
    own_temperature: PositiveFloat = Field(
        0.7,
        description="Sampling temperature of the target's own solutions. Use the temperature of your deployment.",
    )
    quantity_coverage: Fraction = Field(
        0.95,
        description="Minimum fraction of the source's intermediate results in a rewrite. Lower it if sound rewrites "
        "are rejected for merging steps.",
    )
    answer_logprob: float | None = Field(
        None,
        le=0,
        description="Minimum log-probability (nats) of the answer, given the rewrite's reasoning. null: from the "
        "target's own verified samples, at most ln 0.5.",
    )
    leak_phrases: tuple[Text, ...] = Field(
        (),
        strict=False,
        description="Phrases that show that the rewriter saw the source, in addition to the built-in ones.",
    )


class SynthesiseConfig(Section):
    """Synthesis of the adapted data set with the trained mapper."""

    samples: Positive = Field(
        4,
        description="Rewrites sampled per row; the best accepted one is kept. Raise it if few rows get a rewrite.",
    )
    ladder: Annotated[tuple[FallbackName, ...], Distinct] = Field(
        ("rewrite", "own", "original"),
        strict=False,
        min_length=1,
        description="Candidates for a row's solution; the first accepted one is used. rewrite: of the mapper. "
        "own: a verified sample of the target. guided: a rewrite by the target itself. original: the "
        "demonstration, normally not trained on.",
    )


class SFTConfig(Adapter):
    """Fine-tuning of the target, with the same settings for every arm."""

    steps: Positive = Field(
        200,
        description="Optimiser steps. Raise it with the number of rows. The learning rate rises over the first "
        "quarter of them, at most 10.",
    )
    batch_size: Positive = Field(16, description="Rows per step, over all processes.")
    learning_rates: Annotated[tuple[LearningRate, ...], Distinct] = Field(
        (1e-6, 1e-5),
        strict=False,
        min_length=1,
        description="Learning rates to try for every arm; dev accuracy selects one. Time and disk space grow in "
        "proportion.",
    )

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises linearly."""
        return sft_warmup_steps(self.steps)


class DirectRLConfig(Section):
    """Direct reinforcement learning of the target (grpo arms and dart_then_grpo), with the budget that dart used."""

    learning_rates: Annotated[tuple[LearningRate, ...], Distinct] = Field(
        (1e-7, 1e-6),
        strict=False,
        min_length=1,
        description="Learning rates to try; dev accuracy selects one. Each gets the full budget.",
    )
    kl: Weight = Field(
        0.02, description="KL coefficient towards the model that training starts from. Higher values limit the change."
    )


class DirectRLSettings(Adapter):
    """All settings of direct RL. Those that `direct_rl` does not have are the mapper's, for a fair comparison, and the
    solution length of the evaluation (`arm_config.direct_rl_settings`)."""

    warmup_steps: ClassVar[int] = RL_WARMUP_STEPS
    questions_per_step: Positive = 12
    group_size: int = 8
    kl: Weight = 0.02
    temperature: PositiveFloat = 1.0
    max_new_tokens: Positive = 512


class EvaluateConfig(Section):
    """Evaluation of every arm on the same questions."""

    suites: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Text] = Field(
        default_factory=dict,
        description="Your test sets: name -> file, hub:<owner>/<name>#<split> or gym:<task>, read like data.path.",
    )
    max_new_tokens: Positive = Field(
        512, description="Maximum tokens per solution; a longer one is cut. Raise it if solutions are cut."
    )
    samples: Count = Field(
        0,
        description="Solutions sampled per question for avg@k and pass@k, besides the greedy one. 0: greedy only.",
    )


class Config(Section):
    """Settings of a run. Relative paths are resolved from the working directory."""

    output: Text = Field(
        "runs/own-data",
        description="Run folder; its last part names the run in the report and in trackers. The same command continues "
        "the run in it; set another one to keep earlier results.",
    )
    seeds: Annotated[tuple[Count, ...], Distinct] = Field(
        (0,),
        strict=False,
        min_length=1,
        description="Random seeds. Each repeats training, synthesis and evaluation; use five to support a claim.",
    )
    arms: Annotated[tuple[ArmName, ...], Distinct] = Field(
        ("base", "sft", "dart"),
        strict=False,
        min_length=1,
        description="Training methods to compare, listed below, or your own as module:name.",
    )
    trackers: Annotated[tuple[TrackerName, ...], Distinct] = Field(
        (),
        strict=False,
        description="Experiment trackers that receive the metrics, in addition to the files in the run folder.",
    )
    matrix: dict[Text, Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]] = Field(
        default_factory=dict,
        description="Key -> values. Every combination is run in its own folder: {data.path: [a.jsonl, b.jsonl]}.",
    )
    data: DataConfig
    target: TargetConfig
    mapper: MapperConfig = _with_defaults(MapperConfig)
    reward: RewardConfig = _with_defaults(RewardConfig)
    synthesise: SynthesiseConfig = _with_defaults(SynthesiseConfig)
    sft: SFTConfig = _with_defaults(SFTConfig)
    direct_rl: DirectRLConfig = _with_defaults(DirectRLConfig)
    evaluate: EvaluateConfig = _with_defaults(EvaluateConfig)
    execution: ExecutionConfig = _with_defaults(ExecutionConfig)

    @model_validator(mode="before")
    @classmethod
    def _set_default_prompt(cls, values: Any) -> Any:
        """If no prompt is set, use the default prompt of the data's task family."""
        data, mapper = (values.get(name) or {} for name in ("data", "mapper")) if isinstance(values, dict) else ({}, {})
        if not isinstance(data, dict) or not isinstance(mapper, dict) or "prompt" in mapper:
            return values
        request = DEFAULT_PROMPTS.get(task_family(str(data.get("path", "")), str(data.get("task", "math"))))
        return {**values, "mapper": {**mapper, "prompt": request}} if request else values

    @property
    def name(self) -> str:
        """Name of the run, in the report and in trackers: the last part of the run folder's path."""
        return run_name(self.output)

    def resolved_yaml(self) -> str:
        """Return every key with its value as YAML, which `load_config` reads back to an equal config."""
        return dump(self.model_dump(mode="json"))
