"""`dartune push`: a fake Hub receives the outputs of the run, and nothing else of the machine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dartune.cli import main
from dartune.config.load import load_config
from dartune.publish.data_card import markdown_table, model_card
from dartune.publish.push import _output_problems
from dartune.report.finished_run import open_finished_run
from fixtures_hub import TOKEN, served_hub

REPO = "someone/mine"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake Hub that this process is logged in to."""
    from huggingface_hub import close_session, constants

    with served_hub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        yield served
        close_session()


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def push(run, *arguments, code=0):
    assert main(["push", str(run), "--to", REPO, *arguments]) == code


def header(files):
    return yaml.safe_load(files["README.md"].decode().split("---\n")[1])


def received(hub, kind, folder):
    """Write the files that the Hub received to a folder."""
    folder.mkdir()
    for name, content in hub.files[kind, REPO].items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.slow
def test_the_data_set_is_complete_and_loads(hub, finished_run, tmp_path, capsys):
    from datasets import load_dataset

    push(finished_run, "--license", "apache-2.0")
    files = hub.files["dataset", REPO]
    adapted = finished_run / "stages" / "synthesise-s0" / "adapted"
    assert set(files) == {path.name for path in adapted.iterdir()} | {"recipe.yaml"}
    assert all(files[path.name] == path.read_bytes() for path in adapted.iterdir() if path.name != "README.md")
    assert header(files)["license"] == "apache-2.0"
    card = files["README.md"].decode()
    assert (
        f'load_dataset("{REPO}"' in card
        and open_finished_run(finished_run).stage_record("data")["inputs"]["data"] in card
    )
    rows = load_dataset(str(received(hub, "dataset", tmp_path / "got")), split="train", cache_dir=str(tmp_path / "c"))
    assert rows.num_rows == len((adapted / "data.jsonl").read_text().splitlines())
    assert "data.jsonl" in capsys.readouterr().out


@pytest.mark.slow
def test_the_model_is_the_selected_one_and_its_card_has_the_results(hub, finished_run, tmp_path):
    from transformers import AutoModelForCausalLM

    push(finished_run, "--what", "model", "--arm", "sft")
    run = open_finished_run(finished_run)
    stage = run.stage_folder(run.model_stage("sft", 0))
    files = hub.files["model", REPO]
    assert files["model.safetensors"] == (stage / "model" / "model.safetensors").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(received(hub, "model", tmp_path / "got"))
    assert model.config.model_type == "llama"
    card = files["README.md"].decode()
    assert header(files) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dartune", "sft"],
    }
    accuracy = next(cell for cell in run.results["cells"] if cell["arm"] == "sft")["accuracy"]
    assert f"| in_distribution | 4 | {100 * accuracy:.1f} |" in card
    assert f"| learning rate | {run.learning_rate('sft', 0):g}, chosen" in card
    assert "No licence was named" in card


@pytest.mark.slow
def test_the_card_of_an_untrained_model_has_the_note(hub, run_copy):
    path = run_copy / "report" / "results.json"
    results = json.loads(path.read_text())
    note = "dart, seed 0: no row was adapted, so the arm was not trained and equals the untouched target."
    results["notes"] += [note, note.replace("dart", "sft")]
    path.write_text(json.dumps(results))
    push(run_copy, "--what", "model")
    card = hub.files["model", REPO]["README.md"].decode()
    assert f"**Note.** {note}" in card and "sft, seed 0: no row" not in card


@pytest.mark.slow
def test_the_mapper_is_an_adapter_and_its_card_has_the_prompt(hub, finished_run):
    push(finished_run, "--what", "mapper")
    files = hub.files["model", REPO]
    assert header(files)["library_name"] == "peft"
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "target"
    assert open_finished_run(finished_run).config.mapper.prompt in files["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "model", "mapper"])
def test_no_local_path_or_secret_is_uploaded(what, hub, run_copy, finished_run, capsys):
    for folder in run_copy.glob("stages/*/*/"):
        (folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    push(run_copy, "--what", what)
    for name, content in hub.files["dataset" if what == "data" else "model", REPO].items():
        assert not name.endswith((".bin", ".env"))
        for private in (str(finished_run.parent), str(run_copy), str(Path.home()) + "/", TOKEN):
            assert private.encode() not in content, (name, private)
    shown = capsys.readouterr()
    assert TOKEN not in shown.out + shown.err


@pytest.mark.slow
def test_the_recipe_equals_that_of_the_run_except_for_paths(hub, finished_run, tmp_path):
    push(finished_run)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(hub.files["dataset", REPO]["recipe.yaml"])
    config = open_finished_run(finished_run).config
    paths = {"data": config.data.path, "target": config.target.path, "output": config.output}
    assert yaml.safe_load(recipe.read_text())["target"]["path"] == "target"
    assert load_config(recipe, paths) == config


def use_hub_target(run, address="owner/base"):
    """Change a run as if its target had been loaded from the Hub."""
    path = open_finished_run(run).config.target.path
    recorded = json.loads((run / "stages" / "mapper-s0" / "DONE").read_text())["inputs"]["start"]
    texts = [run / "config.resolved.yaml", run / "report" / "results.json"]
    for file in [*texts, *run.glob("stages/*/DONE")]:
        file.write_text(file.read_text().replace(path, address).replace(recorded, address))
    return address


@pytest.mark.slow
def test_a_model_from_the_hub_is_linked(hub, run_copy, tmp_path, monkeypatch):
    (tmp_path / "owner" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # this folder has a subfolder with the same name as the Hub id
    address = use_hub_target(run_copy)
    push(run_copy, "--what", "model")
    assert header(hub.files["model", REPO])["base_model"] == address
    push(run_copy, "--what", "mapper")
    files = hub.files["model", REPO]
    assert header(files)["base_model"] == address
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == address


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "name"), [("~/secret/base", "base"), (".", "local"), ("..", "local"), ("secret/base", "base")]
)
def test_a_folder_is_named_without_its_path(address, name, hub, run_copy):
    path = open_finished_run(run_copy).config.target.path
    adapter = run_copy / "stages" / "mapper-s0" / "model" / "adapter_config.json"
    for file in (run_copy / "config.resolved.yaml", run_copy / "report" / "results.json"):
        file.write_text(file.read_text().replace(path, address))
    before = json.loads(adapter.read_text())
    push(run_copy, "--what", "mapper")
    files = hub.files["model", REPO]
    assert json.loads(files["adapter_config.json"]) == before | {"base_model_name_or_path": name}
    assert (
        "base_model" not in header(files)
        and f"| initial model | `{name}`, a model folder |" in files["README.md"].decode()
    )
    assert yaml.safe_load(files["recipe.yaml"])["target"]["path"] == name
    assert b"secret" not in b"".join(files.values())


@pytest.mark.slow
def test_all_problems_are_reported_at_once(hub, run_copy, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(run_copy), "--to", "mine", "--arm", "gold", "--seed", "7"]) == 2
    message = capsys.readouterr().err
    for text in (
        "give owner/name",
        "hf auth login",
        "--seed 7: the run has 0",
        "--arm gold: the run has base, sft, dart",
    ):
        assert text in message
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "sft"], "this arm has no adapted data; available: dart"),
        (["--what", "model", "--arm", "base"], "this arm is the untouched target and has no model of its own"),
        (["--what", "mapper", "--arm", "sft"], "this arm has no trained mapper; available: dart"),
        (["--to", "a/b--c"], "Cannot have -- or .."),
    ],
)
def test_missing_outputs_are_rejected(arguments, message, hub, finished_run, capsys):
    assert main(["push", str(finished_run), "--to", REPO, *arguments]) == 2
    assert message in capsys.readouterr().err and hub.requests == []


def test_renewed_rows_are_not_published_under_the_name_of_the_adapted_data():
    run = SimpleNamespace(results={"arms": ["base", "dart", "dart_refreshed"], "seeds": [0]})
    (problem,) = _output_problems(run, "data", "dart_refreshed", 0)
    assert "trained on rows renewed for its initial model, which are not published; available: dart" in problem
    assert problem.endswith("available: dart") and _output_problems(run, "data", "dart", 0) == []


@pytest.mark.slow
def test_an_adapter_of_an_unpublished_model_is_rejected(hub, run_copy, capsys):
    for file in (run_copy / "config.resolved.yaml", run_copy / "report" / "results.json"):
        text = file.read_text().replace("format_steps: 0", "format_steps: 3")
        file.write_text(text.replace('"format_steps": 0', '"format_steps": 3'))
    push(run_copy, "--what", "mapper", code=2)
    assert "adapter of the model trained by mapper.format_steps" in capsys.readouterr().err


def spoil_mark(run):
    (run / "stages" / "train-dart-s0-lr0.001" / "DONE").rename(run / "stages" / "train-dart-s0-lr0.001" / "STARTED")


def spoil_settings(run):
    file = run / "config.resolved.yaml"
    file.write_text(file.read_text().replace("temperature: 1.0", "temperature: 0.7"))


def spoil_output(run):
    (run / "stages" / "synthesise-s0" / "adapted" / "data.jsonl").write_text("{}\n")


def spoil_report(run):
    shutil.rmtree(run / "report")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_mark, "train-dart-s0-lr0.001 not complete; finish the run first: dartune run"),
        (spoil_settings, "settings were changed since its report (mapper.temperature 1.0 -> 0.7"),
        (spoil_output, "data.jsonl is missing or was changed"),
        (spoil_report, "results.json does not exist"),
    ],
)
def test_an_unfinished_run_is_rejected(spoil, message, hub, run_copy, capsys):
    spoil(run_copy)
    push(run_copy, code=2)
    assert message in capsys.readouterr().err and hub.requests == []


@pytest.mark.slow
def test_private_rejects_a_public_repository(hub, finished_run, capsys):
    push(finished_run, "--private")
    assert hub.private["dataset", REPO]
    push(finished_run, "--private")  # into the same repository again
    hub.private["dataset", REPO] = False
    hub.files["dataset", REPO].clear()
    push(finished_run, "--private", code=2)
    assert "exists already and is public" in capsys.readouterr().err
    assert hub.files["dataset", REPO] == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("errors", "code", "message"),
    [
        ({"create": (403, "You don't have the rights")}, 2, "(403): You don't have the rights"),
        ({"create": (503, "Down for maintenance")}, 3, "(503): Down for maintenance"),
        ({"commit": (413, "Too large")}, 2, "(413): Too large"),
    ],
)
def test_errors_of_the_hub_are_shown(errors, code, message, hub, finished_run, monkeypatch, capsys):
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub.errors = errors
    push(finished_run, code=code)
    shown = capsys.readouterr()
    assert message in shown.err and TOKEN not in shown.out + shown.err


@pytest.mark.slow
def test_an_unknown_licence_is_reported(hub, finished_run, capsys):
    push(finished_run, "--license", "apache2", code=2)
    assert '"license" must be one of' in capsys.readouterr().err
    assert hub.files["dataset", REPO] == {}


@pytest.mark.slow
def test_an_unreachable_hub_is_a_machine_error(hub, finished_run, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    push(finished_run, code=3)
    assert "the Hub cannot be reached" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_lists_the_files_and_sends_nothing(hub, finished_run, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    push(finished_run, "--dry-run")
    shown = capsys.readouterr().out
    size = (finished_run / "stages" / "synthesise-s0" / "adapted" / "data.jsonl").stat().st_size
    assert f"{size:,} bytes" in shown and "# Adapted data set" in shown
    assert hub.requests == []


@given(st.lists(st.lists(st.text() | st.text("\\|\n "), min_size=2, max_size=2), min_size=1))
def test_a_table_keeps_its_cells_for_any_text(rows):
    lines = markdown_table(rows).replace("\\\\", "").replace("\\|", "").split("\n")
    assert len(lines) == len(rows) + 1
    assert {line.count("|") for line in lines} == {3}


@pytest.mark.slow
def test_the_card_of_direct_rl_states_how_it_was_trained(run_copy):
    """The run's arm sft, renamed: what differs is how the card describes the training."""
    for folder in list((run_copy / "stages").glob("*-sft-*")):
        shutil.copytree(folder, folder.with_name(folder.name.replace("-sft-", "-grpo_tokens-")))
    run = open_finished_run(run_copy)
    results = json.loads(json.dumps(run.results).replace('"sft"', '"grpo_tokens"'))
    results["config"]["sft"] = results["config"].pop("grpo_tokens")
    results["config"]["mapper"]["lora_rank"] = 16
    card = model_card(replace(run, results=results), "grpo_tokens", 0, None)
    assert "direct reinforcement learning" in card and "a LoRA adapter, merged into the model" in card
