"""`WeightSet`: one version of a model's weights. A model holds several over one embedding."""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from qspec_kernels import PackedWeight, to_device_layout

Weight = Tensor | PackedWeight
_Weight = TypeVar("_Weight", Tensor, PackedWeight, None)


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Matrices are [out, in], dense or packed in the device's byte order.

    `qkv` has the rows of q_proj, k_proj and v_proj one after the other, `gate_up` those of gate_proj
    and up_proj. Norm gains and biases are float32 (float64 in a float64 model). In a rotated set
    `input_norm` and `post_norm` are ones, and the rotations are in the matrices.
    """

    input_norm: Tensor
    qkv: Weight
    o: Weight
    post_norm: Tensor
    gate_up: Weight
    down: Weight
    qkv_bias: Tensor | None = None
    o_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    def to(self, device: torch.device) -> "LayerWeights":
        """The same on a device; what is packed, in the byte order of its kernels."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        dtype = self.input_norm.dtype
        return LayerWeights(**{name: moved(value, device, dtype) for name, value in values.items()})


@dataclass(frozen=True)
class WeightSet:
    """All layers in one format, and the output matrix.

    Parameters
    ----------
    layers
        One entry per layer.
    head
        Output matrix [vocab, hidden]: dense, the same object in every 16-bit and 4-bit set, but for sets
        that have it in their own format (`load`'s `quant_lm_head`).
    draft_head
        A 4-bit copy of a dense one, which drafts may use; verification never does.
    signs
        The signs [hidden] of a rotated set, whose layers expect the residual stream times these and
        Hadamard-transformed (see `qspec_decode.prepare`); None for weights in the checkpoint's basis.
    """

    layers: tuple[LayerWeights, ...]
    head: Weight
    draft_head: PackedWeight | None = None
    signs: Tensor | None = None

    @property
    def rotated(self) -> bool:
        """Whether the layers work in a rotated basis."""
        return self.signs is not None

    @property
    def num_bytes(self) -> int:
        """Bytes that one token's forward reads: the layers' matrices and `head`."""
        matrices = [w for layer in self.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return sum(weight_bytes(w) for w in (*matrices, self.head))


def moved(weight: _Weight, device: torch.device, dtype: torch.dtype) -> _Weight:
    """A weight on a device, if there is one; packed, in the byte order of its kernels for `dtype`."""
    if isinstance(weight, PackedWeight) and weight.device != device:
        # float64 is computed by plain torch everywhere, which reads the canonical order
        return weight.to(device) if dtype == torch.float64 else to_device_layout(weight, device)
    return weight.to(device) if isinstance(weight, Tensor) else weight


def weight_bytes(weight: Weight) -> int:
    """Bytes of one matrix, scales included."""
    return weight.num_bytes if isinstance(weight, PackedWeight) else weight.nbytes
