"""What every kernel is checked on: arguments of `ROWS` tokens, of which a call takes the first M.

Arguments are those of the torch backend's file of the op, packed weights in place of their bytes and scales.
All lie on the CPU, and are the same in every run.
"""

from collections.abc import Sequence

import torch

from qspec_decode.bench.gpu import cases_linear
from qspec_decode.bench.gpu.case import ROWS, Case, Maker
from qspec_decode.bench.gpu.cases_cache import attentions, rotary
from qspec_decode.bench.gpu.cases_rows import (
    embeddings,
    gates,
    hadamard_base,
    hadamards,
    normalisations,
    quantisations,
)
from qspec_decode.bench.gpu.cases_vocabulary import choices, draws, rescores

__all__ = ["OPS", "ROWS", "Case", "cases", "hadamard_base"]

_MAKERS: dict[str, Maker] = {
    **dict.fromkeys(("rmsnorm", "rmsnorm_quantize_act"), normalisations),
    "quantize_act": quantisations,
    **dict.fromkeys(("silu_mul", "silu_mul_quantize_act"), gates),
    **dict.fromkeys(("hadamard", "hadamard_quantize_act", "silu_mul_hadamard_quantize_act"), hadamards),
    **dict.fromkeys(("rope", "cache_write", "rope_cache_write"), rotary),
    "attention": attentions,
    "embedding": embeddings,
    "rescore": rescores,
    **dict.fromkeys(("argmax", "top2", "softmax"), choices),
    **dict.fromkeys(("draw", "draw_residual"), draws),
}
OPS = (*cases_linear.OPS, *_MAKERS)


def cases(op: str) -> list[Case]:
    """Everything that an op is checked on; nothing for an op without cases."""
    generator = torch.Generator().manual_seed(0)
    if op in cases_linear.OPS:
        return list(cases_linear.linears(op, generator))
    make = _MAKERS.get(op)
    return [case for dtype in _dtypes(op) for case in make(op, dtype, generator)] if make else []


def _dtypes(op: str) -> Sequence[torch.dtype]:
    """What a kernel takes: logits and distributions are not rounded."""
    wide = ("argmax", "top2", "softmax", "draw", "draw_residual", "embedding")
    return (torch.float32,) if op in wide else (torch.float32, torch.bfloat16)
