"""Hub cards for the models and data sets of a run: description, sources, measurements, and how to reproduce it.

The cards and the published recipe are public, so they contain no path and no server address of the user's machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dartune import __version__
from dartune.config.arm_config import adapted_config, direct_rl_settings, learning_rates
from dartune.config.arms import ARMS
from dartune.config.recipe import dump
from dartune.data.adapted_dataset import CARD_PATH_PLACEHOLDER, PROVENANCES
from dartune.lab.source import is_lab
from dartune.models.adapter_files import CONFIG_FILE
from dartune.report.finished_run import FinishedRun
from dartune.report.summary import describe_difference
from dartune.run.number_format import decimals, percent
from dartune.stages.data import data_name, is_file
from dartune.stages.names import mapper_stage, synthesis_stage

RECIPE = "recipe.yaml"
BASELINES = ("base", "sft")
"""Arms that a model is compared with on its card."""
MAPPER_METRICS = {
    "reward": "reward",
    "gate_pass": "share of rewrites that pass the gates",
    "kl": "KL divergence from the initial mapper, nats",
}
"""Training metrics on a mapper's card, and their descriptions."""


def model_card(run: FinishedRun, arm: str, seed: int, licence: str | None) -> str:
    """Return the README.md of a trained arm's model at the selected learning rate."""
    config, direct = run.config, bool(ARMS[arm].budget)
    settings = direct_rl_settings(config) if direct else config.sft
    tried = ", ".join(f"{rate:g}" for rate in learning_rates(config, arm))
    facts = {
        "initial model": _model(run, config.target.path),
        "data": _data(run),
        "training": "direct reinforcement learning"
        if direct
        else f"{config.sft.steps} steps of {config.sft.batch_size} rows",
        "trained weights": "all" if settings.lora_rank is None else "a LoRA adapter, merged into the model",
        "learning rate": f"{run.learning_rate(arm, seed):g}, chosen on held-out rows from {tried}",
        "seed": seed,
        "system prompt": config.target.system_prompt or "none",
    }
    return _card(
        _header(run, config.target.path, licence, "transformers", "grpo" if direct else "sft"),
        f"# {config.name}: `{arm}`, seed {seed}",
        f"`{run.model_name(config.target.path)}`, trained as the arm `{arm}`: {ARMS[arm].description}.",
        _facts(facts),
        *(f"**Note.** {note}" for note in run.results["notes"] if note.startswith(f"{arm}, seed {seed}: ")),
        "## Results",
        *_accuracy(run, arm, seed),
        _reproduction(run),
        _limits(licence, "The results above hold for these questions only. Other uses were not evaluated."),
    )


def mapper_card(run: FinishedRun, adaptation: str, seed: int, licence: str | None) -> str:
    """Return the README.md of a trained mapper, which is a full model or an adapter."""
    settings, adapter = run.config.mapper, is_adapter(run, adaptation, seed)
    target, initial_model = mapper_models(run, adaptation)
    facts = {
        "initial model": _model(run, initial_model),
        "rewrites for": _model(run, target),
        "data": _data(run),
        "training": f"reinforcement learning ({settings.objective}), at most {settings.steps} steps",
        "trained weights": f"a LoRA adapter of rank {settings.lora_rank}" if adapter else "all",
        "learning rate": f"{settings.learning_rate:g}",
        "seed": seed,
    }
    phases = run.results["mapper"][adaptation][str(seed)]["phases"]
    rows = [
        [description, *(decimals(phases[phase].get(key)) for phase in ("before", "after"))]
        for key, description in MAPPER_METRICS.items()
    ]
    return _card(
        _header(run, initial_model, licence, "peft" if adapter else "transformers", "grpo"),
        f"# {run.config.name}: the mapper of `{adaptation}`, seed {seed}",
        "Rewrites the solution of a problem into the style of a target model, which is then fine-tuned on the "
        "rewrites. Its prompt is a user message:",
        f"```\n{settings.prompt}\n```",
        _facts(facts),
        "## Results",
        markdown_table([["", "first steps", "last steps"], *rows]),
        _adapted(run, adaptation, seed),
        _reproduction(run),
        _limits(licence, "It was trained on these data only. Rewrites of other data must be checked."),
    )


def data_card(run: FinishedRun, adaptation: str, seed: int, licence: str | None, repo: str) -> str:
    """Return the README.md of an adapted data set in `repo`.

    It is the README.md of the data set's folder with public names, the licence, and how to reproduce the data.
    """
    from huggingface_hub import DatasetCard

    folder = run.stage_folder(synthesis_stage(adaptation, seed)) / "adapted"
    text = (folder / "README.md").read_text(encoding="utf-8").replace(CARD_PATH_PLACEHOLDER, repo)
    target, initial_model = mapper_models(run, adaptation)
    names = {
        "data": data_name(run.config.data.path),
        "target": run.model_name(target),
        "mapper": run.model_name(initial_model),
    }
    for source, name in names.items():  # the card in the folder has the original addresses, which may be local paths
        # The replacement is a function, because a backslash in a replacement string would be an escape sequence.
        text = re.sub(rf"^\* {source}: .*$", lambda _, line=f"* {source}: {name}": line, text, flags=re.MULTILINE)
    card = DatasetCard(text)
    data: Any = card.data
    data.license = licence
    data.tags = ["dartune", "synthetic"]
    data.task_categories = ["text-generation"]
    return _card(str(card), f"Demonstrations: {_data(run)}. {_adapted(run, adaptation, seed)}", _reproduction(run))


def public_recipe(run: FinishedRun) -> str:
    """Return the recipe of a run with public names instead of paths, and without server and trackers."""
    values = run.config.model_dump(mode="json")
    for section, key in (("target", "path"), ("target", "other"), ("mapper", "path")):
        if (address := values[section][key]) is not None:
            values[section][key] = run.model_name(address)
    values["data"]["path"] = data_name(values["data"]["path"])
    suites = values["evaluate"]["suites"]
    values["evaluate"]["suites"] = {name: data_name(path) for name, path in suites.items()}
    values["output"] = f"runs/{data_name(values['output'])}"
    values["trackers"] = []
    values["execution"] |= {"server": None}
    return dump(values)


def mapper_models(run: FinishedRun, adaptation: str) -> tuple[str, str]:
    """Return the addresses of a mapper's target and of the model that it was initialised from."""
    config = adapted_config(run.config, adaptation, 1)
    return config.target.path, config.mapper.path or config.target.path


def is_adapter(run: FinishedRun, adaptation: str, seed: int) -> bool:
    """Whether a mapper was saved as an adapter of the model that it was initialised from."""
    return f"model/{CONFIG_FILE}" in run.stage_record(mapper_stage(adaptation, seed))["files"]


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """Format rows as a Markdown table; the first row is the header."""
    header, *body = (f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)
    return "\n".join([header, f"|{'---|' * len(rows[0])}", *body])


def _card(*blocks: str) -> str:
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def _header(run: FinishedRun, initial_model: str, licence: str | None, library: str, tag: str) -> str:
    """Return the YAML header that the Hub parses; base model and data set are linked if they are on the Hub."""
    from huggingface_hub import ModelCardData

    data = run.config.data.path
    hub_id = re.split("[:@#]", data.removeprefix("hub:"))[0] if data.startswith("hub:") else None
    metadata = ModelCardData(
        base_model=run.model_name(initial_model) if run.from_hub(initial_model) else None,
        datasets=[hub_id] if hub_id else None,
        library_name=library,
        license=licence,
        pipeline_tag="text-generation",
        tags=["dartune", tag],
    )
    return f"---\n{metadata.to_yaml()}\n---"


def _facts(facts: dict[str, Any]) -> str:
    return "## Training\n\n" + markdown_table([["", ""], *facts.items()])


def _model(run: FinishedRun, address: str) -> str:
    name = f"`{run.model_name(address)}`"
    return f"{name}, a model folder" if _is_folder(run, address) else name


def _data(run: FinishedRun) -> str:
    digest = run.stage_record("data")["inputs"]["data"]
    return f"`{data_name(run.config.data.path)}`, sha256 of the rows as read: `{digest}`"


def _adapted(run: FinishedRun, adaptation: str, seed: int) -> str:
    summary = run.results["adapted"][adaptation][str(seed)]
    provenance = summary["provenance"]
    counts = ", ".join(f"{provenance[name]} {name}" for name in PROVENANCES if provenance.get(name))
    return f"Rows made from the {summary['accounting']['input']} demonstrations: {counts}."


def _accuracy(run: FinishedRun, arm: str, seed: int) -> list[str]:
    """Accuracy per suite next to the baselines, and the differences from the baselines over all seeds."""
    results = run.results
    arms = [arm, *(baseline for baseline in BASELINES if baseline in results["arms"] and baseline != arm)]
    cells = {(cell["arm"], cell["suite"]): cell for cell in results["cells"] if cell["seed"] == seed}
    rows = [["accuracy %", "questions", *arms]]
    for suite in (suite["name"] for suite in results["suites"]):
        rows.append([suite, cells[arm, suite]["n"], *(percent(cells[name, suite]["accuracy"]) for name in arms)])
    differences = [
        f"* {describe_difference(results, row)}"
        for row in results["differences"]
        if (row["arm"], row["level"], row["measure"]) == (arm, "group", "accuracy") and row["against"] in BASELINES
    ]
    seeds = len(results["seeds"])
    return [
        markdown_table(rows),
        "\n".join([f"Over {seeds} seeds:" if seeds > 1 else "With a single seed:", "", *differences])
        if differences
        else "",
    ]


def _reproduction(run: FinishedRun) -> str:
    """The section on how to reproduce the run; it names the local files that a reader has to supply."""
    config = run.config
    models = dict.fromkeys(filter(None, (config.target.path, config.mapper.path)))
    local = [run.model_name(path) for path in models if _is_folder(run, path)]
    local += [data_name(path) for path in (config.data.path, *config.evaluate.suites.values()) if is_file(path)]
    hint = (
        f"\n\nThe recipe names files that are not published. Insert your own paths: `{'`, `'.join(local)}`."
        if local
        else ""
    )
    return f"""\
## Reproduction

Made with dartune {__version__}, an implementation of [DART](https://arxiv.org/abs/2605.26924). To repeat the run with
[{RECIPE}]({RECIPE}):

```sh
dartune run {RECIPE}
```{hint}"""


def _limits(licence: str | None, scope: str) -> str:
    missing = "" if licence else " No licence was named."
    return f"## Limits\n\n{scope} The licences and limits of the initial model and of the data apply.{missing}"


def _is_folder(run: FinishedRun, address: str) -> bool:
    return not is_lab(address) and not run.from_hub(address)


def _cell(value: Any) -> str:
    """Escape a value, so that its text cannot end the cell or the row."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
