"""The two highest values of each row, and the index of the highest."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def top2(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, N] -> int64 [M], and [M, 2] as x; -1 and NaN where a row has a NaN or no finite maximum."""
    # not the index of topk, which may take any of several
    highest, ids = x.max(1)
    values = pad(x, (0, max(0, 2 - x.shape[1])), value=-torch.inf).topk(2).values
    found = highest.isfinite()
    return torch.where(found, ids, -1), torch.where(found[:, None], values, torch.nan)
