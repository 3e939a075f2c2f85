"""What the parts of the reward are worth: variants of it on the lab, with an initial mapper right half the time.

python experiments/rewards.py run [VARIANT ...]   every variant, or those named; continues where it was interrupted
python experiments/rewards.py collect             results/rewards.json from the run folders
python experiments/rewards.py write               docs/reward-experiments.md from results/rewards.json

Run from the repository root. A seed of a variant takes 2-3 minutes on one CPU core; two processes may share the work.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from reward_tables import page

from dartune.config.arms import ARMS
from dartune.config.load import load_config
from dartune.config.schema import Config
from dartune.data.adapted_dataset import VIEWS
from dartune.lab.build import build_one
from dartune.pipeline import run
from dartune.rewards.alignment import SCORES, Reference
from dartune.rewards.references import response_stats
from dartune.run.files import atomic_write_json, read_jsonl
from dartune.stages.models import RunModels
from dartune.stages.probe import load_probe

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "runs" / "rewards", ROOT / "results" / "rewards.json"
WEAK_STEPS = 1500
ANSWER_GATES = "[finished, one_answer, correct_answer]"
SAME = {
    "arms": "[base, dart_keep_original]",
    "mapper.path": str(RUNS / "start" / "mapper"),
    "sft.learning_rates": "[6e-4]",  # one for all: chosen on dev, variants would differ in it as well
}
MAIN: dict[str, dict[str, str]] = {
    "default": {"evaluate.samples": "8"},
    "no anti-cheating": {"reward.gates": ANSWER_GATES},
    "no alignment": {"reward.alignment": "no_alignment", "reward.form": "passes"},
    "correct-answer constant": {
        "reward.alignment": "mean_logprob",
        "reward.form": "correct_bonus",
        "reward.gates": ANSWER_GATES,
    },
    "fixed failure": {"reward.alignment": "mean_logprob", "reward.form": "fixed_failure"},
    "vargrad": {"mapper.objective": "vargrad", "evaluate.samples": "8"},
}
DIALS: dict[str, dict[str, str]] = {
    "kl 0": {"mapper.kl": "0"},
    "kl 0.2": {"mapper.kl": "0.2"},
    "learning rate 1e-4": {"mapper.learning_rate": "1e-4"},
    "learning rate 1e-3": {"mapper.learning_rate": "1e-3"},
    "24 groups of 4": {"mapper.questions_per_step": "24", "mapper.group_size": "4"},
    "6 groups of 16": {"mapper.questions_per_step": "6", "mapper.group_size": "16"},
    "10 steps": {"mapper.steps": "10"},
    "80 steps": {"mapper.steps": "80"},
    "no cap": {"reward.form": "reward_forms:uncapped"},
    "half the cap": {"reward.form": "reward_forms:half_capped"},
    "peeking 0.3": {"reward.penalties": "{peeking: 0.3}"},
    "peeking 3": {"reward.penalties": "{peeking: 3.0}"},
    "question_independence 0.3": {"reward.penalties": "{question_independence: 0.3}"},
    "score mean_logprob": {"reward.alignment": "mean_logprob"},
    "score capped_percentile": {"reward.alignment": "capped_percentile"},
    "score centred": {"reward.alignment": "centred"},
    "score rank_surprisal": {"reward.alignment": "rank_surprisal"},
    "originals left out": {"arms": "[base, dart]"},
}
DIALS["correct-answer constant, gold probe"] = MAIN["correct-answer constant"] | {"mapper.probe_every": "5"}
SEEDS = dict.fromkeys(MAIN, (0, 1, 2)) | dict.fromkeys(DIALS, (0,))


def configured(variant: str) -> Config:
    """The recipe of the lab with what makes the variant."""
    folder = RUNS / variant.replace(",", "").replace(" ", "-")
    changes = SAME | (MAIN | DIALS)[variant] | {"output": str(folder), "seeds": str(list(SEEDS[variant]))}
    return load_config(ROOT / "recipes" / "lab.yaml", changes)


def run_variants(names: list[str]) -> None:
    start = RUNS / "start"
    if not (start / "mapper" / "model.safetensors").exists():
        build_one("mapper", start, RUNS / ".start", WEAK_STEPS)
    for name in names or list(SEEDS):
        print(f"== {name}", flush=True)
        run(configured(name))


def scores_of(config: Config, seed: int) -> dict[str, float]:
    """Every alignment score's mean over what the target was trained on, whatever the variant was paid for."""
    roster, stages = RunModels(config), Path(config.output) / "stages"
    references: dict[str, Reference] = load_probe(stages / "probe")[1]
    trained_on = VIEWS[ARMS[config.arms[-1]].view].provenances
    rows = [row for row in read_jsonl(stages / f"synthesise-s{seed}" / "rows.jsonl") if row["provenance"] in trained_on]
    pairs = [(roster.renderer.prompt_ids(row["question"]), row["ids"]) for row in rows]
    stats = response_stats(roster.target_engine, SCORES["rank_surprisal"], pairs)
    known = list(zip(rows, stats, strict=True))
    wanted = [name for name in SCORES if name != "no_alignment"]
    return {name: mean(SCORES[name](tokens, references[row["id"]]) for row, tokens in known) for name in wanted}


def measured(variant: str, seed: int) -> dict[str, Any]:
    """One seed of a variant, from its run folder."""
    config = configured(variant)
    folder = Path(config.output)
    results = json.loads((folder / "report" / "results.json").read_text())
    adapted, phases = results["adapted"]["dart"][str(seed)], results["mapper"]["dart"][str(seed)]["phases"]
    groups = [row for row in results["summaries"] if row["level"] == "group"]
    cells = [row for row in results["cells"] if row["seed"] == seed]
    sampled = [row for row in cells if row["arm"] == config.arms[-1]]
    rows = read_jsonl(folder / "stages" / f"synthesise-s{seed}" / "rows.jsonl")
    written = [row for row in rows if row["provenance"] == "rewrite"]
    return {
        "variant": variant,
        "seed": seed,
        "changes": (MAIN | DIALS)[variant],
        "reward": {phase: row["reward"] for phase, row in phases.items()},
        "gate_pass": {phase: row["gate_pass"] for phase, row in phases.items()},
        "hacks": {phase: row["hacks"] for phase, row in phases.items()},
        "entropy": {phase: row["entropy"] for phase, row in phases.items()},
        "mapper_seconds": results["costs"]["stages"][f"mapper-s{seed}"]["seconds"],
        "adapted": {key: adapted[key] for key in ("provenance", "hacks", "skeletons", "quality")},
        "alignment": scores_of(config, seed),
        "accuracy": {row["name"]: row["by_seed"][str(seed)] for row in groups if row["arm"] == config.arms[-1]},
        "base": {row["name"]: row["accuracy"]["estimate"] for row in groups if row["arm"] == "base"},
        "suites": {row["suite"]: row["accuracy"] for row in sampled},
        "base_suites": {row["suite"]: row["accuracy"] for row in cells if row["arm"] == "base"},
        "avg_at_k": {row["suite"]: row["avg_at_k"] for row in sampled if row["avg_at_k"] is not None},
        "pass_at_k": {row["suite"]: row["pass_at_k"] for row in sampled if row["pass_at_k"] is not None},
        "rewrites": [{key: row[key] for key in ("question", "source_solution", "solution")} for row in written[:3]],
    }


def collect() -> None:
    done = [name for name in SEEDS if (Path(configured(name).output) / "report" / "results.json").exists()]
    if missing := sorted(set(SEEDS) - set(done)):
        print(f"not run yet, left out: {', '.join(missing)}")
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_write_json(RESULTS, [measured(name, seed) for name in done for seed in SEEDS[name]])


def main(words: list[str]) -> None:
    verb, *names = words or ["run"]
    if verb == "run" and set(names) <= set(SEEDS):
        run_variants(names)
    elif verb == "collect" and not names:
        collect()
    elif verb == "write" and not names:
        (ROOT / "docs" / "reward-experiments.md").write_text(page(json.loads(RESULTS.read_text())), encoding="utf-8")
    else:
        sys.exit(f"{__doc__}\nvariants: {', '.join(SEEDS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
