"""What this machine has, which path every op takes on it, and why."""

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import qspec_kernels
from qspec_decode import memory

PACKAGES = ("qspec", "torch", "numpy", "safetensors", "tokenizers", "transformers")
OPS = (
    *(f"linear_{name}" for name in qspec_kernels.PRECISIONS),
    "quantize_act",
    "hadamard",
    "hadamard_quantize_act",
    "rmsnorm",
    "rope",
    "silu_mul",
    "cache_write",
    "attention",
)
# the flags that kernels ask for; a CPU has a hundred others
CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
_READ_BYTES = 768 << 20
_READ_SECONDS = 1.5


def examine() -> dict[str, Any]:
    """The document of `qspec doctor --json`; takes about two seconds, most of them reading memory.

    Raises
    ------
    UsageError
        When QSPEC_CPU_ISA names a library that this CPU cannot run; the message says why.
    """
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": {"model": cpu_field("model name"), "flags": cpu_flags(), "usable": usable_cpus()},
        "threads": torch.get_num_threads(),
        "library": {"isa": qspec_kernels.isa(), "QSPEC_CPU_ISA": os.environ.get("QSPEC_CPU_ISA")},
        "memory": {"total_bytes": total_bytes(), "available_bytes": memory.available_bytes()},
        "read_bandwidth": read_bandwidth(),
        "gpu": gpu(),
        "ops": {op: qspec_kernels.explain(op) for op in OPS},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_field(name: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A field of the first CPU; empty where the system does not say."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of `CPU_FLAGS` that the CPU has."""
    present = set(cpu_field("flags", cpuinfo).split())
    return [flag for flag in CPU_FLAGS if flag in present]


def usable_cpus(root: Path = Path("/")) -> dict[str, Any]:
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


def _quotas(root: Path) -> Iterator[float]:
    """Every limit in CPUs that a control group of this process sets."""
    own = root / "proc/self/cgroup"
    groups = [line.split(":", 2) for line in own.read_text().splitlines()] if own.exists() else []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        # inside a container the path is often the host's and the files are at the top
        relative = Path(path.lstrip("/"))
        for group in (relative, *relative.parents):
            if controllers:
                numbers = [_read(base / group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
            else:
                numbers = (_read(base / group / "cpu.max") + " 0 0").split()[:2]
            limit, period = (int(n) if n.isdigit() else 0 for n in numbers)
            if limit > 0 and period > 0:
                yield limit / period


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def total_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory of the machine."""
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemTotal"].split()[0]) * 1024


def read_bandwidth(num_bytes: int = _READ_BYTES, seconds: float = _READ_SECONDS) -> dict[str, Any]:
    """How fast memory is read: the bound of decoding, which reads every weight once per token.

    The sum of a float32 vector too large for any cache, on two threads (one where there is one CPU), best
    of as many passes as fit in the time: whatever disturbs a pass makes it slower.
    """
    available = memory.available_bytes()
    if available is not None:
        num_bytes = min(num_bytes, available // 4)
    data = torch.ones(num_bytes // 4)
    before, threads = torch.get_num_threads(), min(2, usable_cpus()["count"])
    torch.set_num_threads(threads)
    try:
        passes, began = [], time.perf_counter()
        while len(passes) < 3 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            data.sum()
            passes.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {
        "bytes_per_second": data.nbytes / min(passes),
        "threads": threads,
        "bytes": data.nbytes,
        "passes": len(passes),
        "how": "torch.sum over float32, best pass",
    }


def gpu() -> dict[str, Any]:
    """GPUs that torch sees, or why there are none. No kernels for them yet: they take the torch path."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = "no device found" if built else "this build of torch has no CUDA"
        return {"devices": [], "reason": reason}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "total_bytes": properties.total_memory,
            }
        )
    return {"devices": devices, "reason": "", "path": qspec_kernels.explain("linear_w4a16", "cuda")}
