"""The comparison on the lab: every study behind docs/results.md and the README's figures.

python experiments/comparison.py run [STUDY ...]   all studies, or those named; continues where it was interrupted
python experiments/comparison.py collect           results/comparison.json, and the README's picture, from the runs
                                                   (what is there stays; seeds new to a cell join the others)
python experiments/comparison.py write             the measured parts of the documents, from results/comparison.json

Run from the repository root. A seed of a cell takes 12-17 minutes on one CPU core, of all arms half an hour;
two processes may share the work.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from comparison_tables import parts
from finished_models import dart_model, mapper_model
from pages import fill
from seed_batches import merged, pooled

from dartune.config.load import load_config
from dartune.config.matrix import combinations
from dartune.config.schema import Config
from dartune.lab.build import build_one
from dartune.lab.dialects import EXPERTS, WRITERS
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.pipeline import run
from dartune.run.files import atomic_write_json, read_jsonl
from dartune.stages.models import RunModels
from dartune.train.sft import fine_tune

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "runs" / "comparison", ROOT / "results" / "comparison.json"
DOCUMENT, README, PICTURE = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "images" / "accuracy.svg"
STARTS = {  # initial mappers: pretraining steps, dialects that are seldom wanted
    "weak": (1500, {}),
    "backward in 10": (None, {"backward": 0.1}),
    "backward in 100": (None, {"backward": 0.01}),
}
KNOWING = (50, 300, 1000)  # rows in the target's own dialect, new relations among them, that it is taught beforehand
HALF_KNOWN = 1000  # of these, with which the target solves about half of the new questions
PRETUNING_SEED = 1


def _cell(target: str, expert: str) -> dict[str, str]:
    return {"target.path": f"lab:{target}", "data.path": f"lab:{expert}"}


ALL_ARMS = (
    "[base, sft, sft_low_lr, sft_tokens, sft_dft, sft_asft, rft, prompt_rewriter, best_of_k, dart, dart_dft, "
    "dart_keep_original, dart_selected, dart_augmented, no_anticheating, no_alignment, wrong_target, grpo_tokens, "
    "grpo_seconds, dart_then_grpo, gold]"
)
ALTERNATIVES = (
    "[base, sft, dart, best_of_k, sft_stm, sft_matched, sft_on_mapper_start, sdft, opd_from_mapper, rft, rft_iterated, "
    "dart_half, dart_refreshed]"
)
"""What users would try instead of a mapper, and renewed rows."""
BEST_OF_K = {"arms": "[base, dart, best_of_k]"}
MATRIX = [(target, expert) for target in ("backward", "recall") for expert in EXPERTS]
"""Targets and experts of recipes/lab-full.yaml."""
MEASURED_STYLES = [*MATRIX, *(("backward", expert) for expert in ("backward", "recall", "explicit", "bare"))]
"""Targets and experts whose `sft` other studies measure."""
STUDIES: dict[str, dict[str, dict[str, str]]] = {
    "arms": {"backward-values": {"arms": ALL_ARMS}},
    # The rate that dev chooses among three with a third of these tokens.
    "tokens": {
        "backward-values": {"arms": "[base, dart, grpo_3x_tokens]", "direct_rl.learning_rates": "[3e-4]"},
        "recall-values": {
            "target.path": "lab:recall",
            "arms": "[base, dart, grpo_3x_tokens]",
            "direct_rl.learning_rates": "[1e-4]",
        },
    },
    "distance": {
        expert: {"data.path": f"lab:{expert}", "arms": "[base, sft, dart]"}
        for expert in ("backward", "recall", "explicit", "bare")
    },
    "rows": {str(rows): BEST_OF_K | {"data.limit": str(rows)} for rows in (100, 300, 3000)},
    "samples": {str(samples): BEST_OF_K | {"synthesise.samples": str(samples)} for samples in (1, 16)},
    "start": {name: BEST_OF_K | {"mapper.path": str(RUNS / "starts" / name / "mapper")} for name in STARTS},
    "known": {
        str(rows): {"arms": "[base, sft, dart, grpo_tokens]", "target.path": str(RUNS / "targets" / str(rows))}
        for rows in KNOWING
    },
    # The other studies were measured with the former default score, `sum_logprob`.
    "content_logprob": {
        f"{target}-{expert}": _cell(target, expert) | BEST_OF_K | {"seeds": "[0, 1, 2]"} for target, expert in MATRIX
    },
    "alternatives": {"backward-values": {"arms": ALTERNATIVES, "seeds": "[0, 1, 2]"}},
    "second_round": {"backward-values": {"arms": "[base, dart, sft_on_mapper_start]"}},
    # Cases that the alternatives' own accounts claim for them.
    "favourable": {
        "sft_stm, long demonstrations in the target's dialect": {
            "data.path": "lab:backward",
            "arms": "[base, sft, dart, sft_stm]",
        },
        "best_of_k, 100 rows": {"data.limit": "100", "arms": "[base, sft, dart, best_of_k]"},
        "grpo_tokens, half known": {
            "target.path": str(RUNS / "targets" / str(HALF_KNOWN)),
            "arms": "[base, sft, dart, grpo_tokens]",
        },
    },
    "styles": {
        f"{target}-{expert}": _cell(target, expert) | {"arms": "[base, sft]"}
        for target in ("backward", "recall")
        for expert in WRITERS
        if (target, expert) not in MEASURED_STYLES
    },
}
"""study -> cell -> what is changed in recipes/lab.yaml, one seed; the study `matrix` is recipes/lab-full.yaml."""
KEPT = ("arms", "seeds", "groups", "learning_rates")
DETAILED = ("backward-values", "recall-skipping")
SHOWN_ROWS = 10


def configured(study: str) -> dict[str, Config]:
    """cell -> config; the models that the study starts from must be there."""
    if study == "matrix":
        return dict(combinations(load_config(ROOT / "recipes" / "lab-full.yaml", {"output": str(RUNS / "matrix")})))
    recipe = ROOT / "recipes" / "lab.yaml"
    first = _first_round() if study == "second_round" else {}
    return {
        name: load_config(recipe, changes | first | {"output": str(folder_of(study, name))})
        for name, changes in STUDIES[study].items()
    }


def _first_round() -> dict[str, str]:
    """Target and mapper of the second round: what `alternatives` made of them with its first seed."""
    first = folder_of("alternatives", "backward-values")
    return {"target.path": str(dart_model(first, 0)), "mapper.path": str(mapper_model(first, 0))}


def cells_of(study: str) -> list[str]:
    return list(STUDIES.get(study) or configured("matrix"))


def folder_of(study: str, cell: str) -> Path:
    return RUNS / study / folder_name(cell)


def folder_name(cell: str) -> str:
    return re.sub(r"[^\w.-]+", "-", cell)


def prepare(study: str) -> None:
    """Make the models that a study starts from, unless they are there."""
    if study == "start":
        for name, (steps, rare) in STARTS.items():
            folder = RUNS / "starts" / name
            if not (folder / "mapper" / "model.safetensors").exists():
                build_one("mapper", folder, RUNS / "starts" / f".{name}", steps, rare)
    if study in ("known", "favourable"):
        for rows in KNOWING if study == "known" else (HALF_KNOWN,):
            if not (RUNS / "targets" / str(rows) / "model.safetensors").exists():
                _knowing_target(rows)


def _knowing_target(rows: int) -> None:
    """The target `backward`, fine-tuned on demonstrations in its own dialect of questions that no run trains on."""
    config = load_config(ROOT / "recipes" / "lab.yaml")
    models, work = RunModels(config), RUNS / "targets" / f".{rows}"
    known = write_demonstrations(demonstration_problems(rows, PRETUNING_SEED, config.data.test), "backward")
    pairs = [(row.question, row.solution) for row in known]
    target = models.to_train(models.target_path, config.sft)
    model, _ = fine_tune(target, pairs, models.renderer, config.sft, 6e-4, 0, work)
    models.keep(model, work)
    (work / "model").rename(RUNS / "targets" / str(rows))


def collect() -> None:
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    missing = []
    for study, name in [(one, cell) for one in ("matrix", *STUDIES) for cell in cells_of(one)]:
        folder, cells = folder_of(study, name), found.setdefault(study, {})
        if (folder / "report" / "results.json").exists():
            new = collected(folder, detailed=study == "matrix")
            cells[name] = merged(cells[name], new) if name in cells else new
        elif name not in cells:
            missing.append(f"{study}/{name}")
    if missing:
        print(f"not run yet, left out: {', '.join(missing)}")
    for study in ("matrix", *STUDIES):  # in the order of their definition, whenever they were run
        found[study] = {name: found[study][name] for name in cells_of(study) if name in found[study]}
    found["pooled"] = pooled(found["matrix"])
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_write_json(RESULTS, {study: cells for study, cells in found.items() if cells})
    if (picture := RUNS / "matrix" / DETAILED[0] / "report" / "accuracy.svg").exists():
        shutil.copy(picture, PICTURE)


def collected(folder: Path, detailed: bool) -> dict[str, Any]:
    results = json.loads((folder / "report" / "results.json").read_text("utf-8"))
    kept = {key: results[key] for key in KEPT}
    for key in ("summaries", "differences"):
        kept[key] = [row for row in results[key] if row["level"] == "group" and row.get("measure") != "step_accuracy"]
    kept["costs"] = {arm: parts["total"] for arm, parts in results["costs"]["arms"].items()}
    kept["break_even_rows"] = results["costs"]["break_even_rows"]
    wanted = ("provenance", "quality", "alignment_before", "alignment_after", "hacks", "hacks_refused")
    kept["adapted"] = {
        name: {seed: {key: data.get(key) for key in wanted} for seed, data in by_seed.items()}
        for name, by_seed in results["adapted"].items()
    }
    if detailed and folder.name in DETAILED:
        phases = [seed["phases"] for seed in results["mapper"]["dart"].values()]
        kept["hacks"] = [{phase: row["hacks"] for phase, row in by_phase.items()} for by_phase in phases]
        first = folder / "stages" / "synthesise-s0" / "rows.jsonl"
        shown = ("question", "source_solution", "solution", "provenance")
        if first.exists():
            kept["rows"] = [{key: row[key] for key in shown} for row in read_jsonl(first)[:SHOWN_ROWS]]
    return kept


def main(words: list[str]) -> None:
    verb, *names = words or ["run"]
    known = ["matrix", *STUDIES]
    if verb == "run" and set(names) <= set(known):
        for study in names or known:
            prepare(study)
            for config in configured(study).values():
                print(run(config), flush=True)
    elif verb == "collect" and not names:
        collect()
    elif verb == "write" and not names:
        measured = parts(json.loads(RESULTS.read_text("utf-8")))
        fill(DOCUMENT, measured)
        fill(README, measured)
    else:
        sys.exit(f"{__doc__}\nstudies: {', '.join(known)}")


if __name__ == "__main__":
    main(sys.argv[1:])
