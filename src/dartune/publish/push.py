"""`dartune push`: upload a data set, a model or a mapper of a finished run to the Hugging Face Hub, with a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dartune.config.arms import ADAPTATIONS, ARMS
from dartune.errors import InputError, MachineError
from dartune.publish.data_card import (
    RECIPE,
    data_card,
    is_adapter,
    mapper_card,
    mapper_models,
    model_card,
    public_recipe,
)
from dartune.report.finished_run import FinishedRun, open_finished_run
from dartune.stages.names import mapper_stage, synthesis_stage

What = Literal["data", "model", "mapper"]
MODEL_PATH_KEYS = {"config.json": "_name_or_path", "adapter_config.json": "base_model_name_or_path"}
"""Files in which libraries record the path that a model was loaded from, and the key of the path."""


@dataclass(frozen=True)
class Upload:
    """Files of an upload: path in the repository -> local file or content."""

    kind: Literal["model", "dataset"]
    files: dict[str, Path | bytes]

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
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
    """Upload an output of a finished run as one commit; return the address of the commit and the list of files.

    Args:
        folder: a run folder.
        repo: owner/name on the Hub; the repository is created if it does not exist.
        what: the arm's adapted data set, its model at the selected learning rate, or its mapper.
        arm: an arm of the run.
        seed: a seed of the run; None: the first one.
        licence: Hub id of the licence, for the card.
        private: upload only into a private repository. Otherwise the visibility of a new repository follows the
            owner's settings.
        dry_run: upload nothing; return the files and the card.

    Raises:
        InputError: the run, the arm, the repository name or the login is invalid (all problems are listed), or the
            Hub rejects the request.
        MachineError: the Hub cannot be reached.
    """
    problems = _name_problems(repo) + ([] if dry_run else _login_problems())
    run = None
    try:
        run = open_finished_run(folder)
        seed = int(run.results["seeds"][0]) if seed is None else seed
        problems += _output_problems(run, what, arm, seed)
    except InputError as error:
        problems += error.lines
    if problems or run is None or seed is None:
        raise InputError(f"cannot push the {what} of {folder}", problems)
    upload = build_upload(run, what, arm, seed, licence, repo)
    file_list = [f"  {name:<28} {upload.size(name):>14,} bytes" for name in sorted(upload.files)]
    if dry_run:
        card = bytes(upload.files["README.md"]).decode()
        return "\n".join([f"{repo}, a {upload.kind} repository, would get:", *file_list, "", "README.md:", "", card])
    return "\n".join([_commit(upload, repo, f"{what} of {arm}, seed {seed}", private), *file_list])


def build_upload(run: FinishedRun, what: What, arm: str, seed: int, licence: str | None, repo: str) -> Upload:
    """Return the files to upload: the recorded outputs of the stage, the card and the recipe, without local paths.

    Only files in the stage's record are uploaded. Other files in its folder, such as `.env`, stay local.
    """
    adaptation = ARMS[arm].rows or ""
    if what == "data":
        stage, subfolder = synthesis_stage(adaptation, seed), "adapted"
        card = data_card(run, adaptation, seed, licence, repo)
    elif what == "mapper":
        stage, subfolder = mapper_stage(adaptation, seed), "model"
        card = mapper_card(run, adaptation, seed, licence)
    else:
        stage, subfolder = run.model_stage(arm, seed), "model"
        card = model_card(run, arm, seed, licence)
    initial_model = mapper_models(run, adaptation)[1] if what == "mapper" else run.config.target.path
    files: dict[str, Path | bytes] = {}
    for output in run.stage_record(stage)["files"]:
        if output.startswith(f"{subfolder}/"):
            name = output.removeprefix(f"{subfolder}/")
            path = run.stage_folder(stage) / output
            key = MODEL_PATH_KEYS.get(name)
            files[name] = _with_public_name(path, key, run.model_name(initial_model)) if key else path
    files |= {"README.md": card.encode(), RECIPE: public_recipe(run).encode()}
    return Upload("dataset" if what == "data" else "model", files)


def _with_public_name(path: Path, key: str, name: str) -> bytes:
    """Content of a JSON file whose value of `key`, a local path, is replaced by a public name."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return (json.dumps(values | ({key: name} if key in values else {}), indent=2) + "\n").encode()


def _name_problems(repo: str) -> list[str]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1:
        return [f"--to {repo}: give owner/name, for example --to my-name/my-data"]
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return [f"--to {repo}: {error}"]
    return []


def _login_problems() -> list[str]:
    from huggingface_hub import get_token

    return [] if get_token() else ["not logged in to the Hub: run `hf auth login` or set HF_TOKEN"]


def _output_problems(run: FinishedRun, what: What, arm: str, seed: int) -> list[str]:
    """Reasons why the run does not have the requested output, or why it cannot be published."""
    arms, seeds = run.results["arms"], run.results["seeds"]
    problems = []
    if seed not in seeds:
        problems.append(f"--seed {seed}: the run has {', '.join(map(str, seeds))}")
    if arm not in arms:
        return [*problems, f"--arm {arm}: the run has {', '.join(arms)}"]
    adaptation = ARMS[arm].rows or ""
    if what == "model" and not ARMS[arm].trained:
        problems.append(f"--arm {arm}: this arm is the untouched target and has no model of its own")
    elif what == "data" and adaptation not in ADAPTATIONS:
        problems.append(f"--arm {arm}: this arm has no adapted data; available: {_adapting_arms(arms, trained=False)}")
    elif what == "data" and ARMS[arm].renewed:
        problems.append(
            f"--arm {arm}: this arm is trained on rows renewed for its initial model, which are not published; "
            f"available: {_adapting_arms(arms, trained=False)}"
        )
    elif what == "mapper" and not (adaptation in ADAPTATIONS and ADAPTATIONS[adaptation].trained):
        problems.append(f"--arm {arm}: this arm has no trained mapper; available: {_adapting_arms(arms, trained=True)}")
    elif what == "mapper" and not problems and run.config.mapper.format_steps and is_adapter(run, adaptation, seed):
        problems.append(
            "--what mapper: the mapper is an adapter of the model trained by mapper.format_steps, which is not "
            "published, so the adapter could not be loaded; train the mapper with mapper.lora_rank: null to publish it"
        )
    return problems


def _adapting_arms(arms: list[str], *, trained: bool) -> str:
    """Names of the arms with a trained mapper, or else of those whose adapted data can be published."""
    names = [
        arm
        for arm in arms
        if (adaptation := ADAPTATIONS.get(ARMS[arm].rows or ""))
        and (adaptation.trained if trained else not ARMS[arm].renewed)
    ]
    return ", ".join(names) or "no arm of this run"


def _commit(upload: Upload, repo: str, description: str, private: bool) -> str:
    """Create the repository if it does not exist, commit the files, and return the address of the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="dartune")
    with _hub_errors(repo):
        api.create_repo(repo, repo_type=upload.kind, private=True if private else None, exist_ok=True)
        is_public = private and not api.repo_info(repo, repo_type=upload.kind).private
    if is_public:
        raise InputError(f"{repo} exists already and is public. Nothing was uploaded; use another name with --private")
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in upload.files.items()
    ]
    with _hub_errors(repo):
        commit = api.create_commit(
            repo, operations, commit_message=f"dartune push: {description}", repo_type=upload.kind
        )
    return f"pushed: {commit.commit_url}"


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Convert errors of the Hub and of the network; messages omit request headers, which contain the token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        message = error.server_message or str(error).strip().partition("\n")[0]
        status = error.response.status_code
        if status >= 500 or status == 429:
            raise MachineError(f"the Hub cannot process {repo} at the moment ({status}): {message}") from error
        hint = "; log in with a token that has write access: `hf auth login`" if status in (401, 403, 404) else ""
        raise InputError(f"the Hub rejects {repo} ({status}): {message}{hint}") from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise MachineError(f"the Hub cannot be reached: {error}") from error
    except ValueError as error:  # raised for an invalid card header, for example an unknown licence
        raise InputError(f"the Hub rejects {repo}: {error}") from error
