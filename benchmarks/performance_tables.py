"""The measured parts of docs/performance.md, from what the benchmarks left in results/.

python benchmarks/performance_tables.py     fills the page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "experiments")]

from pages import fill, table  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
RESULTS = {device: ROOT / "results" / f"speed-{device}.json" for device in ("cpu", "gpu")}
SCALING = ROOT / "results" / "scaling.json"
NEIGHBOURS = ROOT / "results" / "neighbours.json"
STEP_GOAL = {"cpu": 3.0, "gpu": 2.0}
SCORE_GOAL, SHARE_GOAL, MEMORY_GOAL, SYNTHESIS_GOAL, START_GOAL = 2.0, 0.8, 1.2, 3.0, 0.5
NOT_YET = "Not measured yet."

Part = Mapping[str, Any]


def parts(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Every measured part of the page, by name.

    Args:
        found: the results by device, and those of `scaling` and `neighbours`.
    """
    made = {
        "scaling": _scaling(found["scaling"]) if "scaling" in found else NOT_YET,
        "neighbours": neighbours(found["neighbours"]) if "neighbours" in found else NOT_YET,
    }
    for device in RESULTS:
        results = found.get(device)
        for name, make in MAKERS.items():
            made[f"{name}-{device}"] = make(results, device) if results else NOT_YET
    return made


def write_page() -> None:
    fill(PAGE, parts(load()))


def load() -> dict[str, Any]:
    paths = RESULTS | {"scaling": SCALING, "neighbours": NEIGHBOURS}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}


def _machine(results: Mapping[str, Any], device: str) -> str:
    box, rates = results["machine"], results["rates"]
    versions = ", ".join(f"{name} {box[name]}" for name in ("torch", "transformers", "trl", "peft") if name in box)
    threads = f", {box['threads']} thread{'s' if box['threads'] > 1 else ''}" if device == "cpu" else ""
    lines = [
        f"{box['device']}{threads}; Python {box['python']}, {versions}.",
        f"Square matrix products: {_rate(rates['flops'])}FLOP/s, {'bfloat16' if device == 'gpu' else 'float32'}"
        + (f"; copies: {_rate(rates['bandwidth'])}B/s read and written." if "bandwidth" in rates else "."),
    ]
    lines += [f"Not measured: `{name}` ({why})." for name, why in sorted(results["failed"].items())]
    return "  \n".join(lines)


def _ratios(results: Mapping[str, Any], device: str) -> str:
    """A row for every part that has a stock contender."""
    rows = []
    for name, part in results["parts"].items():
        if "stock" not in part.get("ratios", {}):
            continue
        ratio, goal = part["ratios"]["stock"], _goal(name, device)
        rows.append(
            [
                f"`{name}`",
                _seconds(median(part["stock"]["seconds"])),
                _seconds(median(part["dartune"]["seconds"])),
                f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f}, {part['rounds']} rounds)",
                _against(ratio["median"], goal),
                f"{_share(part, 'operations', results['rates']['flops']):.0%}" if "operations" in part else "",
                f"{_size(part['stock']['peak_bytes'])} / {_size(part['dartune']['peak_bytes'])}",
            ]
        )
    header = ("part", "stock", "dartune", "times as fast", "goal", "share of peak FLOP/s", "memory: stock / dartune")
    return table(header, rows)


def _floors(results: Mapping[str, Any], device: str) -> str:
    rows = []
    for name, part in results["parts"].items():
        if share := part.get("ratios", {}).get("bare forward"):
            shown = f"**{share['median']:.0%}** ({share['min']:.0%} to {share['max']:.0%})"
            rows.append([f"`{name}`", "speed of a bare forward reached", shown, _against(share["median"], SHARE_GOAL)])
        if memory := part.get("peak_over_layers"):
            # With a small vocabulary the logits are no question.
            goal = MEMORY_GOAL if part["vocabulary"] > 100_000 else None
            what = f"memory over that of the layers, vocabulary {part['vocabulary']:,}"
            rows.append([f"`{name}`", what, f"**{memory:.2f}**", _against(memory, goal, most=True)])
        if "bytes" in part:
            share = _share(part, "bytes", results["rates"]["bandwidth"])
            rows.append([f"`{name}`", "share of the memory bandwidth", f"**{share:.0%}**", ""])
        if name == "start-up":
            shown = f"**{part['median']:.2f} s** ({part['min']:.2f} to {part['max']:.2f})"
            rows.append(["`start-up`", "`dartune --help`", shown, _against(part["median"], START_GOAL, most=True)])
        if name == "demo":
            shown = f"**{part['median'] / 60:.1f} min**"
            rows.append(["`demo`", "`dartune demo`, on as many threads, once", shown, ""])
    return table(("part", "what", "measured", "goal"), rows)


def _scaling(results: Mapping[str, Any]) -> str:
    """The pictures, and their figures as a table."""
    pictures = [
        f"![Time and memory against {dial['label']}](images/cost-{name}.svg)" for name, dial in results["dials"].items()
    ]
    rows = []
    for dial in results["dials"].values():
        for value, point in zip(dial["values"], dial["points"], strict=True):
            stock, ours = point["stock"], point["dartune"]
            rows.append(
                [
                    f"{value:,} {dial['label']}",
                    f"{_seconds(stock['seconds'])} / {_seconds(ours['seconds'])}",
                    f"{stock['seconds'] / ours['seconds']:.2f}",
                    f"{_size(stock['peak_bytes'])} / {_size(ours['peak_bytes'])}",
                ]
            )
    figures = table(("dial", "time: stock / dartune", "times as fast", "memory: stock / dartune"), rows)
    return "\n\n".join([*pictures, figures])


MAKERS = {"machine": _machine, "ratios": _ratios, "floors": _floors}


def neighbours(results: Mapping[str, Any]) -> str:
    """Median and range of the milliseconds of a step, by busy processes, and the slowdown against none."""
    rows = []
    for name, by_count in results["steps"].items():
        alone = median(by_count["0"]["milliseconds"])
        cells = []
        for found in by_count.values():
            values = found["milliseconds"]
            slowdown = f"{median(values) / alone:.1f} times as long"
            cells.append(f"{median(values):.0f} ms [{min(values):.0f}, {max(values):.0f}], {slowdown}")
        threads = sorted({count for found in by_count.values() for count in found["threads"]})
        rows.append((name, " or ".join(map(str, threads)), *cells))
    counts = next(iter(results["steps"].values()))
    return table((f"{results['cpus']} CPUs", "threads", *(f"{count} busy processes" for count in counts)), rows)


def _goal(name: str, device: str) -> float | None:
    goals = {"step": STEP_GOAL[device], "score": SCORE_GOAL, "synthesis": SYNTHESIS_GOAL}
    return goals.get(name.split("-")[0])


def _against(value: float, goal: float | None, *, most: bool = False) -> str:
    if goal is None:
        return ""
    reached = value <= goal if most else value >= goal
    return f"{'at most' if most else 'at least'} {goal:g}: {'reached' if reached else 'missed'}"


def _share(part: Part, what: str, rate: float) -> float:
    """What had to be done, over dartune's time and the machine's rate."""
    return part[what] / median(part["dartune"]["seconds"]) / rate


def console(name: str, part: Part, rates: Mapping[str, float]) -> str:
    """A part in one line."""
    if "ratios" not in part:
        return f"{name}: {part['median']:.3f} s ({part['min']:.3f} to {part['max']:.3f})"
    told = [f"{name}: dartune {_seconds(median(part['dartune']['seconds']))}"]
    told += [f"{who} x{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for who, r in part["ratios"].items()]
    told += [f"by processor time x{_worked(part, 'stock') / _worked(part, 'dartune'):.2f}"]
    kinds = (("operations", "flops"), ("bytes", "bandwidth"))
    told += [f"{_share(part, what, rates[of]):.1%} of peak {of}" for what, of in kinds if what in part]
    told += [f"memory over layers' {part['peak_over_layers']:.2f}"] if part.get("peak_over_layers") else []
    told += [f"peaks {_size(part['dartune']['peak_bytes'])}, stock {_size(part['stock']['peak_bytes'])}"]
    return ", ".join(told)


def _worked(part: Part, who: str) -> float:
    return median(part[who]["processor_seconds"])


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _size(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def _rate(value: float) -> str:
    return f"{value / 1e12:.3g} T" if value >= 1e12 else f"{value / 1e9:.3g} G"


if __name__ == "__main__":
    write_page()
