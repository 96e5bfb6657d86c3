"""What the launchers of linear_w4a16 and linear_mxfp4a16 share: linear_float.hpp's arguments."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def float_linear(
    name: str, x: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None, shape: tuple[int, int],
    group_size: int,
) -> Tensor:  # fmt: skip
    """Call the kernel `name`: x [M, K] float32 or bfloat16, weight (data, scales) -> [M, N] in x's dtype."""
    n, k = shape
    m = x.shape[0]
    if bias is not None:
        bias = bias.float()
    out = torch.empty(m, n, dtype=x.dtype)
    kernel = library.function(name, "pplppplllll")
    library.check(
        kernel(
            out.data_ptr(),
            x.data_ptr(),
            x.dtype == torch.bfloat16,
            weight[0].data_ptr(),
            weight[1].data_ptr(),
            None if bias is None else bias.data_ptr(),
            m,
            n,
            k,
            group_size,
            torch.get_num_threads(),
        )
    )
    return out
