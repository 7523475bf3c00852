"""What stands beside every figure: machine, versions, commit, command."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """Facts of this run, ready for JSON."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": commit or "not in a git checkout",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "accelerator": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "none",
        "python": platform.python_version(),
        "versions": {
            name: _version(name)
            for name in ("vllm-hired", "vllm", "torch", "transformers")
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
