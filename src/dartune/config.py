"""The one configuration: what can be set, its default, its range, and who would set it.

A recipe (YAML) and dotted flags (`--mapper.steps 40`) are checked together, and everything wrong
with either is raised at once, with its place.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticUndefined as UNSET

from dartune.arms import ARMS
from dartune.errors import InputError
from dartune.families import GYM, REQUESTS, family
from dartune.recipe import Recipe, dump, explain, place_override, read_recipe
from dartune.redaction import redacted

ArmName = Literal[tuple(ARMS)]
Rung = Literal["rewrite", "own", "guided", "original"]

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


EachOnce = AfterValidator(_distinct)
# Lists are `strict=False` tuples: YAML has no tuple, a frozen config no list; the items stay strict.


class Section(BaseModel):
    """Strict and frozen: nothing is guessed, nothing changes after loading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


class DataConfig(Section):
    """The demonstrations."""

    path: Text = Field(
        description="lab:<expert> (lab:deep/<expert>: longer chains), a .jsonl/.json/.csv/.tsv/.parquet file, a "
        "folder, hub:<owner>/<name>, or gym:<task>"
    )
    task: Literal["math", "numeric", "exact", "choice", "code"] = Field(
        "math", description="what kind of answer it has; gym: brings its own (docs/tasks.md)"
    )
    split: Text = Field(
        "train", description="which split of a folder or Hub data set; hub:<owner>/<name>#<split> names its own"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="ours -> theirs, where columns have other names, or a template of several: "
        '{question: "{Body} {Question}", answer: Result}',
    )
    limit: Positive | None = Field(None, description="number of training rows, drawn at random; null uses all")
    dev: Count = Field(64, description="questions held out to choose the learning rate (at most a tenth of yours)")
    test: Count = Field(128, description="questions held out as a test suite (at most a tenth of yours)")


class TargetConfig(Section):
    """The model to be fine-tuned."""

    path: Text = Field(description="lab:<name>, a model folder (safetensors), or a Hub id owner/name")
    other: Text | None = Field(None, description="another target, which the arm wrong_target adapts the data for")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what is computed in; auto is bfloat16 on a GPU that has it, else float32"
    )
    system_prompt: str | None = Field(None, description="put before every question, always")
    thinking: bool = Field(
        False, description="the solutions think in a <think> block of their own, and so shall the rewrites"
    )


class ExecutionConfig(Section):
    """Where and how the work is computed. No stage depends on it: a run continues when it changes (docs/scale.md)."""

    device: Text = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp",
        description="with several processes: a copy of the trained model in each, or fsdp2: sharded (not adapters)",
    )
    microbatch_tokens: Positive = Field(
        16384, description="most tokens of one forward and backward (a CPU: 4096), padding counted; fewer save memory"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice rather than keep them, and read prompts once for each sample"
    )
    checkpoint_every: Positive | None = Field(
        None, description="steps between checkpoints; null is 10 in reinforcement learning, 50 in fine-tuning"
    )
    server: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None,
        description="a vLLM server that samples, as in http://localhost:8000 (docs/engines.md); needs mapper.adapter: "
        "lora and mapper.path: null",
    )
    server_model: Text | None = Field(
        None, description="the name the server has for the target; null is the first that it lists"
    )


LOCAL = ExecutionConfig()
"""The defaults: one process, on the device that there is."""


class Adapter(Section):
    """How weights are trained."""

    adapter: Literal["full", "lora"] = Field("full", description="lora where memory is short; full otherwise")
    lora_rank: Positive = Field(16, description="rank of the LoRA update; more can learn more")
    warmup_steps: Count = Field(5, description="steps in which the learning rate rises")
    max_grad_norm: Above0 = Field(1.0, description="gradients are scaled down to this norm")


class MapperConfig(Adapter):
    """Reinforcement learning of the model that rewrites."""

    path: Text | None = Field(
        None, description="the model to start from, of the target's tokenizer; null is a copy of the target"
    )
    prompt: Text = Field(
        REQUESTS["math"],
        description="the request for a rewrite, with the fields {question} and {solution}; other tasks have their own",
    )
    objective: Literal["grpo", "vargrad"] = Field(
        "grpo", description="grpo seeks the best paid rewrites; vargrad the target's own spread over those that pass"
    )
    steps: Count = Field(100, description="steps of reinforcement learning; 0 keeps the mapper untrained")
    examples: Count = Field(
        0, description="worked examples in front of the request, from the target's own right solutions (few-shot)"
    )
    format_steps: Count = Field(
        0, description="steps of supervised warm-up before RL, for a start whose rewrites seldom pass"
    )
    probe_every: Count = Field(
        0, description="steps between gold probes, which stop a reward that rises while the target falls; 0 is never"
    )
    probe_rows: Positive = Field(200, description="demonstrations of a gold probe's short fine-tuning")
    questions_per_step: Positive = Field(12, description="questions drawn a step; fewer saves time a step")
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="rewrites per question and step")
    learning_rate: LearningRate = Field(1e-6, description="1e-5 for lora, 3e-4 for a million weights")
    kl: Weight = Field(0.05, description="pull towards the untrained mapper; higher keeps rewrites diverse")
    temperature: Above0 = Field(1.0, description="sampling temperature; about 0.5 for a small model that rambles at 1")
    max_new_tokens: Positive = Field(512, description="most tokens of a rewrite; a longer one fails")

    @field_validator("prompt")
    @classmethod
    def _has_fields(cls, prompt: str) -> str:
        if missing := [name for name in ("{question}", "{solution}") if name not in prompt]:
            raise ValueError(f"must contain {' and '.join(missing)}")
        return prompt


class RewardConfig(Section):
    """What a rewrite must pass; null thresholds come from the data's own percentiles."""

    alignment: Text = Field("content_logprob", description="the alignment score (docs/rewards.md), or module:function")
    form: Text = Field(
        "gain_over_fallback",
        description="its worth: gain_over_fallback, correct_bonus, fixed_failure, passes or module:function",
    )
    gates: tuple[Text, ...] | None = Field(
        None, strict=False, description="the gates that count; null is all; [all, module:function] adds one of your own"
    )
    penalties: dict[Text, Weight] = Field(
        default_factory=dict,
        description="weights of peeking, question_independence, collapse or module:function: {peeking: 0.1}",
    )
    own_samples: Count = Field(4, description="the target's own solutions per question, for cap, thresholds, fallback")
    own_temperature: Above0 = Field(0.7, description="their sampling temperature: the one the target is used at")
    quantity_coverage: Share = Field(0.95, description="share of the source's intermediate numbers to keep")
    entity_coverage: Share = Field(1.0, description="share of the source's names to keep")
    answer_logprob: float | None = Field(
        None, le=0, description="least log-probability (nats) of the answer after the reasoning"
    )
    length_band: tuple[Above0, Above0] | None = Field(
        None, strict=False, description="[low, high] ratio of the rewrite's tokens to the source's"
    )
    max_repeats: Positive = Field(5, description="an n-gram repeated more often than this is a loop")
    leak_phrases: tuple[Text, ...] = Field(
        (), strict=False, description="phrases that betray the source was seen; added to the built-in ones"
    )

    @field_validator("length_band")
    @classmethod
    def _ordered(cls, band: tuple[float, float] | None) -> tuple[float, float] | None:
        if band and band[0] >= band[1]:
            raise ValueError("must be [low, high] with low below high")
        return band


class SynthesiseConfig(Section):
    """Making the adapted data set with the trained mapper."""

    samples: Positive = Field(4, description="rewrites tried per row; the best that passes is kept")
    temperature: Above0 = Field(1.0, description="sampling temperature of those rewrites")
    ladder: Annotated[tuple[Rung, ...], EachOnce] = Field(
        ("rewrite", "own", "original"),
        strict=False,
        min_length=1,
        description="what a row becomes, first that holds; originals stay in the data set, but are not trained on",
    )


class SFTConfig(Adapter):
    """Fine-tuning of the target, alike for every arm."""

    steps: Positive = Field(200, description="optimiser steps")
    batch_size: Positive = Field(16, description="rows a step")
    learning_rates: Annotated[tuple[LearningRate, ...], EachOnce] = Field(
        (1e-6, 1e-5),
        strict=False,
        min_length=1,
        description="each is tried; dev accuracy chooses, for every arm",
    )
    warmup_steps: Count = Field(10, description="steps in which the learning rate rises")
    weight_decay: Weight = Field(0.0, description="decoupled weight decay")


class DirectRLConfig(Adapter):
    """Direct reinforcement learning of the target, in the arms grpo_tokens and grpo_seconds: as long as dart took."""

    questions_per_step: Positive = Field(12, description="questions drawn a step")
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="solutions per question and step")
    learning_rates: Annotated[tuple[LearningRate, ...], EachOnce] = Field(
        (1e-7, 1e-6), strict=False, min_length=1, description="each is tried; dev accuracy chooses"
    )
    kl: Weight = Field(0.02, description="pull towards the untrained target")
    temperature: Above0 = Field(1.0, description="sampling temperature in training")
    max_new_tokens: Positive = Field(512, description="most tokens of a solution; a longer one fails")


class EvaluateConfig(Section):
    """Testing every arm on the same questions."""

    suites: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Text] = Field(
        default_factory=dict,
        description="your own test sets, name -> file, hub:<owner>/<name>#<split> or gym:<task>, read like data.path",
    )
    questions: Positive = Field(128, description="questions per suite of the lab")
    max_new_tokens: Positive = Field(512, description="most tokens of a solution; a longer one is cut")
    samples: Count = Field(0, description="solutions sampled per question beside the greedy one, for avg@k and pass@k")


class Config(Section):
    """A whole run. Relative paths are looked up from where the command is run."""

    name: Text = Field("own-data", description="a name for the report")
    output: Text = Field("runs/own-data", description="the run folder; the same command continues there")
    seeds: Annotated[tuple[Count, ...], EachOnce] = Field(
        (0,), strict=False, min_length=1, description="each is a whole repetition; five for a claim"
    )
    arms: Annotated[tuple[ArmName, ...], EachOnce] = Field(
        ("base", "sft", "dart"),
        strict=False,
        min_length=1,
        description="what to compare; listed below",
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], EachOnce] = Field(
        (), strict=False, description="experiment trackers that get the metrics beside the files"
    )
    matrix: dict[Text, Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]] = Field(
        default_factory=dict,
        description="key -> values: every combination is a run in a folder of its own: {data.path: [a.jsonl, b.jsonl]}",
    )
    data: DataConfig
    target: TargetConfig
    mapper: MapperConfig = Field(default_factory=MapperConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    synthesise: SynthesiseConfig = Field(default_factory=SynthesiseConfig)
    sft: SFTConfig = Field(default_factory=SFTConfig)
    direct_rl: DirectRLConfig = Field(default_factory=DirectRLConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig)

    @model_validator(mode="before")
    @classmethod
    def _asks_for_its_task(cls, values: Any) -> Any:
        """Where no prompt is given, the mapper is asked in the words of the data's task family."""
        data, mapper = (values.get(name) or {} for name in ("data", "mapper")) if isinstance(values, dict) else ({}, {})
        if not isinstance(data, dict) or not isinstance(mapper, dict) or "prompt" in mapper:
            return values
        request = REQUESTS.get(family(str(data.get("path", "")), str(data.get("task", "math"))))
        return {**values, "mapper": {**mapper, "prompt": request}} if request else values

    def resolved_yaml(self) -> str:
        """Every key with its value, as YAML that `load_config` reads back to an equal config."""
        return dump(self.model_dump(mode="json"))


def load_config(path: str | Path | None, overrides: dict[str, str] | None = None) -> Config:
    """A config from a recipe (None: the defaults for data of one's own) and dotted overrides.

    Raises:
        InputError: the recipe cannot be read, or anything in it or in the overrides is wrong; all problems
            are listed, each with its key and its place (line of the recipe, or flag).
    """
    recipe = read_recipe(Path(path)) if path is not None else Recipe()
    problems = list(recipe.problems)
    for key, value in (overrides or {}).items():
        problems += place_override(recipe, Config, key, value)
    for name, field in Config.model_fields.items():
        # An empty or absent section is one with nothing set, so that what is missing in it is named.
        if _is_section(field.annotation) and recipe.values.get(name) is None:
            recipe.values[name] = {}
    try:
        config = Config.model_validate(recipe.values)
    except ValidationError as error:
        problems += explain(error, recipe, Config)
        config = None
    if config is not None:
        problems += missing_paths(config, recipe) + secrets(config.model_dump(), recipe)
    if problems or config is None:
        raise InputError(f"{path or 'the settings'} cannot be used", problems)
    return config


def missing_paths(config: Config, recipe: Recipe) -> list[str]:
    """Files and folders that `config` names and that are not there."""
    models = {"target.path": config.target.path, "mapper.path": config.mapper.path}
    suites = {f"evaluate.suites.{name}": file for name, file in config.evaluate.suites.items()}
    problems = []
    for key, text in {"data.path": config.data.path, **models, **suites}.items():
        if text is None or text.startswith(("lab:", "hub:", GYM)) or _exists(text):
            continue
        if key in models and HUB_ID.fullmatch(text):
            continue
        what = "model folder" if key in models else "file or folder"
        problems.append(f"{recipe.place(key)}: there is no {what} {text!r} (looked for from {Path.cwd()})")
    return problems


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # a name that is too long, a home that nobody has
        return False


def secrets(values: Any, recipe: Recipe, key: str = "") -> list[str]:
    """Values that are or hold secrets, which the files of a run would show."""
    if isinstance(values, dict):
        return [line for name, value in values.items() for line in secrets(value, recipe, f"{key}.{name}".strip("."))]
    if isinstance(values, (list, tuple)):
        return [line for value in values for line in secrets(value, recipe, key)]
    if isinstance(values, str) and redacted(values) != values:
        where = "DARTUNE_VLLM_API_KEY for a server, HF_TOKEN for the Hub"
        return [f"{recipe.place(key)} holds a secret, which the run's files would show: set {where}"]
    return []


def describe_keys(base: Config | None = None) -> str:
    """Every key with its value in `base`, or its default, and what it is for, one line each."""
    values = base.model_dump(mode="json") if base else {}
    lines = []
    for name, field in Config.model_fields.items():
        inner = field.annotation
        if _is_section(inner):
            lines.append(f"\n{name}: {(inner.__doc__ or '').splitlines()[0]}")
            own = values.get(name, {})
            lines += [_key_line(f"{name}.{key}", part, own.get(key, UNSET)) for key, part in inner.model_fields.items()]
        else:
            lines.append(_key_line(name, field, values.get(name, UNSET)))
    return "\n".join(lines)


def _key_line(key: str, field: Any, value: Any) -> str:
    value = field.get_default(call_default_factory=True) if value is UNSET else value
    default = "required" if value is UNSET else " ".join(json.dumps(value).replace("\\n", " ").split())
    default = default if len(default) <= 40 else f"{default[:37]}..."
    return f"  --{key} [{default}]  {field.description}"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
