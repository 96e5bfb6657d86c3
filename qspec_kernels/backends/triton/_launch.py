"""Host side of the linears with packed weights: what is compiled, and how it is launched."""

# Triton's language is no typed Python
# pyright: reportCallIssue=false

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qspec_kernels.backends.triton import _tiles
from qspec_kernels.backends.triton._epilogue import add_splits
from qspec_kernels.backends.triton._interpreter import INTERPRETED
from qspec_kernels.backends.triton._packed import NATURAL, OCTETS, PAIRS, linear_packed

# what the interpreter, which has no device, passes for
INTERPRETED_ARCH = 80

REDUCE_BLOCK = 256


@dataclass(frozen=True)
class Plan:
    """A launch of a linear: its constants, its tile, its grid over (tokens, features, splits)."""

    constants: dict[str, Any]
    tile: _tiles.Tile
    grid: tuple[int, ...]
    fp_fusion: bool

    @property
    def splits(self) -> int:
        """Partial results that the launch leaves, to be added up; 1 where it leaves the result."""
        return self.grid[2]

    def options(self) -> dict[str, Any]:
        """Options of the launch."""
        return {
            "num_warps": self.tile.num_warps,
            "num_stages": self.tile.num_stages,
            "enable_fp_fusion": self.fp_fusion,
        }


def arch_of(device: torch.device) -> int:
    """80 for sm_80."""
    if INTERPRETED:
        return INTERPRETED_ARCH
    if torch.version.hip is not None:
        return _tiles.AMD_ARCH
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def order_of(arch: int, integer: bool) -> Any:
    """The order of columns in which expanded bytes are an operand where they are.

    8-bit operands take four neighbours a lane, as the bytes lie. 16-bit ones take eight where the compiler
    uses mma.sync, and two in Hopper's wgmma; Blackwell's operand goes through its own memory, in any order.
    """
    if integer or arch // 10 == 10:
        return NATURAL
    return PAIRS if arch // 10 == 9 else OCTETS


def plan_packed(
    shape: tuple[int, int, int], group_size: int, arch: int, *, mxfp4: bool, x_bytes: int, act_groups: int = 0
) -> Plan:
    """The launch for m tokens and a weight [n, k].

    Parameters
    ----------
    shape
        m, n, k. m chooses rows and columns of a tile, and who adds the splits up; sums never depend on it.
    x_bytes
        Bytes of an element of x.
    act_groups
        Scales of a token's codes; 0 for activations that are floats.
    """
    m, n, k = shape
    integer = act_groups > 0
    group = 0 if group_size >= k else group_size
    step = max(group, 64)
    tile = _tiles.linear(m, n, arch, step_bytes=(step // 2, step * x_bytes), integer=integer)
    # integer linears add groups one by one, in order
    splits = 1 if integer else _tiles.splits(n, k, arch)
    apart = splits > 1 and m <= _tiles.APART_TOKENS
    grid = (-(-m // tile.block_m), -(-n // tile.block_n), splits if apart else 1)
    constants = {
        "GROUP": group,
        "MXFP4": mxfp4,
        "INTEGER": integer,
        "ORDER": order_of(arch, integer),
        "EVEN": k % step == 0,
        "GROUPED_ACT": act_groups > 1,
        "SPLITS": splits,
        "APART": apart,
        # weights that no other program reads again
        "EVICT": "evict_first" if grid[0] == 1 else "",
        "STAGES": tile.num_stages,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
    }
    return Plan(constants, tile, grid, fp_fusion=False)


def launch(
    kernel: Any, plan: Plan, operands: tuple[Any, ...], ends: tuple[Tensor | None, Tensor | None],
    out: Tensor, *sizes: int,
) -> Tensor:  # fmt: skip
    """Run a linear's kernel as planned -> out [m, n]; `ends`, bias and residual, are added last."""
    with torch.cuda.device_of(out):
        apart = plan.splits > 1
        target = out.new_empty(plan.splits, *out.shape, dtype=torch.float32) if apart else out
        kernel[plan.grid](
            *operands, *((None, None) if apart else ends), target, *sizes, **plan.constants, **plan.options()
        )
        if apart:
            add(target, *ends, out)
    return out


def packed_by(
    kernel: Any, plan_of: Callable[..., Plan], x: Tensor, act_scales: Tensor | None,
    weight: tuple[Tensor, Tensor], bias: Tensor | None, residual: Tensor | None, shape: tuple[int, int],
    group_size: int, mxfp4: bool, *, rounded: bool,
) -> Tensor:  # fmt: skip
    """x [M, k], floats or codes with act_scales [M, A], times a weight in a `*_mma16` order -> [M, n].

    By a phase's kernel and its plans; `rounded` has floats rounded to bfloat16 before, where many programs
    read a token.
    """
    (n, k), m = shape, x.shape[0]
    out = x.new_empty(m, n, dtype=x.dtype if act_scales is None else torch.float32)
    if m == 0:
        return out
    if rounded and act_scales is None:
        x = x.bfloat16()
    act_groups = 0 if act_scales is None else act_scales.shape[1]
    plan = plan_of(
        (m, n, k), group_size, arch_of(x.device), mxfp4=mxfp4, x_bytes=x.element_size(), act_groups=act_groups
    )
    data, scales = weight
    operands = (x, data, scales.view(-1).view(torch.int32), act_scales)
    return launch(kernel, plan, operands, (bias, residual), out, m, n, k, scales.shape[1])


# the decode phase's
packed = partial(packed_by, linear_packed, plan_packed, rounded=False)


def add(parts: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor) -> None:
    """out [m, n] = parts [splits, m, n] added in order, finished."""
    splits, m, n = parts.shape
    add_splits[(-(-n // REDUCE_BLOCK), m)](
        parts,
        bias,
        residual,
        out,
        m,
        n,
        SPLITS=splits,
        BLOCK=REDUCE_BLOCK,
        num_warps=4,
        enable_fp_fusion=False,
    )
