"""`dartune benchmark`: a finished run's models on standard benchmarks, by EleutherAI's lm-evaluation-harness.

The harness asks, reads and scores as it does for everybody; dartune gives it the models. Figures come with its own
standard errors, which are not paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dartune import lock
from dartune.arms import ARMS
from dartune.config import Config
from dartune.errors import InputError, MachineError
from dartune.files import atomic_write_json, read_json
from dartune.finished import Finished, opened
from dartune.inputs import model_path
from dartune.rewards.text import THOUGHT_END
from dartune.train_arms import evaluation_stage

RESULTS = "benchmarks.json"
BATCH_SIZE = 16
MISSING = "standard benchmarks need the lm-evaluation-harness: pip install lm-eval"

Scores = dict[str, dict[str, dict[str, float]]]
"""Arm -> task -> metric (and `metric_stderr`) -> value."""


def benchmark(
    folder: Path,
    tasks: Sequence[str],
    arms: Sequence[str] = (),
    *,
    seed: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
) -> str:
    """Measure the arms' models on `tasks`; the figures go to `benchmarks.json` in the run folder, and back as a table.

    Each arm's figures are kept as soon as they are there, beside those of other seeds and limits.

    Args:
        arms: none means all of the run's.
        seed: None is the run's first.
        limit: questions of a task at most; such figures are for trying out only.
        include: a folder with tasks of one's own, as the harness reads them.

    Raises:
        InputError: the run is not finished, or there is no such arm, seed or task, or a task cannot be used here.
        MachineError: the harness is not installed, or somebody else works in the folder.
    """
    manager = _manager(include)
    run = opened(folder)
    known = run.results["arms"]
    seed = run.results["seeds"][0] if seed is None else seed
    arms = list(arms) or known
    problems = [f"arm {arm} was not run; there are {', '.join(known)}" for arm in arms if arm not in known]
    if seed not in run.results["seeds"]:
        problems.append(f"seed {seed} was not run; there are {', '.join(map(str, run.results['seeds']))}")
    problems += [problem for name in tasks for problem in _task_problems(manager, name)]
    if problems:
        raise InputError(f"{folder} cannot be measured", problems)
    held = lock.take(folder)
    try:
        scores: Scores = {}
        for arm in arms:
            model, identity = _model(run, arm, seed)
            scores[arm] = _measured(model, run.config, tasks, manager, limit)
            how = {"model": identity, "seed": seed, "limit": limit, "lm_eval": metadata.version("lm_eval")}
            _keep(folder / RESULTS, arm, scores[arm], how)
    finally:
        lock.release(folder, held)
    return table(scores) + f"\n\n{folder / RESULTS}"


def _manager(include: Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MachineError(MISSING) from error
    return TaskManager(include_path=str(include) if include else None)


def _task_problems(manager: Any, name: str) -> list[str]:
    """What keeps a task from being used; its data are fetched on the way."""
    if name not in manager.all_tasks:
        return [f"the harness has no task {name!r}"]
    try:
        loaded = manager.load([name])["tasks"]
    except Exception as error:  # a task is somebody's program, and its data are somewhere else
        return [f"{name} cannot be loaded: {type(error).__name__}: {error}"]
    unsafe = [task for task, made in loaded.items() if getattr(made, "UNSAFE_CODE", False)]
    return [f"{name} would run code that a model wrote, without a sandbox"] if unsafe else []


def _model(run: Finished, arm: str, seed: int) -> tuple[str, str]:
    """Folder or Hub id of an arm's model, and what identifies it in the run."""
    if not ARMS[arm].trained:
        return model_path(run.config.target.path), run.done(evaluation_stage(arm, seed))["inputs"]["model"]
    stage = run.model_stage(arm, seed)
    return str(run.stage(stage) / "model"), run.done(stage)["key"]


def _measured(
    folder: str, config: Config, tasks: Sequence[str], manager: Any, limit: int | None
) -> dict[str, dict[str, float]]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from dartune.data.render import Renderer
    from dartune.models.loading import load_model, load_tokenizer

    target = config.target
    tokenizer = load_tokenizer(folder, trust_remote_code=target.trust_remote_code)
    renderer = Renderer(tokenizer, target.system_prompt, thinking=target.thinking)
    # As in training: a template's date is fixed, and an answer ends with the token that ends a turn.
    tokenizer.chat_template = renderer.template
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(renderer.end_id)
    chat = renderer.template is not None
    found = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=load_model(
                folder, dtype=target.dtype, device=config.execution.device, trust_remote_code=target.trust_remote_code
            ),
            tokenizer=tokenizer,
            batch_size=BATCH_SIZE,
            chat_template_args={"enable_thinking": target.thinking} if chat else None,
            think_end_token=THOUGHT_END if target.thinking else None,
        ),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        apply_chat_template=chat,
        system_instruction=target.system_prompt,
        log_samples=False,
        bootstrap_iters=1000,
    )
    return {task: _plain(values) for task, values in found["results"].items()}


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    """The harness's metrics without the name of its answer filter, where that is `none`."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and "," in name
    }


def _keep(path: Path, arm: str, tasks: Mapping[str, dict[str, float]], how: Mapping[str, Any]) -> None:
    """Add to what is there; only the same task, measured again in the same way, is replaced."""
    known = (read_json(path) or {"measured": []})["measured"]
    for task, values in tasks.items():
        entry = {"arm": arm, "task": task, **how}
        known = [one for one in known if entry != {key: one.get(key) for key in entry}]
        known.append({**entry, "values": values})
    atomic_write_json(path, {"measured": known})


def table(scores: Scores) -> str:
    """Tasks and metrics down, arms across, each figure with its standard error."""
    arms = list(scores)
    metrics = {
        (task, name): None
        for tasks in scores.values()
        for task, values in tasks.items()
        for name in values
        if "_stderr" not in name
    }
    header = ["task", "metric", *arms]
    lines = [header, *([task, name, *(_cell(scores[arm][task], name) for arm in arms)] for task, name in metrics)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cell(values: Mapping[str, float], name: str) -> str:
    metric, comma, kind = name.partition(",")
    error = values.get(f"{metric}_stderr{comma}{kind}")
    return f"{values[name]:.3f}" + (f" ± {error:.3f}" if error is not None else "")
