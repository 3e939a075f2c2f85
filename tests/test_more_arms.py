"""Arms on shared code: fine-tuning that stops at another arm's accuracy, renewed rows, greedy rewrites."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dartune.config.load import load_config
from dartune.data.row_store import open_rows
from dartune.pipeline import run
from dartune.rewards.reward import Rewrite
from dartune.run.files import read_jsonl
from dartune.stages.matched import FineTuneMatched, curve
from dartune.stages.more_rewrites import renewed
from test_arms import RECIPE, SMALL


def rewrite(text, alignment, accepted=True):
    return Rewrite(text, (1, 2), (-0.5, -0.25), alignment, 0.1, 0.1, accepted=accepted)


def row():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "old"}]
    return {"id": "1", "question": "q", "solution": "old", "messages": messages, "provenance": "own"}


def test_a_renewed_row_has_the_accepted_rewrite_that_is_most_natural_to_the_new_model():
    new = renewed(row(), [rewrite("a", -2.0), rewrite("b", -1.0), rewrite("c", -1.0), rewrite("d", 0.0, False)])
    assert (new["solution"], new["alignment_after"], new["provenance"]) == ("b", -1.0, "rewrite")
    assert [message["content"] for message in new["messages"]] == ["q", "b"]


def test_a_row_without_an_accepted_rewrite_keeps_its_solution():
    assert renewed(row(), [rewrite("a", -1.0, False)]) == row()
    assert renewed(row(), []) == row()


def small(tmp_path: Path, arms: str, **changes):
    flags = SMALL | {"sft.steps": "6", "data.limit": "32", "sft.batch_size": "8", "evaluate.samples": "0"}
    flags |= {"output": str(tmp_path / "run"), "arms": arms}
    return load_config(RECIPE, flags | {key.replace("__", "."): value for key, value in changes.items()})


def stage(tmp_path: Path, name: str) -> Path:
    return tmp_path / "run" / "stages" / name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracies", "steps"),
    [
        ([0.0, 0.2, 0.6, 0.9, 0.9, 0.9, 0.9], 2),  # stops where it reaches the goal
        ([0.0, 0.3, 0.1, 0.4, 0.2, 0.4, 0.2], 3),  # never reaches it: the best checkpoint, the first of equals
        ([0.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0),  # the untrained target has reached it
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.45], 6),  # the last checkpoint is the best
    ],
)
def test_matched_fine_tuning_keeps_the_first_checkpoint_that_is_as_accurate(tmp_path, monkeypatch, accuracies, steps):
    def measured(self, model, step, path):
        if step in curve(path):
            return accuracies[step]
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "accuracy": accuracies[step], "spent": {}}) + "\n")
        return accuracies[step]

    monkeypatch.setattr(FineTuneMatched, "_measured", measured)
    monkeypatch.setattr(FineTuneMatched, "goal", 0.5)
    run(small(tmp_path, "[sft, sft_matched]"))
    matched, sft = (stage(tmp_path, f"train-{arm}-s0-lr0.0003") for arm in ("sft_matched", "sft"))
    assert set(curve(matched / "dev-curve.jsonl")) >= set(range(steps + 1))
    kept = load_file(matched / "model" / "model.safetensors")
    if steps == 6:
        plain = load_file(sft / "model" / "model.safetensors")
        assert all(kept[name].equal(tensor) for name, tensor in plain.items())
    elif steps:
        folder = matched if accuracies[steps] >= 0.5 else matched / "repeated"
        trained, whole = read_jsonl(folder / "metrics.jsonl"), read_jsonl(sft / "metrics.jsonl")
        assert [one["loss"] for one in trained] == [one["loss"] for one in whole[:steps]]
    else:
        assert not (matched / "metrics.jsonl").exists() or not read_jsonl(matched / "metrics.jsonl")


@pytest.mark.slow
def test_rows_are_renewed_for_the_half_trained_model_and_greedy_rewrites_are_of_the_initial_mapper(tmp_path):
    run(small(tmp_path, "[rft_iterated, dart_refreshed, sft_on_mapper_start]"))
    for arm in ("rft_half", "rft_iterated", "dart_half", "dart_refreshed"):
        assert len(read_jsonl(stage(tmp_path, f"train-{arm}-s0-lr0.0003") / "metrics.jsonl")) == 3
    first, second = (
        open_rows(stage(tmp_path, f"own-samples-{arm}-s0") / "rows.jsonl") for arm in ("rft_half", "rft_iterated")
    )
    assert [one["drawn"] for one in first] == [one["drawn"] for one in second]
    assert [one["solutions"] for one in first] != [one["solutions"] for one in second]
    adapted = open_rows(stage(tmp_path, "synthesise-s0") / "rows.jsonl")
    new = open_rows(stage(tmp_path, "renew-dart_refreshed-s0") / "rows.jsonl")
    assert [one["id"] for one in adapted] == [one["id"] for one in new]
    assert any(a["solution"] != b["solution"] for a, b in zip(adapted, new, strict=True))
    greedy = open_rows(stage(tmp_path, "greedy-rewrites") / "rows.jsonl")
    assert [one["id"] for one in greedy] == [one["id"] for one in adapted]
    assert all(len(one["solutions"]) <= 1 for one in greedy) and any(one["solutions"] for one in greedy)
