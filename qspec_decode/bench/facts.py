"""What a timing was taken on: without it a figure means nothing."""

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import qspec_kernels
from qspec_decode import machine


def facts() -> dict[str, Any]:
    """Hardware, threads, versions, date and commit, as plain values for JSON."""
    return {
        "cpu": qspec_kernels.cpu_field("model name"),
        "isa": qspec_kernels.isa(),
        "threads": qspec_kernels.num_threads(),
        "usable_cpus": machine.usable_cpus()["count"],
        "platform": platform.platform(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
    }


def commit(directory: Path = Path(__file__).parents[2]) -> str | None:
    """The commit of a checkout, with `+` behind it where files were changed; None where there is none."""
    if not (directory / ".git").exists():
        return None
    try:
        found = _git(directory, "rev-parse", "--short=12", "HEAD")
        return found + ("+" if _git(directory, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
