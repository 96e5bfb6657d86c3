"""The GPU that is measured: what it is, how calls are captured in graphs, and how replays are timed."""

import gc
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from qspec_kernels import UsageError


@dataclass(frozen=True)
class Captured:
    """Calls in a graph.

    Parameters
    ----------
    replay
        Runs them again, on the memory that they were captured with.
    out
        What they returned; a replay writes it anew.
    """

    replay: Callable[[], object]
    out: Any


@runtime_checkable
class Device(Protocol):
    """What measuring asks of a device; `Gpu` is the real one.

    Parameters
    ----------
    backends
        Folders of kernels that are measured.
    l2_bytes, memory_bytes
        Of the largest cache, and free at the moment.
    """

    device: torch.device
    capability: tuple[int, int]
    backends: tuple[str, ...]
    l2_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Memory that may still be taken."""
        ...

    def facts(self) -> dict[str, Any]:
        """What it is, as plain values for JSON."""
        ...

    def capture(self, call: Callable[[], Any]) -> Captured:
        """Record what a call launches; an earlier call has compiled and loaded it."""
        ...

    def seconds(self, replay: Callable[[], object]) -> float:
        """Time of one replay on the device, launching left out, with another just before it."""
        ...


def free(device: Device) -> None:
    """Give back memory that nothing uses any more."""
    if device.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


class Gpu:
    """The current NVIDIA GPU.

    Raises
    ------
    UsageError
        Where there is none that kernels are written for.
    """

    backends: tuple[str, ...] = ("cuda", "triton")

    def __init__(self) -> None:
        self.device = _device()
        self.capability = torch.cuda.get_device_capability(self.device)
        self._properties: Any = torch.cuda.get_device_properties(self.device)
        self.l2_bytes = self._properties.L2_cache_size

    @property
    def memory_bytes(self) -> int:
        """Memory that may still be taken, what PyTorch keeps for itself included."""
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def facts(self) -> dict[str, Any]:
        """What it is, as plain values for JSON."""
        return {
            "name": self._properties.name,
            "capability": "{}.{}".format(*self.capability),
            "multiprocessors": self._properties.multi_processor_count,
            "total_bytes": self._properties.total_memory,
            "l2_bytes": self.l2_bytes,
            "driver": _driver(self.device),
            "cuda": torch.version.cuda,
        }

    def capture(self, call: Callable[[], Any]) -> Captured:
        """Calls in a CUDA graph."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        # not torch.cuda.graph, which empties PyTorch's caches each time
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(stream):
            graph.capture_begin()
            try:
                out = call()
            finally:
                graph.capture_end()
        return Captured(graph.replay, out)

    def seconds(self, replay: Callable[[], object]) -> float:
        """Between two events; the replay before keeps the device busy until the second is in its queue."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        replay()
        before.record()
        replay()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3


def _device() -> torch.device:
    """Raise a UsageError that names what is missing, unless there is a GPU of sm_80 or later."""
    works = (
        "`qspec bench kernels` measures the kernels of this machine's CPU, `qspec doctor` names the paths."
    )
    if torch.version.cuda is None:
        raise UsageError(
            f"this build of PyTorch ({torch.__version__}) has no CUDA; expected one that has, and a GPU",
            f"On a machine with a GPU: pip install torch, then pip install 'qspec[cuda]'. {works}",
        )
    if not torch.cuda.is_available():
        raise UsageError(
            "PyTorch finds no NVIDIA GPU here; expected one of compute capability 8.0 or later",
            f"`nvidia-smi` says whether the driver sees one. {works}",
        )
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise UsageError(
            "the GPU has compute capability {}.{}; expected 8.0 or later".format(*capability),
            f"CUDA_VISIBLE_DEVICES chooses another one. {works}",
        )
    return device


def _driver(device: torch.device) -> str | None:
    """Version of the driver; None where nvidia-smi does not tell."""
    command = ["nvidia-smi", f"--id={device.index}", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
