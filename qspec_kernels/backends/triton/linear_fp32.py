"""Dense linear in float32."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qspec_kernels.backends.triton._dense import dense
from qspec_kernels.backends.triton._linear_variants import dense_variants
from qspec_kernels.backends.triton._variants import Variant


def linear_fp32(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x [M, K], weight [N, K], bias float32 [N] -> [M, N] in x's dtype."""
    return dense(x, weight, bias, residual, torch.float32)


def variants(arch: int) -> Iterator[Variant]:
    """What is compiled for an architecture."""
    yield from dense_variants("linear_fp32", arch, torch.float32)
