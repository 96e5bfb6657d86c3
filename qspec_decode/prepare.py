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

import torch
from jaxtyping import Float
from torch import Tensor

from qspec_kernels import PackedWeight, UsageError, formats, hadamard

# elements that are rotated at once: they stay in cache through all the butterflies, five times faster
# than whole matrices, and the float64 steps take little memory
_AT_ONCE = 1 << 14

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
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The weights of one decoder layer, or some of them, in the rotated basis of this module.

    Each transform is computed in float64, some rows at a time in the memory of the result.

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
    dtype
        Of the result; by default each tensor's own. Norm gains come back as ones.

    Raises
    ------
    UsageError
        If a width contradicts the heads or the signs, or is no multiple of its block.
    """
    signs = signs.double()
    rotated = {}
    for name, tensor in layer.items():
        value = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=tensor.device).copy_(tensor)
        if name in _BEHIND_NORM:
            _rotate_residual(value, signs, hidden_block, gain=layer[_BEHIND_NORM[name]])
        elif name in _TO_RESIDUAL:
            # the out dimension last: what a matrix adds to the stream turns with the stream
            _rotate_residual(value.movedim(0, -1), signs, hidden_block)
            if name == "o_proj":
                _check_width(name, tensor.shape[1], num_heads * head_dim, "num_heads * head_dim")
                _rotate(value, heads_block)
            elif name == "down_proj":
                _rotate(value, intermediate_block)
        elif name in _BEHIND_NORM.values():
            value.fill_(1)
        rotated[name] = value
    return rotated


def _rotate_residual(x: Tensor, signs: Tensor, block: int, gain: Tensor | None = None) -> None:
    _check_width("the residual stream", x.shape[-1], len(signs), "the number of signs")
    _rotate(x, block, signs if gain is None else signs * gain.double())


def _rotate(x: Tensor, block: int, diagonal: Tensor | None = None) -> None:
    """Multiply each row by the diagonal and rotate it, in place."""
    rows = x.view(-1, x.shape[-1]) if x.ndim == 1 else x
    for part in rows.split(max(1, _AT_ONCE // rows.shape[1])):
        part.copy_(hadamard(part.double().contiguous(), block=block, diagonal=diagonal))


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
