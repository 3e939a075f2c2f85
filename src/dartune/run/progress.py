"""Progress of long work: a live bar on a terminal, plain lines elsewhere, the same lines in the log file, and a state
file for `dartune status`.

A stage counts its items (`Progress.update`). The engines and the training loop report what they do within an item
(`call`), so that an item of several minutes is not silent. A thread repeats the state when neither has reported, for
example during one long forward. With several processes, rank 0 reports.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from dartune import distributed
from dartune.errors import counted
from dartune.run.files import append_log
from dartune.run.progress_state import ProgressState, remove_state, write_state

EVERY_SECONDS = 15.0
"""Minimum time between two plain lines; more would fill the log of a long run."""
SILENT_SECONDS = 20.0
"""Time without a line after which the thread prints one. The two together stay below 30 seconds."""
STATE_SECONDS = 2.0
"""Minimum time between two updates of the state file and of the bar."""
WAKE_SECONDS = 2.0
"""Time between two looks of the thread at the clock."""
TOKENS = {"sampling": "sampled", "scoring": "scored", "training": "trained"}
"""Kind of call -> its tokens."""
UNITS = {
    "sampling": ("completion", "completions"),
    "scoring": ("completion", "completions"),
    "training": ("microbatch", "microbatches"),
}
"""Kind of call -> what it counts, in singular and plural."""
COUNTED = ("sampling", "training")
"""Kinds of calls that take most of an item's time, normally. The share of such a call counts as a share of the item."""
LARGEST_SHARE = 0.9
"""Largest share of unfinished items that counts as done: other work follows the calls."""
_active: list[Progress] = []
"""Nested progress; the innermost one reports."""
_lock = threading.RLock()
"""Guards printing and the state file; the thread reports, too."""


class Call:
    """One call of a model: sampling, scoring, or the microbatches of a training step. Made by `call`.

    Args:
        kind: `sampling`, `scoring` or `training`.
        total: rows of the call.
        processes: processes that do a share of the call like this one.
    """

    def __init__(self, progress: Progress | None, kind: str, total: int, processes: int) -> None:
        self.progress, self.kind, self.total, self.processes = progress, kind, total, processes
        self.done, self.tokens = 0.0, 0  # of this process
        self.ended: int | None = None
        self.start = time.monotonic()

    def __enter__(self) -> Self:
        if self.progress is not None:
            self.progress.enter(self)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.progress is not None:
            self.progress.leave(self)

    def at(self, done: float, tokens: int, ended: int | None = None) -> None:
        """Report the state of the call.

        Args:
            done: rows that are done, with the finished share of unfinished ones.
            tokens: tokens of the call so far.
            ended: completions that have ended; None where that says nothing.
        """
        self.done, self.tokens, self.ended = done, tokens, ended
        if self.progress is not None:
            self.progress.tick()

    def add(self, rows: int, tokens: int) -> None:
        """Report that more rows are done, with their number of tokens."""
        self.at(self.done + rows, self.tokens + tokens)

    @property
    def all_tokens(self) -> int:
        """Tokens so far, of all processes."""
        return self.tokens * self.processes

    @property
    def share(self) -> float:
        """Share of the call that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0


def call(kind: str, total: int, *, shared: bool = True) -> Call:
    """A call of a model, as a context: `with call("sampling", rows) as running: ... running.at(done, tokens)`.

    Args:
        kind: `sampling`, `scoring` or `training`.
        total: rows of the call, of this process.
        shared: the call and its tokens are this process's share; all processes are taken to do as much.
    """
    return Call(_active[-1] if _active else None, kind, total, distributed.world_size() if shared else 1)


class Progress:
    """Progress of `total` items, with the remaining time, the throughput and the latest figures.

    Plain lines look like `mapper-s0: 12/40 (30%), 1.3 s each, 36 s left, 210 tokens/s sampled, reward 0.41`. The first
    and the last update are always printed, those in between at most every 15 seconds.
    """

    def __init__(
        self, total: int | None, label: str, log_path: Path | None = None, state_path: Path | None = None
    ) -> None:
        """Start the clock, and open a bar if stderr is a terminal.

        Args:
            total: number of items. None: not known; then only work of more than 15 seconds is reported, by lines.
            label: text in front of every line.
            log_path: log file that receives the plain lines, also when a bar is shown.
            state_path: file that receives the state, for `dartune status`.
        """
        self.total, self.label, self.log_path, self.state_path = total, label, log_path, state_path
        self.done = 0
        self._resumed = 0  # items finished by an earlier attempt; they do not count for the speed
        self._start = self._printed_at = self._written_at = time.monotonic()
        self._first, self._pending = True, False
        self._figures: dict[str, Any] = {}
        self._call: Call | None = None
        self._notes: list[str] = []
        self.begin(1)
        self._tokens: dict[str, int] = dict.fromkeys(TOKENS, 0)
        self._seconds: dict[str, float] = dict.fromkeys(TOKENS, 0.0)
        self._bar: Any = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        self._write_state()
        if self.total is not None and sys.stderr.isatty() and distributed.is_main():
            self._bar = _Bar(self.label, self.total)
        _active.append(self)
        if distributed.is_main():
            threading.Thread(target=self._repeat, name=f"progress of {self.label}", daemon=True).start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close()
        _active.remove(self)
        # The state that an error left is what `dartune status` shows of the stopped run.
        if error is None and self.state_path is not None and not _active:
            remove_state(self.state_path)

    def begin(self, items: int, calls: int = 1, kinds: Sequence[str] = COUNTED) -> None:
        """Report that the next `items` items are in work, which takes `calls` calls of these kinds."""
        self._in_work, self._expected_calls, self._counted = items, calls, kinds
        self._calls_done, self._share = 0, 0.0

    def update(self, n: int = 1, **figures: Any) -> None:
        """Report that `n` more items are done, with the latest values of `figures`."""
        self.done += n
        self._figures |= figures
        self._calls_done, self._share = 0, 0.0
        self._pending = True
        last = self.total is not None and self.done >= self.total
        self._show(always=self._first or last)

    def advance_to(self, done: int, *, last: int = 1, **figures: Any) -> None:
        """Report that `done` items are done in total, and that the work goes on with as many as it did `last`.

        If the first call reports more than `last`, the items before it count as finished by an earlier attempt.
        """
        if self.done == 0:
            self._resumed = max(0, done - last)
        self.update(done - self.done, **figures)
        self.begin(last)

    @contextmanager
    def note(self, text: str) -> Iterator[None]:
        """A context in which `text` precedes what a model is doing, as in `gold probe, sampling 60 completions`."""
        self._notes.append(text)
        try:
            yield
        finally:
            self._notes.remove(text)

    def enter(self, started: Call) -> None:
        """Called by `Call`."""
        self._call = started

    def leave(self, ended: Call) -> None:
        """Called by `Call`: counts its time and tokens."""
        self._call = None
        self._tokens[ended.kind] += ended.all_tokens
        self._seconds[ended.kind] += time.monotonic() - ended.start
        if ended.kind in self._counted:
            self._calls_done += 1

    def count_tokens(self, kind: str, tokens: int) -> None:
        """Count tokens of a kind of call that became known after the call."""
        self._tokens[kind] += tokens

    def tick(self) -> None:
        """Called by `Call`: an unfinished item went on."""
        self._pending = True
        self._show()

    def close(self) -> None:
        """Remove the bar, and print the last line if it was not printed yet."""
        self._closed.set()
        with _lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            if self._pending and self.total is not None and (self.done or not self._first):
                self._print_line()

    def line(self) -> str:
        """Return the current state as one line."""
        return f"{self.label}: {self.state().text()}"

    def state(self) -> ProgressState:
        """Return the current state."""
        now, running = time.monotonic(), self._call
        elapsed = now - self._start
        timed_items = self.done - self._resumed
        worked = timed_items + self._in_work * self._unfinished_share(running)
        left = None
        if self.total is not None and self.done < self.total and worked > 0 and elapsed > 0:
            left = max(0.0, elapsed / worked * (self.total - self._resumed) - elapsed)
        tokens, seconds = dict(self._tokens), dict(self._seconds)
        if running is not None:
            tokens[running.kind] += running.all_tokens
            seconds[running.kind] += now - running.start
        kind = max((kind for kind in TOKENS if tokens[kind]), key=seconds.__getitem__, default=None)
        return ProgressState(
            label=self.label,
            done=self.done,
            total=self.total,
            elapsed=elapsed,
            each=elapsed / worked if timed_items > 0 and self.total is not None else None,
            seconds_left=left,
            tokens_per_second=tokens[kind] / seconds[kind] if kind and seconds[kind] > 0 else None,
            tokens=TOKENS[kind] if kind else "",
            figures=dict(self._figures),
            activity=self._activity(running),
            updated=time.time(),
        )

    def _unfinished_share(self, running: Call | None) -> float:
        """Share of the items in work that is done, by the calls that were made for them; it never falls."""
        calls = self._calls_done + (running.share if running is not None and running.kind in self._counted else 0.0)
        self._share = max(self._share, LARGEST_SHARE * min(1.0, calls / self._expected_calls))
        return self._share

    def _activity(self, running: Call | None) -> str:
        parts = list(self._notes)
        if running is not None and running.total:
            rows = counted(running.total * running.processes, *UNITS[running.kind])
            parts.append(f"{running.kind} {rows}: {running.share:.0%}")
            if running.ended is not None:
                parts.append(f"{running.ended * running.processes} ended")
        return ", ".join(parts)

    def _show(self, *, always: bool = False, after: float = EVERY_SECONDS) -> None:
        """Update bar and state file, and print a line, each if it is time.

        Args:
            always: print a line in any case.
            after: seconds since the last line after which another is printed.
        """
        now = time.monotonic()
        line_due = always or now - self._printed_at >= after
        if not line_due and now - self._written_at < STATE_SECONDS:
            return
        with _lock:
            self._written_at = now
            self._write_state()
            if self._bar is not None:
                self._bar.show(self.state())
            if line_due:
                self._print_line()

    def _write_state(self) -> None:
        if self.state_path is not None:
            write_state(self.state_path, self.state())

    @distributed.main_only
    def _print_line(self) -> None:
        line = self.line()
        if self._bar is None:
            # In one call: lines of the thread and of the program must not mix.
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        if self.log_path is not None:
            append_log(self.log_path, line)
        self._printed_at, self._first, self._pending = time.monotonic(), False, False

    def _repeat(self) -> None:
        """Report while neither the stage nor a model does. Runs in a thread until the progress is closed."""
        while not self._closed.wait(WAKE_SECONDS):
            # A disk that is full or a stderr that is closed ends the run elsewhere, with a message.
            with suppress(Exception), _lock:
                if not self._closed.is_set() and _active[-1:] == [self]:
                    self._show(after=SILENT_SECONDS)


class _Bar:
    """A bar on the terminal."""

    def __init__(self, label: str, total: int) -> None:
        from rich import progress
        from rich.console import Console

        self.bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self.bar.start()
        self.task = self.bar.add_task(label, total=total, text="")

    def show(self, state: ProgressState) -> None:
        """Show the state."""
        _, _, text = state.text().partition(", ")
        self.bar.update(self.task, completed=state.done, text=text)
        self.bar.refresh()

    def close(self) -> None:
        """Leave the bar as it is now."""
        self.bar.stop()


def count_tokens(kind: str, tokens: int) -> None:
    """Count tokens of a kind of call that became known after the call, of all processes."""
    if _active:
        _active[-1].count_tokens(kind, tokens)


def note(text: str) -> AbstractContextManager[None]:
    """`Progress.note` of the innermost progress, if there is one."""
    return _active[-1].note(text) if _active else nullcontext()


def follow(progress: Progress, *shown: str) -> Callable[[int, Mapping[str, Any]], None]:
    """Return a step callback that advances `progress` and shows the metrics named in `shown`."""
    return lambda step, row: progress.advance_to(step, **{name: row[name] for name in shown})
