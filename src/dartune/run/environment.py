"""Software and hardware of the current process: versions, platform, commit and peak memory."""

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
    """Return what may change a run's numbers: versions, platform, CPU count, commit.

    Environment variables and user names are left out, because the result is written to the run folder.
    """
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
    """Return the commit of the checkout that this package runs from, or None for an installed wheel."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return completed.stdout.strip()
    return None


def reset_peak_memory() -> None:
    """Reset the kernel's peak of resident memory; does nothing where that is not possible."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Return the highest resident memory in MiB since the last reset; since process start if it cannot be reset."""
    with suppress(OSError):
        if high_water_mark := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(high_water_mark[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
