"""Define a score, a penalty and a gate, name them in the config, and run the lab briefly with them.

    python examples/own_reward.py --steps 10

A recipe names a part of the reward by its path, `module:function`. This file is the module `own_reward` if dartune is
run in this folder. A finished stage identifies a part by its name only: after changing a function, use another output.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dartune import load_config, pipeline
from dartune.data.chat_template import Renderer
from dartune.engines.base import Engine, TokenStats
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.rewards.alignment import Reference, content_logprob
from dartune.rewards.penalties import Rewritten
from dartune.run.files import read_jsonl

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.yaml"
SHORT = {
    "arms": "base,dart",
    "data.limit": "120",
    "synthesise.samples": "2",
    "sft.steps": "40",
    "sft.learning_rates": "6e-4",
    "data.test": "16",
}


def smooth(tokens: TokenStats, reference: Reference) -> float:
    """Score: the default plus the least likely token again, so that one large jump costs more than many small ones."""
    return content_logprob(tokens, reference) + min(tokens.logprobs) / max(1, reference.length)


def wordy(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """Penalty: tokens above three times the source's, as a fraction of the source's. Its weight is in nats."""
    source = [len(renderer.response_ids(row.demonstration.solution)) for row in rows]
    return [max(0.0, len(row.sample.ids) / length - 3.0) for row, length in zip(rows, source, strict=True)]


def not_a_list(item: GateInput, thresholds: GateThresholds) -> bool:
    """Gate: no line starts with a bullet, unless a line of the source does."""
    return "\n- " not in item.rewrite or "\n- " in item.solution


def train(steps: int, output: Path) -> list[dict]:
    """Run a short form of the lab's recipe with the parts above; returns the mapper's metrics, one row per step."""
    settings = {
        "output": str(output),
        "mapper.steps": str(steps),
        "reward.alignment": "own_reward:smooth",
        "reward.penalties": "{own_reward:wordy: 0.5}",
        "reward.gates": "[all, own_reward:not_a_list]",
    }
    print(pipeline.run(load_config(RECIPE, SHORT | settings)))
    return read_jsonl(output / "stages" / "mapper-s0" / "metrics.jsonl")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/own-reward"))
    arguments = parser.parse_args()
    for row in train(arguments.steps, arguments.output):
        print("step {step}: reward {reward:.2f}, gates passed {gate_pass:.2f}, tokens {length:.1f}".format(**row))
