"""The gate of a gated feed-forward layer."""

import torch
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up, gate being the first half of the last dimension, in float64."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up
