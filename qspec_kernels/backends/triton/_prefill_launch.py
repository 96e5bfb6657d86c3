"""Host side of the prefill phase's linears with packed weights: what is compiled, and how it is launched."""

# Triton's language is no typed Python
# pyright: reportCallIssue=false

import torch
from torch import Tensor

from qspec_kernels.backends.triton import _tiles
from qspec_kernels.backends.triton._launch import Plan, arch_of
from qspec_kernels.backends.triton._packed import NATURAL, OCTETS
from qspec_kernels.backends.triton._prefill import linear_prefill


def plan_prefill(
    shape: tuple[int, int, int], group_size: int, arch: int, *, mxfp4: bool, act_groups: int = 0
) -> Plan:
    """The launch for m tokens and a weight [n, k].

    Parameters
    ----------
    shape
        m, n, k. m chooses rows and columns of a tile; sums never depend on it.
    act_groups
        Scales of a token's codes; 0 for activations that are floats.
    """
    m, n, k = shape
    integer = act_groups > 0
    group = 0 if group_size >= k else group_size
    one_sum = group == 0 or (mxfp4 and not integer)
    # Hopper's and Blackwell's wide instructions read x where it was copied to; others hold it in registers,
    # for which 128 features of 16 bits are too many
    hopper, wide = arch // 10 == 9, arch // 10 in (9, 10)
    longest = 128 if wide or integer else 64
    dot = longest if one_sum else min(longest, group)
    # two groups a step let Hopper multiply the second while the first one's sums are scaled and added
    step = dot if one_sum else max(64, group * (2 if hopper else 1))
    widest = 256 if one_sum and hopper else 64 if integer and group == 32 and not wide else 128
    tile = _tiles.prefill(m, n, arch, step_bytes=(step // 2, step * (1 if integer else 2)), widest=widest)
    constants = {
        "GROUP": group,
        "DOT": dot,
        "STEP": step,
        "MXFP4": mxfp4,
        "INTEGER": integer,
        # x is copied by 16 bytes, and weights go to the lanes that need them; where operands come from
        # registers alone, moving weights would cost more than copies of 8 bytes
        "ORDER": NATURAL if wide or integer else OCTETS,
        "EVEN": k % step == 0,
        "GROUPED_ACT": act_groups > 1,
        "STAGES": tile.num_stages,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "TOGETHER": _tiles.TOGETHER,
    }
    return Plan(constants, tile, (-(-m // tile.block_m) * -(-n // tile.block_n), 1, 1), fp_fusion=False)


def prefilled(
    x: Tensor, act_scales: Tensor | None, weight: tuple[Tensor, Tensor], bias: Tensor | None,
    residual: Tensor | None, shape: tuple[int, int], group_size: int, mxfp4: bool,
) -> Tensor:  # fmt: skip
    """x [M, k], floats or codes with act_scales [M, A], times a weight in a `*_mma16` order -> [M, n]."""
    (n, k), m = shape, x.shape[0]
    out = x.new_empty(m, n, dtype=x.dtype if act_scales is None else torch.float32)
    if m == 0:
        return out
    act_groups = 0 if act_scales is None else act_scales.shape[1]
    plan = plan_prefill((m, n, k), group_size, arch_of(x.device), mxfp4=mxfp4, act_groups=act_groups)
    data, scales = weight
    with torch.cuda.device_of(x):
        linear_prefill[plan.grid](
            # many programs read a token: it is rounded once
            x.bfloat16() if act_scales is None else x, data, scales.view(-1).view(torch.int32), act_scales,
            bias, residual, out, m, n, k, scales.shape[1], **plan.constants, **plan.options(),
        )  # fmt: skip
    return out
