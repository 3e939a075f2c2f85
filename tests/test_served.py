"""A run with a server samples target and mapper from it and scores in its own process."""

import json

import pytest

from dartune.cli import main
from dartune.models.loading import load_model
from dartune.run.files import read_jsonl
from fixtures_models import save_tiny
from fixtures_vllm import Stub, serving
from test_pipeline import arguments, word_problems


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    target = save_tiny(folder / "target", "llama", context=2048)
    return word_problems(folder / "problems.jsonl", 30), target


LORA = ["--mapper.lora_rank=2", "--arms=[dart, best_of_k]"]


@pytest.mark.slow
def test_a_run_samples_from_the_server_and_passes_every_adapter_to_it(parts, tmp_path):
    problems, target = parts
    stub = Stub(load_model(target))
    with serving(stub) as url:
        command = arguments(problems, target, tmp_path / "run", "--execution.server", url, *LORA)
        assert main(command) == 0
    requests = [
        (path.rpartition("/")[2], body["model"]) for path, body in stub.requests if path.endswith("completions")
    ]
    adapters = [body["lora_name"] for path, body in stub.requests if path == "/v1/load_lora_adapter"]
    assert len(set(adapters)) == len(adapters) == 3  # two steps of training, and synthesis
    assert {model for _, model in requests} == {"tiny", *adapters}
    assert all("prompt_logprobs" not in (body or {}) for _, body in stub.requests)
    assert set(stub.names) == {"tiny"}  # nothing is left on the server
    stages = tmp_path / "run" / "stages"
    assert len(read_jsonl(stages / "mapper-s0" / "metrics.jsonl")) == 2
    assert not (stages / "mapper-s0" / "handover").exists()
    results = json.loads((tmp_path / "run" / "report" / "results.json").read_text())
    spent = results["costs"]["stages"]["mapper-s0"]
    assert spent["generated_tokens"] > 0 and spent["flops"] > 0
    rows = read_jsonl(stages / "synthesise-s0" / "rows.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in read_jsonl(stages / "data" / "train.jsonl")]


def test_settings_that_a_server_does_not_support_are_rejected_at_once(parts, tmp_path, capsys):
    problems, target = parts
    command = arguments(problems, target, tmp_path / "run", "--execution.server", "http://localhost:1")
    assert main([*command, "--mapper.path", str(target)]) == 2
    message = capsys.readouterr().err
    assert "no mapper.path" in message and "set mapper.lora_rank: 16" in message
    assert main([*arguments(problems, target, tmp_path / "run"), "--execution.server", "localhost:8000"]) == 2
    assert "execution.server" in capsys.readouterr().err
