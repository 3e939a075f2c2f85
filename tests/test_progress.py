"""Progress: first and last line are always printed, and resumed work does not count for the speed."""

import io
import re
import sys

import pytest

from dartune.run import progress as module
from dartune.run.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_printed_at_the_start_at_the_end_and_every_few_seconds(tmp_path, clock, capsys):
    with Progress(100, "mapper, seed 0", tmp_path / "run.log") as bar:
        for _ in range(100):
            clock[0] += 0.1
            bar.update(reward=0.4123, style="a")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mapper, seed 0: 1/100 (1%), 0.1 s each, 9.9 s left, reward 0.412, style a"
    assert lines[-1] == "mapper, seed 0: 100/100 (100%), 0.1 s each, reward 0.412, style a"
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
    assert "4/4" in screen.getvalue()
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith("reward 0.5")
