"""The gate of a gated feed-forward layer."""

import torch
from torch import Tensor


def silu_mul(x: Tensor) -> Tensor:
    """x [M, 2 F], gate beside up -> silu(gate) * up, [M, F]."""
    gate, up = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, 1)
    # not F.silu: its vectors and the scalars behind the last whole vector round differently
    return (gate / (1 + torch.exp(-gate)) * up).to(x.dtype)
