"""`dartune push`: the adapted data, a fine-tuned target or the mapper of a finished run, to the Hub, on request only.

What goes up are the files of one folder that are weights, tokenizer or data, and a card. The card has what the run
measured, and no path of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dartune.adapt import mapper_stage, synthesis_stage
from dartune.arms import ADAPTATIONS, ARMS
from dartune.errors import InputError, MachineError
from dartune.report.results import read_results
from dartune.report.summary import percent_interval, points_interval
from dartune.train_arms import train_stage

What = Literal["data", "model", "mapper"]
PUBLISHED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".jsonl", ".parquet")
"""Endings of files that go up; a folder of ours has no others, but somebody may have put some there."""
CARD = "README.md"
PAPER = "arXiv 2605.26924"


@dataclass(frozen=True, slots=True)
class Package:
    """What is to be uploaded: files of a folder, and the card in place of its README.

    `places` are this machine's paths, of which only the last part is published.
    """

    kind: Literal["dataset", "model"]
    folder: Path
    files: tuple[str, ...]
    card: str
    places: tuple[str, ...] = ()

    def content(self, name: str) -> bytes | str:
        """A file's path, or its bytes where it is a setting that may hold paths."""
        path = self.folder / name
        return without(path.read_text("utf-8"), self.places).encode() if path.suffix == ".json" else str(path)

    def lines(self) -> list[str]:
        """The files with their sizes."""
        sizes = [(name, (self.folder / name).stat().st_size) for name in self.files]
        return [f"  {size / 1e6:10.2f} MB  {name}" for name, size in [*sizes, (CARD, len(self.card.encode()))]]


def packed(run: Path, what: What, arm: str = "dart", seed: int | None = None) -> Package:
    """What `push` uploads of a run.

    Args:
        arm: whose model, data or mapper it is.
        seed: None is the run's first.

    Raises:
        InputError: the run is not finished, or has no such thing; everything that is wrong at once.
    """
    results = read_results(run / "report" / "results.json")
    seed = results["seeds"][0] if seed is None else seed
    problems = []
    if seed not in results["seeds"]:
        problems.append(f"seed {seed} was not run; there are {', '.join(map(str, results['seeds']))}")
    if arm not in results["arms"]:
        problems.append(f"arm {arm} was not run; there are {', '.join(results['arms'])}")
    elif trouble := _missing(what, arm):
        problems.append(trouble)
    if problems:
        raise InputError(f"{run} cannot be pushed", problems)
    folder = run / "stages" / _place(results, what, arm, seed)
    if not folder.is_dir():
        raise InputError(f"{folder} is gone; the run's command makes it again")
    card = (folder / CARD).read_text("utf-8") if what == "data" else model_card(results, what, arm, seed)
    files = sorted(path.name for path in folder.iterdir() if path.suffix in PUBLISHED and path.is_file())
    places = _local(results["config"])
    return Package("dataset" if what == "data" else "model", folder, tuple(files), without(card, places), places)


def _missing(what: What, arm: str) -> str | None:
    """Why an arm has no such thing."""
    if what == "model":
        return None if ARMS[arm].trained else f"{arm} has no model of its own: it is the target as it was"
    if ARMS[arm].rows not in ADAPTATIONS:
        return f"{arm} has no adapted data"
    untrained = what == "mapper" and not ADAPTATIONS[ARMS[arm].rows].trained
    return f"{arm} has no mapper of its own: it takes the start as it is" if untrained else None


def _place(results: Mapping[str, Any], what: What, arm: str, seed: int) -> str:
    if what == "data":
        return f"{synthesis_stage(ARMS[arm].rows, seed)}/adapted"
    if what == "mapper":
        return f"{mapper_stage(ARMS[arm].rows, seed)}/model"
    return f"{train_stage(arm, seed, results['learning_rates'][arm][str(seed)]['chosen'])}/model"


def push(package: Package, repo: str, *, private: bool = False) -> str:
    """Upload to the Hub as one commit; returns the address. The repository is made where there is none.

    Raises:
        InputError: no such name is allowed, or nobody is logged in.
        MachineError: the Hub refuses, or cannot be reached.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--to {repo!r} is no name on the Hub, which are owner/name: {error}") from error
    if get_token() is None:
        raise InputError("nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    added = [CommitOperationAdd(name, package.content(name)) for name in package.files]
    added.append(CommitOperationAdd(CARD, package.card.encode()))
    try:
        address = api.create_repo(repo, repo_type=package.kind, private=private or None, exist_ok=True)
        api.create_commit(repo, added, commit_message="Upload by dartune", repo_type=package.kind)
    except HfHubHTTPError as error:
        raise MachineError(f"the Hub does not take {repo}: {error}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise MachineError(f"the Hub cannot be reached: {error}") from error
    return str(address)


def model_card(results: Mapping[str, Any], what: What, arm: str, seed: int) -> str:
    """The card of a fine-tuned target or of a mapper: what it is, how it was made, what was measured."""
    config = results["config"]
    base = (what == "mapper" and config["mapper"]["path"]) or config["target"]["path"]
    header = ["---", "library_name: transformers", "tags: [dartune, " + ("mapper]" if what == "mapper" else "sft]")]
    header += [f"base_model: {base}"] if _on_hub(base) else []
    header += [f"datasets: [{name}]"] if (name := _hub_data(config["data"]["path"])) else []
    what_it_is = (
        f"Rewrites a demonstration into the words of `{config['target']['path']}`: give it the prompt below with a "
        "question and a solution. Trained with reinforcement learning; the reward is how natural the rewrite is to "
        "that model, behind gates that keep it right."
        if what == "mapper"
        else f"`{base}`, fine-tuned as the arm `{arm}`: {ARMS[arm].says}."
    )
    made = {
        "run": config["name"],
        "start": base,
        "data": config["data"]["path"],
        "seed": seed,
        "method": f"DART ({PAPER}), by dartune",
    }
    if what == "model":
        made["learning rate"] = results["learning_rates"][arm][str(seed)]["chosen"]
        made["steps"] = config["sft"]["steps"]
    else:
        made |= {"learning rate": config["mapper"]["learning_rate"], "steps": config["mapper"]["steps"]}
    sections = {
        "Prompt": f"```\n{config['mapper']['prompt']}\n```" if what == "mapper" else "",
        "How it was made": "\n".join(f"* {key}: {value}" for key, value in made.items()),
        "Measured": ("The target, fine-tuned on its rewrites:\n\n" if what == "mapper" else "")
        + _measured(results, arm),
        "Limits": "It inherits the licence and the limits of the model and the data it comes from. Nobody has tested "
        "it for anything but the suites above.",
    }
    title = f"# {config['name']}, {what if what == 'mapper' else arm}\n\n{what_it_is}\n"
    told = [f"\n## {name}\n\n{text}\n" for name, text in sections.items() if text]
    return "\n".join([*header, "---", "", title]) + "".join(told)


def _measured(results: Mapping[str, Any], arm: str) -> str:
    """Accuracy per group of suites, and the paired difference to the others, with 95% intervals."""
    groups = [row for row in results["summaries"] if row["arm"] == arm and row["level"] == "group"]
    lines = ["| suites | accuracy, % | against | points |", "|---|---|---|---|"]
    for row in groups:
        rivals = [
            one
            for one in results["differences"]
            if (one["arm"], one["level"], one["name"], one["measure"]) == (arm, "group", row["name"], "accuracy")
        ]
        told = [(f"`{one['against']}`", points_interval(one)) for one in rivals] or [("", "")]
        for i, (against, gap) in enumerate(told):
            first = [row["name"], percent_interval(row["accuracy"])] if i == 0 else ["", ""]
            lines.append(f"| {first[0]} | {first[1]} | {against} | {gap} |")
    seeds = f"Seeds: {', '.join(map(str, results['seeds']))}."
    return "\n".join(lines) + f"\n\n{seeds} Intervals (95%) are over questions."


def _on_hub(address: str) -> bool:
    return not address.startswith("lab:") and not Path(address).expanduser().exists() and not os.path.isabs(address)


def _hub_data(path: str) -> str | None:
    return path.removeprefix("hub:").split(":")[0].split("@")[0] if path.startswith("hub:") else None


def _local(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of this machine that a run's settings name, the longest first."""
    named = [config["data"]["path"], config["target"]["path"], config["mapper"]["path"], config["output"]]
    places = {place for place in named if place and (os.path.isabs(place) or place.startswith((".", "~")))}
    return tuple(sorted(places, key=len, reverse=True))


def without(text: str, places: Iterable[str]) -> str:
    """The text with local paths cut down to their last part."""
    for place in places:
        text = text.replace(place, Path(place).name)
    return text
