"""`rope`: rotary position embedding."""

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def rope(
    x: Float[Tensor, "t heads d"],
    positions: Int[Tensor, " t"],
    inv_freq: Float32[Tensor, " half_d"],
    attention_scaling: float = 1.0,
) -> Float[Tensor, "t heads d"]:
    """Rotate pairs (x[i], x[i + d/2]) by the angle position * inv_freq[i].

    The angle is one float32 product and sine and cosine are float32 (float64 for float64 x, of the same
    float32 angle); the result is rounded once to x's dtype. Halves are paired as in transformers' Llama.

    Parameters
    ----------
    attention_scaling
        Multiplies sine and cosine; other than 1 for yarn.

    Raises
    ------
    UsageError
        If shapes or dtypes do not fit each other.

    Source: arXiv 2104.09864.
    """
    _check.floating("x", x)
    _check.axes("x", x, "tokens", "heads", "d")
    _check.integers("positions", positions)
    if x.shape[2] % 2:
        raise UsageError(
            f"x has {x.shape[2]} features a head; expected an even number, to be turned in pairs",
            "Rotate an even number of them and concatenate the others.",
        )
    if inv_freq.dtype != torch.float32:
        raise UsageError(
            f"inv_freq is {inv_freq.dtype}; expected float32", "Angles of far positions need its precision."
        )
    _check.same_device("positions", positions, "x", x)
    _check.same_device("inv_freq", inv_freq, "x", x)
    _check.shape("positions", positions, (x.shape[0],), "one position per token of x")
    _check.shape("inv_freq", inv_freq, (x.shape[2] // 2,), "one frequency per pair of features")
    return _rope(x, positions, inv_freq, attention_scaling)


def _op(x: Tensor, positions: Tensor, inv_freq: Tensor, attention_scaling: float) -> Tensor:
    function = dispatch.find("rope", x.device, x.dtype)
    positions = positions.to(torch.int32).contiguous()
    return function(x.contiguous(), positions, inv_freq.contiguous(), attention_scaling)


_rope = register(
    "rope(Tensor x, Tensor positions, Tensor inv_freq, float attention_scaling) -> Tensor",
    _op,
    lambda x, positions, inv_freq, attention_scaling: torch.empty_like(
        x, memory_format=torch.contiguous_format
    ),
)
