"""An index from each row of weights."""

from collections.abc import Iterator

from torch import Tensor

from qspec_kernels.backends.triton._draw import draw_index, draw_variants
from qspec_kernels.backends.triton._variants import Variant


def draw(weights: Tensor, uniforms: Tensor, rows: Tensor | None, without: Tensor | None) -> Tensor:
    """weights float32 [R, N], uniforms float64 [M], rows and without int64 [M] or None -> int64 [M]."""
    return draw_index(weights, None, uniforms, rows, None, without)


def variants(arch: int) -> Iterator[Variant]:
    """The vocabularies of Llama 3 and Gemma 3."""
    del arch
    yield from draw_variants("draw", 128256)
    yield from draw_variants("draw", 262144, "p_rows", "without")
