"""Synthetic measurements for the tests of the report, and a parser of its page."""

import copy
from functools import cache
from html.parser import HTMLParser

from dartune.report import build_results, write_report

HOSTILE = "<script>alert(1)</script>{{ 7*7 }}<img src=http://x.invalid/a.png>\x1b[2J\ud800$\\frac$"


def evaluations(shares, n=60, seeds=(0,), steps=True):
    """Evaluation records in which the first answers are correct, up to the share in {arm: {suite: share}}."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "suite": suite,
            "id": f"{suite}-{index}",
            "correct": index < share * n,
            "steps_correct": index < share * n - 2 if steps else None,
            "names_correct": True if steps else None,
            "announced": index > 0,
            "finish": "length" if index == 0 else "stop",
            "n_tokens": 10 + index % 3,
            "text": "The answer is 3 .",
        }
        for arm, suites in shares.items()
        for suite, share in suites.items()
        for seed in seeds
        for index in range(n)
    ]


SHARES = {
    "base": {"in_distribution": 0.1, "ood_length": 0.05, "ood_names": 0.1, "retention": 1.0},
    "sft": {"in_distribution": 0.2, "ood_length": 0.1, "ood_names": 0.1, "retention": 0.1},
    "dart": {"in_distribution": 0.7, "ood_length": 0.4, "ood_names": 0.5, "retention": 0.9},
}


def metrics(steps=12):
    return [
        {
            "step": step + 1,
            "reward": step / 10,
            "gain": step / 9,
            "gate_pass": 0.4 + step / 30,
            "gates": {"format": 1.0, "answer": 0.5 + step / 30},
            "alignment_before": -2.4,
            "alignment_after": -2.0 + step / 10,
            "kl": float("nan") if step == 3 else 0.1,
            "hacks": {"leak": 0.3 - step / 40} if step < 6 else {"padding": 0.06},
            "dialects": {"explicit": 1.0} if step > 6 else {"values": 1.0},
        }
        for step in range(steps)
    ]


def adapted_row(index, provenance, **changes):
    return {
        "id": str(index),
        "question": "q",
        "solution": "y",
        "source_solution": "s",
        "provenance": provenance,
        "alignment_before": -2.0,
        "alignment_after": -1.0 if provenance != "dropped" else None,
        "gates": {"answer": True} if provenance == "rewrite" else {},
        "hacks": [],
        "hacks_refused": ["leak"] if index == 0 else [],
        "reason": "the best accepted candidate" if provenance == "rewrite" else "no rewrite passed",
        **changes,
    }


def example(**changes):
    return {
        "id": "row-0",
        "question": "How many ?",
        "source_solution": "3 4",
        "solution": "one two",
        "provenance": "rewrite",
        "tokens_before": [["3", -5.0], [" 4", -0.01], ["", -0.3]],
        "tokens_after": [["one", -0.2], [" two", None]],
        "alignment_before": -2.31,
        "alignment_after": -0.62,
        "reason": "",
        **changes,
    }


def full(**changes):
    """Results with all parts filled; `changes` are arguments of `build_results`, or `seeds`."""
    return _full(**changes) if changes else copy.deepcopy(_unchanged())


@cache
def _unchanged():
    return _full()


def _full(**changes):
    seeds = changes.pop("seeds", (0,))
    rows = [adapted_row(i, p) for i, p in enumerate(["rewrite"] * 6 + ["own", "original", "original", "dropped"])]
    arguments = {
        "name": "trial",
        "config": {"arms": ["base", "sft", "dart"], "seeds": list(seeds)},
        "evaluations": evaluations(SHARES, seeds=seeds),
        "costs": {
            "probe": {"seconds": 5.0, "generated_tokens": 10, "peak_memory_mb": 300},
            "mapper-s0": {
                "seconds": 100.0,
                "generated_tokens": 1000,
                "trained_tokens": 900,
                "peak_memory_mb": 700,
            },
            "synthesise-s0": {"seconds": 20.0, "generated_tokens": 100, "scored_tokens": 50},
            "train-sft-s0-lr0.001": {"seconds": 7.0, "trained_tokens": 30},
            "train-sft-s0-lr0.0003": {"seconds": 7.0, "trained_tokens": 30},
            "train-dart-s0-lr0.001": {"seconds": 8.0, "trained_tokens": 40},
            "evaluate-base": {"seconds": 1.0},
            "evaluate-dart-s0": {"seconds": 2.0},
            "data": {"seconds": 3.0},
        },
        "charged": {
            "base": {"evaluate": ["evaluate-base"]},
            "sft": {"train": ["train-sft-s0-lr0.001", "train-sft-s0-lr0.0003"]},
            "dart": {
                "prepare": ["probe", "mapper-s0", "synthesise-s0"],
                "train": ["train-dart-s0-lr0.001"],
                "evaluate": ["evaluate-dart-s0"],
            },
        },
        "mapper_metrics": {"dart": {seed: metrics() for seed in seeds}},
        "adapted": {"dart": dict.fromkeys(seeds, rows)},
        "adapted_quality": {"dart": {seed: {"step_correct": 0.9, "dialects": {"explicit": 0.8}} for seed in seeds}},
        "learning_rates": {"sft": {0: {"chosen": 0.001, "dev": {0.001: 0.5, 0.0003: 0.25}}}},
        "examples": [example()],
        "input_rows": 10,
        "notes": ["Read with care."],
    }
    return build_results(**arguments | changes)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text_parts, self.ids = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text_parts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.text_parts).split())


def page_of(results, folder):
    return write_report(folder, results).read_text(encoding="utf-8")
