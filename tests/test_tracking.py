"""Trackers: they receive the metrics of the files once and with the right steps; a failing tracker is dropped."""

import json
import sys

import pytest

from dartune.cli import main
from dartune.run.files import read_jsonl, write_jsonl
from dartune.train.trackers import Tracking, scalars
from fixtures_models import save_tiny
from test_pipeline import arguments, word_problems

STAND_IN = """
import json, sys
class Run:
    def log(self, values, step=None): write({"step": step, **values})
    def finish(self): write({"finished": True})
class config:
    @staticmethod
    def update(values, **options): write({"config": values})
def write(row):
    with open("%s", "a") as stream: stream.write(json.dumps(row) + "\\n")
def init(project, **options):
    %s
    return Run()
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    return word_problems(folder / "problems.jsonl", 30), save_tiny(folder / "target", "llama", context=2048)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Create a tracker's package from `STAND_IN`; return the file that it writes to."""

    def make(name, on_start="pass"):
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages" / f"{name}.py").write_text(STAND_IN % (tmp_path / name, on_start))
        monkeypatch.syspath_prepend(tmp_path / "packages")
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
        return tmp_path / name

    return make


@pytest.mark.slow
def test_tensorboard_has_the_same_curves_as_the_files(parts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = arguments(*parts, tmp_path / "run", "--trackers=[tensorboard]", "--arms=[sft, dart]")
    assert main(command) == 0
    (folder,) = (path for path in (tmp_path / "run" / "tensorboard").iterdir())
    events = EventAccumulator(str(folder)).Reload()
    for stage in ("mapper-s0", "train-sft-s0-lr0.001"):
        rows = read_jsonl(tmp_path / "run" / "stages" / stage / "metrics.jsonl")
        curve = events.Scalars(f"{stage}/loss")
        assert [(point.step, point.value) for point in curve] == [(r["step"], pytest.approx(r["loss"])) for r in rows]
    assert "mapper-s0/gates/finished" in events.Tags()["scalars"]
    without_trackers = [argument for argument in command if "trackers" not in argument]
    before = (tmp_path / "run" / "stages" / "mapper-s0" / "DONE").read_bytes()
    assert main(without_trackers) == 0  # trackers are not an input of any stage
    assert (tmp_path / "run" / "stages" / "mapper-s0" / "DONE").read_bytes() == before


@pytest.mark.slow
def test_other_trackers_get_one_increasing_step_count_and_the_config(parts, tmp_path, stand_in):
    written = stand_in("wandb")
    assert main(arguments(*parts, tmp_path / "run", "--trackers=[wandb]", "--arms=[sft, dart]")) == 0
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert rows[0]["config"]["mapper.steps"] == 2 and rows[-1] == {"finished": True}
    steps = [row["step"] for row in rows[1:-1]]
    assert steps == list(range(1, len(steps) + 1))
    assert rows[1]["mapper-s0/step"] == 1.0 and any("train-sft-s0-lr0.001/loss" in row for row in rows)


def test_a_tracker_that_is_missing_or_cannot_start_stops_the_run_before_it_begins(parts, tmp_path, stand_in, capsys):
    command = arguments(*parts, tmp_path / "run", "--trackers=[wandb, trackio]", "--arms=[dart]")
    assert main(command) == 2
    stderr = capsys.readouterr().err
    assert "pip install wandb" in stderr and "pip install trackio" in stderr
    stand_in("trackio", "raise RuntimeError('not logged in')")
    assert main(arguments(*parts, tmp_path / "run", "--trackers=[trackio]", "--arms=[dart]")) == 2
    stderr = capsys.readouterr().err
    assert "trackio cannot be started" in stderr and "not logged in" in stderr and "mapper-s0" not in stderr


class Recorder:
    name = "wandb"

    def __init__(self, fails_at=None):
        self.rows, self.fails_at = [], fails_at

    def log(self, values, step):
        if step == self.fails_at:
            raise ConnectionError("no network")
        self.rows.append((step, values["train/loss"]))

    def finish(self):
        self.rows.append("finished")


def test_a_continued_stage_logs_its_earlier_steps_first(tmp_path):
    recorder, steps = Recorder(), []
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": n, "loss": n / 10} for n in (1, 2)])
    step_done = Tracking([recorder]).follow("train", tmp_path, lambda step, row: steps.append(step))
    for step in (3, 4):
        step_done(step, {"step": step, "loss": step / 10})
    assert recorder.rows == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)] and steps == [3, 4]


def test_a_failing_tracker_is_dropped_and_reported_once(tmp_path):
    failing, working, messages = Recorder(fails_at=2), Recorder(), []
    tracking = Tracking([failing, working], messages.append)
    (tmp_path / "metrics.jsonl").write_text("")
    step_done = tracking.follow("train", tmp_path, lambda step, row: None)
    for step in (1, 2, 3):
        step_done(step, {"step": step, "loss": 1.0})
    tracking.close()
    assert failing.rows == [(1, 1.0)] and len(messages) == 1 and "no network" in messages[0]
    assert working.rows == [(1, 1.0), (2, 1.0), (3, 1.0), "finished"]


def test_nested_numbers_are_named_by_their_path_and_text_is_skipped():
    row = {"step": 3, "gates": {"a": True, "b": {"c": 0.5}}, "stop": "enough", "probe": [1, 2], "none": None}
    assert dict(scalars(row)) == {"step": 3.0, "gates/a": 1.0, "gates/b/c": 0.5}
