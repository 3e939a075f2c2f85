"""`dartune benchmark`: evaluate the models of a finished run with EleutherAI's lm-evaluation-harness.

dartune loads the models; prompts, answer extraction and scoring are those of the harness. The scores have the
harness's standard errors, which are not paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dartune.config.arms import ARMS
from dartune.config.schema import Config
from dartune.errors import InputError, MachineError
from dartune.report.finished_run import FinishedRun, open_finished_run
from dartune.run import lock
from dartune.run.files import atomic_write_json, read_json
from dartune.run.number_format import decimals
from dartune.stages.data import model_path
from dartune.stages.names import evaluation_stage
from dartune.text.features import THOUGHT_END

RESULTS = "benchmarks.json"
BATCH_SIZE = 16
MISSING = "standard benchmarks need the lm-evaluation-harness. Install it with: pip install lm-eval"

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
    """Evaluate the arms' models on `tasks`; write the scores to `benchmarks.json` and return them as a table.

    The scores of an arm are saved as soon as they are measured, next to those of other seeds and limits.

    Args:
        folder: a run folder.
        tasks: names of tasks of the harness.
        arms: arms of the run; empty: all of them.
        seed: a seed of the run; None: the first one.
        limit: largest number of questions per task; scores with a limit are for tests only.
        include: a folder with additional tasks in the harness's format.

    Raises:
        InputError: the run is not finished, an arm, seed or task is unknown, or a task cannot be used.
        MachineError: the harness is not installed, or another process uses the run folder.
    """
    manager = _manager(include)
    run = open_finished_run(folder)
    run_arms = run.results["arms"]
    seed = int(run.results["seeds"][0]) if seed is None else seed
    arms = list(arms) or run_arms
    problems = [f"arm {arm} was not run; available: {', '.join(run_arms)}" for arm in arms if arm not in run_arms]
    if seed not in run.results["seeds"]:
        problems.append(f"seed {seed} was not run; available: {', '.join(map(str, run.results['seeds']))}")
    problems += [problem for name in tasks for problem in _task_problems(manager, name)]
    if problems:
        raise InputError(f"cannot run benchmarks on {folder}", problems)
    run_lock = lock.take(folder)
    try:
        scores: Scores = {}
        for arm in arms:
            model, identity = _model(run, arm, seed)
            scores[arm] = _evaluate(model, run.config, tasks, manager, limit)
            conditions = {"model": identity, "seed": seed, "limit": limit, "lm_eval": metadata.version("lm_eval")}
            _save_scores(folder / RESULTS, arm, scores[arm], conditions)
    finally:
        lock.release(folder, run_lock)
    return format_scores(scores) + f"\n\n{folder / RESULTS}"


def _manager(include: Path | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MachineError(MISSING) from error
    return TaskManager(include_path=str(include) if include else None)


def _task_problems(manager: Any, name: str) -> list[str]:
    """Reasons why a task cannot be used; loads the task and its data."""
    if name not in manager.all_tasks:
        return [f"the harness has no task {name!r}"]
    try:
        loaded = manager.load([name])["tasks"]
    except Exception as error:  # tasks run arbitrary code and download data, so any exception is possible
        return [f"{name} cannot be loaded: {type(error).__name__}: {error}"]
    unsafe = [task_name for task_name, task in loaded.items() if getattr(task, "UNSAFE_CODE", False)]
    return [f"{name} would run model-generated code without a sandbox"] if unsafe else []


def _model(run: FinishedRun, arm: str, seed: int) -> tuple[str, str]:
    """Return the folder or Hub id of an arm's model, and the value that identifies it in the run."""
    if not ARMS[arm].trained:
        return model_path(run.config.target.path), run.stage_record(evaluation_stage(arm, seed))["inputs"]["model"]
    stage = run.model_stage(arm, seed)
    return str(run.stage_folder(stage) / "model"), run.stage_record(stage)["key"]


def _evaluate(
    folder: str, config: Config, tasks: Sequence[str], manager: Any, limit: int | None
) -> dict[str, dict[str, float]]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models import huggingface

    from dartune.data.chat_template import Renderer
    from dartune.models.loading import load_model, load_tokenizer

    target = config.target
    tokenizer = load_tokenizer(folder, trust_remote_code=target.trust_remote_code)
    renderer = Renderer(tokenizer, target.system_prompt, thinking=target.thinking)
    # As in training: the date in the template is fixed, and a completion ends with the token that ends a turn.
    tokenizer.chat_template = renderer.template
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(renderer.end_id)
    chat = renderer.template is not None
    harness_model: Any = huggingface.HFLM  # its decorator hides the parameters
    evaluation: Any = simple_evaluate(
        model=harness_model(
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
    return {task: _metrics(values) for task, values in evaluation["results"].items()}


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The numeric metrics; the harness names them `metric,filter`, and the filter `none` is dropped."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and "," in name
    }


def _save_scores(path: Path, arm: str, tasks: Mapping[str, dict[str, float]], conditions: Mapping[str, Any]) -> None:
    """Add scores to the file; only entries with the same arm, task and conditions are replaced."""
    entries = (read_json(path) or {"measured": []})["measured"]
    for task, values in tasks.items():
        key = {"arm": arm, "task": task, **conditions}
        entries = [entry for entry in entries if key != {field: entry.get(field) for field in key}]
        entries.append({**key, "values": values})
    atomic_write_json(path, {"measured": entries})


def format_scores(scores: Scores) -> str:
    """Format scores as a table with a row per task and metric and a column per arm, with standard errors."""
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
    metric, comma, answer_filter = name.partition(",")
    error = values.get(f"{metric}_stderr{comma}{answer_filter}")
    return decimals(values[name]) + (f" ± {decimals(error)}" if error is not None else "")
