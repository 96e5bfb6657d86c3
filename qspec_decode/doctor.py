"""What this machine has, which path every op takes on it, and why."""

import contextlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable
from typing import Any

import torch

import qspec_kernels
from qspec_decode import machine

# what the doctor calls them, and the names that they are distributed under
PACKAGES = {
    **{name: (name,) for name in ("qspec", "torch", "numpy", "safetensors", "tokenizers", "transformers")},
    "triton": ("triton", "pytorch-triton", "pytorch-triton-rocm"),
    "cupy": ("cupy-cuda12x", "cupy-cuda13x", "cupy"),
    "nvrtc": ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"),
    "cuda-pathfinder": ("cuda-pathfinder",),
}
LINEARS = tuple(f"linear_{name}" for name in qspec_kernels.PRECISIONS)
OPS = (
    *LINEARS,
    "quantize_act",
    "hadamard",
    "hadamard_quantize_act",
    "rmsnorm",
    "rmsnorm_quantize_act",
    "rope",
    "rope_cache_write",
    "silu_mul",
    "silu_mul_quantize_act",
    "silu_mul_hadamard_quantize_act",
    "cache_write",
    "attention",
    "embedding",
    "rescore",
    "argmax",
    "top2",
    "softmax",
    "draw",
    "draw_residual",
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
        When QSPEC_CPU_ISA names no library, or one that was not built or that this CPU cannot run.
    """
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(names) for name, names in PACKAGES.items()},
        "platform": platform.platform(),
        "cpu": {
            "model": qspec_kernels.cpu_field("model name"),
            "flags": cpu_flags(),
            "usable": machine.usable_cpus(),
        },
        "threads": torch.get_num_threads(),
        "library": {"isa": qspec_kernels.isa(), "QSPEC_CPU_ISA": os.environ.get("QSPEC_CPU_ISA")},
        "memory": {"total_bytes": machine.total_bytes(), "available_bytes": machine.available_bytes()},
        "read_bandwidth": read_bandwidth(),
        "gpu": gpu(),
        "ops": {op: qspec_kernels.explain(op) for op in OPS},
    }


def _version(names: Iterable[str]) -> str | None:
    """Version of the first of these distributions that is installed."""
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def cpu_flags() -> list[str]:
    """Those of `CPU_FLAGS` that the CPU has."""
    present = set(qspec_kernels.cpu_field("flags").split())
    return [flag for flag in CPU_FLAGS if flag in present]


def read_bandwidth(num_bytes: int = _READ_BYTES, seconds: float = _READ_SECONDS) -> dict[str, Any]:
    """How fast memory is read: the bound of decoding, which reads every weight once per token.

    Memory too large for any cache, on two threads (one where there is one CPU), best of as many passes as fit
    in the time: whatever disturbs a pass makes it slower.
    """
    available = machine.available_bytes()
    if available is not None:
        num_bytes = min(num_bytes, available // 4)
    data = torch.ones(num_bytes // 4)
    before, threads = torch.get_num_threads(), min(2, machine.usable_cpus()["count"])
    native = qspec_kernels.isa() != "torch"
    torch.set_num_threads(threads)
    try:
        passes, began = [], time.perf_counter()
        while len(passes) < 3 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            if native:
                qspec_kernels.read_pass(data)
            else:
                data.sum()
            passes.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {
        "bytes_per_second": data.nbytes / min(passes),
        "threads": threads,
        "bytes": data.nbytes,
        "passes": len(passes),
        "how": "a plain native loop, best pass" if native else "torch.sum over float32, best pass",
    }


def gpu() -> dict[str, Any]:
    """GPUs that torch sees, or why there are none, and the path that every op takes there.

    `ops` are the paths of tokens that are decoded, `prefill` those of the linears of a prompt.
    """
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
    return {
        "devices": devices,
        "reason": "",
        "ops": {op: qspec_kernels.explain(op, "cuda") for op in OPS},
        "prefill": {op: qspec_kernels.explain(op, "cuda", phase="prefill") for op in LINEARS},
    }
