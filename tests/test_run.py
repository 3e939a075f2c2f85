"""Run folder: stages are skipped, continued or run again with a reason, also after a kill at any moment."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dartune.errors import DartuneError, InputError, MachineError
from dartune.run import files, lock
from dartune.run.cost import Cost
from dartune.run.files import append_jsonl, atomic_write_json, atomic_write_text, read_jsonl, write_jsonl
from dartune.run.folder import RunFolder
from dartune.run.number_format import seconds_text
from dartune.run.status import status_lines

SOURCE = Path(__file__).parents[1] / "src"


def quiet_run(folder):
    """A run folder, and the list that its messages are appended to."""
    messages = []
    return RunFolder(folder, messages.append), messages


def child(folder, code):
    """Start a process that opens the run folder as `run` and executes `code`."""
    program = "import os, signal, sys, time\nfrom pathlib import Path\n"
    program += "from dartune.run.cost import Cost\nfrom dartune.run.folder import RunFolder\n"
    program += f"run = RunFolder(Path({str(folder)!r}))\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed(folder, code):
    process = child(folder, code)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, stderr


def writes(name, text="x", **cost):
    def work(out):
        (out / name).write_text(text)
        return Cost(**cost)

    return work


def unexpected(out):
    raise AssertionError("this stage must not run again")


def test_an_unchanged_stage_is_skipped_by_the_next_run(tmp_path):
    inputs = {"steps": 3, "path": Path("a/b"), "rates": (1e-6, 2.0)}
    with quiet_run(tmp_path / "run")[0] as run:
        out = run.stage("first", inputs, writes("a.txt", trained_tokens=7))
        key = run.key("first")
    run, messages = quiet_run(tmp_path / "run")
    with run:
        # The order of the keys does not matter.
        assert run.stage("first", dict(reversed(inputs.items())), unexpected) == out
        assert run.key("first") == key
        assert run.cost("first").trained_tokens == 7
        assert run.finished_stages() == ["first"]
    assert any("nothing changed" in line for line in messages)
    done = json.loads((out / "DONE").read_text())
    assert set(done) >= {"key", "inputs", "cost", "attempts", "finished"}
    assert done["inputs"] == {"steps": 3, "path": "a/b", "rates": [1e-6, 2.0]}
    assert not (out / "STARTED").exists()


def test_changed_inputs_remove_the_old_outputs_and_log_the_reason(tmp_path):
    run, messages = quiet_run(tmp_path / "run")
    with run:
        run.stage("mapper", {"mapper": {"learning_rate": 1e-6, "kl": 0.1}}, writes("old.txt"))
        old = run.key("mapper")
    run, messages = quiet_run(tmp_path / "run")
    with run:
        out = run.stage("mapper", {"mapper": {"learning_rate": 2e-6, "kl": 0.1}}, writes("new.txt"))
        assert run.key("mapper") != old
    assert sorted(path.name for path in out.iterdir()) == ["DONE", "new.txt"]
    assert any("mapper.learning_rate 1e-6 -> 2e-6 changed" in line for line in messages)


def test_a_stage_whose_output_was_lost_runs_again(tmp_path):
    with quiet_run(tmp_path / "run")[0] as run:
        out = run.stage("data", {}, writes("rows.jsonl", "abc"))
    (out / "rows.jsonl").write_text("ab")
    run, messages = quiet_run(tmp_path / "run")
    with run:
        run.stage("data", {}, writes("rows.jsonl", "abc"))
    assert (out / "rows.jsonl").read_text() == "abc"
    assert any("rows.jsonl is missing or was changed" in line for line in messages)


def test_one_stage_name_with_two_inputs_is_an_error(tmp_path):
    with quiet_run(tmp_path / "run")[0] as run:
        run.stage("data", {"n": 1}, writes("a"))
        with pytest.raises(ValueError, match="already used"):
            run.stage("data", {"n": 2}, unexpected)
        for name in ("../escape", "a/b", "", ".hidden"):
            with pytest.raises(ValueError, match="cannot name a stage"):
                run.stage(name, {}, unexpected)
        with pytest.raises(DartuneError, match="has not finished"):
            run.key("never")
        with pytest.raises(ValueError):
            run.stage("nan", {"x": float("nan")}, unexpected)


KILLED_INSIDE = """
def work(out):
    (out / "half.txt").write_text("half")
    time.sleep(0.3)
    (out / "late.txt").write_text("late")
    os.kill(os.getpid(), signal.SIGKILL)
run.stage("train", {"rate": 1.0}, work)
"""


def test_after_a_kill_inside_a_stage_the_same_inputs_continue_from_its_outputs(tmp_path):
    killed(tmp_path / "run", KILLED_INSIDE)
    assert not (tmp_path / "run/stages/train/DONE").exists()
    assert "partial" in status_lines(tmp_path / "run")[1]
    files_at_start = []

    def work(out):
        files_at_start.extend(sorted(path.name for path in out.iterdir()))

    run, messages = quiet_run(tmp_path / "run")
    with run:
        run.stage("train", {"rate": 1.0}, work)
        assert files_at_start == ["STARTED", "half.txt", "late.txt"]
        assert run.cost("train").seconds >= 0.25  # the killed attempt counts
    assert any("attempt 2" in line for line in messages)


def test_after_a_kill_inside_a_stage_other_inputs_start_with_an_empty_folder(tmp_path):
    killed(tmp_path / "run", KILLED_INSIDE)
    files_at_start = []
    run, messages = quiet_run(tmp_path / "run")
    with run:
        run.stage("train", {"rate": 2.0}, lambda out: files_at_start.extend(path.name for path in out.iterdir()))
        assert run.cost("train").seconds < 0.25
    assert files_at_start == ["STARTED"]
    assert any("rate 1.0 -> 2.0 changed" in line for line in messages)


MOMENTS = ("before the marker is flushed", "before it is renamed", "after it is renamed")


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_while_done_is_written_the_stage_is_complete_or_continued(tmp_path, moment):
    killed(
        tmp_path / "run",
        f"""
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        rename, fsync = Path.replace, os.fsync
        moment = {moment!r}
        def replace(self, target):
            if Path(target).name == "DONE":
                if moment == "before it is renamed":
                    die()
                rename(self, target)
                if moment == "after it is renamed":
                    die()
                return target
            return rename(self, target)
        def flush(descriptor):
            if os.readlink(f"/proc/self/fd/{{descriptor}}").endswith(".DONE.draft"):
                if moment == "before the marker is flushed":
                    die()
            return fsync(descriptor)
        Path.replace, os.fsync = replace, flush
        run.stage("s", {{}}, lambda out: (out / "a.txt").write_text("a") and None)
        """,
    )
    out = tmp_path / "run/stages/s"
    complete = moment == "after it is renamed"
    assert (out / "DONE").exists() == complete
    with quiet_run(tmp_path / "run")[0] as run:
        run.stage("s", {}, unexpected if complete else lambda out: (out / "a.txt").write_text("a") and None)
    assert sorted(path.name for path in out.iterdir()) == ["DONE", "a.txt"]
    with quiet_run(tmp_path / "run")[0] as run:
        run.stage("s", {}, unexpected)


def test_after_a_kill_while_old_outputs_are_removed_the_stage_is_not_complete(tmp_path):
    with quiet_run(tmp_path / "run")[0] as run:
        out = run.stage("s", {"n": 1}, writes("a.txt"))
    killed(
        tmp_path / "run",
        """
        import shutil
        shutil.rmtree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run.stage("s", {"n": 2}, lambda out: None)
        """,
    )
    assert (out / "a.txt").exists()
    files_at_start = []
    with quiet_run(tmp_path / "run")[0] as run:  # back to the first inputs
        run.stage("s", {"n": 1}, lambda out: files_at_start.extend(path.name for path in out.iterdir()))
    assert files_at_start == ["STARTED"]


def test_a_failed_attempt_keeps_its_outputs_and_its_seconds(tmp_path):
    def fails(out):
        (out / "half.txt").write_text("half")
        time.sleep(0.05)
        raise KeyError("a bug")

    with pytest.raises(KeyError), quiet_run(tmp_path / "run")[0] as run:
        run.stage("s", {}, fails)
    assert "stopped by KeyError" in (tmp_path / "run/logs/run.log").read_text()
    with quiet_run(tmp_path / "run")[0] as run:
        out = run.stage("s", {}, lambda out: None)
        assert run.cost("s").seconds >= 0.05
    assert (out / "half.txt").exists()
    attempts = json.loads((out / "DONE").read_text())["attempts"]
    assert [attempt["seconds"] is not None for attempt in attempts] == [True, True]


def test_a_second_process_gets_an_error_that_names_the_first(tmp_path):
    folder = tmp_path / "run"
    holder = child(folder, "print('held', flush=True)\ntime.sleep(60)")
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MachineError, match=f"in use by process {holder.pid} on "):
            RunFolder(folder)
        assert lock.is_held(folder)
        assert f"in use by process {holder.pid}" in status_lines(folder)[0]
    finally:
        holder.kill()
        holder.communicate()
    with quiet_run(folder)[0]:  # the lock of a killed process is released
        pass
    assert not lock.is_held(folder)


def test_a_process_cannot_lock_a_folder_twice_and_keeps_the_lock_when_it_tries(tmp_path):
    folder = tmp_path / "run"
    with quiet_run(folder)[0]:
        with pytest.raises(MachineError, match="in use"):
            RunFolder(folder)
        status_lines(folder)
        other = child(folder, "")
        _, stderr = other.communicate(timeout=60)
        assert "MachineError" in stderr and f"process {os.getpid()}" in stderr


def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    process = child(
        tmp_path / "run",
        """
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        print(worker, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    worker = int(process.stdout.readline())
    try:
        process.wait(timeout=60)
        with quiet_run(tmp_path / "run")[0]:
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        process.communicate()


def test_a_file_or_a_folder_with_other_files_is_not_a_run_folder(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no run folder"):
        RunFolder(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "thesis.tex")
    with pytest.raises(InputError, match="no run in"):
        status_lines(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_environment_is_recorded_without_secrets_and_changes_are_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    with quiet_run(tmp_path / "run")[0]:
        pass
    path = tmp_path / "run/environment.json"
    recorded = json.loads(path.read_text())
    assert recorded["packages"]["torch"].startswith("2.")
    assert "hunter2" not in path.read_text()
    atomic_write_json(path, {**recorded, "python": "3.0.0"})
    run, messages = quiet_run(tmp_path / "run")
    run.close()
    assert any("python 3.0.0 -> " in line for line in messages)


def test_status_distinguishes_done_running_and_partial(tmp_path):
    folder = tmp_path / "run"
    during = []

    def second(out):
        during.extend(status_lines(folder))
        raise KeyError

    with pytest.raises(KeyError), quiet_run(folder)[0] as run:
        run.stage("first", {}, writes("a"))
        run.stage("second", {}, second)
    assert [line.split()[:2] for line in during[1:]] == [["first", "done"], ["second", "running"]]
    after = status_lines(folder)
    assert after[0].endswith("not running")
    assert [line.split()[:2] for line in after[1:]] == [["first", "done"], ["second", "partial"]]


def test_status_shows_no_time_for_a_stage_that_was_killed_before_it_recorded_one(tmp_path):
    folder = tmp_path / "run"
    with quiet_run(folder)[0]:
        pass  # the run of the stages below has ended
    stage = {"key": "", "inputs": {}}
    killed = {"started": 2.0, "seconds": None}
    for name, attempts in {"a": [killed], "b": [{"started": 1.0, "seconds": 90.0}, killed]}.items():
        (folder / "stages" / name).mkdir(parents=True)
        atomic_write_json(folder / "stages" / name / "STARTED", {**stage, "attempts": attempts})
    assert [" ".join(line.split()) for line in sorted(status_lines(folder)[1:])] == [
        "a partial",
        f"b partial {seconds_text(90.0)}, attempt 2",
    ]


def test_status_of_a_run_is_finished_if_its_report_is_newer_than_its_stages(tmp_path):
    folder = tmp_path / "run"
    with quiet_run(folder)[0] as run:
        run.stage("first", {}, writes("a"))
        assert "in use by process" in status_lines(folder)[0]
    assert status_lines(folder)[0] == f"{folder}: not running"
    results = folder / "report" / "results.json"
    atomic_write_json(results, {})
    assert status_lines(folder)[0] == f"{folder}: finished"
    os.utime(results, (0, 0))  # a report from before the last stage
    assert status_lines(folder)[0] == f"{folder}: not running"


def test_costs_add_up():
    total = Cost(1, 2, 3, 4.0, 50.0) + Cost(10, 20, 30, 40.0, 5.0)
    assert total == Cost(11, 22, 33, 44.0, 50.0)


def test_a_full_disk_is_a_machine_error_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write_json(path, {"old": True})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(MachineError, match=r"cannot write .*a\.json: the disk is full"):
        atomic_write_json(path, {"old": False})
    with pytest.raises(MachineError, match="the disk is full"):
        append_jsonl(tmp_path / "rows.jsonl", {})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": True}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "rows.jsonl"]


def test_a_full_disk_inside_a_stage_names_the_stage_and_the_next_run_continues(tmp_path):
    def full(out):
        (out / "half.txt").write_text("half")
        raise RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")

    with quiet_run(tmp_path / "run")[0] as run:
        with pytest.raises(MachineError, match="train: the disk is full"):
            run.stage("train", {}, full)
        out = run.stage("train", {}, writes("rest.txt"))
    assert (out / "half.txt").exists()


def test_a_line_truncated_by_a_crash_is_skipped_and_removed(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"n": 1}, {"n": 2}])
    with path.open("a") as stream:
        stream.write('{"n": 3, "text": "ha')
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}]
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    path.write_text('{"n": 1}\n{"n": 2}')  # complete except for the line break
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}]
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    path.write_text('{"n": 1}\nnot json\n{"n": 2}\n')
    with pytest.raises(DartuneError, match="line 2 is not JSON"):
        read_jsonl(path)


def test_atomic_writes_leave_no_drafts_even_if_a_crash_left_one(tmp_path):
    path = tmp_path / "deep/er/a.txt"
    atomic_write_text(path, "é\n")
    path.with_name(".a.txt.draft").write_text("half")
    atomic_write_text(path, "new\n")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text(encoding="utf-8") == "new\n"


def test_warnings_of_modules_are_logged_while_the_run_is_open(tmp_path):
    warn = logging.getLogger("dartune.somewhere").warning
    run, messages = quiet_run(tmp_path / "run")
    with run:
        warn("%s is odd", "row 3")
    warn("later")
    assert messages == ["row 3 is odd"]
    log = (tmp_path / "run/logs/run.log").read_text()
    assert "row 3 is odd" in log and "later" not in log
