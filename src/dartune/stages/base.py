"""A stage: one step of a run that is cached, resumed and redone as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartune.run.cost import Cost

if TYPE_CHECKING:
    from dartune.stages.context import StageContext


StageInputs = dict[str, Any]
"""What a stage depends on by name: nested plain data, hashed into its key."""


class Stage(ABC):
    """One step of a run.

    Args:
        name: its folder's name (`names.py`).
    """

    def __init__(self, context: StageContext, name: str):
        self.context, self.name = context, name

    @abstractmethod
    def inputs(self) -> StageInputs:
        """Everything the outputs depend on, as plain data; earlier stages by their keys. The stage's key is their hash.

        How the work is executed (`config.execution`) is never among them.
        """

    @abstractmethod
    def run(self, folder: Path) -> Cost:
        """Write the outputs into `folder`; returns what all attempts cost.

        After an interrupted attempt with the same inputs, `folder` holds what that one left, to continue from.
        """

    def completed(self, folder: Path) -> None:  # noqa: B027 - most stages have nothing to do then
        """Called when the outputs are there, whether they were made now or earlier."""
