"""Alignment score of a single solution under a target model, without a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Engine
from dartune.engines.hf import HFEngine
from dartune.models.loading import end_ids, load_model, load_tokenizer
from dartune.rewards.references import source_references
from dartune.stages import data as run_data


@dataclass(frozen=True)
class Target:
    """A loaded model and the renderer that formats its prompts."""

    engine: Engine
    renderer: Renderer


def load_target(
    address: str | Path,
    *,
    system_prompt: str | None = None,
    thinking: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Target:
    """Load a model once, to score many solutions.

    Args:
        address: `lab:<name>`, a model folder (safetensors) or a Hub id.
        system_prompt: system prompt in front of every question.
        thinking: whether solutions begin with a `<think>` block.
        dtype: compute dtype: `auto`, `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        trust_remote_code: run Python code that is shipped with the model.

    Raises:
        InputError: the model does not exist or cannot be used; all problems are listed.
    """
    path = run_data.model_path(str(address))
    model = load_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    return Target(HFEngine(model), Renderer(tokenizer, system_prompt, thinking=thinking, end_ids=end_ids(path)))


def score(question: str, solution: str, target: Target | str | Path, *, task: str = "math") -> float:
    """Return the alignment of a solution: how likely it is under the target, given the question alone.

    This is the default score of the reward (`content_logprob`): the mean log-probability of the tokens in statements
    that add new information. In a run, `alignment_before` is the score of the demonstration and `alignment_after` the
    score of the solution that replaced it.

    Args:
        question: the question.
        solution: the solution to score.
        target: a target from `load_target`, or an address, which is loaded for this call.
        task: answer type, as `data.task` in a config.

    Returns:
        Nats per token, at most 0; higher is more likely.

    Raises:
        InputError: the target cannot be loaded, or its context is too short for the text.
    """
    if not isinstance(target, Target):
        target = load_target(target)
    row = Demonstration("", question, solution, task=task)
    [reference] = source_references(target.engine, target.renderer, [row]).values()
    return reference.source_alignment
