"""A step of fine-tuning on the lab beside processes that keep the same CPUs busy.

    python benchmarks/neighbours.py          writes results/neighbours.json and docs/performance.md

Compared are PyTorch's default (as many threads as CPUs, which spin while they wait for each other), threads that sleep
while they wait, and what `dartune` does: threads that sleep, in the number that is measured to be fastest. A slowdown
that is proportional to the load is (CPUs + neighbours) / CPUs with all CPUs in use, and less with fewer threads. Needs
a machine on which nothing else runs. OMP_NUM_THREADS must not be set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "neighbours.json"
NEIGHBOURS = (0, 1, 3)
WAYS = {"PyTorch's default": {}, "sleeping threads": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""Way -> environment variables; the third way is the second one with `--measured`."""
OURS = "dartune"
STEPS, FIRST, BATCH = 24, 4, 16
ROUNDS = 3
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step_seconds(options.measured)))
        return
    if "OMP_NUM_THREADS" in os.environ:
        parser.error("unset OMP_NUM_THREADS: it is what this benchmark varies")
    contenders = {
        **{name: (variables, []) for name, variables in WAYS.items()},
        OURS: (WAYS["sleeping threads"], ["--measured"]),
    }
    found = {name: {} for name in contenders}
    for count in NEIGHBOURS:
        rounds = {name: [] for name in contenders}
        for _ in range(ROUNDS):  # by turns, since the load of the machine changes
            for name, (variables, flags) in contenders.items():
                with neighbours(count):
                    rounds[name].append(_measured(variables, flags))
        for name, results in rounds.items():
            found[name][str(count)] = {
                "threads": [result["threads"] for result in results],
                "milliseconds": [round(1000 * result["seconds"], 1) for result in results],
            }
    RESULTS.write_text(json.dumps({"cpus": os.cpu_count(), "steps": found}, indent=1) + "\n")
    subprocess.run([sys.executable, Path(__file__).with_name("performance_tables.py")], check=True)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Other processes that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _measured(variables: dict[str, str], flags: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | variables
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def step_seconds(measured: bool) -> dict[str, float]:
    """Threads, and the median seconds of a step of fine-tuning."""
    import torch

    from dartune.config.schema import SFTConfig
    from dartune.data.chat_template import Renderer
    from dartune.lab.build import CHECKPOINTS
    from dartune.lab.suites import demonstration_problems, write_demonstrations
    from dartune.models.loading import load_model, load_tokenizer
    from dartune.models.threads import use_threads
    from dartune.train.sft import fine_tune

    folder = CHECKPOINTS / "backward"
    model = load_model(folder, dtype="float32", device="cpu")
    if measured:
        use_threads(model, None)
    rows = write_demonstrations(demonstration_problems(STEPS * BATCH, 0, 0), "values")
    pairs = [(row.question, row.solution) for row in rows]
    ends: list[float] = []
    settings = SFTConfig(steps=STEPS, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        fine_tune(
            model,
            pairs,
            Renderer(load_tokenizer(folder)),
            settings,
            1e-4,
            0,
            Path(scratch),
            on_step=lambda *_: ends.append(time.perf_counter()),
        )
    seconds = [end - begin for begin, end in zip(ends[FIRST:], ends[FIRST + 1 :], strict=False)]
    return {"threads": torch.get_num_threads(), "seconds": median(seconds)}


if __name__ == "__main__":
    main()
