"""Costs of stages and arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COSTS = ("generated_tokens", "scored_tokens", "trained_tokens", "flops", "seconds", "peak_memory_mb")
PARTS = ("prepare", "train", "evaluate")


def cost_table(
    stages: Mapping[str, Mapping[str, float]],
    charged: Mapping[str, Mapping[str, Sequence[str]]],
    break_even_rows: float | None,
) -> dict[str, Any]:
    """Return the cost of every stage, and of every arm split into prepare, train and evaluate; summed over seeds.

    A stage may be charged to several arms. Stages that are charged to no arm are listed as shared.

    Args:
        stages: stage name -> cost.
        charged: arm -> part -> names of the stages whose cost the arm bears.
        break_even_rows: included as it is; see `build_results`.
    """
    table = {}
    for arm, parts in charged.items():
        table[arm] = {part: _add(stages[name] for name in parts.get(part, ()) if name in stages) for part in PARTS}
        table[arm]["total"] = _add(table[arm].values())
    charged_stages = {name for parts in charged.values() for names in parts.values() for name in names}
    return {
        "stages": {stage: _add([cost]) for stage, cost in stages.items()},
        "arms": table,
        "shared": [stage for stage in stages if stage not in charged_stages],
        "break_even_rows": break_even_rows,
    }


def _add(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum of costs; of the peak memories, the maximum."""
    total: dict[str, float] = dict.fromkeys(COSTS, 0)
    for cost in costs:
        for key in COSTS:
            value = cost.get(key, 0)
            total[key] = max(total[key], value) if key == "peak_memory_mb" else total[key] + value
    return total
