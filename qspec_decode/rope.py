"""Rotary position frequencies: the types that Llama, Mistral and Qwen checkpoints name."""

import math
from typing import Any

import torch
from torch import Tensor

from qspec_kernels import CheckpointError

_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
# read where they are given and not 0
_OPTIONAL = {"yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")}


def parse(config: dict[str, Any], max_positions: int, where: str) -> dict[str, Any]:
    """The rotary parameters of a `config.json`, old keys and new ones, as one flat dictionary.

    `rope_parameters` (transformers 5) or `rope_scaling` with a separate `rope_theta` (before) are
    read; the result always has `rope_type` and `rope_theta`, and for `llama3` and `yarn`
    `original_max_position_embeddings`. `where` names the file in errors.

    Raises
    ------
    CheckpointError
        For an unknown type, a missing or non-numeric parameter, or a rotation of only a part of each head.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{where}: the rope parameters are {given!r}, expected an object")
    if any(isinstance(value, dict) for value in given.values()):
        raise CheckpointError(f"{where}: rope parameters per layer type ({sorted(given)}) are not supported")
    rope = dict(given)
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise CheckpointError(
            f"{where}: rope type {kind!r} is not supported, expected one of {list(_REQUIRED)}"
        )
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (1, 1.0, None):
        raise CheckpointError(f"{where}: partial_rotary_factor other than 1 is not supported")
    if kind in ("llama3", "yarn"):
        original = config.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = (
            original or rope.get("original_max_position_embeddings") or max_positions
        )
    optional = _OPTIONAL.get(kind, ())
    for key in ("rope_theta", *_REQUIRED[kind], *optional):
        value = rope.get(key)
        if key in optional and value in (None, 0):
            continue
        if value is None and key == "factor" and kind == "yarn":
            # the stretch is then said by the two lengths; the other one is checked next
            continue
        # a base of 1 would turn all dimensions alike
        above = 1 if key == "rope_theta" else 0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < math.inf:
            raise CheckpointError(
                f"{where}: rope type {kind!r} has {key} = {value!r}, expected a number above {above}"
            )
    if kind == "yarn" and rope.get("factor") is None:
        rope["factor"] = max_positions / rope["original_max_position_embeddings"]
    if kind == "llama3" and not rope["low_freq_factor"] < rope["high_freq_factor"]:
        raise CheckpointError(
            f"{where}: low_freq_factor is {rope['low_freq_factor']}, "
            f"expected less than high_freq_factor {rope['high_freq_factor']}"
        )
    return rope


def max_positions(rope: dict[str, Any], max_position_embeddings: int) -> int:
    """How many positions a model with these parameters may be asked for.

    `dynamic` frequencies depend on the length of the sequence, so beyond the original length a
    growing sequence would change keys that are already cached. There the model ends instead.
    `yarn` parameters are often added by hand without raising `max_position_embeddings`: the
    stretched length counts.
    """
    if rope["rope_type"] == "yarn":
        stretched = int(rope["original_max_position_embeddings"] * rope["factor"])
        return max(max_position_embeddings, stretched)
    return max_position_embeddings


def frequencies(rope: dict[str, Any], head_dim: int) -> tuple[Tensor, float]:
    """(inverse frequencies float32 [head_dim / 2], factor on cos and sin).

    Sources: RoPE (arXiv 2104.09864), linear interpolation (2306.15595), YaRN (2309.00071), and
    the Llama 3.1 release. `dynamic` equals `default` inside the original length, which is all
    that `max_positions` allows.
    """
    kind, theta = rope["rope_type"], rope["rope_theta"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    if kind == "yarn":
        return _yarn(rope, theta**exponents, head_dim)
    inverse = 1.0 / theta**exponents
    if kind == "linear":
        return inverse / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(rope, inverse), 1.0
    return inverse, 1.0


def _llama3(rope: dict[str, Any], inverse: Tensor) -> Tensor:
    """Long wavelengths are stretched by `factor`, short ones kept, those between blended."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * inverse / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * inverse / factor + blend * inverse


def _yarn(rope: dict[str, Any], wavelengths: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """Dimensions that turn often are kept, slow ones interpolated, with a linear ramp between."""
    factor, original = rope["factor"], rope["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        """The (fractional) dimension that turns so many times over the original length."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = (
        dimension(float(rope.get(key) or turns)) for key, turns in (("beta_fast", 32), ("beta_slow", 1))
    )
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    inverse = 1.0 / (factor * wavelengths) * ramp + 1.0 / wavelengths * (1 - ramp)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scaling = rope.get("attention_factor")
    if not scaling:
        mscale, mscale_all = rope.get("mscale"), rope.get("mscale_all_dim")
        scaling = (
            magnitude(float(mscale)) / magnitude(float(mscale_all))
            if mscale and mscale_all
            else magnitude(1.0)
        )
    return inverse, float(scaling)
