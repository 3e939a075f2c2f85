"""Progress: readable lines in a log, first and last always, a speed that resumed work does not distort."""

import io
import re
import sys

import pytest

from dartune import progress as module
from dartune.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_the_start_the_end_and_every_few_seconds(tmp_path, clock, capsys):
    with Progress(100, "mapper, seed 0", tmp_path / "run.log") as bar:
        for _ in range(100):
            clock[0] += 0.1
            bar.update(reward=0.4123, style="a")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "mapper, seed 0: 1/100 (1%), 0.1 s each, 9.9 s left, reward 0.412, style a"
    assert said[-1] == "mapper, seed 0: 100/100 (100%), 0.1 s each, reward 0.412, style a"
    assert len(said) == 3
    logged = (tmp_path / "run.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in logged] == said


def test_the_last_line_is_said_when_work_stops_early(tmp_path, clock, capsys):
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


def test_nothing_to_do_is_no_error():
    with Progress(0, "x") as bar:
        assert bar.line() == "x: 0/0"


def test_a_terminal_gets_a_bar_and_the_log_still_gets_lines(tmp_path, monkeypatch):
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
    assert "4/4" in screen.getvalue()
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith("reward 0.5")
