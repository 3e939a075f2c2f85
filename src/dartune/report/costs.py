"""What every stage and every arm cost."""

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
    """Costs per stage, and per arm split into prepare, train and evaluate; summed over seeds.

    Args:
        stages: name -> cost.
        charged: arm -> part -> names of the stages it bears; stages that nobody bears are listed as shared.
    """
    table = {}
    for arm, parts in charged.items():
        table[arm] = {part: _add(stages[name] for name in parts.get(part, ()) if name in stages) for part in PARTS}
        table[arm]["total"] = _add(table[arm].values())
    borne = {name for parts in charged.values() for names in parts.values() for name in names}
    return {
        "stages": {stage: _add([cost]) for stage, cost in stages.items()},
        "arms": table,
        "shared": [stage for stage in stages if stage not in borne],
        "break_even_rows": break_even_rows,
    }


def _add(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total = dict.fromkeys(COSTS, 0)
    for cost in costs:
        for key in COSTS:
            value = cost.get(key, 0)
            total[key] = max(total[key], value) if key == "peak_memory_mb" else total[key] + value
    return total
