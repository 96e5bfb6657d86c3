"""`silu_mul`: the gate of a gated feed-forward layer."""

from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def silu_mul(gate_up: Float[Tensor, "*batch two_f"]) -> Float[Tensor, "*batch f"]:
    """silu(first half) * second half, in float32 (float64 for float64 input), rounded once.

    Parameters
    ----------
    gate_up
        The gate projection followed by the up projection, as one fused linear writes them.

    Raises
    ------
    UsageError
        If the last dimension is odd.
    """
    check_gate_up(gate_up)
    return _silu_mul(gate_up)


def check_gate_up(gate_up: Tensor) -> None:
    """Raise a UsageError unless the features are two halves of one width."""
    _check.floating("gate_up", gate_up)
    if gate_up.shape[-1] % 2:
        raise UsageError(
            f"gate_up has {gate_up.shape[-1]} features; expected an even number, gate then up",
            "Put two of one width side by side: torch.cat((gate, up), -1).",
        )


def _op(gate_up: Tensor) -> Tensor:
    rows = gate_up.reshape(-1, gate_up.shape[-1]).contiguous()
    out = dispatch.find("silu_mul", gate_up.device, gate_up.dtype)(rows)
    return out.view(*gate_up.shape[:-1], out.shape[1])


_silu_mul = register(
    "silu_mul(Tensor gate_up) -> Tensor",
    _op,
    lambda gate_up: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2),
)
