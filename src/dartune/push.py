"""`dartune push`: the data set, a model or the mapper of a finished run, to the Hugging Face Hub, with a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dartune.adapt import mapper_stage, synthesis_stage
from dartune.arms import ADAPTATIONS, ARMS
from dartune.cards import RECIPE, data_card, is_adapter, mapper_card, mapper_models, model_card, recipe
from dartune.errors import InputError, MachineError
from dartune.finished import Finished, opened

What = Literal["data", "model", "mapper"]
PLACES = {"config.json": "_name_or_path", "adapter_config.json": "base_model_name_or_path"}
"""Files in which libraries note where a model was loaded from, and the key."""


@dataclass(frozen=True)
class Upload:
    """What goes to the Hub: path there -> a file here, or its content."""

    kind: Literal["model", "dataset"]
    files: dict[str, Path | bytes]

    def size(self, name: str) -> int:
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def push(
    folder: Path,
    repo: str,
    what: What = "data",
    *,
    arm: str = "dart",
    seed: int | None = None,
    licence: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> str:
    """Upload what a finished run made, as one commit; returns its address and the files.

    Args:
        folder: a run folder.
        repo: owner/name on the Hub; made where there is none.
        what: the arm's adapted data set, its chosen model, or its mapper.
        seed: None is the first of the run.
        licence: its id on the Hub, for the card.
        private: only into a repository that others cannot see; otherwise a new one is as the owner's settings say.
        dry_run: nothing leaves this machine; returns the files and the card.

    Raises:
        InputError: all that is wrong with the run, the arm, the name, the login; or the Hub refuses.
        MachineError: the Hub cannot be reached.
    """
    problems = _name_problems(repo) + ([] if dry_run else _login_problems())
    run = None
    try:
        run = opened(folder)
        seed = run.results["seeds"][0] if seed is None else seed
        problems += _absent(run, what, arm, seed)
    except InputError as error:
        problems += error.lines
    if problems or run is None or seed is None:
        raise InputError("this cannot be pushed", problems)
    upload = contents(run, what, arm, seed, licence, repo)
    listed = [f"  {name:<28} {upload.size(name):>14,} bytes" for name in sorted(upload.files)]
    if dry_run:
        card = bytes(upload.files["README.md"]).decode()
        return "\n".join([f"{repo}, a {upload.kind} repository, would get:", *listed, "", "README.md:", "", card])
    return "\n".join([_sent(upload, repo, f"{what} of {arm}, seed {seed}", private), *listed])


def contents(run: Finished, what: What, arm: str, seed: int, licence: str | None, repo: str) -> Upload:
    """The files that the stage wrote, no others; the card and the recipe; no path of this machine in any."""
    adaptation = ARMS[arm].rows or ""
    if what == "data":
        stage, part = synthesis_stage(adaptation, seed), "adapted"
        card = data_card(run, adaptation, seed, licence, repo)
    elif what == "mapper":
        stage, part = mapper_stage(adaptation, seed), "model"
        card = mapper_card(run, adaptation, seed, licence)
    else:
        stage, part = run.model_stage(arm, seed), "model"
        card = model_card(run, arm, seed, licence)
    start = mapper_models(run, adaptation)[1] if what == "mapper" else run.config.target.path
    files: dict[str, Path | bytes] = {}
    for written in run.done(stage)["files"]:
        if written.startswith(f"{part}/"):
            name = written.removeprefix(f"{part}/")
            path = run.stage(stage) / written
            files[name] = _renamed(path, PLACES[name], run.model_name(start)) if name in PLACES else path
    files |= {"README.md": card.encode(), RECIPE: recipe(run).encode()}
    return Upload("dataset" if what == "data" else "model", files)


def _renamed(path: Path, key: str, name: str) -> bytes:
    """A JSON file that notes a path, with a name in its place."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return (json.dumps(values | ({key: name} if key in values else {}), indent=2) + "\n").encode()


def _name_problems(repo: str) -> list[str]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1:
        return [f"--to {repo}: give owner/name, as in --to my-name/my-data"]
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return [f"--to {repo}: {error}"]
    return []


def _login_problems() -> list[str]:
    from huggingface_hub import get_token

    return [] if get_token() else ["there is no login for the Hub here: run `hf auth login`, or set HF_TOKEN"]


def _absent(run: Finished, what: What, arm: str, seed: int) -> list[str]:
    """Why the run has not made what is asked for."""
    arms, seeds = run.results["arms"], run.results["seeds"]
    problems = []
    if seed not in seeds:
        problems.append(f"--seed {seed}: the run has {', '.join(map(str, seeds))}")
    if arm not in arms:
        return [*problems, f"--arm {arm}: the run has {', '.join(arms)}"]
    adaptation = ARMS[arm].rows
    if what == "model" and not ARMS[arm].trained:
        problems.append(f"--arm {arm}: it is the target as it was, there is no model of it")
    elif what == "data" and adaptation not in ADAPTATIONS:
        problems.append(f"--arm {arm}: it is trained on no adapted data; choose {_those(arms, trained=False)}")
    elif what == "mapper" and not (adaptation in ADAPTATIONS and ADAPTATIONS[adaptation].trained):
        problems.append(f"--arm {arm}: no mapper was trained for it; choose {_those(arms, trained=True)}")
    elif what == "mapper" and not problems and run.config.mapper.format_steps and is_adapter(run, adaptation, seed):
        problems.append(
            "--what mapper: it is an adapter of the model that mapper.format_steps made, which stays here, so nobody "
            "could use it; train the mapper with mapper.adapter: full to share it"
        )
    return problems


def _those(arms: list[str], *, trained: bool) -> str:
    """Arms with adapted data, or with a trained mapper."""
    found = [arm for arm in arms if (made := ADAPTATIONS.get(ARMS[arm].rows or "")) and (made.trained or not trained)]
    return ", ".join(found) or "another run, none of this one has any"


def _sent(upload: Upload, repo: str, says: str, private: bool) -> str:
    """Make the repository if need be and commit; returns the address of the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="dartune")
    with _hub_errors(repo):
        api.create_repo(repo, repo_type=upload.kind, private=True if private else None, exist_ok=True)
        seen_by_all = private and not api.repo_info(repo, repo_type=upload.kind).private
    if seen_by_all:
        raise InputError(f"{repo} is there already and public, so nothing was uploaded; --private needs another name")
    added = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in upload.files.items()
    ]
    with _hub_errors(repo):
        done = api.create_commit(repo, added, commit_message=f"dartune push: {says}", repo_type=upload.kind)
    return f"pushed: {done.commit_url}"


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """The Hub's refusals, and its absence, as ours; no header of a request is shown, since one holds the token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        said = error.server_message or str(error).strip().partition("\n")[0]
        status = error.response.status_code
        if status >= 500 or status == 429:
            raise MachineError(f"the Hub cannot take {repo} now ({status}): {said}") from error
        hint = "; log in with a token that may write there: `hf auth login`" if status in (401, 403, 404) else ""
        raise InputError(f"the Hub refuses {repo} ({status}): {said}{hint}") from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise MachineError(f"the Hub cannot be reached: {error}") from error
    except ValueError as error:  # what it says of the card's header, such as a licence it does not know
        raise InputError(f"the Hub refuses {repo}: {error}") from error
