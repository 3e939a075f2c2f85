"""Progress: what a line holds, that long items are not silent, and what another terminal sees."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from dartune import distributed
from dartune.cli import main
from dartune.run import progress as module
from dartune.run import status
from dartune.run.folder import RunFolder
from dartune.run.progress import Progress, call, count_tokens, note
from dartune.run.progress_state import FILE, read_state
from dartune.run.status import status_lines


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    return now


def test_lines_are_printed_at_the_start_at_the_end_and_every_few_seconds(tmp_path, clock, capsys):
    with Progress(100, "mapper, seed 0", tmp_path / "run.log") as bar:
        for _ in range(100):
            clock[0] += 0.3
            bar.update(reward=0.4123, style="a")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mapper, seed 0: 1/100 (1%), 0.3 s each, 30 s left, reward 0.412, style a"
    assert lines[-1] == "mapper, seed 0: 100/100 (100%), 0.3 s each, reward 0.412, style a"
    assert len(lines) == 3
    logged = (tmp_path / "run.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in logged] == lines


def test_the_last_line_is_printed_when_work_stops_early(tmp_path, clock, capsys):
    with Progress(10, "x") as bar:
        bar.update()
        bar.update()
    assert "2/10" in capsys.readouterr().err.splitlines()[-1]


def test_resumed_work_does_not_count_for_the_speed(clock):
    bar = Progress(40, "x")
    clock[0] = 2.0
    bar.advance_to(21)
    assert bar.line() == "x: 21/40 (52%), 2 s each, 38 s left"
    clock[0] = 4.0
    bar.advance_to(22)
    assert bar.line() == "x: 22/40 (55%), 2 s each, 36 s left"


def test_steps_of_many_items_count_for_the_speed(clock):
    bar = Progress(1000, "x")
    clock[0] = 10.0
    bar.advance_to(100, last=100)
    assert bar.line() == "x: 100/1000 (10%), 0.1 s each, 90 s left"


def test_zero_items_are_not_an_error():
    with Progress(0, "x") as bar:
        assert bar.line() == "x: 0/0"


def test_a_terminal_shows_a_bar_and_the_log_still_has_lines(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(4, "[0] mapper", tmp_path / "run.log") as bar:
        for step in range(4):
            bar.advance_to(step + 1, reward=0.5)
    assert "[0] mapper" in screen.getvalue()
    assert "4/4" in screen.getvalue() and "reward 0.5" in screen.getvalue()
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith("reward 0.5")


def test_a_long_item_reports_its_calls_with_throughput_and_time_left(clock, capsys):
    """60 rows that are sampled in one call of 120 s, two completions each."""
    with Progress(60, "probe") as bar:
        bar.begin(60)
        with call("sampling", 120) as running:
            for second in range(1, 121):
                clock[0] += 1
                running.at(second, 200 * second, second // 2)
        clock[0] += 6
        bar.update(60, own_correct=0.25)
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines[0] == ("probe: 0/60 (0%), 118 s left, 200 tokens/s sampled; sampling 120 completions: 12%, 7 ended")
    assert len(lines) == 8 and all("tokens/s sampled; sampling 120 completions" in line for line in lines)
    assert last == "probe: 60/60 (100%), 2.1 s each, 200 tokens/s sampled, own_correct 0.25"


def test_the_throughput_is_that_of_the_longest_kind_of_work(clock):
    with Progress(10, "mapper") as bar:
        with call("sampling", 8) as running:
            clock[0] += 10
            running.at(8, 1000)
        with call("training", 2, shared=False) as running:
            clock[0] += 30
            running.add(2, 0)
        count_tokens("training", 600)
        bar.update(reward=1.0)
        assert bar.line() == "mapper: 1/10 (10%), 40 s each, 6 min left, 20 tokens/s trained, reward 1"
        with note("gold probe"), call("scoring", 4) as running:
            running.add(1, 50)
            assert bar.line().endswith("reward 1; gold probe, scoring 4 completions: 25%")


def test_all_processes_are_taken_to_do_as_much_as_this_one(clock, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(distributed, "_count", 4)
    with Progress(2, "x") as bar, call("sampling", 10) as running:
        clock[0] += 10
        running.at(5, 100, 5)
        assert "40 tokens/s sampled; sampling 40 completions: 50%, 20 ended" in bar.line()
    monkeypatch.setattr(distributed, "_rank", 1)
    capsys.readouterr()
    threads = threading.active_count()
    with Progress(2, "x", tmp_path / "log", tmp_path / "state.json") as bar:
        assert threading.active_count() == threads
        bar.update(2)
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())


def test_work_in_which_nothing_reports_is_not_silent(monkeypatch, capsys):
    monkeypatch.setattr(module, "WAKE_SECONDS", 0.01)
    monkeypatch.setattr(module, "SILENT_SECONDS", 0.05)
    with Progress(5, "train") as bar:
        bar.update()
        time.sleep(0.3)
    with Progress(None, "report"):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("train: 1/5 (20%)") for line in lines) >= 3
    assert sum(re.match(r"report: [\d.]+ s so far$", line) is not None for line in lines) >= 2
    assert module.EVERY_SECONDS < 30 and module.SILENT_SECONDS + 2 < 30


def test_short_work_without_figures_prints_nothing(capsys):
    with Progress(None, "data and models"):
        pass
    assert capsys.readouterr().err == ""


def in_folder(folder, work):
    """A stage that does `work` with its progress."""
    with RunFolder(folder, lambda line: None) as run:

        def stage(out):
            with run.progress(60, "probe") as bar:
                bar.update(12, own_correct=0.25)
                work(run, bar)

        run.stage("probe", {}, stage)


def test_status_shows_the_progress_with_its_age(tmp_path, monkeypatch):
    folder, during = tmp_path / "run", []

    def work(run, bar):
        during.append(status_lines(folder))
        now = time.time()
        monkeypatch.setattr(status, "time", types.SimpleNamespace(time=lambda: now + 300))
        during.append(status_lines(folder))

    in_folder(folder, work)
    first, late = during
    assert "in use by process" in first[0] and "running" in first[1]
    assert re.fullmatch(r"  probe: 12/60 \(20%\), .*own_correct 0.25 \(updated 0 s ago\)", first[2])
    assert late[2].endswith("(updated 5.0 min ago, nothing since then)")
    assert len(status_lines(folder)) == 2 and not (folder / FILE).exists()


def test_status_shows_where_a_run_stopped(tmp_path):
    folder = tmp_path / "run"

    def work(run, bar):
        raise KeyError

    with pytest.raises(KeyError):
        in_folder(folder, work)
    lines = status_lines(folder)
    assert lines[0].endswith("run: not running") and "partial" in lines[1]
    assert re.fullmatch(r"  probe: 12/60 .* \(stopped \d+ s ago\)", lines[2])
    with RunFolder(folder, lambda line: None):
        assert not (folder / FILE).exists()  # of the process before


def test_status_says_that_a_killed_process_is_gone(tmp_path, capsys):
    code = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from test_progress import in_folder\n"
        "in_folder(pathlib.Path(sys.argv[1]), lambda run, bar: (print('ready', flush=True), time.sleep(60)))\n"
    )
    folder, here = tmp_path / "run", os.path.dirname(__file__)
    command = [sys.executable, "-c", code, str(folder), here]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        assert main(["status", str(folder)]) == 0
        assert f"in use by process {process.pid} on" in capsys.readouterr().out
        process.send_signal(signal.SIGKILL)
    assert main(["status", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"not running; process {process.pid} on" in lines[0] and "is gone" in lines[0]
    assert "12/60 (20%)" in lines[2] and "(stopped 0 s ago)" in lines[2]


def test_a_state_file_that_cannot_be_written_or_read_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with Progress(2, "x", state_path=tmp_path / "file" / "state.json") as bar:
        bar.update(2)
    (tmp_path / "state.json").write_text('{"label": "of another version"}')
    assert read_state(tmp_path / "state.json") is None
