"""Large data: seconds and memory of check, synthesis and export by number of rows, and of going on after a crash.

    python benchmarks/large_data.py [ROWS ...]     measures these sizes, beside those in results/large-data.json
    python benchmarks/large_data.py write          docs/large-data.md again, from the results

Every measurement is a process of its own. `check` is the command's work on word problems, with a tiny model.
Synthesis is measured without models, with engines that return a fixed rewrite and a reward that accepts it for every
second row, so that what is left is dartune's own work on the rows. Seconds are of the process's CPU time: other work on
the machine does not count.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dartune.config.load import load_config
from dartune.config.schema import SynthesiseConfig
from dartune.data.adapted_dataset import write_adapted
from dartune.data.load import load_demonstrations
from dartune.data.row_store import RowWriter, demonstration_from_dict, open_rows, write_rows
from dartune.engines.base import Sample
from dartune.report.adaptation import adapted_summary
from dartune.rewards.reward import Rewrite
from dartune.run.environment import peak_memory_mb, reset_peak_memory
from dartune.run.files import atomic_write_json
from dartune.stages.probe_references import References
from dartune.stages.synthesise import synthesise

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))
from pages import fill, table  # noqa: E402 - found only there

RESULTS, PAGE = ROOT / "results" / "large-data.json", ROOT / "docs" / "large-data.md"
SIZES = (10_000, 100_000, 1_000_000)
PEOPLE = "Ann Bob Cleo Dan Eve Finn Gina Hugo Iris Jack Kim Leo Mia Ned Olga Paul".split()
THINGS = "pens books apples coins cards shells stamps keys".split()


def problem(number: int) -> dict[str, str]:
    """A word problem with its solution; different numbers give different ones, nearly always."""
    rng = random.Random(number)
    one, other = rng.sample(PEOPLE, 2)
    thing, first, times, more = rng.choice(THINGS), rng.randint(2, 999), rng.randint(2, 99), rng.randint(1, 999)
    bought = first * times
    question = (
        f"{one} has {first} {thing} on Monday. {other} has {times} times as many {thing} as {one} and then buys {more} "
        f"more. How many {thing} does {other} have in the end?"
    )
    solution = (
        f"{one} has {first} {thing}, so {other} starts with {times} * {first} = {bought} {thing}.\n"
        f"Buying {more} more gives {bought} + {more} = {bought + more} {thing}.\n#### {bought + more}"
    )
    return {"question": question, "solution": solution, "answer": str(bought + more)}


def generated(folder: Path, rows: int) -> Path:
    """The first so many problems, in a file."""
    path = folder / f"problems-{rows}.jsonl"
    if not path.exists():
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(problem(number)) + "\n" for number in range(rows))
    return path


def tiny_target(folder: Path) -> Path:
    """A model of the least size, with a tokenizer trained on a few problems."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = folder / "target"
    if place.exists():
        return place
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text for n in range(500) for text in problem(n).values()), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=2048, eos_token_id=0, pad_token_id=0, **shape
    )
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


# ------------------------------------------------------------------ synthesis without models


class Words:
    """Stands for a renderer: a token a character."""

    end_id = 0
    stop_ids = (0,)

    def prompt_ids(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def response_ids(self, text: str) -> list[int]:
        return [*map(ord, text), self.end_id]


class Fixed:
    """Stands for an engine: the same rewrite every time."""

    def __init__(self) -> None:
        self.ids = tuple(range(1, 65))
        self.sample = Sample(self.ids, (-0.5,) * len(self.ids), "stop")

    def generate(self, prompts: Sequence[Any], spec: Any) -> list[list[Any]]:
        return [[self.sample] * spec.n for _ in prompts]


def accepting(rows: Sequence[Any], samples: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Stands for a reward: every second row's rewrites are worth something."""
    gates = dict.fromkeys(("finished", "one_answer", "correct_answer"), True)

    def scored(row: Any, sample: Any) -> Any:
        good = row.id.endswith(tuple("02468ace"))
        shared = {"gates": gates, "accepted": good, "surplus": 0.5 if good else 0.0}
        return Rewrite(row.solution, sample.ids, sample.logprobs, -0.5, 0.5, 0.5, **shared)

    return [[scored(row, sample) for sample in group] for row, group in zip(rows, samples, strict=True)]


def probed(rows: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """What a probe without own samples would have written."""
    for row in rows:
        length = len(row.solution) + 1
        known = {"length": length, "source_alignment": -1.0, "source_logprobs": [-1.0] * 64, "expected_tokens": length}
        yield {"id": row.id, **known, "own": [], "own_correct": 0, "cap": None}


def prepare_stages(folder: Path, rows: int) -> None:
    """The files of the stages before a synthesis."""
    found = load_demonstrations(generated(folder, rows))
    write_rows(folder / f"train-{rows}.jsonl", map(asdict, found))
    write_rows(folder / f"probe-{rows}.jsonl", probed(found))


def inputs(folder: Path, rows: int) -> tuple[Any, ...]:
    """Demonstrations, probe, engines, and the other arguments of a synthesis."""
    demonstrations = open_rows(folder / f"train-{rows}.jsonl", demonstration_from_dict)
    return demonstrations, open_rows(folder / f"probe-{rows}.jsonl"), Fixed(), Fixed()


SETTINGS = (Words(), SynthesiseConfig(samples=2), "{question} {solution}", 128, 1.0, 0)


def synthesis(folder: Path, rows: int) -> None:
    synthesise(*inputs(folder, rows), accepting, *SETTINGS, folder / f"rows-{rows}.jsonl")


def resume(folder: Path, rows: int) -> None:
    """From the start of a synthesis, all of whose rows but the last chunk's are done, to its first reward."""

    def reached(*_: Any) -> None:
        raise TimeoutError

    path = folder / f"rows-{rows}.jsonl"
    with RowWriter(path) as spool:
        spool.cut(rows - 1)
    with suppress(TimeoutError):
        synthesise(*inputs(folder, rows), reached, *SETTINGS, path)


def references(folder: Path, rows: int) -> None:
    References(open_rows(folder / f"probe-{rows}.jsonl"))


def export(folder: Path, rows: int) -> None:
    write_adapted(folder / f"adapted-{rows}", open_rows(folder / f"rows-{rows}.jsonl"), provenance_note={})


def report(folder: Path, rows: int) -> None:
    adapted_summary(open_rows(folder / f"rows-{rows}.jsonl"), rows, None)


def check(folder: Path, rows: int) -> None:
    check(load_config(None, {"data.path": str(generated(folder, rows)), "target.path": str(folder / "target")}))


def nothing(folder: Path, rows: int) -> None:
    """What is in memory without any row."""


TASKS: dict[Callable[[Path, int], None], str] = {
    nothing: "nothing (dartune and torch loaded)",
    check: "`dartune check`",
    references: "the references of all rows, at a stage's start",
    synthesis: "synthesis, no model",
    export: "the data set written",
    report: "the report's counts",
    resume: "synthesis resumed, to its first row",
}


def alone(task: Callable[[Path, int], None], folder: Path, rows: int) -> dict[str, Any]:
    """A task in this process: CPU seconds and the highest resident memory in MB."""
    reset_peak_memory()
    start, started = time.process_time(), time.perf_counter()
    task(folder, rows)
    seconds, wall = time.process_time() - start, time.perf_counter() - started
    return {"rows": rows, "task": task.__name__, "seconds": seconds, "wall": wall, "peak_mb": peak_memory_mb()}


def in_a_process(task: Callable[[Path, int], None], folder: Path, rows: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "alone", task.__name__, str(folder), str(rows)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(sizes: Sequence[int], tasks: Sequence[Callable[[Path, int], None]]) -> Iterator[dict[str, Any]]:
    """Each task at each size; what is made on the way goes away with its size."""
    for rows in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tiny_target(folder)
            prepare_stages(folder, rows)
            for task in tasks:
                found = in_a_process(task, folder, rows)
                print(found, flush=True)
                yield found


# ------------------------------------------------------------------ the page


def parts(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The measured parts of docs/large-data.md."""
    sizes = list(dict.fromkeys(one["rows"] for one in found))
    known = {(one["task"], one["rows"]): one for one in found}

    def cell(task: str, rows: int) -> str:
        one = known.get((task, rows))
        return f"{one['seconds']:.3f} s, {one['peak_mb']:.0f} MB" if one else "-"

    lines = [[says, *(cell(task.__name__, rows) for rows in sizes)] for task, says in TASKS.items()]
    return {"large-data": table(["", *(f"{rows:,} rows" for rows in sizes)], lines)}


def main() -> None:
    if sys.argv[1:2] == ["alone"]:
        _, _, name, folder, rows = sys.argv
        (task,) = [task for task in TASKS if task.__name__ == name]
        print(json.dumps(alone(task, Path(folder), int(rows))))
        return
    found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    if sys.argv[1:2] != ["write"]:
        sizes = [int(word) for word in sys.argv[1:]] or SIZES
        found = [one for one in found if one["rows"] not in sizes] + list(measured(sizes, list(TASKS)))
        found.sort(key=lambda one: one["rows"])
        atomic_write_json(RESULTS, found)
    fill(PAGE, parts(found))


if __name__ == "__main__":
    main()
