"""The one typed config: what can be set, its defaults, and every complaint about it at once.

A YAML recipe is the base; dotted flags (`--mapper.steps 40`) override any key. Unknown keys are
errors with a suggestion, values are checked for type and range, and nothing is read that no stage uses.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dartune.errors import InputError

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Arm = Literal["base", "sft", "dart"]
Rung = Literal["rewrite", "own", "guided", "original"]
DEFAULT_PROMPT = (
    "{question}\n\nHere is a solution:\n{solution}\n\n"
    "Write the solution again in your own words and style. Keep every step, every number and the final answer."
)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class DataConfig(Section):
    """The demonstrations."""

    path: str = Field(description="a file (.jsonl .json .csv .parquet), a `datasets` folder, hub:<id>, or lab:<expert>")
    split: str = Field("train", description="which split of a `datasets` folder or Hub data set")
    columns: dict[str, str] = Field({}, description="our field -> your column, such as {question: Problem}")
    limit: Positive | None = Field(None, description="use only the first rows")
    dev: Positive = Field(64, description="rows held out to choose the learning rate (at most a tenth of your data)")
    test: Count = Field(128, description="rows held out as the in-distribution suite (at most a tenth of your data)")


class TargetConfig(Section):
    """The model to be fine-tuned."""

    path: str = Field(description="a Hugging Face model folder, a Hub id, or lab:<target>")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model; off unless you trust it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: float32 on a CPU")
    system_prompt: str | None = Field(None, description="a system message for every conversation")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")


class MapperConfig(Section):
    """The model that rewrites, and its reinforcement learning."""

    path: str | None = Field(None, description="a model with the target's tokenizer; null: a copy of the target")
    prompt: str = Field(DEFAULT_PROMPT, description="how a rewrite is asked for; fields {question} and {solution}")
    adapter: Literal["full", "lora"] = Field("full", description="train every weight, or a LoRA adapter")
    lora_rank: Positive = 16
    steps: Count = Field(40, description="optimiser steps; 0 leaves the mapper untrained")
    questions_per_step: Positive = 12
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="rewrites sampled per question")
    learning_rate: Rate = 3e-4
    kl: Annotated[float, Field(ge=0)] = Field(0.05, description="weight of the KL penalty to the untrained mapper")
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    max_new_tokens: Positive = 128
    warmup_steps: Count = 3
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_every: Positive = 10

    @field_validator("prompt")
    @classmethod
    def _has_fields(cls, value: str) -> str:
        missing = [name for name in ("{question}", "{solution}") if name not in value]
        if missing:
            raise ValueError(f"must contain {' and '.join(missing)}")
        return value


class RewardConfig(Section):
    """Gates and thresholds; null takes them from percentiles of the originals and the target's own samples."""

    own_samples: Count = Field(4, description="the target's own samples per question")
    quantity_coverage: Share = Field(0.95, description="share of the source's numbers a rewrite states, in order")
    entity_coverage: Share = Field(1.0, description="share of the names a rewrite must use")
    answer_logprob: Annotated[float, Field(le=0)] | None = Field(
        None, description="least log-probability (nats) of the answer after the rewrite's own reasoning"
    )
    length_band: tuple[float, float] | None = Field(
        None, description="[least, most] tokens, as a ratio to the longer of the source and the target's own sample"
    )
    max_repeats: Positive = Field(5, description="an n-gram repeated more often than this is a loop")
    leak_phrases: tuple[str, ...] = Field((), description="phrases that give the demonstration away, besides the built-in ones")

    @field_validator("length_band", "leak_phrases", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("length_band")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value and not 0 <= value[0] < value[1]:
            raise ValueError("must be [low, high] with 0 <= low < high")
        return value


class SynthesiseConfig(Section):
    """Sampling of the adapted data set."""

    samples: Positive = Field(4, description="rewrites per demonstration; the best accepted one is kept")
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    ladder: tuple[Rung, ...] = Field(
        ("rewrite", "own", "original"), description="what a row may become, in this order; what no rung takes is dropped"
    )

    @field_validator("ladder", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class SFTConfig(Section):
    """Fine-tuning of the target, the same for every arm."""

    steps: Positive = 150
    batch_size: Positive = 16
    learning_rates: tuple[Rate, ...] = Field((3e-4, 1e-3), description="the grid; dev accuracy chooses, per arm and seed")
    warmup_steps: Count = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    adapter: Literal["full", "lora"] = "full"
    lora_rank: Positive = 16
    checkpoint_every: Positive = 50

    @field_validator("learning_rates", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("learning_rates")
    @classmethod
    def _not_empty(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("must list at least one learning rate, each once")
        return value


class EvaluateConfig(Section):
    """Tests of every arm."""

    suites: dict[str, str] = Field({}, description="name -> file of your own test sets")
    questions: Positive = Field(128, description="questions per suite of the lab")
    max_new_tokens: Positive = 160

    @field_validator("suites")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        bad = [name for name in value if not name.replace("_", "").replace("-", "").isalnum()]
        if bad:
            raise ValueError(f"suite names are letters, digits, _ and -: {', '.join(bad)}")
        return value


class Config(Section):
    """A run."""

    name: str = "run"
    output: str = Field("runs/run", description="the run folder")
    seeds: tuple[Count, ...] = (0,)
    arms: tuple[Arm, ...] = ("base", "sft", "dart")
    data: DataConfig
    target: TargetConfig
    mapper: MapperConfig = MapperConfig()
    reward: RewardConfig = RewardConfig()
    synthesise: SynthesiseConfig = SynthesiseConfig()
    sft: SFTConfig = SFTConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @field_validator("seeds", "arms", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _not_empty(self) -> Config:
        problems = [f"{name} must not be empty" for name in ("seeds", "arms") if not getattr(self, name)]
        problems += [f"{name} lists a value twice" for name in ("seeds", "arms") if _repeats(getattr(self, name))]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def resolved_yaml(self) -> str:
        """The whole config, defaults included, as YAML that loads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _repeats(values: Sequence[Any]) -> bool:
    return len(set(values)) != len(values)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: Path | None, overrides: Mapping[str, str] | None = None) -> Config:
    """The config of a recipe with dotted overrides on top, whose values are read as YAML.

    Raises:
        InputError: everything that is wrong with the recipe and the overrides, at once.
    """
    raw = _read_yaml(path) if path else {}
    problems: list[str] = []
    for dotted, text in (overrides or {}).items():
        _put(raw, dotted, text, problems)
    _coerce(raw, Config)
    config = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    if problems or config is None:
        raise InputError(f"{path or 'the settings'} cannot be used", list(dict.fromkeys(problems)))
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a recipe file such as recipes/lab.yaml")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise InputError(f"there is no recipe {path}; see recipes/ for ready-made ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} is empty or not a mapping; a recipe needs at least data.path and target.path")
    return raw


def _put(raw: dict[str, Any], dotted: str, text: str, problems: list[str]) -> None:
    *sections, last = dotted.split(".")
    place = raw
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            problems.append(f"--{dotted}: {section} is a value, not a section")
            return
        place = inner
    try:
        place[last] = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        problems.append(f"--{dotted}: {text!r} is not a value ({' '.join(str(error).split())})")


def _coerce(raw: Any, section: type[BaseModel]) -> None:
    """Read what YAML took for something else: `2e-5` (a string to YAML 1.1), `1` for a float, `7` for a name."""
    if not isinstance(raw, dict):
        return
    for name, field in section.model_fields.items():
        if name not in raw:
            continue
        kinds = _leaves(field.annotation)
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if inner:
            _coerce(raw[name], inner)
        elif float in kinds:
            raw[name] = [_number(v) for v in raw[name]] if isinstance(raw[name], list) else _number(raw[name])
        elif str in kinds and isinstance(raw[name], int | float) and not isinstance(raw[name], bool):
            raw[name] = str(raw[name])


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _leaves(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _leaves(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union, tuple):
        return set().union(*(_leaves(part) for part in typing.get_args(annotation)))
    return {annotation}


def _explain(error: Any) -> str:
    """One line per pydantic error: dotted key, what is wrong, what to do."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _all_keys(), n=1, cutoff=0.5)
        return f"unknown key {key}" + (f", did you mean {close[0]}?" if close else "")
    if error["type"] == "missing":
        return f"{key} is missing; give it in the recipe or as --{key}"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}".removeprefix(": ")
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]} (got {error['input']!r})"


def _all_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += [prefix + name, *_all_keys(annotation, f"{prefix}{name}.")]
        else:
            keys.append(prefix + name)
    return keys
