"""dartune against what a user would otherwise run, and against the machine: everything in one process, by turns.

    python benchmarks/speed.py                   one CPU core: results/speed-cpu.json, tables of docs/performance.md
    python benchmarks/speed.py --device cuda     the same on a GPU: results/speed-gpu.json
    python benchmarks/speed.py --quick step-1M   these parts only, few rounds; nothing is written

A name stands for all parts that begin with it. What fails is told and left out; the others are measured all the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "experiments")]  # `pages`

import torch  # noqa: E402
from contests import Bench, demo, evaluation, rl_step, sampling, scoring, sft_step, start_up  # noqa: E402
from loads import Load, lab_load, random_load  # noqa: E402
from measuring import free, machine, machine_rates  # noqa: E402
from performance_tables import RESULTS, console, write_page  # noqa: E402

from dartune.answers.checker import AnswerChecker  # noqa: E402
from dartune.run.files import atomic_write_json  # noqa: E402

ROUNDS, BUDGET = 5, 60.0  # rounds and seconds of a part, its warm-up not counted
GPU_ROUNDS, GPU_BUDGET, GPU_LIMIT = 4, 10.0, 170.0
Part = Callable[[Bench], dict[str, Any]]


def cpu_parts(load: Callable[[str], Load]) -> dict[str, Part]:
    return {
        "start-up": start_up,
        "step-lab-12x8": lambda b: rl_step(b, load("lab"), 12, 8, 128),
        "step-1M-12x8": lambda b: rl_step(b, load("1M"), 12, 8, 64),
        "step-1M-8x16": lambda b: rl_step(b, load("1M"), 8, 16, 64),
        "step-5M-12x8": lambda b: rl_step(b, load("5M"), 12, 8, 64),
        "step-5M-8x16": lambda b: rl_step(b, load("5M"), 8, 16, 64),
        "score-lab": lambda b: scoring(b, load("lab"), 12, 8, rollouts=True),
        "score-1M": lambda b: scoring(b, load("1M"), 12, 8),
        "score-5M": lambda b: scoring(b, load("5M"), 12, 8),
        "score-150k": lambda b: scoring(b, load("150k"), 2, 8),
        "synthesis-lab": lambda b: sampling(b, load("lab"), 64, 4, new=128, at_once=32),
        "synthesis-5M": lambda b: sampling(b, load("5M"), 32, 4, new=128, at_once=32, mean_length=40),
        "evaluation-lab": lambda b: evaluation(b, load("lab"), 128, new=160, at_once=64),
        "sft-1M": lambda b: sft_step(b, load("1M"), 16),
        "sft-5M": lambda b: sft_step(b, load("5M"), 16),
        "demo": demo,
    }


def gpu_parts(load: Callable[[str], Load], shape: str) -> dict[str, Part]:
    """Most wanted first: time may not be enough for all."""
    return {
        f"step-{shape}-full-12x8": lambda b: rl_step(b, load(shape), 12, 8, 64),
        f"score-{shape}": lambda b: scoring(b, load(shape), 12, 8),
        f"sampling-{shape}": lambda b: sampling(b, load(shape), 12, 8, new=64, at_once=12),
        f"step-{shape}-lora-12x8": lambda b: rl_step(b, load(shape), 12, 8, 64, lora=True),
        f"sft-{shape}": lambda b: sft_step(b, load(shape), 64),
        f"synthesis-{shape}": lambda b: sampling(b, load(shape), 64, 4, new=128, at_once=64, mean_length=40),
        f"step-{shape}-full-8x16": lambda b: rl_step(b, load(shape), 8, 16, 64),
        f"evaluation-{shape}": lambda b: evaluation(b, load(shape), 64, new=64, at_once=64),
        "start-up": start_up,
    }


def measure(
    parts: Mapping[str, Part], bench: Bench, found: dict[str, Any], limit: float, keep: Callable[[], None]
) -> None:
    """Fill `found` with every part's result or what went wrong; `keep` is called after each.

    The machine's rates are the best of those measured between the parts, lest a busy moment pass for its best.
    """
    start = time.perf_counter()
    for name, part in parts.items():
        if time.perf_counter() - start > limit:
            found["failed"][name] = f"not reached within {limit:.0f} s"
            continue
        began = time.perf_counter()
        try:
            found["parts"][name] = part(bench)
            print(
                console(name, found["parts"][name], found["rates"]),
                f"[{time.perf_counter() - began:.0f} s]",
                flush=True,
            )
        except Exception as failure:
            traceback.print_exc()
            found["failed"][name] = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
        free(bench.device)
        found["rates"] = {name: max(found["rates"][name], rate) for name, rate in machine_rates(bench.device).items()}
        found["seconds"] = time.perf_counter() - start
        keep()


def main() -> None:
    options = arguments()
    quiet()
    torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    rounds, budget = (GPU_ROUNDS, GPU_BUDGET) if on_gpu else (ROUNDS, BUDGET)
    rounds, budget = (1, 0.0) if options.quick else (rounds, budget)
    rates = machine_rates(options.device)
    found: dict[str, Any] = {"machine": machine(options.device), "rates": rates, "parts": {}, "failed": {}}
    print(found["machine"], {name: f"{rate:.3g}/s" for name, rate in rates.items()}, flush=True)
    everything = not options.names and not options.quick and not options.shape
    output = options.output or (RESULTS["gpu" if on_gpu else "cpu"] if everything else None)

    def keep() -> None:
        if output:
            atomic_write_json(output, found)

    with tempfile.TemporaryDirectory() as folder, AnswerChecker() as checker:

        def load(name: str) -> Load:
            return lab_load() if name == "lab" else random_load(name, Path(folder), options.device)

        gpu_like = on_gpu or options.shape
        parts = gpu_parts(load, options.shape or "0.6B") if gpu_like else cpu_parts(load)
        chosen = {name: part for name, part in parts.items() if not options.names or name.startswith(options.names)}
        bench = Bench(options.device, rounds, budget, Path(folder), checker)
        measure(chosen, bench, found, options.limit or (GPU_LIMIT if on_gpu else float("inf")), keep)
    if everything and not options.output:
        write_page()
    print(json.dumps(found["failed"], indent=1) if found["failed"] else f"{found['seconds']:.0f} s")


def quiet() -> None:
    from datasets import disable_progress_bars
    from transformers.utils import logging as display

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    display.disable_progress_bar()
    disable_progress_bars()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts to measure; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on the CPU")
    parser.add_argument("--quick", action="store_true", help="one round of each part")
    parser.add_argument("--shape", choices=("tiny", "0.6B"), help="measure what is measured on a GPU, on this model")
    parser.add_argument("--limit", type=float, help="seconds after which no part is begun any more")
    parser.add_argument("--output", type=Path, help="write the results here, and leave the documents alone")
    options = parser.parse_args()
    options.names = tuple(options.names)
    return options


if __name__ == "__main__":
    main()
