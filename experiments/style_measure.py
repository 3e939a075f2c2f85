"""Samples and per-token statistics of the style benchmark, one model at a time; style_scores.py makes tables of them.

    python experiments/style_measure.py MODEL_FOLDER --data FOLDER --work FOLDER [--questions 100]

`--data` holds GSM8K's training file and SVAMP's (docs/alignment-scores.md); `--work` gets `samples-<model>.jsonl` and
`stats-<model>.jsonl`, a line per problem, and continues where it was stopped. With `--other` (another model's folder,
whose samples are in `--work`), `other-<model>.jsonl` has the other model's samples in this model's eyes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from style_texts import STYLES, Problem, all_problems

from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec, TokenIds
from dartune.engines.hf import HFEngine
from dartune.engines.logprobs import sequence_inputs
from dartune.models.loading import load_model, load_tokenizer

TEMPERATURES = {1.0: 1, 0.7: 1, 0.3: 1}
"""Sampling temperature -> own samples per question."""
MAX_NEW_TOKENS = {"gsm8k": 128, "one_step": 80, "chain": 80}
CHUNK = 20
LOGITS_AT_ONCE = 2**24
SCALED = 0.7
"""Temperature of the scores on scaled logits."""
STATISTICS = ("logprob", "entropy", "variance", "best", "rank", "logprob_scaled", "entropy_scaled")


def own_style(temperature: float) -> str:
    return f"own_{temperature:g}"


def draw_samples(problems: list[Problem], engine: HFEngine, renderer: Renderer, path: Path) -> None:
    """Append the model's own samples, a line per problem: {question, own: {style: [{ids, text, finished}]}}."""
    done = len(path.read_text().splitlines()) if path.exists() else 0
    for low in range(done, len(problems), CHUNK):
        chunk = problems[low : low + CHUNK]
        prompts = [renderer.prompt_ids(problem.question) for problem in chunk]
        most = max(MAX_NEW_TOKENS[problem.kind] for problem in chunk)
        own: list[dict[str, Any]] = [{} for _ in chunk]
        for temperature, n in TEMPERATURES.items():
            spec = SampleSpec(n, most, temperature, renderer.stop_ids, seed=low)
            for row, group in zip(own, engine.generate(prompts, spec), strict=True):
                row[own_style(temperature)] = [
                    {"ids": list(s.ids), "text": renderer.decode(s.ids), "finished": s.finish == "stop"} for s in group
                ]
        with path.open("a") as file:
            for problem, row in zip(chunk, own, strict=True):
                file.write(json.dumps({"question": problem.question, "own": row}) + "\n")
        print(f"{path.name}: {low + len(chunk)} of {len(problems)} questions", flush=True)


@torch.no_grad()
def token_table(model: torch.nn.Module, rows: list[tuple[TokenIds, TokenIds]]) -> Iterator[dict[str, list[float]]]:
    """Per response token: log-probability, entropy, variance of the log-probability, that of the likeliest token,
    rank, and log-probability and entropy at temperature `SCALED`; nats. One forward for all rows."""
    inputs, keep, targets, mask = sequence_inputs(model, rows)
    hidden = model.model(**inputs).last_hidden_state[keep]
    size, table = max(1, LOGITS_AT_ONCE // model.lm_head.weight.shape[0]), []
    for states, ids in zip(hidden.split(size), targets.split(size), strict=True):
        # Token by token: one row of logits stays in the processor's cache.
        table += [_statistics(*row) for row in zip(model.lm_head(states).float(), ids.tolist(), strict=True)]
    low = 0
    for length in mask.sum(1).tolist():
        columns = zip(*table[low : low + length], strict=True)
        yield {name: [round(x, 3) for x in column] for name, column in zip(STATISTICS, columns, strict=True)}
        low += length


def _statistics(logits: torch.Tensor, chosen: int) -> tuple[float, ...]:
    """`STATISTICS` of one token; logits (V,) are overwritten."""
    logp = logits.sub_(logits.logsumexp(0))
    p = logp.exp()
    entropy = -torch.dot(p, logp).item()
    own = logp[chosen].item()
    variance = torch.dot(p.mul_(logp), logp).item() - entropy**2
    best, rank = logp.max().item(), 1 + int((logp > own).sum())
    scaled = logp.div_(SCALED)
    normaliser = scaled.logsumexp(0).item()
    p = torch.exp(scaled, out=p)
    spread = normaliser - torch.dot(p, scaled).item() / math.exp(normaliser)
    return own, entropy, variance, best, rank, own / SCALED - normaliser, spread


Entry = tuple[str, list[int], bool]
"""A style's name, a text's response ids, and whether the text is whole (it ends with the end token)."""


def own_entries(problem: Problem, sampled: dict[str, Any], renderer: Renderer) -> list[Entry]:
    """Every style made by rule, and the model's own samples."""
    entries = [(name, renderer.response_ids(style(problem)), True) for name, style in STYLES.items()]
    for name, group in sampled["own"].items():
        entries += [(name, one["ids"], one["finished"]) for one in group]
    return entries


def other_entries(problem: Problem, sampled: dict[str, Any], renderer: Renderer) -> list[Entry]:
    """The other model's samples, in this model's tokens."""
    found = []
    for one in sampled["own"][own_style(0.7)]:
        ids = renderer.response_ids(one["text"])
        found.append(("other_model", ids if one["finished"] else ids[:-1], one["finished"]))
    return found


def measure(
    problems: list[Problem],
    sampled: list[dict[str, Any]],
    entries_of: Callable[[Problem, dict[str, Any], Renderer], list[Entry]],
    model: torch.nn.Module,
    renderer: Renderer,
    path: Path,
) -> None:
    """Append a line per problem: {kind, question, styles: {style: [{finished, logprob: [...], ...}]}}."""
    known = {row["question"]: row for row in sampled}
    if missing := [problem.question for problem in problems if problem.question not in known]:
        raise SystemExit(f"{path.name}: no samples of {len(missing)} questions; take a new --work folder")
    done = {json.loads(line)["question"] for line in path.read_text().splitlines()} if path.exists() else set()
    for i, problem in enumerate(problems):
        if problem.question in done:
            continue
        prompt = renderer.prompt_ids(problem.question)
        entries = [entry for entry in entries_of(problem, known[problem.question], renderer) if entry[1]]
        order = sorted(range(len(entries)), key=lambda j: len(entries[j][1]))
        tables: dict[int, dict[str, list[float]]] = {}
        for low in range(0, len(order), 6):  # rows of like length together
            batch = order[low : low + 6]
            for j, table in zip(batch, token_table(model, [(prompt, entries[j][1]) for j in batch]), strict=True):
                tables[j] = table
        styles: dict[str, list[dict[str, Any]]] = {}
        for j, (name, _, finished) in enumerate(entries):
            styles.setdefault(name, []).append({"finished": finished, "ids": entries[j][1]} | tables[j])
        with path.open("a") as file:
            file.write(json.dumps({"kind": problem.kind, "question": problem.question, "styles": styles}) + "\n")
        if (i + 1) % 10 == 0:
            print(f"{path.name}: {i + 1} of {len(problems)} questions", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--other", type=Path, help="folder of the other model, whose samples are a style")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--samples-only", action="store_true")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    name = arguments.model.name
    problems = all_problems(arguments.data, arguments.questions)
    model = load_model(arguments.model)
    renderer = Renderer(load_tokenizer(arguments.model))
    own = arguments.work / f"samples-{name}.jsonl"
    draw_samples(problems, HFEngine(model), renderer, own)
    if arguments.samples_only:
        return

    def read(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    measure(problems, read(own), own_entries, model, renderer, arguments.work / f"stats-{name}.jsonl")
    if arguments.other:
        others = read(arguments.work / f"samples-{arguments.other.name}.jsonl")
        measure(problems, others, other_entries, model, renderer, arguments.work / f"other-{name}.jsonl")


if __name__ == "__main__":
    main()
