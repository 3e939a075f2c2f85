"""What a run notes about the machine it runs on, and the memory it needs there."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from dartune import __version__


def environment() -> dict[str, Any]:
    """What may change a run's numbers: versions, platform, cores, commit. No variables, no user."""
    versions = {}
    for name in ("torch", "transformers", "accelerate", "datasets", "peft"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "dartune": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _commit() -> str | None:
    """The commit this package's own checkout stands at, None where it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return found.stdout.strip()
    return None


def reset_peak_memory() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Highest resident memory since the last reset; since the process started where it cannot be reset."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
