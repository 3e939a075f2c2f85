"""The long form of the crash tests: `make crash`, or `PYTHONPATH=tests python tests/crash/long.py [--kills 20]`.

Kills every stage of a tiny job at drawn points, fills the disk, cuts files, and asks it to stop; each time the same
command must end with the files of an uninterrupted run. Prints what docs/reliability.md says, and the seconds it took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attempts import Server
from world import STAGES, World

from dartune.run.files import append_jsonl, read_jsonl

KINDS = ("calls", "flushes", "after_s")
FULL_AT = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the run's size at which the disk is full."""


class Tally:
    """Tried and failed, by what was tried."""

    def __init__(self) -> None:
        self.tried: dict[str, int] = {}
        self.wrong: list[str] = []

    def note(self, what: str, where: str, differences: list[str]) -> None:
        self.tried[what] = self.tried.get(what, 0) + 1
        if differences:
            self.wrong.append(f"{what}, {where}: {', '.join(differences[:5])}")
            print(f"WRONG {self.wrong[-1]}", flush=True)


def points(world: World, stage: str, n: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Drawn moments of a stage at which to die: before a call, in a flush, after a time."""
    world.without(stage)
    counted = world.server(world.command, stage=stage)
    for number in range(n):
        kind = KINDS[number % len(KINDS)]
        at = rng.uniform(0, counted["seconds"]) if kind == "after_s" else rng.randint(1, counted[kind])
        yield {"stage": stage, kind: at, "seed": rng.randrange(10**6)}


def ends_the_same(world: World, ignored: tuple[str, ...] = ()) -> list[str]:
    """The same command once more; what is then wrong."""
    code = world.server(world.command)["exit"]
    return [f"exit code {code}", world.server.said()[-600:]] if code else world.differences(ignored)


def kill_everywhere(world: World, tally: Tally, n: int, rng: random.Random) -> None:
    for stage in STAGES:
        began, late = time.monotonic(), 0
        for number, point in enumerate(points(world, stage, n, rng)):
            # Once, all that comes after the stage is still to be done, too.
            world.before(stage) if number == 0 and stage != "report" else world.without(stage)
            for _ in range(1 + (number % 4 == 3)):  # some are killed again while they continue
                ended = world.server(world.command, **point)
                late += ended["exit"] == 0  # it was done before its time was up
            if ended["exit"] not in (0, -signal.SIGKILL):
                tally.note(f"kills in {stage}", str(point), [f"exit code {ended['exit']}"])
                continue
            tally.note(f"kills in {stage}", str(point), ends_the_same(world))
        print(f"{stage}: {n} kills, {late} came too late, {time.monotonic() - began:.0f} s", flush=True)


def stop_everywhere(world: World, tally: Tally, n: int, rng: random.Random) -> None:
    """SIGTERM: ends with its exit code and a message, soon, and is continued."""
    for stage in STAGES:
        for point in points(world, stage, n, rng):
            world.without(stage)
            ended = world.server(world.command, **{**point, "flushes": 0}, signal=int(signal.SIGTERM))
            wrong = [] if ended["exit"] in (0, 143) else [f"exit code {ended['exit']}"]
            if ended["exit"] == 143 and "the same command continues" not in world.server.said():
                wrong.append("no message")
            tally.note("SIGTERM", str(point), wrong + ends_the_same(world))


def fill_the_disk(world: World, tally: Tally) -> None:
    """A disk that is full at some share of the run: needs the right to mount one; file limits need none."""
    size = sum(path.stat().st_size for path in world.whole.rglob("*") if path.is_file())
    shutil.rmtree(world.run, ignore_errors=True)
    for share in FULL_AT:
        world.run.mkdir()
        mounted = _mount(world.run, int(size * share))
        if not mounted:
            print("no right to mount a small disk: a limit on the size of files stands in for it", flush=True)
        trouble = {} if mounted else {"file_bytes": int(share * 200_000)}
        ended = world.server(world.command, **trouble)
        said = "the disk is full" in world.server.said() or "too large" in world.server.said()
        wrong = [] if ended["exit"] == 3 and said else [f"exit code {ended['exit']}", world.server.said()[-300:]]
        if mounted:
            _call("mount", "-o", f"remount,size={4 * size}", str(world.run))
        tally.note("full disks", f"{share:.0%} of the run", wrong + ends_the_same(world))
        if mounted:
            _call("umount", str(world.run))
        shutil.rmtree(world.run)


def _mount(place: Path, size: int) -> bool:
    return _call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))


def _call(*command: str) -> bool:
    with open(os.devnull, "w") as nothing:
        return shutil.which(command[0]) is not None and not subprocess.call(command, stdout=nothing, stderr=nothing)


def cut_every_file(world: World, tally: Tally, rng: random.Random) -> None:
    """Each file of a finished run, then of interrupted ones, is cut somewhere; nothing may differ in the end.

    But for `samples.jsonl` of an interrupted stage: a few samples a step to read, which are not drawn again.
    """
    world.without()
    names = sorted(path.relative_to(world.run) for path in world.run.rglob("*") if path.is_file())
    for name in names:
        world.without()
        _cut(world.run / name, rng)
        tally.note("files of finished runs cut", str(name), ends_the_same(world))
    for stage, flushes in (("mapper-s0", 25), ("synthesise-s0", 20), ("train-grpo_tokens-s0-lr0.001", 40)):
        world.without(stage)
        world.server(world.command, stage=stage, flushes=flushes)
        left = world.run.with_name("left")
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(world.run, left)
        for name in sorted(path.relative_to(left) for path in (left / "stages" / stage).rglob("*") if path.is_file()):
            shutil.rmtree(world.run)
            shutil.copytree(left, world.run)
            _cut(world.run / name, rng)
            lost = ("samples.jsonl", "DONE") if name.name == "samples.jsonl" else ()
            tally.note("files of interrupted stages cut", str(name), ends_the_same(world, lost))


def _cut(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size) if size else 0)


def cut_lines(tally: Tally, world: World) -> None:
    """The last line of each kind of line file, cut at every byte: it is left out, and the next row stands alone."""
    for path in sorted(world.whole.glob("stages/*/*.jsonl")):
        whole, rows = path.read_bytes(), read_jsonl(path)
        last = whole.rstrip(b"\n").rfind(b"\n") + 1
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            step = max(1, (len(whole) - last) // 200)  # of lines that are very long, 200 places
            for end in range(last, len(whole), step):
                copy.write_bytes(whole[:end])
                complete = end == len(whole) - 1  # only the line's end is missing
                kept = rows if complete else rows[:-1]
                wrong = [] if read_jsonl(copy) == kept else ["read otherwise"]
                append_jsonl(copy, {"next": True})
                wrong += [] if read_jsonl(copy) == [*kept, {"next": True}] else ["joined"]
                tally.note("last lines cut", f"{path.name} at {end}", wrong)


def jump_clocks(world: World, tally: Tally, n: int, rng: random.Random) -> None:
    """Clocks that jump by up to a year while runs are killed and continued: only durations may differ."""
    for stage in ("mapper-s0", "train-sft-s0-lr0.001"):
        for point in points(world, stage, n, rng):
            world.without(stage)
            world.server(world.command, **point, jumps=point["seed"])
            done = world.server(world.command, jumps=point["seed"] + 1)
            wrong = [f"exit code {done['exit']}"] if done["exit"] else []
            wrong += [name for name in world.differences(("DONE",)) if not name.startswith("report/")]
            tally.note("clock jumps", str(point), wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in every stage")
    parser.add_argument("--stops", type=int, default=3, help="SIGTERM in every stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="some of kills,stops,disk,files,lines,clock")
    options = parser.parse_args()
    rng, tally, began = random.Random(options.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "said.log")
        world = World(Path(folder) / "world", server)
        parts: dict[str, Callable[[], None]] = {
            "kills": lambda: kill_everywhere(world, tally, options.kills, rng),
            "stops": lambda: stop_everywhere(world, tally, options.stops, rng),
            "disk": lambda: fill_the_disk(world, tally),
            "files": lambda: cut_every_file(world, tally, rng),
            "lines": lambda: cut_lines(tally, world),
            "clock": lambda: jump_clocks(world, tally, 3, rng),
        }
        for name, part in parts.items():
            if not options.only or name in options.only.split(","):
                part()
        server.close()
    seconds = time.monotonic() - began
    print(json.dumps({"tried": tally.tried, "wrong": tally.wrong, "seconds": round(seconds)}, indent=2))
    return bool(tally.wrong)


if __name__ == "__main__":
    sys.exit(main())
