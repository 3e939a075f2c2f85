"""The trained mapper of a run on new rows: judged like the run's rows, resumable, refused where it does not fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from dartune import load_mapper
from dartune.cli import main
from dartune.config.schema import RewardConfig
from dartune.data.adapted_dataset import PROVENANCES, read_adapted
from dartune.data.records import Demonstration
from dartune.data.row_store import open_rows
from dartune.engines.base import Sample
from dartune.errors import InputError
from dartune.lab import source as lab
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.models.loading import load_model
from dartune.models.lora import add_lora, unfit_layers
from dartune.report.rewrite_examples import adapted_quality
from dartune.run.files import read_jsonl
from dartune.stages import probe as probe_module
from dartune.stages import synthesise as synthesise_module
from dartune.stages.probe import load_calibration, load_probe, probe
from dartune.stages.synthesise import OriginalsDecision, decide_on_originals, settled
from dartune.trained_mapper.new_rows import overlap
from dartune.trained_mapper.source_run import open_source_run
from dartune.trained_mapper.stages import ProbeNewRows
from dartune.trained_mapper.summary import outcome, stage_outcome
from fixtures_models import ARCHITECTURES, save_tiny
from fixtures_vllm import Stub, serving
from test_pipeline import word_problems
from test_processes import launch
from test_reward import GOOD, RENDERER, ROW
from test_synthesise import Scripted

ROWS = [replace(ROW, id=str(index), question=f"{index}. {ROW.question}") for index in range(12)]


class PartlyUnfinished(Scripted):
    """An engine whose samples are cut for every fourth question."""

    def generate(self, prompts, spec):
        def cut(prompt, samples):
            number = int(RENDERER.decode(prompt).split("user\n")[-1].split(".")[0])
            return [Sample(one.ids, one.logprobs, "length") for one in samples] if number % 4 == 0 else samples

        return [cut(*pair) for pair in zip(prompts, super().generate(prompts, spec), strict=True)]


def probed(folder, rows, checker, natural=(GOOD,), **options):
    config = RewardConfig(own_samples=2)
    target = PartlyUnfinished((GOOD,), natural)
    probe(rows, target, RENDERER, checker, config, "{question} {solution}", 200, 0, folder, **options)
    return read_jsonl(folder / "probe.jsonl")


def test_rows_are_probed_alike_alone_and_among_the_rows_of_the_run(checker, tmp_path):
    """The first row has no finished sample, so its cap and its expected length come from the other rows."""
    together = probed(tmp_path / "run", ROWS, checker)
    calibration = load_calibration(tmp_path / "run")
    assert not together[0]["style"] and together[0]["cap"] > 0 and calibration.typical_tokens > 0
    [alone] = probed(tmp_path / "new", ROWS[:1], checker, calibration=calibration)
    assert {**alone, "spent": {}} == {**together[0], "spent": {}}
    assert load_calibration(tmp_path / "new").thresholds == calibration.thresholds
    _, references, _ = load_probe(tmp_path / "new", calibration)
    _, run_references, _ = load_probe(tmp_path / "run")
    assert references["0"] == run_references["0"] and len(references["0"].own) == 18
    assert probed(tmp_path / "measured", ROWS[:1], checker)[0]["cap"] is None


def test_the_typical_alignment_is_read_back_where_every_row_has_samples(checker, tmp_path):
    rows = [row for row in ROWS if int(row.id) % 4]
    together = probed(tmp_path, rows, checker)
    assert all(row["style"] and row["cap"] > 0 for row in together)
    alignment = together[0]["own"][0]["alignment"]  # the engine writes the same text for every row
    assert load_calibration(tmp_path).typical_alignment == pytest.approx(alignment)


def adapted(provenance, before, *, accepted=0, runner_up=None):
    row = {"provenance": provenance, "alignment_before": before, "accepted": accepted, "runner_up": runner_up}
    return row | {"alignment_after": before}


RUNNER_UP = {"provenance": "own", "alignment_after": -2.0}


@pytest.mark.parametrize(
    ("rows", "decision"),
    [
        ([adapted("rewrite", -3.0, accepted=2), adapted("original", -3.0)], OriginalsDecision(False, -3.0)),
        ([adapted("original", -1.0, accepted=1, runner_up=RUNNER_UP)], OriginalsDecision(True, -1.0)),
        (
            [*[adapted("rewrite", -3.0, accepted=1)] * 2, adapted("dropped", -3.0, accepted=1, runner_up=RUNNER_UP)],
            OriginalsDecision(False, -3.0),
        ),
    ],
    ids=["most rows gain", "the original is best", "a replaced original"],
)
def test_the_decision_on_originals_is_the_same_read_from_the_settled_rows(rows, decision):
    assert decide_on_originals(rows) == decision == decide_on_originals(list(settled(rows)))


def test_a_given_decision_applies_to_rows_that_would_decide_otherwise():
    [row] = settled([adapted("original", -1.0, accepted=1, runner_up=RUNNER_UP)], OriginalsDecision(False, -2.5))
    assert row["provenance"] == "own"
    [row] = settled([adapted("original", -1.0, accepted=1, runner_up=RUNNER_UP)], OriginalsDecision(False, -1.5))
    assert row["provenance"] == "original"
    [row] = settled([adapted("original", -1.0)], OriginalsDecision(True, -2.0))
    assert row["provenance"] == "natural"


def test_passed_rewrites_are_counted_without_the_own_samples_of_the_target():
    own, none = {"own": [{}, {}]}, {"own": []}
    rows = [
        (adapted("rewrite", -3.0, accepted=3), own),
        (adapted("own", -3.0, accepted=2), own),
        (adapted("own", -3.0, accepted=3, runner_up=RUNNER_UP), own),
        (adapted("original", -3.0), none),
    ]
    figures = outcome(*zip(*rows, strict=True), 4, ("rewrite", "own", "original"))
    assert (figures.sampled, figures.passed) == (16, 4)
    assert figures.counts == {"rewrite": 1, "own": 2, "original": 1} and figures.before == -3.0


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Twelve rows, of which the first are among those of `finished_run`."""
    return word_problems(tmp_path_factory.mktemp("more") / "more.jsonl", 12)


def call(run, data, output, *more):
    return main(["adapt", str(run), "--data", str(data), "--output", str(output), *more])


def rows_in(output):
    return [{**row, "spent": {}} for row in read_jsonl(output / "stages" / "synthesise-s0" / "rows.jsonl")]


def test_the_rows_of_the_run_become_what_they_became_in_the_run(finished_run, tmp_path, capsys):
    """Same positions, same samples; only log-probabilities differ in their last digits."""
    assert call(finished_run, finished_run / "stages" / "data" / "train.jsonl", tmp_path / "out") == 0
    for new, old in zip(rows_in(tmp_path / "out"), rows_in(finished_run), strict=True):
        assert {name: new[name] for name in ("id", "solution", "provenance", "reason", "gates", "accepted")} == {
            name: old[name] for name in ("id", "solution", "provenance", "reason", "gates", "accepted")
        }
        assert new["alignment_before"] == pytest.approx(old["alignment_before"], abs=1e-3)
    printed = capsys.readouterr()
    adapted_rows = read_adapted(tmp_path / "out" / "stages" / "synthesise-s0" / "adapted")
    assert f"{len(adapted_rows)} rows = " in printed.out and "rewrites that pass the gates" in printed.out
    assert f"{len(adapted_rows)} new rows ask a question of the run's training rows" in printed.out
    card = (tmp_path / "out" / "stages" / "synthesise-s0" / "adapted" / "README.md").read_text()
    assert "mapper trained on: problems.jsonl (run run)" in card and "data: train.jsonl" in card


def test_an_interrupted_call_continues_and_other_data_redo_the_stages(
    finished_run, more, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(synthesise_module, "CHUNK", 4)
    monkeypatch.setattr(ProbeNewRows, "block_rows", 4)
    assert call(finished_run, more, tmp_path / "whole") == 0
    for stage, function in (("probe", "raw_rows"), ("synthesise-s0", "adapted_row")):
        module = probe_module if stage == "probe" else synthesise_module
        original, calls = getattr(module, function), []

        def interrupted(*words, original=original, calls=calls, last=2 if stage == "probe" else 9):
            calls.append(words)
            if len(calls) == last:
                raise KeyboardInterrupt
            return original(*words)

        with monkeypatch.context() as patch:
            patch.setattr(module, function, interrupted)
            assert call(finished_run, more, tmp_path / "out") == 130
        assert "the same command continues: dartune adapt" in capsys.readouterr().err
    assert call(finished_run, more, tmp_path / "out") == 0
    assert "synthesise-s0: continues, attempt 2" in capsys.readouterr().err
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")
    assert call(finished_run, more, tmp_path / "out") == 0
    assert "synthesise-s0: nothing changed, skipped" in capsys.readouterr().err
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(more.read_text().splitlines(keepends=True)[:5]))
    assert call(finished_run, fewer, tmp_path / "out") == 0
    assert "probe: run again, data" in capsys.readouterr().err
    assert len(rows_in(tmp_path / "out")) == 5


def test_files_folders_and_data_sets_of_the_hub_are_read_alike(finished_run, more, tmp_path, monkeypatch, capsys):
    import datasets

    data_set = datasets.Dataset.from_list([json.loads(line) for line in more.read_text().splitlines()])
    data_set.save_to_disk(str(tmp_path / "saved"))
    data_set.to_parquet(tmp_path / "more.parquet")
    hub_calls = []

    def load_dataset(*words, **options):
        hub_calls.append((words, options))
        return data_set

    assert call(finished_run, more, tmp_path / "out") == 0
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for data in (tmp_path / "saved", tmp_path / "more.parquet", "hub:owner/name:main#train"):
        capsys.readouterr()
        assert call(finished_run, data, tmp_path / "out") == 0
        # The rows are the same, their ids among them, so every stage is valid.
        assert capsys.readouterr().err.count("nothing changed, skipped") == 3
    assert hub_calls == [(("owner/name", "main"), {"revision": None, "split": "train"})]
    assert call(finished_run, "owner/name", tmp_path / "out") == 2
    assert "a data set of the Hub is written hub:owner/name" in capsys.readouterr().err


def test_rewrite_returns_a_typed_row_per_row_as_the_command_does(finished_run, more, tmp_path):
    mapper = load_mapper(finished_run)
    rows = [json.loads(line) for line in more.read_text().splitlines()]
    rewritten = mapper.rewrite(rows)
    assert [row["question"] for row in rewritten] == [row["question"] for row in rows]
    assert all(row["provenance"] in PROVENANCES for row in rewritten)
    assert call(finished_run, more, tmp_path / "out") == 0
    assert [{**row, "spent": {}} for row in rewritten] == rows_in(tmp_path / "out")
    assert mapper.rewrite([]) == []
    with pytest.raises(InputError) as caught:
        mapper.rewrite([rows[0], {"question": "", "solution": "1"}])
    assert "row 2: question: is empty" in str(caught.value) and "/" not in str(caught.value)
    with pytest.raises(InputError, match="row 1: Object of type set"):
        mapper.rewrite([{"question": {1}}])
    with pytest.raises(InputError, match=r"too long \(row 1\)"):
        mapper.rewrite([{"question": "Why? " * 2000, "solution": "No."}])


def test_questions_of_the_run_are_counted_and_those_of_its_suites_warned_about(finished_run):
    run = open_source_run(finished_run, {"data.path": str(finished_run)})
    suite, *_ = run.suites()["in_distribution"]
    trained = run.training_rows()[0]
    new = Demonstration("x", "What is 1 + 1?", "2")
    rows = [replace(trained, question=trained.question.upper()), suite, suite, new]
    assert overlap([new], run).lines() == []
    train_line, suite_line = overlap(rows, run).lines()
    assert train_line.startswith("1 new row asks a question of the run's training rows")
    assert suite_line.startswith("warning: 2 new rows ask a question of the run's test suite in_distribution")


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def without_dart(run):
    path = run / "config.resolved.yaml"
    path.write_text(path.read_text().replace("- dart\n", ""))


def with_other_kl(run):
    path = run / "config.resolved.yaml"
    path.write_text(path.read_text().replace("kl: 0.05", "kl: 0.5"))


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (lambda run: (run / "stages/mapper-s0/DONE").unlink(), [], "the stage mapper-s0 is not complete; run it to"),
        (
            lambda run: (run / "stages/mapper-s0/model/adapter_model.safetensors").write_bytes(b"x"),
            [],
            "adapter_model.safetensors is missing or was changed",
        ),
        (without_dart, [], "has no trained mapper: its arms are base, sft"),
        (with_other_kl, [], "settings were changed since its mapper was trained (mapper.kl 0.05 -> 0.5)"),
        (
            lambda run: edit_json(run / "stages/mapper-s0/DONE", lambda done: done.update(key="0")),
            [],
            "the stage mapper-s0 was run again since synthesise-s0 was made",
        ),
        (lambda run: None, ["--seed", "3"], "--seed 3: the run has 0"),
        (lambda run: None, ["--mapper.steps", "3"], "--mapper.steps cannot be changed"),
        (lambda run: None, ["--sede", "0"], "did you mean --seed?"),
        (lambda run: None, ["--seed", "3", "--arms", "sft"], "--arms cannot be changed"),
        (lambda run: None, ["--execution.device", "abacus"], "abacus"),
        (lambda run: None, ["--execution.sharding", "x", "--data.task", "y"], "--data.task"),
        (lambda run: (run / "config.resolved.yaml").unlink(), [], "is not the folder of a run"),
    ],
)
def test_a_run_or_a_flag_that_does_not_fit_is_refused(change, flags, message, run, more, tmp_path, capsys):
    change(run)
    assert call(run, more, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err


def test_the_output_must_not_be_a_run_and_all_problems_are_listed(run, tmp_path, capsys):
    assert call(run, tmp_path / "nothing.jsonl", run, "--sft.steps", "3") == 2
    stderr = capsys.readouterr().err
    assert "is the folder of a run; choose a new folder" in stderr
    assert "--data: there is no file or folder" in stderr and "--sft.steps cannot be changed" in stderr
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "solution": "b"}\n{"question": "", "solution": "b"}\n')
    assert call(run, tmp_path / "bad.jsonl", tmp_path / "out") == 2
    assert "bad.jsonl line 2: question: is empty" in capsys.readouterr().err
    assert main(["adapt", str(run)]) == 2 and "--data, --output" in capsys.readouterr().err
    assert main(["adapt", str(tmp_path), "--data", "x", "--output", "y"]) == 2
    assert "holds several runs; give the folder of one of them: out, run" in capsys.readouterr().err


def test_another_template_is_refused_unless_forced(run, finished_run, more, tmp_path, capsys):
    target = shutil.copytree(finished_run.parent / "target", tmp_path / "other")
    assert call(run, more, tmp_path / "same", "--target", str(target)) == 0  # the same model in another place
    template = target / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "helper\n"))
    assert call(run, more, tmp_path / "out", "--target", str(target)) == 2
    stderr = capsys.readouterr().err
    assert f"changed since the run: the files of the target {target}" in stderr
    assert "changed since the run: the tokenizer, the chat template" in stderr and "--force" in stderr
    assert "target.dtype" not in stderr
    assert call(run, more, tmp_path / "out", "--target", str(target), "--force") == 0
    captured = capsys.readouterr()
    assert "changed since the run: the tokenizer, the chat template" in captured.err and "12 rows = " in captured.out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_fits_its_own_model_and_no_other_one(architecture, tmp_path):
    model = load_model(save_tiny(tmp_path / "model", architecture))
    add_lora(model, 2).save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "model")
    assert unfit_layers(model, tmp_path / "adapter") == []
    other = load_model(save_tiny(tmp_path / "other", "gpt2" if architecture != "gpt2" else "llama"))
    layers = unfit_layers(other, tmp_path / "adapter")
    assert layers and set(layers) <= set(dict(model.named_modules()))


def test_a_target_that_the_adapter_does_not_fit_is_refused_even_if_forced(finished_run, more, tmp_path, capsys):
    for flags in ([], ["--force"]):
        assert call(finished_run, more, tmp_path / "out", "--target", "lab:backward", *flags) == 2
    stderr = capsys.readouterr().err
    assert "not even with --force" in stderr and "has in another size: model.layers.0.mlp.down_proj" in stderr
    assert not (tmp_path / "out" / "stages").exists()


def test_the_data_and_the_suites_of_the_run_need_not_exist_any_more(run, more, tmp_path):
    config = run / "config.resolved.yaml"
    text = config.read_text().replace("problems.jsonl", "gone.jsonl").replace("suites: {}", "suites: {mine: gone.csv}")
    assert "gone.jsonl" in text and "gone.csv" in text
    config.write_text(text)
    assert call(run, more, tmp_path / "out") == 0


def tiny_run(folder, *flags):
    """A finished run of a tiny target on word problems, synthesis only: its arms are base and dart."""
    from test_pipeline import arguments

    problems, target = word_problems(folder / "problems.jsonl", 30), save_tiny(folder / "target", "llama", context=2048)
    given = {flag.partition("=")[0] for flag in flags}
    words = arguments(problems, target, folder / "run", "--arms=[base, dart]")
    assert main([*(word for word in words if word.partition("=")[0] not in given), *flags]) == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--mapper.format_steps=2"],
        ["--mapper.format_steps=2", "--mapper.lora_rank=2", "--mapper.examples=1"],
        ["--mapper.steps=0"],
    ],
    ids=["full, warmed up", "adapter on a warm-up, with examples", "untrained"],
)
def test_every_kind_of_mapper_gives_the_rows_of_the_run_again(flags, tmp_path, capsys):
    run = tiny_run(tmp_path, *flags)
    capsys.readouterr()
    assert call(run, run / "stages" / "data" / "train.jsonl", tmp_path / "out") == 0
    new, old = rows_in(tmp_path / "out"), rows_in(run)
    assert [row["reason"] for row in new] == [row["reason"] for row in old]
    assert [row["solution"] for row in new] == [row["solution"] for row in old]
    assert ("this is the initial mapper, without training" in capsys.readouterr().out) == ("--mapper.steps=0" in flags)


KILLED = """
import os, signal, sys
from dartune.cli import main
from dartune.stages import probe, synthesise
module, name, last = {"probe": probe, "synthesise": synthesise}[sys.argv[1]], sys.argv[2], int(sys.argv[3])
original, calls = getattr(module, name), []

def killed(*words):
    calls.append(words)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*words)

setattr(module, name, killed)
main(sys.argv[4:])
"""


@pytest.mark.slow
def test_killed_twice_it_keeps_the_rows_it_wrote_and_ends_with_those_of_an_uninterrupted_call(finished_run, tmp_path):
    data = word_problems(tmp_path / "many.jsonl", 80)
    assert call(finished_run, data, tmp_path / "whole") == 0
    command = ["adapt", str(finished_run), "--data", str(data), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Killed in the second chunk of the probe, and at the eighth row of the second chunk of synthesis.
    for stage, function, last, file, rows in (
        ("probe", "_raw_row", 70, "probe/probe.jsonl", 64),
        ("synthesise", "adapted_row", 40, "synthesise-s0/rows.jsonl", 32),
    ):
        words = [sys.executable, "-c", KILLED, stage, function, str(last), *command]
        assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
        assert len(open_rows(tmp_path / "out" / "stages" / file)) == rows
    assert call(finished_run, data, tmp_path / "out") == 0
    log = (tmp_path / "out" / "logs" / "run.log").read_text()
    assert "probe: continues, attempt 2" in log and "synthesise-s0: continues, attempt 2" in log
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(finished_run, more, tmp_path):
    assert call(finished_run, more, tmp_path / "one") == 0
    command = ["adapt", str(finished_run), "--data", str(more), "--output", str(tmp_path / "two")]
    completed = launch("-m", "dartune", *command)
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert completed.stdout.count("12 rows = ") == 1
    one, two = rows_in(tmp_path / "one"), rows_in(tmp_path / "two")
    assert [(row["id"], row["solution"], row["provenance"]) for row in one] == [
        (row["id"], row["solution"], row["provenance"]) for row in two
    ]


@pytest.mark.slow
def test_a_server_samples_for_the_new_rows(finished_run, more, tmp_path, capsys):
    target = finished_run.parent / "target"
    stub = Stub(load_model(target))
    with serving(stub) as url:
        assert call(finished_run, more, tmp_path / "out", "--execution.server", url) == 0
    adapters = [body["lora_name"] for path, body in stub.requests if path == "/v1/load_lora_adapter"]
    assert len(adapters) == 1 and len(rows_in(tmp_path / "out")) == 12
    full = tiny_run(tmp_path)
    capsys.readouterr()
    assert call(full, more, tmp_path / "refused", "--execution.server", "http://localhost:1") == 2
    assert "add --execution.server null" in capsys.readouterr().err


@pytest.mark.slow
def test_unseen_rows_of_the_same_expert_are_rewritten_as_well_as_those_of_the_run(tmp_path, capsys):
    flags = {"data.limit": 120, "data.dev": 8, "data.test": 8, "mapper.steps": 8, "sft.steps": 2}
    settings = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    output = ["--output", str(tmp_path / "run"), "--arms", "base,dart", "--sft.learning_rates", "6e-4"]
    assert main(["run", "lab", *settings, *output]) == 0
    data = tmp_path / "more.jsonl"
    unseen = write_demonstrations(demonstration_problems(100, 7, 8), "values")
    keys = ("question", "solution", "answer")
    data.write_text("".join(json.dumps({key: getattr(row, key) for key in keys}) + "\n" for row in unseen))
    capsys.readouterr()
    assert call(tmp_path / "run", data, tmp_path / "out") == 0
    assert "new row asks" not in (printed := capsys.readouterr().out) and "new rows ask" not in printed
    run = open_source_run(tmp_path / "run", {"data.path": str(data)})
    folders = (tmp_path / "out", tmp_path / "run")
    new, old = (stage_outcome(run, folder) for folder in folders)
    assert new.rows == 100 and new.counts["rewrite"] / 100 == pytest.approx(old.counts["rewrite"] / 120, abs=0.1)
    assert new.passed / new.sampled == pytest.approx(old.passed / old.sampled, abs=0.12)
    assert new.after - new.before > 8 and new.after == pytest.approx(old.after, abs=1.0)
    quality = [
        adapted_quality(open_rows(folder / "stages" / "synthesise-s0" / "rows.jsonl"), lab.judge) for folder in folders
    ]
    assert quality[0]["step_correct"] == pytest.approx(quality[1]["step_correct"], abs=0.1)
    # The run's own rows, at the positions that they had in the run, become what they became there.
    again = load_mapper(tmp_path / "run").rewrite(
        {key: getattr(row, key) for key in keys} for row in run.training_rows()
    )
    assert [row["solution"] for row in again] == [row["solution"] for row in rows_in(tmp_path / "run")]
