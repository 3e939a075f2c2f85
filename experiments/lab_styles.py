"""Alignment scores of the lab's demonstrations, and what fine-tuning on them did: every writer, both targets.

The outcomes are those of the arm `sft` in results/comparison.json. The scores need no training: a minute on a
CPU. style_outcomes.py makes the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from style_measure import token_table
from style_scores import SCORES, Tokens, as_tokens

from dartune.data.chat_template import Renderer
from dartune.lab.dialects import WRITERS
from dartune.lab.source import model_folder
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.models.loading import load_model, load_tokenizer
from dartune.report.summary import summary_of
from dartune.rewards.content_tokens import content_mask

ROOT = Path(__file__).parents[1]
COMPARISON = ROOT / "results" / "comparison.json"
TARGETS = ("backward", "recall")
STUDIES = ("matrix", "distance", "styles")
OUTCOMES = ("in distribution", "out of distribution", "retention")
PROBLEMS = 60
PLAIN = "explicit"
"""The writer whose length takes the place of the source's: one step a sentence."""


def lab_scores(target: str) -> dict[str, dict[str, float]]:
    """writer -> score -> median over the problems that demonstrations ask, in the eyes of a lab's target."""
    folder = model_folder(f"lab:{target}")
    model, renderer = load_model(folder), Renderer(load_tokenizer(folder))
    problems = demonstration_problems(PROBLEMS, 0, 128)
    texts = {writer: _texts(model, renderer, writer, problems) for writer in WRITERS}
    return {
        writer: {name: float(np.median([score(text) for text in read])) for name, score in SCORES.items()}
        for writer, read in texts.items()
    }


def _texts(model: Any, renderer: Renderer, writer: str, problems: Any) -> list[Tokens]:
    rows = [
        (renderer.prompt_ids(row.question), renderer.response_ids(row.solution))
        for row in write_demonstrations(problems, writer)
    ]
    lengths = [len(renderer.response_ids(row.solution)) for row in write_demonstrations(problems, PLAIN)]
    found = []
    for (_, ids), length, table in zip(rows, lengths, token_table(model, rows), strict=True):
        found.append(as_tokens(table, content_mask(ids, renderer.decode(ids), renderer.decode), length))
    return found


def lab_outcomes(target: str) -> dict[str, dict[str, float]]:
    """writer -> group of suites -> accuracy of `sft`, mean over seeds, for the writers that were measured."""
    studies = json.loads(COMPARISON.read_text("utf-8"))
    found = {}
    for writer in WRITERS:
        names = {f"{target}-{writer}", *([writer] if target == "backward" else [])}
        cells = [cell for study in STUDIES for name, cell in studies.get(study, {}).items() if name in names]
        if cells:
            found[writer] = {group: summary_of(cells[0], "sft", group)["accuracy"]["estimate"] for group in OUTCOMES}
    return found
