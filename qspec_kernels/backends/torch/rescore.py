"""The largest logits, computed again from a dense weight."""

import torch
from torch import Tensor

from qspec_kernels.backends.torch.linear_bf16 import linear_bf16
from qspec_kernels.backends.torch.linear_fp32 import linear_fp32


def rescore(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> None:
    """logits [M, N] in place, x [M, K], weight bfloat16 [N, K], bias [N]."""
    linear = linear_fp32 if x.dtype == torch.float64 else linear_bf16
    # a stable sort, for topk does not say which of equal values it takes
    ids = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
    for row, chosen, token in zip(logits, ids, x, strict=True):
        chosen = chosen[row[chosen] > -torch.inf]
        exact = linear(token[None], weight[chosen], None if bias is None else bias[chosen], None)
        row[chosen] = exact[0].to(row.dtype)
