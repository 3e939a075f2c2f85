"""dartune: rewrite demonstrations into the words of the model that will learn from them.

From Python: `load_config` reads a recipe, `pipeline.run` does what it says, `score` says how natural a solution is to a
target. Importing dartune loads no model library.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_config", "load_target", "pipeline", "score"]

_HOMES = {"load_config": "dartune.config", "load_target": "dartune.scoring", "score": "dartune.scoring"}


def __getattr__(name: str) -> Any:
    """A public name, from its module, which is loaded when it is first asked for."""
    if name == "pipeline":
        return importlib.import_module("dartune.pipeline")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
