"""A user-defined score, penalty and gate, named in the config, and a short run on the lab with them.

    python examples/own_reward.py --steps 10

A part of the reward is named by its path, `module:function`, in a recipe, too: this file is the module `own_reward` for
a dartune that is run in this folder. A finished stage knows a part by its name alone: after changing a function, give
the run another output.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dartune import load_config, pipeline
from dartune.data.render import Renderer
from dartune.files import read_jsonl
from dartune.models.engine import Engine, TokenStats
from dartune.rewards.alignment import Reference, content_logprob
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.penalties import Rewritten

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.yaml"
SHORT = {
    "arms": "base,dart",
    "data.limit": "120",
    "synthesise.samples": "2",
    "sft.steps": "40",
    "sft.learning_rates": "6e-4",
    "evaluate.questions": "16",
}


def smooth(tokens: TokenStats, reference: Reference) -> float:
    """A score: the default, and the strangest token once more, so that one leap costs more than many small steps."""
    return content_logprob(tokens, reference) + min(tokens.logprobs) / max(1, reference.length)


def wordy(rows: Sequence[Rewritten], target: Engine, renderer: Renderer) -> list[float]:
    """A penalty: tokens beyond three times the source's, as a share of the source's; its weight is in nats."""
    source = [len(renderer.response_ids(row.demonstration.solution)) for row in rows]
    return [max(0.0, len(row.sample.ids) / length - 3.0) for row, length in zip(rows, source, strict=True)]


def not_a_list(item: GateInput, thresholds: GateThresholds) -> bool:
    """A gate: no line starts with a bullet, unless a line of the source does."""
    return "\n- " not in item.rewrite or "\n- " in item.solution


def train(steps: int, output: Path) -> list[dict]:
    """Run the lab's recipe, cut short, with the parts above; returns the mapper's metrics, a row a step."""
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
