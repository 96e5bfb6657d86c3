"""Which elements matrix instructions bring together: what kernels take for granted, and what a GPU says.

The former is the PTX ISA's, "Matrix Fragments for mma.m16n8k16 / k32 / k64" and "ldmatrix". The GPU is asked
by fragments.cu, which knows nothing of it.
"""

import torch
from torch import Tensor

from qspec_kernels.backends.cuda import _launch, linear_w4a4
from qspec_kernels.backends.cuda._compile import Kernel

# bits of an element; ldmatrix moves words
INSTRUCTIONS = {"m16n8k16.bf16": 16, "m16n8k32.s8": 8, "m16n8k64.s4": 4, "ldmatrix.x4": 32}

Strides = tuple[int, ...]


def instructions(capability: tuple[int, int]) -> list[str]:
    """Those that kernels use on a GPU of this compute capability."""
    return [name for name in INSTRUCTIONS if name != "m16n8k64.s4" or not linear_w4a4.why_not(capability)]


def kernel(arch: int) -> Kernel:
    """The compilation that asks all of them."""
    int4 = "m16n8k64.s4" in instructions(divmod(arch, 10))
    return Kernel("fragments", ("ptx.cuh",), (("INT4", int(int4)),), threads=32, shared_bytes=512)


def layout(instruction: str) -> dict[str, dict[str, Strides]]:
    """Where the elements of each operand stand in its matrix.

    Returns
    -------
    For a [m, k], b [k, n] and c [m, n] of a product, and for d, the words that ldmatrix gives: `sizes`, and
    strides of each coordinate, along g and t of the lane 4 g + t, its registers and the elements of one. A
    word has the lane that brings its row, and its place among the four of that row.
    """
    if instruction == "ldmatrix.x4":
        return {"d": {"sizes": (8, 4, 4), "lane": (1, 0, 8), "word": (0, 1, 0)}}
    per = 32 // INSTRUCTIONS[instruction]
    return {
        "a": {"sizes": (8, 4, 2, 2, per), "m": (1, 0, 0, 8, 0), "k": (0, per, 4 * per, 0, 1)},
        "b": {"sizes": (8, 4, 2, per), "k": (0, per, 4 * per, 1), "n": (1, 0, 0, 0)},
        "c": {"sizes": (8, 4, 2, 2), "m": (1, 0, 8, 0), "n": (0, 2, 0, 1)},
    }


def coordinates(instruction: str) -> dict[str, dict[str, Tensor]]:
    """Those of `layout` for every element, in the order in which fragments.cu counts them."""
    return {
        operand: {name: _along(of["sizes"], strides) for name, strides in of.items() if name != "sizes"}
        for operand, of in layout(instruction).items()
    }


def assumed(instruction: str) -> Tensor:
    """What `asked` gives where the layout is the hardware's."""
    at = coordinates(instruction)
    if instruction == "ldmatrix.x4":
        return (1 + 4 * at["d"]["lane"] + at["d"]["word"]).int()[None]
    a, b, c = at["a"], at["b"], at["c"]
    numbers = torch.empty(len(b["k"]) // 8, 8, dtype=torch.int32)
    numbers[b["k"], b["n"]] = torch.arange(1, len(b["k"]) + 1, dtype=torch.int32)
    return torch.where(a["m"][:, None] == c["m"], numbers[a["k"][:, None], c["n"]], 0)


def asked(instruction: str, device: torch.device) -> Tensor:
    """What the GPU says: int32 [elements of a, 128 of c], for ldmatrix [1, 128 words], see fragments.cu.

    Raises
    ------
    KernelUnavailable
        If fragments.cu cannot be compiled here.
    """
    bits = INSTRUCTIONS[instruction]
    elements = 1 if bits == 32 else 128 * 32 // bits
    # -1 stays where nothing is written
    out = torch.full((elements, 128), -1, dtype=torch.int32, device=device)
    _launch.launch(kernel(_launch.arch(device)), (elements, 1), (out, bits))
    return out.cpu()


def _along(sizes: Strides, strides: Strides) -> Tensor:
    """A coordinate of every element, in the order in which they are counted."""
    place = torch.zeros((), dtype=torch.long)
    for size, stride in zip(sizes, strides, strict=True):
        place = place[..., None] + stride * torch.arange(size)
    return place.flatten()
