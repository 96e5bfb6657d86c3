"""What bounds the figures that are aimed at on GPUs, worked out for an H100: bytes over its bandwidth, and
operations over its rate, whichever takes longer.
"""

from collections.abc import Callable

import gpu_tables
from gpu_tables import BANDWIDTH, BATCH, HEADS, D

from qspec_decode.bench.cost import expected_speedup
from qspec_decode.bench.shapes import MODELS

# operations a second without sparsity, as the vendor states them
BF16 = 989e12
INT8 = 2 * BF16
# what `mma.sync` reaches of them on Hopper, measured by others (arXiv 2402.13499)
SYNC = 0.62
# bits of a weight with its scales: in groups of 128, in blocks of 32
INT4, MXFP4 = 4 + 16 / 128, 4 + 8 / 32
# the chance that a greedy draft in mxfp4 stands, of the demo's
_ALPHA = 0.9
_MOST_DRAFTS = 16


def each(bound: Callable[[int], float], *parts: int) -> str:
    """A line's bound: a number for each of its parts."""
    return " / ".join(f"{bound(part):.2f}" for part in parts)


def seconds(bits: float, m: int, rate: float) -> float:
    """Of one weight: its bits are read once, and it is multiplied and added M times."""
    return max(bits / 8 / BANDWIDTH["H100"], 2 * m / rate)


def over_cublas(m: int) -> float:
    """Of the longer one of both formats, by `mma.sync` as decoding has it, over bf16."""
    return seconds(16, m, BF16) / seconds(MXFP4, m, SYNC * BF16)


def integers(m: int) -> float:
    """Of int8 units over those for bf16, with the same weights."""
    return seconds(INT4, m, SYNC * BF16) / seconds(INT4, m, SYNC * INT8)


def growth(m: int) -> float:
    """Bytes with M rows over those with one, activations included: of the large layer that has most."""
    layer = MODELS["llama-3-8b"].linears["gate_up"]
    weight, row = layer.n * layer.k * INT4 / 8, layer.k + 4 * layer.n
    return (weight + m * row) / (weight + row)


def prompts() -> str:
    """Of operations alone: the same units as cuBLAS, and twice as fast ones."""
    sync = f"{SYNC:.2f} / {SYNC * INT8 / BF16:.2f}"
    return f"1.00 / {INT8 / BF16:.2f}, by `mma.sync` {sync}"


def queries() -> str:
    """Keys and values are read once, however many queries there are."""
    row = 4 * BATCH * HEADS * D
    return f"{(gpu_tables.cache_bytes() + 4 * row) / (gpu_tables.cache_bytes() + row):.2f}"


def from_bytes() -> str:
    """Drafts cost what their weights have in bytes, and a verification what a step costs."""
    c = MXFP4 / 16
    best = max(expected_speedup(_ALPHA, k, c, 1.0) for k in range(1, _MOST_DRAFTS))
    return f"{best:.2f} at α = {_ALPHA}, {1 / c:.2f} at 1"


def from_arithmetic(batch: int) -> float:
    """Every draft stands, and nothing counts but linears by `mma.sync`; of the best number of drafts."""
    step = seconds(INT4, batch, SYNC * BF16)
    c = seconds(INT4, batch, SYNC * INT8) / step
    return max(
        expected_speedup(1.0, k, c, seconds(INT4, batch * (k + 1), SYNC * BF16) / step)
        for k in range(1, _MOST_DRAFTS)
    )
