"""From a checkpoint's weights to rotated and quantised ones: pure functions on tensors.

Rotation follows QuaRot (arXiv 2404.00456), with one change: `v_proj`'s output stays as it is, so that
keys and values of rotated and unrotated weights are the same and share one cache. With H the orthonormal
Hadamard transform (blockwise where a width has no matrix) and S the signs, a rotated layer expects

    residual stream   x' = H(S x)        in front of the first layer, undone behind the last
    o_proj's input    a' = H(a)          over all heads * head_dim features, online
    down_proj's input h' = H(h)          over the intermediate features, online

and holds the inverses in its matrices. All three are orthogonal, so the row w of a matrix that read x
reads x' as H(S w): both sides of a product are transformed alike. RMSNorm commutes with a rotation
once its gain is folded into the linears behind it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import PackedWeight, UsageError, formats, hadamard

# elements that are rotated at once: they stay in cache through all the butterflies, five times faster
# than whole matrices, and the float64 steps take little memory
_AT_ONCE = 1 << 15

# the linears that read each norm's output
_BEHIND_NORM = {
    "q_proj": "input_layernorm",
    "k_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
}
# what is added to the residual stream
_TO_RESIDUAL = ("o_proj", "down_proj", "o_bias", "down_bias")


def signs(hidden_size: int, seed: int = 0) -> Float[Tensor, " hidden"]:
    """The random signs of the residual stream's rotation, +-1 in float32, the same for the same seed.

    They keep features that are alike in all tokens from meeting in one rotated feature.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (hidden_size,), generator=generator).float() * 2 - 1


def rotate_layer(
    layer: dict[str, Tensor],
    *,
    num_heads: int,
    head_dim: int,
    signs: Float[Tensor, " hidden"],
    hidden_block: int,
    heads_block: int,
    intermediate_block: int,
) -> dict[str, Tensor]:
    """The weights of one decoder layer, or some of them, in the rotated basis of this module.

    Each transform is computed in float64 and comes back in the dtype the tensor had, norm gains as ones.

    Parameters
    ----------
    layer
        Any of `input_layernorm`, `post_attention_layernorm` [hidden]; `q_proj`, `k_proj`, `v_proj`,
        `o_proj`, `gate_proj`, `up_proj`, `down_proj` [out, in]; a bias [out] for each (`q_bias`, ...);
        `q_norm`, `k_norm` [head_dim]. A linear that reads a norm's output comes with that norm.
        Biases of o_proj and down_proj are rotated; other biases and the norms of q and k are not touched.
    num_heads, head_dim
        Query heads and features of each: together the input width of `o_proj`.
    signs
        From `signs`.
    hidden_block, heads_block, intermediate_block
        Widths of the Hadamard matrices: the whole width, or a divisor of it that has a matrix.

    Raises
    ------
    UsageError
        If a width contradicts the heads or the signs, or is no multiple of its block.
    """
    rotated = {}
    for name, tensor in layer.items():
        if name in _BEHIND_NORM:
            gain = layer[_BEHIND_NORM[name]].double()
            rotated[name] = _by_rows(
                tensor, tensor.dtype, lambda x, g=gain: _rotate_residual(x * g, signs, hidden_block)
            )
        elif name in _TO_RESIDUAL:
            # the out dimension last: what a matrix adds to the stream turns with the stream
            columns = tensor.movedim(0, -1)
            turned = _by_rows(columns, tensor.dtype, lambda x: _rotate_residual(x, signs, hidden_block))
            value = turned.movedim(-1, 0)
            if name == "o_proj":
                _check_width(name, tensor.shape[1], num_heads * head_dim, "num_heads * head_dim")
                value = _by_rows(value, tensor.dtype, lambda x: _transform(x, heads_block))
            elif name == "down_proj":
                value = _by_rows(value, tensor.dtype, lambda x: _transform(x, intermediate_block))
            rotated[name] = value.contiguous()
        elif name in _BEHIND_NORM.values():
            rotated[name] = torch.ones_like(tensor)
        else:
            rotated[name] = tensor.clone()
    return rotated


def _by_rows(x: Tensor, dtype: torch.dtype, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function`, in float64, of some rows at a time."""
    if x.ndim == 1:
        return function(x.double()).to(dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    rows = max(1, _AT_ONCE // x.shape[1])
    for target, source in zip(out.split(rows), x.split(rows), strict=True):
        target.copy_(function(source.double()))
    return out


def _rotate_residual(x: Tensor, signs: Tensor, block: int) -> Tensor:
    _check_width("the residual stream", x.shape[-1], len(signs), "the number of signs")
    return _transform(x * signs.double(), block)


def _transform(x: Tensor, block: int) -> Tensor:
    return hadamard(x.contiguous(), block=block)


def _check_width(what: str, width: int, expected: int, name: str) -> None:
    if width != expected:
        raise UsageError(f"{what} is {width} wide, expected {name} = {expected}")


def quantise(
    weight: Float[Tensor, "n k"], weights: str, group_size: int = 128, *, clip_search: bool = True
) -> PackedWeight:
    """A weight rounded to nearest and packed in the canonical order of its format.

    Rows do not see each other: quantising some rows at a time gives the same codes.

    Parameters
    ----------
    weights
        "int4", with `group_size` input features per scale (-1 for one scale per row) and, unless
        `clip_search` is False, the scale of least squared error; or "mxfp4", cast directly.

    Raises
    ------
    UsageError
        If `weights` is neither.
    """
    if weights == "int4":
        int4 = formats.get("int4")
        codes, scales = int4.quantize(weight, group_size, clip_search=clip_search)
        return int4.pack(codes, scales, group_size)
    if weights == "mxfp4":
        mxfp4 = formats.get("mxfp4")
        return mxfp4.pack(*mxfp4.quantize(weight))
    raise UsageError(f"weights is {weights!r}, expected 'int4' or 'mxfp4'")
