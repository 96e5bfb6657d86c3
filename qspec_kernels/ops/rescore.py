"""`rescore`: exact logits for the tokens that matter, after a cheap look at all of them."""

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register


def rescore(
    logits: Float[Tensor, "m n"],
    x: Float[Tensor, "m k"],
    weight: BFloat16[Tensor, "n k"],
    bias: Float[Tensor, " n"] | None = None,
    *,
    count: int = 32,
) -> None:
    """Replace the `count` largest logits of each row by those of `linear(x, weight, bias)`, in place.

    A 4-bit output matrix is read in a quarter of the time of the dense one, but its rounding reorders the
    best tokens. Computing those few again costs next to nothing and undoes most of that.

    Parameters
    ----------
    logits
        float32 (float64 for float64 x), from a cheaper copy of `weight`. -inf is left alone.
    count
        Ties go to the lowest index.

    Raises
    ------
    UsageError
        If shapes, dtypes or devices do not fit each other, or count is below 1.
    """
    _check.floating("x", x)
    if weight.dtype != torch.bfloat16 or logits.dtype != torch.promote_types(x.dtype, torch.float32):
        raise UsageError(
            f"weight is {weight.dtype} and logits are {logits.dtype}; expected torch.bfloat16 and"
            f" {torch.promote_types(x.dtype, torch.float32)}",
            "Convert them.",
        )
    if count < 1:
        raise UsageError(f"count is {count}; expected at least 1")
    if not logits.is_contiguous():
        raise UsageError(
            f"logits have strides {logits.stride()}; expected a contiguous tensor",
            "They are changed in place.",
        )
    for name, tensor in (("logits", logits), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check.same_device(name, tensor, "x", x)
    _check.shape("weight", weight, (logits.shape[1], x.shape[1]), "one row per logit")
    _check.shape("logits", logits, (x.shape[0], weight.shape[0]), "one row per row of x")
    if bias is not None:
        _check.shape("bias", bias, (weight.shape[0],), "one value per logit")
    _rescore(logits, x, weight, bias, count)


def _op(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> None:
    function = dispatch.find("rescore", x.device, logits.dtype)
    bias = None if bias is None else bias.to(logits.dtype).contiguous()
    function(logits, x.contiguous(), weight.contiguous(), bias, count)


_rescore = register(
    "rescore(Tensor(a!) logits, Tensor x, Tensor weight, Tensor? bias, int count) -> ()",
    _op,
    lambda logits, x, weight, bias, count: None,
)
