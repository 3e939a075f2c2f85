"""Files of a saved adapter. Does not import torch, for commands that only read files."""

from pathlib import Path

CONFIG_FILE = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds an adapter rather than a full model."""
    return (folder / CONFIG_FILE).exists() and not (folder / "config.json").exists()
