"""Cards for what a run made, to publish it with: what it is, what from, what was measured, how to make it again.

Nothing in them names a folder or a server of the machine that the run was made on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dartune import __version__
from dartune.adapt import mapper_stage, synthesis_stage
from dartune.arm_settings import adapted_config, rates
from dartune.arms import ARMS
from dartune.data.adapted import HERE, PROVENANCES
from dartune.finished import Finished
from dartune.inputs import data_name, is_file
from dartune.lab.source import is_lab
from dartune.models.adapter import CONFIG_FILE
from dartune.recipe import dump
from dartune.report.summary import percent, sentence

RECIPE = "recipe.yaml"
BESIDE = ("base", "sft")
"""Arms that a model's accuracy is shown beside."""
PHASES = {"reward": "reward", "gate_pass": "share of rewrites that pass the gates", "kl": "KL from its start, nats"}
"""What the card says of a mapper's training."""


def model_card(run: Finished, arm: str, seed: int, licence: str | None) -> str:
    """README.md of the chosen model of a trained arm."""
    config, direct = run.config, bool(ARMS[arm].budget)
    settings = config.direct_rl if direct else config.sft
    tried = ", ".join(f"{rate:g}" for rate in rates(config, arm))
    facts = {
        "start": _model(run, config.target.path),
        "data": _data(run),
        "training": "direct reinforcement learning"
        if direct
        else f"{settings.steps} steps of {settings.batch_size} rows",
        "weights trained": "a LoRA adapter, merged into them" if settings.adapter == "lora" else "all",
        "learning rate": f"{run.learning_rate(arm, seed):g}, chosen on held-out rows from {tried}",
        "seed": seed,
        "system prompt": config.target.system_prompt or "none",
    }
    return _card(
        _header(run, config.target.path, licence, "transformers", "grpo" if direct else "sft"),
        f"# {config.name}: `{arm}`, seed {seed}",
        f"`{run.model_name(config.target.path)}`, trained as the arm `{arm}`: {ARMS[arm].says}.",
        _facts(facts),
        *(f"**Note.** {note}" for note in run.results["notes"] if note.startswith(f"{arm}, seed {seed}: ")),
        "## Results",
        *_accuracy(run, arm, seed),
        _again(run),
        _limits(licence, "The figures above are of these questions, and say nothing about other uses."),
    )


def mapper_card(run: Finished, adaptation: str, seed: int, licence: str | None) -> str:
    """README.md of a trained mapper, be it a whole model or an adapter."""
    settings, adapter = run.config.mapper, is_adapter(run, adaptation, seed)
    target, start = mapper_models(run, adaptation)
    facts = {
        "start": _model(run, start),
        "rewrites for": _model(run, target),
        "data": _data(run),
        "training": f"reinforcement learning ({settings.objective}), at most {settings.steps} steps",
        "weights trained": f"a LoRA adapter of rank {settings.lora_rank}" if adapter else "all",
        "learning rate": f"{settings.learning_rate:g}",
        "seed": seed,
    }
    phases = run.results["mapper"][adaptation][str(seed)]["phases"]
    rows = [[says, *(_number(phases[part].get(key)) for part in ("before", "after"))] for key, says in PHASES.items()]
    return _card(
        _header(run, start, licence, "peft" if adapter else "transformers", "grpo"),
        f"# {run.config.name}: the mapper of `{adaptation}`, seed {seed}",
        "Rewrites the solution of a problem in the words of another model, which is then fine-tuned on the rewrites. "
        "It is asked in a user's turn:",
        f"```\n{settings.prompt}\n```",
        _facts(facts),
        "## Results",
        table([["", "first steps", "last steps"], *rows]),
        _adapted(run, adaptation, seed),
        _again(run),
        _limits(licence, "It was trained on these data; rewrites of others have to be checked."),
    )


def data_card(run: Finished, adaptation: str, seed: int, licence: str | None, repo: str) -> str:
    """README.md of an adapted data set in `repo`: the one in its folder, with its licence and how to make it again."""
    from huggingface_hub import DatasetCard

    folder = run.stage(synthesis_stage(adaptation, seed)) / "adapted"
    text = (folder / "README.md").read_text(encoding="utf-8").replace(HERE, repo)
    target, start = mapper_models(run, adaptation)
    names = {"data": data_name(run.config.data.path), "target": run.model_name(target), "mapper": run.model_name(start)}
    for what, name in names.items():  # the card in the folder has the addresses as they were given
        text = re.sub(rf"^\* {what}: .*$", lambda _, line=f"* {what}: {name}": line, text, flags=re.MULTILINE)
    card = DatasetCard(text)
    card.data.license = licence
    card.data.tags = ["dartune", "synthetic"]
    card.data.task_categories = ["text-generation"]
    return _card(str(card), f"Demonstrations: {_data(run)}. {_adapted(run, adaptation, seed)}", _again(run))


def recipe(run: Finished) -> str:
    """The settings of a run: models, files and folders by their names, no server and no trackers."""
    values = run.config.model_dump(mode="json")
    for section, key in (("target", "path"), ("target", "other"), ("mapper", "path")):
        if (address := values[section][key]) is not None:
            values[section][key] = run.model_name(address)
    values["data"]["path"] = data_name(values["data"]["path"])
    suites = values["evaluate"]["suites"]
    values["evaluate"]["suites"] = {name: data_name(path) for name, path in suites.items()}
    values["output"] = f"runs/{data_name(values['output'])}"
    values["trackers"] = []
    values["execution"] |= {"server": None, "server_model": None}
    return dump(values)


def mapper_models(run: Finished, adaptation: str) -> tuple[str, str]:
    """Addresses of the model that a mapper rewrites for, and of the one it starts from."""
    config = adapted_config(run.config, adaptation, 1)
    return config.target.path, config.mapper.path or config.target.path


def is_adapter(run: Finished, adaptation: str, seed: int) -> bool:
    """Whether a mapper was kept as an adapter of the model it starts from."""
    return f"model/{CONFIG_FILE}" in run.done(mapper_stage(adaptation, seed))["files"]


def table(rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *others = (f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *others])


def _card(*blocks: str) -> str:
    return "\n\n".join(block.strip("\n") for block in blocks if block) + "\n"


def _header(run: Finished, start: str, licence: str | None, library: str, tag: str) -> str:
    """What the Hub reads; a model or data set is linked where it is on the Hub."""
    from huggingface_hub import ModelCardData

    data = run.config.data.path
    hub_id = re.split("[:@#]", data.removeprefix("hub:"))[0] if data.startswith("hub:") else None
    known = ModelCardData(
        base_model=run.model_name(start) if run.from_hub(start) else None,
        datasets=[hub_id] if hub_id else None,
        library_name=library,
        license=licence,
        pipeline_tag="text-generation",
        tags=["dartune", tag],
    )
    return f"---\n{known.to_yaml()}\n---"


def _facts(facts: dict[str, Any]) -> str:
    return "## Training\n\n" + table([["", ""], *facts.items()])


def _model(run: Finished, address: str) -> str:
    name = f"`{run.model_name(address)}`"
    return f"{name}, a model folder" if _is_folder(run, address) else name


def _data(run: Finished) -> str:
    digest = run.done("data")["inputs"]["data"]
    return f"`{data_name(run.config.data.path)}`, sha256 of the rows as they were read `{digest}`"


def _adapted(run: Finished, adaptation: str, seed: int) -> str:
    known = run.results["adapted"][adaptation][str(seed)]
    counts = ", ".join(f"{known['provenance'][name]} {name}" for name in PROVENANCES if known["provenance"].get(name))
    return f"What became of the {known['accounting']['input']} demonstrations: {counts}."


def _accuracy(run: Finished, arm: str, seed: int) -> list[str]:
    """Accuracy per suite beside the plain arms, and what the differences come to over all seeds."""
    results = run.results
    arms = [arm, *(other for other in BESIDE if other in results["arms"] and other != arm)]
    found = {(cell["arm"], cell["suite"]): cell for cell in results["cells"] if cell["seed"] == seed}
    rows = [["accuracy %", "questions", *arms]]
    for suite in (suite["name"] for suite in results["suites"]):
        rows.append([suite, found[arm, suite]["n"], *(percent(found[one, suite]["accuracy"]) for one in arms)])
    gaps = [
        f"* {sentence(results, gap)}"
        for gap in results["differences"]
        if (gap["arm"], gap["level"], gap["measure"]) == (arm, "group", "accuracy") and gap["against"] in BESIDE
    ]
    seeds = len(results["seeds"])
    return [
        table(rows),
        "\n".join([f"Over {seeds} seeds:" if seeds > 1 else "Of a single seed:", "", *gaps]) if gaps else "",
    ]


def _again(run: Finished) -> str:
    values = run.config
    models = dict.fromkeys(filter(None, (values.target.path, values.mapper.path)))
    here = [run.model_name(path) for path in models if _is_folder(run, path)]
    here += [data_name(path) for path in (values.data.path, *values.evaluate.suites.values()) if is_file(path)]
    own = f"\n\nIt names files that are not here, so put the paths of yours: `{'`, `'.join(here)}`." if here else ""
    return f"""\
## Made again

By dartune {__version__}, whose method is [DART](https://arxiv.org/abs/2605.26924), with [{RECIPE}]({RECIPE}):

```sh
dartune run {RECIPE}
```{own}"""


def _limits(licence: str | None, scope: str) -> str:
    terms = "" if licence else " No licence was named for it."
    return f"## Limits\n\n{scope} The licences and limits of the model it starts from and of the data hold.{terms}"


def _is_folder(run: Finished, address: str) -> bool:
    return not is_lab(address) and not run.from_hub(address)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(value: Any) -> str:
    """Text that ends neither the cell nor the row."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
