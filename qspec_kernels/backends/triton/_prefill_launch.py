"""Host side of the prefill phase's linears with packed weights: what is compiled, and how it is launched."""

from functools import partial

from qspec_kernels.backends.triton import _tiles
from qspec_kernels.backends.triton._launch import Plan, packed_by
from qspec_kernels.backends.triton._packed import NATURAL, OCTETS
from qspec_kernels.backends.triton._prefill import linear_prefill


def plan_prefill(
    shape: tuple[int, int, int], group_size: int, arch: int, *, mxfp4: bool, x_bytes: int, act_groups: int = 0
) -> Plan:
    """The launch for m tokens and a weight [n, k].

    Parameters
    ----------
    shape
        m, n, k. m chooses rows and columns of a tile; sums never depend on it.
    x_bytes
        Bytes of an element of x.
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
    tile = _tiles.prefill(m, n, arch, step_bytes=(step // 2, step * x_bytes), widest=widest)
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


def no_wide_integers(capability: tuple[int, int]) -> str:
    """Why tiles of 8-bit integers do not serve a device; empty where they do."""
    return "sm_103 has no wide instruction for 8-bit integers" if capability == (10, 3) else ""


prefilled = partial(packed_by, linear_prefill, plan_prefill, rounded=True)
