"""What the launchers of linear_w4a8, linear_w4a4 and linear_mxfp4a8 share: linear_integer.hpp's arguments."""

import torch
from torch import Tensor

from qspec_kernels.backends.cpp import library


def integer_linear(
    name: str, codes: Tensor, act_scales: Tensor, weight: tuple[Tensor, Tensor], bias: Tensor | None,
    shape: tuple[int, int], group_size: int,
) -> Tensor:  # fmt: skip
    """Call the kernel `name`: codes int8 [M, K], act_scales float32 [M, A], weight (data, scales)."""
    n, k = shape
    m = codes.shape[0]
    if bias is not None:
        bias = bias.float()
    out = torch.empty(m, n)
    kernel = library.function(name, "ppplppplllll")
    library.check(
        kernel(
            out.data_ptr(),
            codes.data_ptr(),
            act_scales.data_ptr(),
            act_scales.shape[1],
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
