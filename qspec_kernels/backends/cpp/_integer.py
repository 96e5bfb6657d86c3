"""What the launchers of linear_w4a8, linear_w4a4 and linear_mxfp4a8 share: linear_integer.hpp's arguments."""

from torch import Tensor

from qspec_kernels.backends.cpp.calls import call, empty, num_threads


def integer_linear(
    name: str, codes: Tensor, act_scales: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None,
    residual: Tensor | None, shape: tuple[int, int], group_size: int,
) -> Tensor:  # fmt: skip
    """Call the kernel `name`: codes int8 [M, K], act_scales float32 [M, A], weight (data, scales)."""
    n, k = shape
    m = codes.shape[0]
    out = empty((m, n))
    call(
        name,
        out,
        codes,
        act_scales,
        act_scales.shape[1],
        *weight,
        None if bias is None else bias.float(),
        residual,
        m,
        n,
        k,
        group_size,
        num_threads(),
    )
    return out
