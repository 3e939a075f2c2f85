"""`dartune benchmark`: a finished run's models on standard benchmarks, by EleutherAI's lm-evaluation-harness.

The harness asks, reads and scores as it does for everybody; dartune gives it the models. Figures come with its own
standard errors, which are not paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune.arms import ARMS
from dartune.config import Config, load_config
from dartune.errors import InputError, MachineError
from dartune.files import atomic_write_json, read_json
from dartune.inputs import model_path
from dartune.report.results import read_results
from dartune.train_arms import train_stage

RESULTS = "benchmarks.json"
BATCH_SIZE = 16
MISSING = "standard benchmarks need the lm-evaluation-harness: pip install lm-eval"

Scores = dict[str, dict[str, dict[str, float]]]
"""Arm -> task -> metric (and `metric_stderr`) -> value."""


def benchmark(
    run: Path,
    tasks: Sequence[str],
    arms: Sequence[str] = (),
    *,
    seed: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
) -> str:
    """Measure the arms' models on `tasks`; the figures go to `benchmarks.json` in the run folder, and back as a table.

    Args:
        arms: none means all of the run's.
        seed: None is the run's first.
        limit: questions of a task at most; such figures are for trying out only.
        include: a folder with tasks of one's own, as the harness reads them.

    Raises:
        InputError: the run is not finished, or there is no such arm, seed or task.
        MachineError: the harness is not installed.
    """
    results = read_results(run / "report" / "results.json")
    config = load_config(run / "config.resolved.yaml")
    seed = results["seeds"][0] if seed is None else seed
    arms = list(arms) or results["arms"]
    known = results["arms"]
    problems = [f"arm {arm} was not run; there are {', '.join(known)}" for arm in arms if arm not in known]
    if seed not in results["seeds"]:
        problems.append(f"seed {seed} was not run; there are {', '.join(map(str, results['seeds']))}")
    manager = _manager(include)
    problems += [f"the harness has no task {name!r}" for name in tasks if not manager.match_tasks([name])]
    if problems:
        raise InputError(f"{run} cannot be measured", problems)
    scores: Scores = {}
    for arm in arms:
        scores[arm] = _measured(_folder(run, results, config, arm, seed), config, tasks, manager, limit)
        _keep(run / RESULTS, {arm: scores[arm]}, {"seed": seed, "limit": limit})
    return table(scores) + f"\n\n{run / RESULTS}"


def _manager(include: Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MachineError(MISSING) from error
    return TaskManager(include_path=str(include) if include else None)


def _folder(run: Path, results: Mapping[str, Any], config: Config, arm: str, seed: int) -> str:
    if not ARMS[arm].trained:
        return model_path(config.target.path)
    return str(run / "stages" / train_stage(arm, seed, results["learning_rates"][arm][str(seed)]["chosen"]) / "model")


def _measured(
    folder: str, config: Config, tasks: Sequence[str], manager: Any, limit: int | None
) -> dict[str, dict[str, float]]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from dartune.models.loading import load_model, load_tokenizer

    target = config.target
    tokenizer = load_tokenizer(folder, trust_remote_code=target.trust_remote_code)
    model = load_model(folder, dtype=target.dtype, device=target.device, trust_remote_code=target.trust_remote_code)
    chat = tokenizer.chat_template is not None
    found = lm_eval.simple_evaluate(
        model=HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=BATCH_SIZE,
            chat_template_args={"enable_thinking": target.thinking} if chat else None,
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


def _keep(path: Path, scores: Scores, how: Mapping[str, Any]) -> None:
    """Add to what is there; a task measured again in another way replaces the older figures."""
    known = read_json(path) or {}
    for arm, tasks in scores.items():
        for task, values in tasks.items():
            known.setdefault(arm, {})[task] = {**values, **how}
    atomic_write_json(path, known)


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
