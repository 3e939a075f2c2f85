"""What fine-tuning on each style does to a real model, and which alignment score predicts it.

    python experiments/style_outcomes.py run MODEL --data FOLDER --work FOLDER     resumable, a line per style
    python experiments/style_outcomes.py table --models MODEL [MODEL] --data FOLDER --work FOLDER

Every style is fine-tuned on for the same questions (one-step problems and chain sums of the style benchmark, whose
`--work` folder must hold the model's samples), steps and learning rates; the rate is chosen by the loss on held-out
texts of the same style. Measured are: the log-probability of the right answer after the tuned model's own greedy
reasoning and the accuracy, in distribution and on GSM8K questions, both read without regard to format; and retention,
on samples that the untouched model drew for unrelated prompts: the rise of their negative log-likelihood and
KL(before || after). The lab's part has the writers' demonstrations as styles and the arm `sft` of
results/comparison.json as outcomes (lab_styles.py).
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lab_styles
import numpy as np
import torch
from pages import fill, table
from scipy.stats import rankdata, spearmanr
from style_measure import own_style
from style_scores import SCORES, page_parts, read
from style_texts import STYLES, Problem, all_problems, chain_problems, gsm8k_problems, one_step_problems

from dartune.config.schema import SFTConfig
from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import anchored_logprobs
from dartune.models.loading import load_model, load_tokenizer
from dartune.run.files import append_jsonl, atomic_write_json, read_jsonl
from dartune.text.features import numbers
from dartune.train.sft import fine_tune

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "results" / "style-outcomes.json", ROOT / "docs" / "alignment-scores.md"
OWN, UNTOUCHED = own_style(0.3), "untouched"
DEFAULT = "content_logprob"
TRAINED = (
    OWN,
    "source",
    "numbered",
    "twice",
    "equations_only",
    "values_only",
    "prefix_notation",
    "bare_answer",
    "x_form",
    "annotated",
)
RATES = (1e-5, 4e-5)
STEPS, BATCH, ROWS, HELD_OUT = 10, 4, 40, 20
TEST, GENERATED = 24, 56
RESAMPLES = 5000
UNRELATED = (
    "What is the capital of France?",
    "Write two sentences about a dog who likes rain.",
    "Explain why the sky is blue.",
    "Give me three tips for sleeping better.",
    "What is the difference between a lake and a sea?",
    "How do I boil an egg?",
    "What does a librarian do?",
    "Describe a busy market.",
    "Why do leaves fall in autumn?",
    "How can I learn to swim?",
    "Write an email asking for a day off.",
    "What is gravity?",
)


def training_texts(style: str, problems: Sequence[Problem], samples: dict[str, Any]) -> list[tuple[str, str]]:
    if style != OWN:
        return [(problem.question, STYLES[style](problem)) for problem in problems]
    return [(problem.question, samples[problem.question][OWN][0]["text"]) for problem in problems]


def tests(data: Path) -> dict[str, list[Problem]]:
    """Questions that are not in the benchmark: of its one-step and chain problems, and of GSM8K."""
    known = {problem.question for problem in all_problems(data, 100)}
    one_step = [p for p in one_step_problems(data / "svamp-train-mawps-asdiv-a.csv", 200) if p.question not in known]
    chain = [p for p in chain_problems(200) if p.question not in known]
    gsm8k = [p for p in gsm8k_problems(data / "gsm8k-train.jsonl", 300, 200) if p.question not in known]
    half = TEST // 2
    return {"in_distribution": [*one_step[:half], *chain[:half]], "gsm8k": gsm8k[:TEST]}


def answers(model: torch.nn.Module, renderer: Renderer, problems: Sequence[Problem]) -> dict[str, float]:
    """Log-probability (nats) of the right answer after the model's own greedy reasoning, and accuracy."""
    engine = HFEngine(model.eval())
    prompts = [renderer.prompt_ids(problem.question) for problem in problems]
    drawn = engine.generate(prompts, SampleSpec(1, GENERATED, 0.0, renderer.stop_ids, 0))
    texts = [renderer.decode(group[0].ids) for group in drawn]
    asked = [
        [*prompt, *renderer.text_ids(f"{text}\nThe answer is")] for prompt, text in zip(prompts, texts, strict=True)
    ]
    scores = engine.score(
        [(prompt, renderer.text_ids(f" {problem.answer}")) for prompt, problem in zip(asked, problems, strict=True)]
    )
    right = [(numbers(text) or [""])[-1] == problem.answer for text, problem in zip(texts, problems, strict=True)]
    return {
        "answer_logprob": float(np.mean([sum(row) for row in scores])),
        "accuracy": float(np.mean(right)),
        "tokens": float(np.mean([len(group[0].ids) for group in drawn])),
    }


def run(path: Path, data: Path, work: Path) -> None:
    renderer = Renderer(load_tokenizer(path))
    out = work / f"outcomes-{path.name}.jsonl"
    done = {row["style"] for row in read_jsonl(out)} if out.exists() else set()
    problems = [problem for problem in all_problems(data, 100) if problem.kind != "gsm8k"][: ROWS + HELD_OUT]
    problems = random.Random(0).sample(problems, len(problems))
    samples = {row["question"]: row["own"] for row in read_jsonl(work / f"samples-{path.name}.jsonl")}
    suites = tests(data)
    base = load_model(path, dtype="float32")
    prompts = [renderer.prompt_ids(prompt) for prompt in UNRELATED]
    drawn = HFEngine(base).generate(prompts, SampleSpec(1, 48, 0.7, renderer.stop_ids, 1))
    unrelated = [(prompt, group[0].ids) for prompt, group in zip(prompts, drawn, strict=True)]
    if UNTOUCHED not in done:
        append_jsonl(out, {"style": UNTOUCHED} | _measured(base, base, renderer, suites, unrelated))
    for style in TRAINED:
        if style in done:
            continue
        pairs = training_texts(style, problems, samples)
        losses: dict[float, float] = {}
        for rate in RATES:
            model, tokens = _tuned(path, pairs[:ROWS], renderer, rate, work / f".training-{path.name}")
            losses[rate] = _loss(model, renderer, pairs[ROWS:])
            if losses[rate] == min(losses.values()):
                best, chosen = model, rate
        row = {"style": style, "rate": chosen, "held_out_losses": losses, "trained_tokens": tokens}
        append_jsonl(out, row | _measured(best, base, renderer, suites, unrelated))
        print(style, losses, flush=True)


class Settings(SFTConfig):
    """Fine-tuning with the warm-up that the published results were measured with."""

    @property
    def warmup_steps(self) -> int:
        return 3


def _tuned(
    path: Path, pairs: list[tuple[str, str]], renderer: Renderer, rate: float, scratch: Path
) -> tuple[torch.nn.Module, int]:
    """The model after one pass over the pairs, and how many tokens it was trained on."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    settings = Settings(steps=STEPS, batch_size=BATCH, learning_rates=(rate,))
    model, cost = fine_tune(load_model(path, dtype="float32"), pairs, renderer, settings, rate, 0, scratch)
    shutil.rmtree(scratch)
    return model, cost.trained_tokens


def _loss(model: torch.nn.Module, renderer: Renderer, pairs: list[tuple[str, str]]) -> float:
    """Negative log-likelihood of the solutions, nats a token."""
    rows = [(renderer.prompt_ids(question), renderer.response_ids(solution)) for question, solution in pairs]
    logprobs = HFEngine(model.eval()).score(rows)
    return -sum(map(sum, logprobs)) / sum(map(len, logprobs))


@torch.no_grad()
def _measured(
    model: torch.nn.Module,
    base: torch.nn.Module,
    renderer: Renderer,
    suites: dict[str, list[Problem]],
    unrelated: list[tuple[list[int], Sequence[int]]],
) -> dict[str, Any]:
    model.eval()
    logprobs, kl, mask = anchored_logprobs(model, base, unrelated)
    before, _, _ = anchored_logprobs(base, base, unrelated)
    tokens = mask.sum()
    return {
        "suites": {name: answers(model, renderer, problems) for name, problems in suites.items()},
        "nll_rise": float(((before - logprobs) * mask).sum() / tokens),
        "kl": float((kl * mask).sum() / tokens),
    }


OUTCOMES = {
    "right answer, in distribution": lambda row: row["suites"]["in_distribution"]["answer_logprob"],
    "right answer, GSM8K": lambda row: row["suites"]["gsm8k"]["answer_logprob"],
    "retention (less rise of NLL)": lambda row: -row["nll_rise"],
    "retention (less KL)": lambda row: -row["kl"],
}


def results(models: Sequence[Path], data: Path, work: Path) -> dict[str, Any]:
    """Outcomes by style, and the rank correlation of every score's median with each outcome, with 95% intervals.

    Medians are over the questions that were trained on.
    """
    found: dict[str, Any] = {}
    for model in models:
        runs = read_jsonl(work / f"outcomes-{model.name}.jsonl")
        outcomes = {row["style"]: {name: of(row) for name, of in OUTCOMES.items()} for row in runs}
        trained = [texts for kind, texts, _ in read(work, data, model) if kind != "gsm8k"]
        found[model.name] = {"runs": runs} | correlated(_medians(trained), outcomes)
    for target in lab_styles.TARGETS:
        found[f"lab:{target}"] = correlated(lab_styles.lab_scores(target), lab_styles.lab_outcomes(target))
    return found


def _medians(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """style -> score -> median over the questions, of the styles that are trained on."""
    return {
        style: {
            name: float(np.median([np.mean([score(text) for text in row[style]]) for row in rows]))
            for name, score in SCORES.items()
        }
        for style in TRAINED
    }


def correlated(scores: dict[str, dict[str, float]], outcomes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Scores and outcomes by style, and score -> outcome -> [rank correlation, low, high] over the styles of both."""
    styles = [style for style in scores if style in outcomes]
    return {
        "scores": {style: scores[style] for style in styles},
        "outcomes": outcomes,
        "correlations": {
            name: {
                outcome: _correlation(
                    [scores[style][name] for style in styles], [outcomes[style][outcome] for style in styles]
                )
                for outcome in outcomes[styles[0]]
            }
            for name in SCORES
        },
    }


def _correlation(values: Sequence[float], outcomes: Sequence[float]) -> list[float]:
    """Spearman's rank correlation and its 95% bootstrap interval over the styles."""

    picked = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    x, y = rankdata(np.asarray(values)[picked], axis=1), rankdata(np.asarray(outcomes)[picked], axis=1)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    spread = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    resampled = (x * y).sum(1)[spread > 0] / spread[spread > 0]  # a resample of one style alone has no ranks
    low, high = np.percentile(resampled, [2.5, 97.5])
    return [float(spearmanr(values, outcomes).statistic), float(low), float(high)]


def parts(measured: dict[str, Any]) -> dict[str, str]:
    """The measured parts of the page: name -> Markdown."""
    made = {}
    for model, row in measured.items():
        name = model.replace(":", "-")
        made[f"style-outcomes-{name}"] = _lab_table(row) if model.startswith("lab:") else _outcome_table(row)
        made[f"style-correlations-{name}"] = _correlation_table(row)
    return made


def _outcome_table(row: dict[str, Any]) -> str:
    header = ["trained on", "rate", "tokens", *OUTCOMES, "accuracy %, in distribution / GSM8K", "answer's tokens"]
    lines = []
    for best in row["runs"]:
        suites = best["suites"]
        accuracy = " / ".join(f"{100 * suites[name]['accuracy']:.0f}" for name in ("in_distribution", "gsm8k"))
        measures = [f"{of(best):+.3f}" for of in OUTCOMES.values()]
        rate = f"{best['rate']:g}" if "rate" in best else "-"
        tokens, length = best.get("trained_tokens", 0), suites["in_distribution"]["tokens"]
        lines.append([best["style"], rate, f"{tokens:,.0f}", *measures, accuracy, f"{length:.0f}"])
    return table(header, lines)


def _lab_table(row: dict[str, Any]) -> str:
    """Most natural first."""
    shown = (DEFAULT, "sum_logprob")
    names = list(next(iter(row["outcomes"].values())))
    lines = []
    for style in sorted(row["scores"], key=lambda style: -row["scores"][style][DEFAULT]):
        values = [f"{row['scores'][style][name]:.2f}" for name in shown]
        lines.append([style, *values, *(f"{100 * row['outcomes'][style][name]:.0f}" for name in names)])
    return table(["trained on", *(f"`{name}`" for name in shown), *(f"{name}, %" for name in names)], lines)


def _correlation_table(row: dict[str, Any]) -> str:
    lines = [
        [f"`{name}`", *(f"{r:+.2f} [{low:+.2f}, {high:+.2f}]" for r, low, high in by_outcome.values())]
        for name, by_outcome in row["correlations"].items()
    ]
    return table(["score", *next(iter(row["correlations"].values()))], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.model, arguments.data, arguments.work)
        return
    atomic_write_json(RESULTS, results(arguments.models, arguments.data, arguments.work))
    fill(PAGE, page_parts())


if __name__ == "__main__":
    main()
