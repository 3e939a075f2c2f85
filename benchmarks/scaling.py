"""How the cost grows: one dial at a time on one CPU core, dartune and what a user would otherwise run.

    python benchmarks/scaling.py            results/scaling.json, docs/images/cost-*.svg, a table of docs/performance.md
    python benchmarks/scaling.py --draw     the pictures and the table once more, from results/scaling.json

Rewrite length, group size and vocabulary are dials of a mapper's step (a model of 1M weights but for its vocabulary);
rows are those of a synthesis by the lab's mapper, 32 at a time as dartune works them off.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "experiments")]  # `pages`

import torch  # noqa: E402
from contests import Bench, rl_step, sampling  # noqa: E402
from loads import lab_load, llama, random_load  # noqa: E402
from measuring import machine  # noqa: E402
from performance_tables import SCALING, write_page  # noqa: E402
from speed import quiet  # noqa: E402

from dartune.answers.checker import AnswerChecker  # noqa: E402
from dartune.report.plots import COLOURS, TEXT, _svg, standalone  # noqa: E402
from dartune.run.files import atomic_write_json  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHOWN = {"stock": COLOURS[1], "dartune": COLOURS[2]}
QUESTIONS, GROUP, NEW = 4, 8, 64
Dial = tuple[str, Sequence[int], Callable[[Bench, int], dict[str, Any]]]


def dials(folder: Path) -> dict[str, Dial]:
    """Name -> what is on the axis, its values, and the measurement at one of them."""

    def step(bench: Bench, *, group: int = GROUP, new: int = NEW, vocabulary: int = 131) -> dict[str, Any]:
        load = random_load(f"1M-{vocabulary}", folder, bench.device, llama(128, 5, 344, vocabulary))
        return rl_step(bench, load, QUESTIONS, group, new)

    return {
        "length": ("tokens of a rewrite", (16, 32, 64, 128, 256), lambda b, x: step(b, new=x)),
        "group": ("rewrites per question", (2, 4, 8, 16, 32), lambda b, x: step(b, group=x)),
        "vocabulary": ("vocabulary", (131, 8_192, 32_768, 151_936), lambda b, x: step(b, new=16, vocabulary=x)),
        "rows": (
            "rows synthesised, 2 samples each",
            (32, 64, 128, 256),
            lambda b, x: sampling(b, lab_load(), x, 2, new=128, at_once=32),
        ),
    }


def measure(bench: Bench) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dial with its points, as they are finished; points that failed are told and left out."""
    for name, (label, values, at) in dials(bench.folder).items():
        points = {}
        for value in values:
            try:
                part = at(bench, value)
            except Exception:
                traceback.print_exc()
                continue
            points[value] = {
                who: {"seconds": median(part[who]["seconds"]), "peak_bytes": part[who]["peak_bytes"]} for who in SHOWN
            }
            print(name, value, {who: round(one["seconds"], 3) for who, one in points[value].items()}, flush=True)
        yield name, {"label": label, "values": list(points), "points": list(points.values())}


def draw(name: str, dial: Mapping[str, Any]) -> str:
    """Seconds and memory against the dial, side by side, both axes logarithmic."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(6.4, 2.7), layout="tight")
    FigureCanvasSVG(figure)
    kinds = (("seconds", "seconds", 1), ("peak_bytes", "memory, MB", 1e6))
    for axes, (key, label, unit) in zip(figure.subplots(1, 2), kinds, strict=True):
        for who, colour in SHOWN.items():
            heights = [point[who][key] / unit for point in dial["points"]]
            axes.plot(dial["values"], heights, "o-", color=colour, label=who, ms=4)
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(dial["values"], [f"{value:,}" for value in dial["values"]])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(dial["label"], color=TEXT)
        axes.set_ylabel(label, color=TEXT)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(TEXT)
        axes.tick_params(which="both", colors=TEXT, labelsize=8)
        axes.grid(color=TEXT, alpha=0.12, lw=0.6)
    figure.axes[0].legend(labelcolor=TEXT, frameon=False)
    return standalone(_svg(figure, f"cost-{name}", f"Time and memory against {dial['label']}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    if not parser.parse_args().draw:
        quiet()
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder, AnswerChecker() as checker:
            bench = Bench("cpu", 2, 60.0, Path(folder), checker)
            found: dict[str, Any] = {"machine": machine("cpu"), "dials": {}}
            for name, dial in measure(bench):
                found["dials"][name] = dial
                atomic_write_json(SCALING, found)
    for name, dial in json.loads(SCALING.read_text("utf-8"))["dials"].items():
        (IMAGES / f"cost-{name}.svg").write_text(draw(name, dial), encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
