"""dartune: rewrite demonstrations into the style of the model that is fine-tuned on them.

Python API: `load_config` reads a recipe, `pipeline.run` executes it, `load_target` and `score` compute how likely a
solution is under a target, `score_data` does so for every row of a data set, `load_mapper` applies the trained mapper
of a run to other rows. Importing dartune does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names that `__getattr__` provides
    from dartune import pipeline as pipeline
    from dartune.config.load import load_config as load_config
    from dartune.scoring.data_set import score_data as score_data
    from dartune.scoring.solution import load_target as load_target
    from dartune.scoring.solution import score as score
    from dartune.trained_mapper.adapt import load_mapper as load_mapper

__version__ = "0.1.0"
__all__ = ["load_config", "load_mapper", "load_target", "pipeline", "score", "score_data"]

_MODULES = {
    "load_config": "dartune.config.load",
    "load_mapper": "dartune.trained_mapper.adapt",
    "load_target": "dartune.scoring.solution",
    "score": "dartune.scoring.solution",
    "score_data": "dartune.scoring.data_set",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that `import dartune` stays fast."""
    if name == "pipeline":
        return importlib.import_module("dartune.pipeline")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
