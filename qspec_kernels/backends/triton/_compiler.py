"""What the installed Triton makes machine code for: asked of the assembler it brings, without a GPU."""

import importlib
import re
import subprocess
from functools import cache


def why_not(capability: tuple[int, int]) -> str:
    """Why nothing can be compiled for a GPU of this capability, with the way out; empty where it can."""
    arch = 10 * capability[0] + capability[1]
    try:
        assembler = _assembler(arch)
        known = _architectures(assembler)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"Triton's assembler cannot be run: {error} (pip install --force-reinstall triton)"
    # from Hopper on Triton compiles for one architecture and no later one
    if f"sm_{arch}{'a' if arch >= 90 else ''}" in known:
        return ""
    version = importlib.import_module("triton").__version__
    return f"Triton {version} does not know sm_{arch} (a newer PyTorch brings a newer one)"


def _assembler(arch: int) -> str:
    """Path of the one that Triton takes for an architecture."""
    return importlib.import_module("triton.backends.nvidia.compiler").get_ptxas(arch).path


@cache
def _architectures(assembler: str) -> frozenset[str]:
    """Real architectures that an assembler's help names, such as "sm_90a"."""
    text = subprocess.run([assembler, "--help"], capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"\bsm_\d+[af]?\b", text))
