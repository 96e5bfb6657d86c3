"""What the installed Triton makes machine code for: asked of the assembler it brings, without a GPU."""

import importlib
import re
import subprocess
from functools import cache
from inspect import signature

# the first that has all that kernels are written with
_LEAST_VERSION = (3, 5)


def why_not(capability: tuple[int, int] | None) -> str:
    """Why nothing can be compiled for a GPU of this capability, with the way out; empty where it can.

    Of AMD's GPUs, which have none, nothing is asked but how old Triton is.
    """
    version = importlib.import_module("triton").__version__
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        return f"Triton {version} is older than {least} (PyTorch 2.9 and later bring a newer one)"
    if capability is None:
        return ""
    arch = 10 * capability[0] + capability[1]
    try:
        assembler = _assembler(arch)
        known = _architectures(assembler)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"Triton's assembler cannot be run: {error} (pip install --force-reinstall triton)"
    # from Hopper on Triton compiles for one architecture and no later one
    if f"sm_{arch}{'a' if arch >= 90 else ''}" in known:
        return ""
    return f"Triton {version} does not know sm_{arch} (a newer PyTorch brings a newer one)"


def _assembler(arch: int) -> str:
    """Path of the one that Triton takes for an architecture."""
    find = importlib.import_module("triton.backends.nvidia.compiler").get_ptxas
    # Triton 3.5 has one for all of them
    return (find(arch) if signature(find).parameters else find()).path


@cache
def _architectures(assembler: str) -> frozenset[str]:
    """Real architectures that an assembler's help names, such as "sm_90a"."""
    text = subprocess.run([assembler, "--help"], capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"\bsm_\d+[af]?\b", text))
