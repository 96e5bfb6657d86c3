"""`linear`: x times a weight transposed, for dense and for quantised weights."""

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import dispatch
from qspec_kernels.errors import UsageError
from qspec_kernels.formats import PackedWeight, QuantizedActivation, canonical
from qspec_kernels.ops import _check
from qspec_kernels.ops._library import register
from qspec_kernels.ops.quantize_act import quantize_act

_STEMS = {"int4": "w4", "mxfp4": "mxfp4"}
_ACTS = {"int4": ("a16", "a8", "a4"), "mxfp4": ("a16", "a8")}


def linear(
    x: Float[Tensor, "*batch k"] | QuantizedActivation,
    weight: Float[Tensor, "n k"] | PackedWeight,
    bias: Float[Tensor, " n"] | None = None,
    *,
    act: str = "a16",
    residual: Float[Tensor, "*batch n"] | None = None,
    phase: str = "decode",
) -> Float[Tensor, "*batch n"]:
    """x @ weight.T + bias, each row of the output bit-identical whatever the other rows are.

    What is rounded depends on the weight and on `act`:

    - dense float32: products and sums in float32;
    - dense bfloat16, and packed weights with "a16": x is rounded to bfloat16, products are summed in
      float32; a packed weight's scale multiplies the sum of its group;
    - packed weights with "a8" or "a4": x is quantised (`quantize_act`), codes are summed as integers.
      Groups are then added in order, each float32 step rounded:
      acc = acc + float(sum) * (weight_scale * activation_scale). This is the same on every backend,
      so these agree bit for bit. For MXFP4 the integers are twice the E2M1 value and the scale is
      2^(E - 128).

    float64 input keeps everything in float64 and is served by the torch backend alone.

    Parameters
    ----------
    x
        float32, bfloat16 or float64; or an activation quantised before, which several linears can share.
    weight
        A dense matrix, or bytes in the order the device reads (see `to_device_layout`).
    act
        What the input of a packed weight is rounded to: "a16", "a8" or "a4" (int4 only). For a
        `QuantizedActivation` it is what that has been quantised to.
    residual
        Added to the rounded result, in its dtype: residual + linear(x).
    phase
        "decode" for tokens that are decoded, drafted or verified, "prefill" for a prompt: GPUs have kernels
        of their own for it. Rows do not depend on their company in either, but where floats are summed a
        row's bits may differ between the two; sums of integers, and everything on CPUs, are the same in
        both. The number of rows never chooses.

    Returns
    -------
    x's dtype; for a `QuantizedActivation` the dtype of its scales, float32.

    Raises
    ------
    UsageError
        If shapes, dtypes, devices or `act` do not fit each other, or there is no such phase.
    KernelUnavailable
        If no backend of the device reads the weight's byte order.
    """
    if phase not in dispatch.PHASES:
        raise UsageError(
            f"phase is {phase!r}; expected one of {', '.join(dispatch.PHASES)}", "Choose one of those."
        )
    if isinstance(weight, PackedWeight):
        return _packed(x, weight, bias, residual, act, phase)
    if isinstance(x, QuantizedActivation):
        raise UsageError(
            "a quantised activation needs a PackedWeight; the weight is dense",
            "Pass the activation unquantised.",
        )
    _check.floating("x", x)
    _check.floating("weight", weight)
    _check.axes("weight", weight, "out_features", "in_features")
    _check_operands(x, weight, weight.shape, bias)
    _check_residual(residual, x, weight.shape[0], x.dtype)
    return _linear(x, weight, bias, residual, phase)


def _packed(
    x: Tensor | QuantizedActivation,
    weight: PackedWeight,
    bias: Tensor | None,
    residual: Tensor | None,
    act: str,
    phase: str,
) -> Tensor:
    kind = canonical(weight.format)
    n, k = weight.shape
    if isinstance(x, QuantizedActivation):
        if act not in ("a16", f"a{x.bits}"):
            raise UsageError(
                f"act is {act!r} but x has been quantised to {x.bits} bits", f"Pass act='a{x.bits}'."
            )
        check_act(f"a{x.bits}", kind)
        groups = -(-k // weight.group_size) if x.bits == 4 else 1
        if x.scales.shape[-1] != groups or (x.bits == 4 and x.group_size != weight.group_size):
            raise UsageError(
                f"x has {x.scales.shape[-1]} scales per token (group size {x.group_size}); expected {groups}",
                f"Quantise it with group_size={weight.group_size if x.bits == 4 else None}.",
            )
        if x.codes.dtype != torch.int8 or x.scales.shape[:-1] != x.codes.shape[:-1]:
            raise UsageError(
                f"x has {x.codes.dtype} codes {list(x.codes.shape)} and scales {list(x.scales.shape)};"
                " expected int8 codes and scales for each of their rows",
                "qspec_kernels.quantize_act makes both.",
            )
        _check_operands(x.codes, weight.data, weight.shape, bias)
        _check_residual(residual, x.codes, n, x.scales.dtype)
        return _linear_integer(
            x.codes,
            x.scales,
            weight.data,
            weight.scales,
            bias,
            residual,
            weight.format,
            n,
            k,
            weight.group_size,
            x.bits,
            phase,
        )
    _check.floating("x", x)
    check_act(act, kind)
    _check_operands(x, weight.data, weight.shape, bias)
    if act == "a16":
        _check_residual(residual, x, n, x.dtype)
        return _linear_packed(
            x, weight.data, weight.scales, bias, residual, weight.format, n, k, weight.group_size, phase
        )
    quantized = quantize_act(x, bits=int(act[1:]), group_size=weight.group_size if act == "a4" else None)
    if x.dtype == quantized.scales.dtype:
        return _packed(quantized, weight, bias, residual, act, phase)
    # the residual is added to what has been rounded to x's dtype
    out = _packed(quantized, weight, bias, None, act, phase).to(x.dtype)
    _check_residual(residual, x, n, x.dtype)
    return out if residual is None else residual + out


def check_act(act: str, kind: str) -> None:
    """Raise a UsageError unless weights of a canonical format serve an activation precision."""
    if act not in _ACTS[kind]:
        raise UsageError(
            f"act is {act!r}; {kind} weights serve {', '.join(_ACTS[kind])}", "Choose one of those."
        )


def _check_operands(x: Tensor, storage: Tensor, shape: tuple[int, ...], bias: Tensor | None) -> None:
    _check.same_device("weight", storage, "x", x)
    if x.shape[-1] != shape[1]:
        raise UsageError(
            f"x has {x.shape[-1]} features; the weight of shape {list(shape)} expects {shape[1]}",
            "A weight is [out_features, in_features], as in torch.nn.Linear.",
        )
    if bias is not None:
        _check.same_device("bias", bias, "x", x)
        _check.shape("bias", bias, (shape[0],), "one value per output feature")


def _check_residual(residual: Tensor | None, x: Tensor, n: int, dtype: torch.dtype) -> None:
    if residual is None:
        return
    _check.same_device("residual", residual, "x", x)
    _check.shape("residual", residual, (*x.shape[:-1], n), "one value per output")
    if residual.dtype != dtype:
        raise UsageError(
            f"residual is {residual.dtype}; expected {dtype}, the dtype of the output", "Convert it."
        )


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()


def _bias(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype).contiguous()


def _residual(residual: Tensor | None) -> Tensor | None:
    return None if residual is None else _rows(residual)


def _dense_op(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, phase: str) -> Tensor:
    name = "linear_bf16" if weight.dtype == torch.bfloat16 and x.dtype != torch.float64 else "linear_fp32"
    dtype, sizes = torch.promote_types(x.dtype, weight.dtype), tuple(weight.shape)
    function = dispatch.find(name, x.device, dtype, phase=phase, sizes=sizes)
    bias = _bias(bias, torch.promote_types(x.dtype, torch.float32))
    out = function(_rows(x), weight.contiguous(), bias, _residual(residual))
    return out.view(*x.shape[:-1], weight.shape[0])


def _packed_op(
    x: Tensor,
    data: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    format: str,
    n: int,
    k: int,
    group_size: int,
    phase: str,
) -> Tensor:
    name = f"linear_{_STEMS[canonical(format)]}a16"
    function = dispatch.find(name, x.device, x.dtype, format, phase, sizes=(n, k))
    bias = _bias(bias, torch.promote_types(x.dtype, torch.float32))
    out = function(_rows(x), data, scales, bias, _residual(residual), n, k, group_size)
    return out.view(*x.shape[:-1], n)


def _integer_op(
    codes: Tensor,
    act_scales: Tensor,
    data: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    format: str,
    n: int,
    k: int,
    group_size: int,
    bits: int,
    phase: str,
) -> Tensor:
    name = f"linear_{_STEMS[canonical(format)]}a{bits}"
    function = dispatch.find(name, codes.device, act_scales.dtype, format, phase, sizes=(n, k))
    bias = _bias(bias, act_scales.dtype)
    out = function(_rows(codes), _rows(act_scales), data, scales, bias, _residual(residual), n, k, group_size)
    return out.view(*codes.shape[:-1], n)


_linear = register(
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str phase) -> Tensor",
    _dense_op,
    lambda x, weight, bias, residual, phase: x.new_empty(*x.shape[:-1], weight.shape[0]),
)
_linear_packed = register(
    "linear_packed(Tensor x, Tensor data, Tensor scales, Tensor? bias, Tensor? residual, str format,"
    " int n, int k, int group_size, str phase) -> Tensor",
    _packed_op,
    lambda x, data, scales, bias, residual, format, n, k, group_size, phase: x.new_empty(*x.shape[:-1], n),
)
_linear_integer = register(
    "linear_integer(Tensor codes, Tensor act_scales, Tensor data, Tensor scales, Tensor? bias,"
    " Tensor? residual, str format, int n, int k, int group_size, int bits, str phase) -> Tensor",
    _integer_op,
    lambda codes, act_scales, data, scales, bias, residual, format, n, k, group_size, bits, phase: (
        act_scales.new_empty(*codes.shape[:-1], n)
    ),
)
