"""What is learnt and how it is computed are two things: every key is an input of a stage, or is in `execution`."""

import json
from pathlib import Path

import pytest

from dartune import pipeline
from dartune.answers.checker import AnswerChecker
from dartune.config.load import load_config
from dartune.config.schema import Config, Section
from dartune.data.records import Demonstration
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.run.cost import Cost
from dartune.run.folder import RunFolder, stage_key
from dartune.stages.data import fingerprint
from dartune.stages.prepare import start

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.yaml"
SMALL = {"data.limit": "20", "data.dev": "3", "data.test": "2", "mapper.format_steps": "1"}
ARMS = "[base, sft, rft, dart, grpo_tokens, wrong_target]"
NOT_OF_A_STAGE = {
    "output": "is the run folder",
    "seeds": "each is an input of its own stages",
    "arms": "each has stages of its own",
    "trackers": "get what the files have",
    "matrix": "makes several configs of one",
    "data.task": "is a part of every row",
    "data.columns": "counts by the rows that are read",
    "evaluate.suites": "count by their rows",
    "target.trust_remote_code": "says whether a model may be loaded; its code is part of its fingerprint",
}


class Recorded(RunFolder):
    """Stages that only note their inputs, and leave what later stages read."""

    def __init__(self, folder):
        super().__init__(folder, lambda message: None)
        self.inputs = {}

    def stage(self, name, inputs, fn):
        folder = self.stage_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        if name == "data":
            fn(folder)
        else:
            (folder / "rows.jsonl").touch()
            (folder / "dev.json").write_text(json.dumps({"accuracy": 0.5}))
        self.inputs[name] = inputs
        self._keys[name] = stage_key(name, inputs)
        return folder

    def cost(self, name):
        return Cost(generated_tokens=1, seconds=1.0)


@pytest.fixture
def stages(tmp_path):
    """The stages of the lab's recipe with changed keys: a function that returns name -> (key, inputs)."""

    def recorded(changes, name="run"):
        config = load_config(RECIPE, SMALL | {"arms": ARMS, "output": str(tmp_path / name)} | changes)
        with Recorded(tmp_path / name) as folder, AnswerChecker() as checker:
            pipeline.execute(start(config, folder, checker))
        return {stage: (folder.key(stage), inputs) for stage, inputs in folder.inputs.items()}

    return recorded


def leaves(section, prefix=""):
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def named_in(inputs):
    """The keys that stand in a stage's inputs by their names."""
    plain = json.loads(json.dumps(inputs, default=lambda value: value.model_dump(mode="json")))
    return {f"{section}.{key}" for section, part in plain.items() if isinstance(part, dict) for key in part}


@pytest.mark.slow
def test_every_key_is_an_input_of_a_stage_or_in_execution(stages, tmp_path):
    before = stages({})
    named = set().union(*(named_in(inputs) for _, inputs in before.values()))
    # Learning rates are tried in stages of their own.
    named |= {"sft.learning_rates", "direct_rl.learning_rates"}
    elsewhere = {
        "data.path": "lab:skipping",
        "data.limit": "21",
        "data.dev": "4",
        "data.test": "3",
        "target.path": "lab:recall",
        "target.other": "lab:backward",
        "target.dtype": "bfloat16",
        "target.system_prompt": "Think.",
        "target.thinking": "true",
        "mapper.path": "lab:recall",
        "evaluate.max_new_tokens": "150",
        "evaluate.samples": "2",
    }
    for key, value in elsewhere.items():
        after = stages({key: value}, key)
        assert any(after.get(name, (None,))[0] != made for name, (made, _) in before.items()), key
    # Only rows of a file can be selected.
    rows = write_demonstrations(demonstration_problems(60, 0, 128), "values")
    lines = [
        {"question": row.question, "solution": row.solution, "answer": row.answer, "place": place}
        for place, row in enumerate(rows)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    of_file = {"data.path": str(tmp_path / "rows.jsonl")}
    all_rows, selected = stages(of_file, "all"), stages(of_file | {"data.where": "place < 40"}, "selected")
    assert all_rows["data"][0] != selected["data"][0]
    covered = {*named, *elsewhere, "data.where", *NOT_OF_A_STAGE}
    assert [key for key in leaves(Config) if key not in covered and not key.startswith("execution.")] == []


def test_the_task_counts_among_the_rows():
    rows = [Demonstration(id="1", question="q", solution="s", task=task) for task in ("math", "exact")]
    assert fingerprint(rows[:1]) != fingerprint(rows[1:])


def test_how_it_is_computed_is_an_input_of_no_stage(stages):
    before = stages({})
    changes = {
        "execution.device": "cpu",
        "execution.sharding": "fsdp2",
        "execution.microbatch_tokens": "99",
        "execution.gradient_checkpointing": "true",
        "execution.checkpoint_every": "7",
    }
    named = set().union(*(named_in(inputs) for _, inputs in before.values()))
    assert not any(key.rpartition(".")[2] in ("device", "sharding", "microbatch_tokens") for key in named)
    assert stages(changes, "changed") == before
    assert set(changes) | {"execution.server"} == {key for key in leaves(Config) if key.startswith("execution.")}
