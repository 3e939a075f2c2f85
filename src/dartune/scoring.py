"""The alignment score on its own: how natural a solution is to a target, without a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dartune import inputs
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine
from dartune.models.hf_engine import HFEngine
from dartune.models.loading import end_ids, load_model, load_tokenizer
from dartune.rewards.references import source_references


@dataclass(frozen=True)
class Target:
    """A model to score with, and how it is addressed."""

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
    """Load a model once, to score many solutions; arguments as the keys `target.*` of the config.

    Args:
        address: `lab:<name>`, a model folder (safetensors) or a Hub id.

    Raises:
        InputError: there is no such model, or it cannot be used; all problems are listed.
    """
    path = inputs.model_path(str(address))
    model = load_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    return Target(HFEngine(model), Renderer(tokenizer, system_prompt, thinking=thinking, end_ids=end_ids(path)))


def score(question: str, solution: str, target: Target | str | Path, *, task: str = "math") -> float:
    """Alignment A of a solution: how natural it is to the target, given the question alone.

    The mean log-probability of the tokens in statements that say something new: the reward's default score. A run's
    `alignment_before` is the score of the source, its `alignment_after` that of what the row became.

    Args:
        target: what `load_target` returned, or an address, which is loaded for this call.
        task: the kind of answer, as `data.task` in a config.

    Returns:
        Nats per token, at most 0; higher is more natural.

    Raises:
        InputError: the target cannot be loaded, or does not read so many tokens.
    """
    if not isinstance(target, Target):
        target = load_target(target)
    row = Demonstration("", question, solution, task=task)
    [reference] = source_references(target.engine, target.renderer, [row]).values()
    return reference.source_alignment
