"""`QuantLinear`: a quantised linear layer in place of `torch.nn.Linear`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qspec_kernels import formats
from qspec_kernels.dispatch import to_device_layout
from qspec_kernels.errors import UsageError
from qspec_kernels.formats import PackedWeight, canonical
from qspec_kernels.ops.linear import check_act, linear
from qspec_kernels.precision import PRECISIONS
from qspec_kernels.precision import precision as find_precision


class QuantLinear(nn.Module):
    """y = x @ weight.T + bias with a packed weight; inference only: a backward pass through it is refused.

    The bytes lie in the order that the kernels of their device read, and follow the module when it moves to
    another device. A state dict holds the canonical order, so it is the same on every machine. Casting the
    module (`.to(torch.bfloat16)`, `.half()`) leaves the weight alone.

    A layer on the meta device has shapes and no bytes; `to_empty` and `load_state_dict`, or the latter with
    `assign=True`, bring them. Inputs may be float32, bfloat16 or float16 (computed in float32); float64
    inputs take the plain torch path, for checks.

    Parameters
    ----------
    weight
        The weight in any byte order.
    bias
        [n], or None.
    act
        What the input is rounded to: "a16", "a8", or for int4 weights "a4".

    Examples
    --------
    >>> import torch
    >>> layer = QuantLinear.from_linear(torch.nn.Linear(256, 64), precision="w4a8")
    >>> layer(torch.randn(3, 256)).shape
    torch.Size([3, 64])
    """

    data: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: PackedWeight, bias: Float[Tensor, " n"] | None = None, act: str = "a16"
    ) -> None:
        super().__init__()
        check_act(act, canonical(weight.format))
        laid_out = to_device_layout(weight)
        self.format, self.shape, self.group_size = laid_out.format, laid_out.shape, laid_out.group_size
        self.act = act
        self.register_buffer("data", laid_out.data)
        self.register_buffer("scales", laid_out.scales)
        # a copy, as the weight is one: what becomes of the original layer changes nothing here
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_state_dict_post_hook(_save_canonical)
        self.register_load_state_dict_pre_hook(_load_canonical)

    @classmethod
    def from_linear(cls, linear: nn.Linear, precision: str = "w4a16", group_size: int = 128) -> "QuantLinear":
        """Quantise a `torch.nn.Linear` of any floating dtype, round to nearest.

        Parameters
        ----------
        precision
            "w4a16", "w4a8", "w4a4", "mxfp4a16" or "mxfp4a8".
        group_size
            Consecutive input features that share an int4 scale; -1 for one scale per output. MXFP4 has 32.

        Raises
        ------
        UsageError
            If the precision is unknown or has dense weights, or `linear` is another kind of layer.
        """
        if not isinstance(linear, nn.Linear):
            raise UsageError(
                f"linear is a {type(linear).__name__}; expected a torch.nn.Linear",
                "For other layers pack their [out_features, in_features] weight: QuantLinear(packed, bias).",
            )
        chosen = find_precision(precision)
        if chosen.act is None:
            quantised = ", ".join(name for name, other in PRECISIONS.items() if other.act)
            raise UsageError(
                f"precision {precision!r} has dense weights; expected a quantised one",
                f"There are: {quantised}.",
            )
        weight = linear.weight.detach()
        if chosen.weights == "mxfp4":
            packed = formats.get("mxfp4").pack(*formats.get("mxfp4").quantize(weight))
        else:
            int4 = formats.get(chosen.weights)
            packed = int4.pack(*int4.quantize(weight, group_size), group_size)
        return cls(packed, linear.bias, chosen.act)

    @property
    def weight(self) -> PackedWeight:
        """The packed weight as it lies on the device."""
        return PackedWeight(self.data, self.scales, self.format, self.shape, self.group_size)

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        weight = self.weight
        if x.dtype == torch.float64:
            # served by the torch path alone, which reads the canonical order
            weight = formats.convert(weight, canonical(self.format))
        wide = x.float() if x.dtype == torch.float16 else x
        return linear(wide, weight, self.bias, act=self.act).to(x.dtype)

    def extra_repr(self) -> str:
        n, k = self.shape
        return (
            f"in_features={k}, out_features={n}, format={self.format}, group_size={self.group_size},"
            f" act={self.act}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        before, device = {"data": self.data, "scales": self.scales}, self.data.device
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            after = getattr(self, name)
            # the weight follows the module to a device, never to a dtype
            if after.dtype != tensor.dtype:
                setattr(self, name, tensor.to(after.device))
        if self.data.device.type not in (device.type, "meta"):
            self._set(to_device_layout(self.weight))
        return self

    def _set(self, packed: PackedWeight) -> None:
        self.data, self.scales, self.format = packed.data, packed.scales, packed.format


def _save_canonical(module: QuantLinear, state: dict[str, Any], prefix: str, _: Any) -> None:
    packed = formats.convert(module.weight, canonical(module.format))
    state[prefix + "data"], state[prefix + "scales"] = packed.data, packed.scales


def _load_canonical(
    module: QuantLinear, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    names = (prefix + "data", prefix + "scales")
    if all(name in state for name in names):
        data, scales = (state[name] for name in names)
        packed = PackedWeight(data, scales, canonical(module.format), module.shape, module.group_size)
        if metadata.get("assign_to_params_buffers", False):
            # these tensors take the place of the module's, on their own device
            packed = to_device_layout(packed)
            module._set(packed)
        else:
            packed = formats.convert(packed, module.format)
        state[names[0]], state[names[1]] = packed.data, packed.scales
