"""A tiny job with every kind of stage, its uninterrupted run, and what must be the same of every other run of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from attempts import Server

from fixtures_models import save_tiny

SETTINGS = [
    "--arms=base,sft,dart,grpo_tokens",
    "--data.dev=3",
    "--data.test=3",
    "--mapper.format_steps=3",
    "--mapper.steps=4",
    "--mapper.questions_per_step=2",
    "--mapper.group_size=2",
    "--mapper.max_new_tokens=24",
    "--reward.own_samples=1",
    "--reward.gates=[]",
    "--synthesise.samples=1",
    "--sft.steps=5",
    "--sft.batch_size=4",
    "--sft.learning_rates=[1e-3]",
    "--direct_rl.learning_rates=[1e-3]",
    "--evaluate.max_new_tokens=16",
    "--execution.checkpoint_every=2",
    "--execution.microbatch_tokens=2048",
]
STAGES = (
    "data",
    "probe",
    "warmup",
    "mapper-s0",
    "synthesise-s0",
    "train-sft-s0-lr0.001",
    "train-dart-s0-lr0.001",
    "train-grpo_tokens-s0-lr0.001",
    "evaluate-dart-s0",
    "report",
)
NOT_COMPARED = ("logs", "lock", "holder.json")
ATTEMPTS_OWN = ("attempts", "finished")
"""What `DONE` says of the attempts themselves."""


class World:
    """A data set, a target, and the finished run of both in `whole`; `run` is where attempts are made."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.server, self.run, self.whole = server, folder / "run", folder / "whole"
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "sums.jsonl"
        rows = [{"question": f"What is {n} + {n + 3}?", "solution": f"{n} + {n + 3} = {2 * n + 3}."} for n in range(36)]
        rows = [{**row, "solution": f"{row['solution']}\n#### {2 * n + 3}"} for n, row in enumerate(rows)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        target = save_tiny(folder / "target", "llama", context=2048)
        self.command = ["run", f"--data={data}", f"--target={target}", f"--output={self.run}", *SETTINGS]
        done = server(self.command)
        assert done["exit"] == 0, server.said()
        self.run.rename(self.whole)

    def without(self, *stages: str) -> None:
        """A run folder in which all is done but these stages."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.whole, self.run)
        for stage in stages:
            shutil.rmtree(self.run / ("report" if stage == "report" else f"stages/{stage}"))

    def before(self, stage: str) -> None:
        """A run folder in which all is done up to a stage, and nothing after it."""
        order = sorted((self.whole / "stages").iterdir(), key=lambda path: finished(path / "DONE"))
        names = [path.name for path in order]
        self.without(*names[names.index(stage) :], "report")

    def differences(self, ignored: tuple[str, ...] = ()) -> list[str]:
        """Files that differ between `run` and `whole`, or are in one only."""
        ours, theirs = (dict(contents(folder, ignored)) for folder in (self.run, self.whole))
        return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def finished(mark: Path) -> str:
    return json.loads(mark.read_text())["finished"]


def contents(folder: Path, ignored: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Every file's name and bytes."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.split("/")[0] in NOT_COMPARED or path.name in ignored:
            continue
        if path.name == "DONE":
            mark = json.loads(path.read_text())
            yield name, json.dumps({key: mark[key] for key in mark if key not in ATTEMPTS_OWN}).encode()
        else:
            yield name, path.read_bytes()
