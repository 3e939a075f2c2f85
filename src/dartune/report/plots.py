"""Plots of the results as SVG; text has the colour of the surrounding page, for light and dark themes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import wrap
from typing import Any

from dartune.report.adaptation import first_adaptation
from dartune.report.summary import printable, summary_of, title
from dartune.run.number_format import rounded_percent

# The colour-blind safe palette of Okabe and Ito, shifted to mid-tones with enough contrast on white and on near-black.
COLOURS = ("#8a8a8a", "#d98200", "#2f86d6", "#0f9d74", "#c96aa0", "#d4572a", "#8877d0", "#9a7b1f")
ARM_COLOURS = {"base": COLOURS[0], "sft": COLOURS[1], "dart": COLOURS[2]}
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
TEXT = "#010203"  # placeholder for currentColor, which matplotlib does not know
WIDTH = 5.6  # inches; narrow, so that text is readable on a phone
ALWAYS_PASSED = 0.97  # a gate with a higher mean pass rate is listed below the plot instead of drawn
BINS = 24  # of a histogram
LINE_HEIGHT = 12.5  # points between the labels of neighbouring curves
MANY_ARMS = 6  # with more arms, every arm is one row that shows all groups of suites
MAX_TICK_RATIO = 30  # a larger ratio between costs has ticks at powers of ten only, so that labels do not overlap
MIN_ACCURACY_RANGE = 5  # percentage points that the accuracy axis covers at least
NOTE_WIDTH = 64  # characters per line of the note below a plot
COST_AXES = {
    "cost": ("flops", "FLOPs"),
    "cost-tokens": ("generated_tokens", "tokens generated"),
    "cost-time": ("seconds", "seconds"),
}
STYLE = "<style>svg{color:#222;font-family:sans-serif}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"

Curve = list[tuple[float, float, float, float]]  # (step, mean over seeds, lowest, highest)


def draw_plots(results: Mapping[str, Any]) -> dict[str, str]:
    """Return plot name -> transparent SVG without XML header; plots without data are left out.

    The names are accuracy, cost, cost-tokens, cost-time, reward, alignment, gates, hacks and dialects. The same
    results give the same text. Embedded in a page, an SVG has the page's text colour; `standalone` makes it a file.
    """
    plots: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
        "accuracy": _accuracy if len(results["arms"]) <= MANY_ARMS else _accuracy_of_many_arms,
        **{name: partial(_cost, name=name, kind=kind, axis=axis) for name, (kind, axis) in COST_AXES.items()},
        "reward": _reward,
        "alignment": _alignment,
        "gates": _gates,
        "hacks": _hacks,
        "dialects": _dialects,
    }
    drawn = {name: plot(results) for name, plot in plots.items()}
    return {name: svg for name, svg in drawn.items() if svg}


def standalone(svg: str) -> str:
    """Return the SVG as a complete file, with text colours for light and dark viewers."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(r"(<svg[^>]*>)", rf"\1{STYLE}", svg, count=1)


def draw_distributions(samples: Mapping[str, Sequence[float]], name: str, axis: str, label: str) -> str:
    """Return overlaid histograms as SVG, each as shares of its own sample.

    Args:
        samples: legend entry -> values.
        name: of the plot; prefix of its ids.
        axis: label of the x-axis.
        label: description for screen readers.
    """
    import numpy as np

    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in samples.values()]), BINS)
    drawn, axes = _figure(2.6)
    for index, (entry, values) in enumerate(samples.items()):
        weights = np.full(len(values), 100 / max(1, len(values)))
        colour = COLOURS[1 + index % (len(COLOURS) - 1)]
        axes.hist(values, edges, weights=weights, color=colour, alpha=0.55, label=_label(entry))
    axes.set_xlabel(axis, color=TEXT)
    axes.set_ylabel("% of each", color=TEXT)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, labelcolor=TEXT, frameon=False)
    return _svg(drawn, name, label)


def arm_colours(arms: Sequence[str]) -> dict[str, str]:
    """Return arm -> colour; base, sft and dart have the same colours in every report."""
    remaining = [colour for colour in COLOURS if colour not in ARM_COLOURS.values()]
    further_arms = [arm for arm in arms if arm not in ARM_COLOURS]
    return ARM_COLOURS | {arm: remaining[index % len(remaining)] for index, arm in enumerate(further_arms)}


def _accuracy(results: Mapping[str, Any]) -> str:
    """Accuracy per suite and arm, with intervals and the values of single seeds."""
    arms, suites = results["arms"], results["suites"]
    colours, several = arm_colours(arms), len(results["seeds"]) > 1
    step = 0.8 / len(arms)
    figure, axes = _figure(0.9 + (0.15 + 0.13 * len(arms)) * max(2, len(suites)))
    for row, suite in enumerate(suites):
        for index, arm in enumerate(arms):
            summary = summary_of(results, arm, suite["name"], "suite")
            accuracy, y = summary["accuracy"], row + (index - (len(arms) - 1) / 2) * step
            axes.plot([100 * accuracy["low"], 100 * accuracy["high"]], [y, y], color=colours[arm], lw=2)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(100 * accuracy["estimate"], y, marker, color=colours[arm], ms=6)
            if several:
                seeds = [100 * share for share in summary["by_seed"].values()]
                axes.plot(seeds, [y] * len(seeds), "|", color=TEXT, ms=6, mew=0.8, alpha=0.7)
        if row:
            axes.axhline(row - 0.5, color=TEXT, lw=0.4, alpha=0.3)
    axes.set_yticks(range(len(suites)), [_label(suite["name"]) for suite in suites], color=TEXT)
    axes.set_ylim(len(suites) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy, % (bar: 95% interval" + ("; ticks: seeds)" if several else ")"), color=TEXT)
    for index, arm in enumerate(arms):
        axes.plot([], [], MARKERS[index % len(MARKERS)], color=colours[arm], ms=6, label=_label(arm))
    columns = max(1, min(4, 44 // (4 + max(len(_label(arm)) for arm in arms))))
    legend = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns, "borderpad": 0.2}
    axes.legend(**legend, labelcolor=TEXT, frameon=False)
    return _svg(figure, "accuracy", "Accuracy per suite and arm, with 95% intervals")


def _accuracy_of_many_arms(results: Mapping[str, Any]) -> str:
    """Accuracy with one row per arm, sorted by the mean over groups, best first, and one marker per group."""
    groups = results["groups"]
    shares = {
        arm: {group: 100 * summary_of(results, arm, group)["accuracy"]["estimate"] for group in groups}
        for arm in results["arms"]
    }
    order = sorted(shares, key=lambda arm: -sum(shares[arm].values()))
    figure, axes = _figure(1.2 + 0.2 * len(order))
    for index, group in enumerate(groups):
        colour, marker = COLOURS[(index + 1) % len(COLOURS)], MARKERS[index % len(MARKERS)]
        values = [shares[arm][group] for arm in order]
        axes.plot(values, range(len(order)), marker, color=colour, ms=6, alpha=0.9, label=_label(group))
    axes.set_yticks(range(len(order)), [_label(arm) for arm in order], color=TEXT)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy, %", color=TEXT)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, labelcolor=TEXT, frameon=False)
    return _svg(figure, "accuracy", "Accuracy of every arm, per group of suites")


def _cost(results: Mapping[str, Any], name: str, kind: str, axis: str) -> str | None:
    """Accuracy of every arm against one kind of cost.

    The accuracy is that of the group `out of distribution`, or of the first group if there is none.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    costs = {arm: parts["total"].get(kind) or 0 for arm, parts in results["costs"]["arms"].items()}
    arms = [arm for arm in results["arms"] if costs.get(arm)]
    if len(arms) < 2:
        return None
    group = "out of distribution" if "out of distribution" in results["groups"] else results["groups"][0]
    figure, axes = _figure(max(2.8, 0.9 + len(arms) * LINE_HEIGHT / 72))
    colours, labels = arm_colours(results["arms"]), {}
    for number, arm in enumerate(arms, start=1):
        share = 100 * summary_of(results, arm, group)["accuracy"]["estimate"]
        axes.plot(costs[arm], share, "o", color=colours[arm], ms=11, alpha=0.85)
        axes.annotate(str(number), (costs[arm], share), ha="center", va="center", fontsize=6.5, color="white")
        labels[f"{number} {arm}"] = (colours[arm], share)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())  # minor ticks would be black on every page
    is_narrow = max(costs[arm] for arm in arms) < MAX_TICK_RATIO * min(costs[arm] for arm in arms)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_narrow else (1,)))
    low, high = axes.get_ylim()
    if high - low < MIN_ACCURACY_RANGE:
        # The margin at the bottom keeps the lowest dot inside the axes.
        axes.set_ylim(low - MIN_ACCURACY_RANGE / 10, low + MIN_ACCURACY_RANGE)
    axes.xaxis.set_major_formatter(
        lambda count, _: f"{count:.0e}" if count >= 1e4 else f"{count:g}"
    )  # matplotlib's default labels are formulas
    _label_ends(figure, axes, labels)
    axes.set_xlabel(f"{axis}, preparation and evaluation included", color=TEXT)
    axes.set_ylabel(f"accuracy {group}, %", color=TEXT)
    return _svg(figure, name, f"Accuracy {group} against {axis}")


def _reward(results: Mapping[str, Any]) -> str | None:
    curves = {name: _curve(results, name) for name in ("reward", "gain")}
    return _lines(curves, "reward", "per rewrite", "Reward and gain over the mapper's training")


def _alignment(results: Mapping[str, Any]) -> str | None:
    curves = {
        "rewrites": _curve(results, "alignment_after"),
        "demonstrations": _curve(results, "alignment_before"),
    }
    return _lines(curves, "alignment", "alignment (0: certain)", "Alignment of rewrites and demonstrations")


def _gates(results: Mapping[str, Any]) -> str | None:
    curves = {"all gates": _curve(results, "gate_pass")} | _parts(results, "gates")
    always = [
        name
        for name, curve in curves.items()
        if curve and sum(mean for _, mean, *_ in curve) >= ALWAYS_PASSED * len(curve)
    ]
    drawn = {name: curve for name, curve in curves.items() if name not in always}
    note = f"{rounded_percent(ALWAYS_PASSED)} or more on average: {', '.join(map(_label, always))}" if always else ""
    return _lines(drawn or curves, "gates", "pass, %", "Pass rate of each gate", percent=True, note=note)


def _hacks(results: Mapping[str, Any]) -> str | None:
    curves = _parts(results, "hacks")
    never = [name for name, curve in curves.items() if curve and max(mean for _, mean, *_ in curve) == 0]
    drawn = {name: curve for name, curve in curves.items() if name not in never}
    note = f"never observed: {', '.join(map(_label, never))}" if never else ""
    return _lines(drawn, "hacks", "of rewrites, %", "Rate of each hack", percent=True, note=note)


def _dialects(results: Mapping[str, Any]) -> str | None:
    curves = _parts(results, "dialects")
    return _lines(curves, "dialects", "of rewrites, %", "Share of each dialect", percent=True)


def _curve(results: Mapping[str, Any], *path: str) -> Curve:
    """A metric per step: mean, minimum and maximum over the seeds that report it."""
    by_step: dict[float, list[float]] = {}
    for mapper in first_adaptation(results["mapper"]).values():
        for index, row in enumerate(mapper["steps"]):
            value: Any = row
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)):
                by_step.setdefault(row.get("step", index), []).append(value)
    return [
        (step, sum(values) / len(values), min(values), max(values))
        for step, values in sorted(by_step.items())
        if values
    ]


def _parts(results: Mapping[str, Any], part: str) -> dict[str, Curve]:
    """One curve per entry of a metric that is a dict, such as the gates."""
    rows = [row for mapper in first_adaptation(results["mapper"]).values() for row in mapper["steps"]]
    names = dict.fromkeys(name for row in rows for name in row.get(part) or {})
    return {name: _curve(results, part, name) for name in names}


def _lines(
    curves: Mapping[str, Curve], name: str, ylabel: str, label: str, *, percent: bool = False, note: str = ""
) -> str | None:
    """Curves over mapper steps, each labelled at its right end; None if there are no data."""
    from matplotlib.ticker import MaxNLocator

    curves = {key: curve for key, curve in curves.items() if curve}
    if not curves:
        return None
    scale = 100 if percent else 1
    note_lines = wrap(note, NOTE_WIDTH)
    figure, axes = _figure(max(2.6, 0.9 + len(curves) * LINE_HEIGHT / 72) + len(note_lines) * LINE_HEIGHT / 72)
    labels = {}
    for index, (key, curve) in enumerate(curves.items()):
        colour = COLOURS[(index + 2) % len(COLOURS)]
        steps = [step for step, *_ in curve]
        style = "-" if index < len(COLOURS) else "--"
        axes.plot(steps, [scale * mean for _, mean, *_ in curve], style, color=colour, lw=1.7)
        if any(high > low for *_, low, high in curve):
            low, high = ([scale * point[at] for point in curve] for at in (2, 3))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
        labels[key] = (colour, scale * curve[-1][1])
    if percent:
        highest = max(scale * high for curve in curves.values() for *_, high in curve)
        axes.set_ylim(0, min(100, max(10, 1.2 * highest)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_ends(figure, axes, labels)
    axes.set_xlabel("\n".join(["mapper step", *note_lines]), color=TEXT, loc="left" if note_lines else "center")
    axes.set_ylabel(ylabel, color=TEXT)
    return _svg(figure, name, label)


def _label_ends(figure: Any, axes: Any, labels: Mapping[str, tuple[str, float]]) -> None:
    """Write every curve's name beside its last point; names that would overlap are moved apart.

    Args:
        labels: name -> (colour, height of the last point in data coordinates).
    """
    bottom, top = axes.get_ylim()
    height = 72 * figure.get_figheight() - 55  # points left for the axes by ticks and labels
    gap = (top - bottom) * min(LINE_HEIGHT / height, 1 / len(labels))
    order = sorted(labels, key=lambda key: labels[key][1])
    positions: list[float] = []
    for key in order:
        positions.append(max(labels[key][1], positions[-1] + gap if positions else bottom))
    # Labels that moved above the top are moved down again.
    for index in range(len(positions) - 1, -1, -1):
        ceiling = positions[index + 1] - gap if index + 1 < len(positions) else top
        positions[index] = min(positions[index], ceiling)
    for key, position in zip(order, positions, strict=True):
        axes.annotate(
            _label(key),
            (1.02, position),
            xycoords=("axes fraction", "data"),
            color=labels[key][0],
            va="center",
            annotation_clip=False,
        )


def _label(text: str) -> str:
    """A name for display: printable, with spaces for underscores, at most 28 characters."""
    text = printable(str(text)).replace("_", " ")
    return text if len(text) <= 28 else text[:27] + "…"


def _figure(height: float) -> tuple[Any, Any]:
    """Create a figure without pyplot, which would need global state and a display, and is not thread-safe."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="tight")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(TEXT)
    axes.tick_params(colors=TEXT)
    axes.grid(axis="both", color=TEXT, alpha=0.12, lw=0.6)
    return figure, axes


def _svg(figure: Any, name: str, label: str) -> str:
    """Return the figure as inline SVG: ids prefixed by `name`, text as text, no date, no fixed size."""
    import matplotlib

    buffer = io.StringIO()
    # Names come from the data, so a dollar sign must not start a formula.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}
    with matplotlib.rc_context(options):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT, "currentColor")
    # Use the font of the page. Matplotlib laid out the text with a wider font, so nothing overlaps.
    svg = re.sub(r"font-family:[^;\"]*;", "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('xlink:href="#', f'xlink:href="#{name}-').replace("url(#", f"url(#{name}-")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title(label)}" ', 1)
