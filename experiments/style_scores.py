"""The style benchmark of alignment scores: which score puts native and natural text above unnatural text?

    python experiments/style_scores.py measure MODEL [--other MODEL] --data FOLDER --work FOLDER   per-token statistics
    python experiments/style_scores.py table --models MODEL MODEL --data FOLDER --work FOLDER      results and the page

`measure` is style_measure.py, hours on a CPU and resumable; `table` takes a minute, writes results/style-scores.json
and fills docs/alignment-scores.md. Gates are off throughout: a score is judged by itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill
from style_texts import STYLES, all_problems

from dartune.data.chat_template import Renderer
from dartune.models.loading import load_tokenizer
from dartune.rewards.content_tokens import content_mask
from dartune.run.files import atomic_write_json

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results" / "style-scores.json", ROOT / "docs" / "alignment-scores.md"

OWN = ("own_0.7", "own_0.3")
"""Own samples at temperatures that the models are used at. SmolLM2 writes word salad at temperature 1, Gemma does not:
`own_1` has an accuracy of its own, and the page gives the accuracy with it."""
NATURAL = ("source", "numbered")
UNNATURAL = (
    "equations_only",
    "values_only",
    "prefix_notation",
    "x_form",
    "sentences_shuffled",
    "words_shuffled",
)
NEVER_PAYS = (
    ("bare_answer", "source"),
    ("filler", "source"),
    ("twice", "source"),
    ("wrong_step", "source"),
    ("prefix_filler", "prefix_notation"),
    ("prefix_twice", "prefix_notation"),
    ("bare_answer", "prefix_notation"),
)
"""(style, what it is made from): the first must not score higher, but for `TOLERANCE`."""
HACKS = {"brevity": "bare_answer", "filler": "prefix_filler", "repetition": "prefix_twice"}
"""Ways of gaming the score where the demonstration is in prefix notation."""
TOLERANCE = 0.05
"""Share of what an honest native rewrite gains that a hack may gain."""
REFERENCE = "own_0.7"


@dataclass(frozen=True)
class Tokens:
    """One text in a model's eyes, arrays (T,) of nats; `content` is a bool mask, `length` the source's tokens."""

    logp: np.ndarray
    entropy: np.ndarray
    variance: np.ndarray
    rank: np.ndarray
    logp_scaled: np.ndarray
    entropy_scaled: np.ndarray
    content: np.ndarray
    length: int

    @property
    def centred(self) -> np.ndarray:
        return self.logp + self.entropy


def _content(values: Callable[[Tokens], np.ndarray]) -> Callable[[Tokens], float]:
    """The mean over the tokens that count; over all where none does, which `judge` caps at the demonstration."""
    return lambda t: float(values(t)[t.content].mean() if t.content.any() else values(t).mean())


SCORES: dict[str, Callable[[Tokens], float]] = {
    "content_logprob": _content(lambda t: t.logp),
    "content_centred": _content(lambda t: t.centred),
    "mean_logprob": lambda t: t.logp.mean(),
    "centred": lambda t: t.centred.mean(),
    "sum_logprob": lambda t: t.logp.sum() / t.length,
    "centred_sum": lambda t: t.centred.sum() / t.length,
    "excess_surprise": lambda t: np.minimum(0, t.centred).mean(),
    "z_score": lambda t: t.centred.sum() / np.sqrt(max(t.variance.sum(), 1e-9)),
    "scaled_logprob": lambda t: t.logp_scaled.mean(),
    "scaled_centred": lambda t: (t.logp_scaled + t.entropy_scaled).mean(),
    "rank_surprisal": lambda t: -np.minimum(t.rank, 100).mean() / max(0.01, -t.logp.mean()),
}


def read(work: Path, data: Path, model: Path) -> list[tuple[str, dict[str, list[Tokens]], dict[str, list[bool]]]]:
    """(kind, texts by style, whether each is finished) of every measured problem."""
    lines = (work / f"stats-{model.name}.jsonl").read_text().splitlines()
    problems = {problem.question: problem for problem in all_problems(data, 100)}
    samples = {
        row["question"]: row["own"]
        for row in map(json.loads, (work / f"samples-{model.name}.jsonl").read_text().splitlines())
    }
    others = _others(work, model)
    renderer = Renderer(load_tokenizer(model))
    found = []
    for row in map(json.loads, lines):
        problem = problems[row["question"]]
        length = len(renderer.response_ids(STYLES["source"](problem)))
        texts: dict[str, list[Tokens]] = {}
        finished: dict[str, list[bool]] = {}
        for style, tables in (row["styles"] | others.get(row["question"], {})).items():
            if style == "sentences_shuffled" and len(problem.sentences) == 1:
                continue  # its halves change places, and `27 + 35 = 62. We add 27 and 35:` is not unnatural
            for number, table in enumerate(tables):
                if style in STYLES:
                    ids = renderer.response_ids(STYLES[style](problem))
                elif style in samples[row["question"]]:
                    ids = samples[row["question"]][style][number]["ids"]
                else:
                    ids = table["ids"]
                mask = content_mask(ids, renderer.decode(ids), renderer.decode)
                texts.setdefault(style, []).append(as_tokens(table, mask, length))
                finished.setdefault(style, []).append(table["finished"])
        found.append((row["kind"], texts, finished))
    return found


def _others(work: Path, model: Path) -> dict[str, dict[str, Any]]:
    """The other model's samples in this model's eyes, by question; empty where they were not measured."""
    path = work / f"other-{model.name}.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {row["question"]: row["styles"] for row in rows}


def as_tokens(table: dict[str, Any], mask: Sequence[bool], length: int) -> Tokens:
    """One text's statistics (`style_measure.token_table`) with its content mask and its source's length in tokens."""
    names = ("logprob", "entropy", "variance", "rank", "logprob_scaled", "entropy_scaled")
    return Tokens(*(np.array(table[name]) for name in names), np.array(mask), length)


def judge(rows: list[tuple[str, dict[str, list[Tokens]], Any]], name: str) -> dict[str, Any]:
    """How a score orders the styles: medians, pairwise accuracies, and what hacks gain.

    The demonstration is the source, or its prefix notation where that is what a style is made from. Under a content
    score a text without reasoning is worth no more than the demonstration.
    """
    score = SCORES[name]
    scored = [{style: float(np.mean([score(t) for t in texts])) for style, texts in row.items()} for _, row, _ in rows]
    typical = float(np.median([row[REFERENCE] for row in scored]))
    capped = [{style: min(value, typical) for style, value in row.items()} for row in scored]
    bare = {"prefix_notation": list(capped), "source": list(capped)}
    if name.startswith("content_"):
        for demonstration in bare:
            bare[demonstration] = [row | {"bare_answer": min(row["bare_answer"], row[demonstration])} for row in capped]
    capped = bare["source"]
    groups = {
        "own samples over unnatural": list(_above(capped, OWN, "bare_answer")),
        "own samples at temperature 1 over unnatural": list(_above(capped, ("own_1",), "bare_answer")),
        "natural over unnatural": list(_above(capped, NATURAL)),
    }
    for worse, better in NEVER_PAYS:
        # What a native rewrite would gain over the demonstration is the yardstick for what is negligible.
        groups[f"{worse} no better than {better}"] = [
            row[worse] - row[better] <= TOLERANCE * max(0.0, _native(row) - row["prefix_notation"])
            for row in bare[better]
        ]
    ordered = [name for name in groups if "temperature 1" not in name]
    outcomes = [outcome for name in ordered for outcome in groups[name]]
    return {
        "median": {
            style: float(np.median([row[style] for row in scored if style in row])) for style in _styles(scored)
        },
        "typical own": typical,
        "accuracy": float(np.mean(outcomes)),
        "pairs": len(outcomes),
        "groups": {name: float(np.mean(values)) for name, values in groups.items()},
        "hacks gain little": {
            hack: float(np.mean([_gain(row, style) < TOLERANCE * _gain(row, None) for row in bare["prefix_notation"]]))
            for hack, style in HACKS.items()
        },
        "native gains": float(np.mean([_gain(row, None) > 0 for row in capped])),
    }


def _above(rows: Sequence[dict[str, float]], better: Sequence[str], *also: str) -> Iterator[bool]:
    """Whether each of `better` is strictly above each unnatural style, and those in `also`."""
    for row in rows:
        yield from (row[high] > row[low] for high in better for low in (*UNNATURAL, *also) if low in row)


def _native(row: dict[str, float]) -> float:
    return max(row[REFERENCE], row["source"])


def _gain(row: dict[str, float], style: str | None) -> float:
    """Gain over a demonstration in prefix notation: of a style, or (None) of an honest native rewrite."""
    return max(0.0, (_native(row) if style is None else row[style]) - row["prefix_notation"])


def _styles(rows: Sequence[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(style for row in rows for style in row))


def results(models: Sequence[Path], data: Path, work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in models:
        rows = read(work, data, model)
        kinds = [kind for kind, _, _ in rows]
        found[model.name] = {
            "questions": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "finished": {
                style: float(np.mean([done for _, _, finished in rows for done in finished[style]]))
                for style in ("own_1", *OWN)
            },
            "tokens": {
                style: float(np.median([len(texts[style][0].logp) for _, texts, _ in rows if style in texts]))
                for style in _styles([texts for _, texts, _ in rows])
            },
            "scores": {name: judge(rows, name) for name in SCORES},
        }
    return found


def parts(measured: dict[str, Any]) -> dict[str, str]:
    """The measured parts of the page: name -> Markdown."""
    made = {"style-accuracy": _accuracy_table(measured)}
    for model, row in measured.items():
        made[f"style-medians-{model}"] = _median_table(row)
    return made


def page_parts() -> dict[str, str]:
    """The page's measured parts, of this experiment and of style_outcomes.py, from the committed results."""
    import style_outcomes

    made = parts(json.loads(RESULTS.read_text("utf-8")))
    if style_outcomes.RESULTS.exists():
        made |= style_outcomes.parts(json.loads(style_outcomes.RESULTS.read_text("utf-8")))
    return made


def _accuracy_table(measured: dict[str, Any]) -> str:
    header = ["score"]
    for model in measured:
        header += [f"{model}: accuracy", "own > unnatural", "natural > unnatural", *HACKS]
    lines = [header, ["---"] * len(header)]
    for name in SCORES:
        cells = [f"`{name}`"]
        for row in measured.values():
            score = row["scores"][name]
            groups = score["groups"]
            shown = (score["accuracy"], groups["own samples over unnatural"], groups["natural over unnatural"])
            cells += [f"{value:.2f}" for value in (*shown, *score["hacks gain little"].values())]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median_table(row: dict[str, Any]) -> str:
    header = ["style", "tokens", *(f"`{name}`" for name in SCORES)]
    lines = [header, ["---"] * len(header)]
    for style, tokens in row["tokens"].items():
        values = [row["scores"][name]["median"][style] for name in SCORES]
        lines.append([style, f"{tokens:.0f}", *(f"{value:.2f}" for value in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measuring = str(Path(__file__).with_name("style_measure.py"))
        raise SystemExit(subprocess.call([sys.executable, measuring, *sys.argv[2:]]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["measure", "table"])
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    measured = results(arguments.models, arguments.data, arguments.work)
    atomic_write_json(RESULTS, measured)
    fill(PAGE, page_parts())


if __name__ == "__main__":
    main()
