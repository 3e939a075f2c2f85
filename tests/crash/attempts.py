"""Attempts at a run that end badly: a server that forks a process for each, which dies where it is told to.

The server has imported everything and computed nothing, so an attempt takes as long as its work. `python attempts.py`
answers a line of JSON, `{"command": [...], "trouble": {...}}`, with another: how the attempt ended and what it counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FROZEN = 4e9
"""What the clock says in every attempt, so that durations, which no two runs share, are alike."""
CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.copyfile")


class Server:
    """The server's process, for those who ask it."""

    def __init__(self, log: Path) -> None:
        here = Path(__file__).parent
        paths = [str(here.parent), str(here.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(log)],
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, command: list[str], **trouble: Any) -> dict[str, Any]:
        """Make an attempt; `exit` is its exit code, or the signal that ended it with a minus in front."""
        self.process.stdin.write(json.dumps({"command": command, "trouble": trouble}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def said(self) -> str:
        """What the last attempt printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


class Trouble:
    """What befalls an attempt, and what it counted on the way.

    Args:
        stage: counting begins with this stage (`report`: with the report) and ends with it; None: the whole run.
        calls: the process dies before so manieth call that changes a folder or opens a file to write.
        flushes: it dies at so manieth flush, of which but a part (drawn by `seed`) has reached the disk.
        after_s: it dies after so many seconds.
        signal: by which signal.
        file_bytes: no file may grow beyond this.
        jumps: the clock jumps forth and back by up to a year, drawn by this seed.
    """

    def __init__(
        self,
        stage: str | None = None,
        calls: int = 0,
        flushes: int = 0,
        after_s: float = 0.0,
        signal: int = signal.SIGKILL,
        seed: int = 0,
        file_bytes: int = 0,
        jumps: int | None = None,
    ) -> None:
        self.stage, self.at_call, self.at_flush, self.after_s, self.signal = stage, calls, flushes, after_s, signal
        self.random, self.file_bytes, self.jumps = random.Random(seed), file_bytes, jumps
        self.calls = self.flushes = 0
        self.seconds = 0.0
        self.active = stage is None
        self.durable: dict[str, int] = {}

    def begin(self, log: str) -> None:
        """In the forked process, before the run."""
        self.log = log
        import dartune.pipeline
        import dartune.run.environment
        import dartune.run.folder

        self._set_clock()
        dartune.run.environment._commit = lambda: None  # whoever commits meanwhile changes no run
        dartune.run.folder.peak_memory_mb = lambda: 0.0
        if self.file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))
        attempt, report = dartune.run.folder.RunFolder._attempt, dartune.pipeline.write_run_report

        def watched_attempt(run, name, *words):
            with self.watching(name):
                return attempt(run, name, *words)

        def watched_report(*words):
            with self.watching("report"):
                return report(*words)

        dartune.run.folder.RunFolder._attempt, dartune.pipeline.write_run_report = watched_attempt, watched_report
        if self.stage != "report":
            self._remember_plots()
        self._fsync, os.fsync = os.fsync, self.flush
        sys.addaudithook(self.audit)
        if self.stage is None:
            self._start_timer()

    def _set_clock(self) -> None:
        import dartune.run.folder
        import dartune.run.progress
        import dartune.stages.direct_rl

        drawn = random.Random(self.jumps)
        jump = 0.0 if self.jumps is None else 366 * 86400.0
        frozen = types.SimpleNamespace(time=lambda: FROZEN + drawn.uniform(-jump, jump), monotonic=lambda: 0.0)
        for module in (dartune.run.folder, dartune.run.progress, dartune.stages.direct_rl):
            module.time = frozen

    def _remember_plots(self) -> None:
        """Plots of equal results are drawn once, for they take most of a report's time."""
        import dartune.report.page as page

        draw = page.draw_plots

        def drawn_once(results):
            digest = hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()
            place = Path(self.log).with_name(f"plots-{digest[:16]}.json")
            if not place.exists():
                active, self.active = self.active, False
                place.write_text(json.dumps(draw(results)))
                self.active = active
            return json.loads(place.read_text())

        page.draw_plots = drawn_once

    def watching(self, name: str):
        @contextmanager
        def watched():
            self.active, began = self.active or name == self.stage, time.monotonic()
            if name == self.stage:
                self._start_timer()
            try:
                yield
            finally:
                self.active = self.stage is None
                if name == self.stage:
                    self.seconds += time.monotonic() - began

        return watched()

    def _start_timer(self) -> None:
        if self.after_s:
            threading.Thread(target=lambda: (time.sleep(self.after_s), self.die()), daemon=True).start()

    def die(self) -> None:
        os.kill(os.getpid(), self.signal)

    def audit(self, event: str, words: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR)
        if self.active and (writes or event in CHANGING):
            self.calls += 1
            if self.calls == self.at_call:
                self.die()

    def flush(self, descriptor: int) -> None:
        """`os.fsync`, at which a machine may lose what was written since the last one, or a part of it."""
        place = f"/proc/self/fd/{descriptor}"
        name, size = os.path.realpath(place), os.fstat(descriptor).st_size
        if self.active and os.path.isfile(name):
            self.flushes += 1
            if self.flushes == self.at_flush:
                kept = min(self.durable.get(name, 0), size)
                os.truncate(name, self.random.randint(kept, size))
                self.die()
            self.durable[name] = size
        self._fsync(descriptor)


def attempt(request: dict[str, Any], log: str) -> dict[str, Any]:
    """Fork, run the command with its trouble, and tell how that ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            trouble = Trouble(**request["trouble"])
            trouble.begin(log)
            from dartune.cli import main

            code = main(request["command"])
            counted = {"calls": trouble.calls, "flushes": trouble.flushes, "seconds": trouble.seconds}
            os.write(writing, json.dumps(counted).encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    counted = json.loads(os.read(reading, 4096) or b"{}")
    os.close(reading)
    return {"exit": os.waitstatus_to_exitcode(status), **counted}


def serve(log: str) -> None:
    """Import what a run needs, once, and make the attempts that are asked for."""
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import dartune.lab.source
    import dartune.pipeline
    import dartune.stages.direct_rl
    import dartune.stages.evaluate
    import dartune.stages.gold_probe
    import dartune.stages.mapper
    import dartune.stages.probe
    import dartune.stages.synthesise
    import dartune.stages.warmup
    import dartune.train.sft  # noqa: F401

    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("llama")  # builds its table
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line), log)), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
