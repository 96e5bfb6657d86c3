"""What this machine has, and what the control groups of this process leave of it."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROOT = Path("/")


def gb(size: int | None) -> str:
    """A number of bytes as people read it."""
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def usable_cpus(root: Path = _ROOT) -> dict[str, Any]:
    """How many CPUs this process may use, and what says so.

    Online CPUs, the process's affinity, and the quota of its control group (version 1 or 2, every group
    on the way to the top); the least of them counts, and part of a CPU counts as one.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    quota = min(_quotas(root), default=None)
    limits = [limit for limit in (os.cpu_count(), affinity, quota and math.ceil(quota)) if limit]
    return {
        "count": min(limits, default=1),
        "online": os.cpu_count(),
        "affinity": affinity,
        "cgroup_quota": quota,
    }


def total_bytes(root: Path = _ROOT) -> int | None:
    """Memory of the machine; None where the system does not say."""
    return _meminfo(root).get("MemTotal")


def available_bytes(root: Path = _ROOT) -> int | None:
    """Memory this process may still take: the machine's, or what its tightest control group leaves.

    None where the system does not say.
    """
    free = _meminfo(root).get("MemAvailable")
    return min([*([] if free is None else [free]), *_leftovers(root)], default=None)


def free_bytes(device: "torch.device") -> int | None:
    """Memory that may still be taken on a device; of a GPU, with what torch holds of it without using it."""
    if device.type != "cuda":
        return available_bytes()
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


@contextmanager
def allocating(explain: Callable[[], Exception]) -> Iterator[None]:
    """Raise what `explain` makes when memory is refused, which torch reports as any RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = ("DefaultCPUAllocator", "CUDA out of memory")
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in told):
            raise
        raise explain() from error


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    fields = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, *_ in fields}


def _quotas(root: Path) -> Iterator[float]:
    """Every limit in CPUs that a control group of this process sets."""
    for group, version in _groups(root, "cpu"):
        if version == 1:
            numbers = [_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        else:
            numbers = (_read(group / "cpu.max") + " 0 0").split()[:2]
        limit, period = (int(n) if n.isdigit() else 0 for n in numbers)
        if limit > 0 and period > 0:
            yield limit / period


_MEMORY_FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}


def _leftovers(root: Path) -> Iterator[int]:
    """What every control group of this process that limits memory leaves."""
    for group, version in _groups(root, "memory"):
        limit, used = (_read(group / name) for name in _MEMORY_FILES[version])
        if limit.isdigit() and used.isdigit():
            lines = _read(group / "memory.stat").splitlines()
            fields = dict(line.split(maxsplit=1) for line in lines)
            # pages of files can be given back at any time
            files = fields.get("total_inactive_file") or fields.get("inactive_file") or 0
            yield max(0, int(limit) - int(used) + int(files))


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """(folder, version) of every control group that binds this process: its own and all above it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        # inside a container the path is often the host's and the files are at the top
        relative = Path(path.lstrip("/"))
        for group in (relative, *relative.parents):
            yield base / group, 1 if controllers else 2


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
