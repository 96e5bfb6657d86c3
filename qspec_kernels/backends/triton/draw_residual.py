"""An index from what one distribution has more than another."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._draw import draw_index, draw_variants
from qspec_kernels.backends.triton._variants import Variant


def draw_residual(
    p: Tensor, q: Tensor, uniforms: Tensor, p_rows: Tensor | None, q_rows: Tensor | None
) -> Tensor:
    """p float32 [R, N], q float32 [S, N], uniforms float64 [M], rows int64 [M] or None -> int64 [M]."""
    return draw_index(p, q, uniforms, p_rows, q_rows, None)


def variants(arch: int) -> Iterator[Variant]:
    """The vocabularies of Llama 3 and Gemma 3."""
    del arch
    yield from draw_variants("draw_residual", 128256, "q")
    yield from draw_variants("draw_residual", 262144, "q", "p_rows", "q_rows")
