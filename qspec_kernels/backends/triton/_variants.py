"""`Variant`: one compilation of a kernel, known without a device to run it on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# architectures that the kernels are compiled and looked at for: Ampere, Ada, Hopper, Blackwell
ARCHS = (80, 86, 89, 90, 100, 120)


@dataclass(frozen=True)
class Variant:
    """What a launcher has compiled when it launches a kernel on one architecture.

    Parameters
    ----------
    name
        Op, shape and whatever else tells it from the op's other variants: "linear_w4a8 4096x4096 m<=16".
    kernel
        The function that `triton.jit` decorates.
    signature
        Type of each argument, as Triton writes them: "*fp32" for a pointer, "i32" for an integer, "fp32"
        for a float; those that it leaves out are constants.
    constexprs
        The value of each constant.
    divisible
        Arguments that are multiples of 16 (of pointers: the address), which a launch finds out by itself and
        which decides how wide loads are.
    fp_fusion
        Whether products and sums may be contracted; False where each rounding is pinned.
    opcodes
        Instructions, without modifiers, that the machine code must hold: "HMMA", "IMMA", "LDGSTS". Hopper's
        warpgroup forms ("HGMMA", "IGMMA") are opcodes of their own.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    fp_fusion: bool = True
    opcodes: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """The options of `triton.compile`, and of the launch that this stands for."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fp_fusion,
        }
