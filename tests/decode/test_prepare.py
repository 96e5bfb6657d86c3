"""Rotation and quantisation of weights, against a decoder layer written out in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qspec_decode import prepare
from qspec_kernels import UsageError, formats, largest_block
from qspec_kernels.hadamard_matrix import hadamard_matrix

EPS = 1e-5


@dataclass(frozen=True)
class Family:
    """What distinguishes one kind of layer from another."""

    hidden: int = 64
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 16
    intermediate: int = 96
    biases: tuple[str, ...] = ()
    qk_norm: bool = False


FAMILIES = {
    "llama": Family(),
    "grouped-heads": Family(kv_heads=1),
    "qkv-biases": Family(kv_heads=2, biases=("q", "k", "v")),
    "all-biases": Family(biases=("q", "k", "v", "o", "gate", "up", "down")),
    "qk-norm-free-head-dim": Family(hidden=48, heads=3, kv_heads=1, head_dim=32, qk_norm=True),
    "paley-343": Family(intermediate=344 * 2),
    "paley-37": Family(hidden=96, heads=3, kv_heads=3, head_dim=32, intermediate=76 * 4),
    "blocks": Family(hidden=92, heads=5, kv_heads=5, head_dim=26, intermediate=4 * 23),
}


def random_layer(family: Family) -> dict[str, Tensor]:
    """Weights with uneven gains and an outlier column, which a wrong fold would show."""
    q, kv = family.heads * family.head_dim, family.kv_heads * family.head_dim
    shapes = {
        "q_proj": (q, family.hidden),
        "k_proj": (kv, family.hidden),
        "v_proj": (kv, family.hidden),
        "o_proj": (family.hidden, q),
        "gate_proj": (family.intermediate, family.hidden),
        "up_proj": (family.intermediate, family.hidden),
        "down_proj": (family.hidden, family.intermediate),
    }
    layer = {name: torch.randn(shape).double() / math.sqrt(shape[1]) for name, shape in shapes.items()}
    layer |= {f"{name}_bias": torch.randn(shapes[f"{name}_proj"][0]).double() for name in family.biases}
    layer["input_layernorm"] = torch.rand(family.hidden).double() + 0.2
    layer["post_attention_layernorm"] = torch.rand(family.hidden).double() + 0.2
    if family.qk_norm:
        layer |= {name: torch.rand(family.head_dim).double() + 0.5 for name in ("q_norm", "k_norm")}
    return layer


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def transform(x: Tensor, block: int) -> Tensor:
    """H x / sqrt(block) on consecutive blocks of the last dimension."""
    matrix = hadamard_matrix(block).double() / math.sqrt(block)
    return (x.unflatten(-1, (-1, block)) @ matrix.T).flatten(-2)


def decoder_layer(
    x: Tensor, layer: dict[str, Tensor], family: Family, blocks: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, keys, values) of a pre-norm layer without positions; `blocks` turns online Hadamards on."""

    def linear(name: str, inputs: Tensor) -> Tensor:
        return F.linear(inputs, layer[f"{name}_proj"], layer.get(f"{name}_bias"))

    h = norm(x, layer["input_layernorm"])
    q, k, v = (linear(name, h).unflatten(-1, (-1, family.head_dim)).transpose(0, 1) for name in "qkv")
    if family.qk_norm:
        q, k = norm(q, layer["q_norm"]), norm(k, layer["k_norm"])
    repeats = family.heads // family.kv_heads
    scores = q @ k.repeat_interleave(repeats, 0).transpose(1, 2) / math.sqrt(family.head_dim)
    mask = torch.ones(len(x), len(x)).triu(1).bool()
    weights = scores.masked_fill(mask, -torch.inf).softmax(-1)
    attended = (weights @ v.repeat_interleave(repeats, 0)).transpose(0, 1).flatten(1)
    x = x + linear("o", transform(attended, blocks[0]) if blocks else attended)
    h = norm(x, layer["post_attention_layernorm"])
    h = F.silu(linear("gate", h)) * linear("up", h)
    return x + linear("down", transform(h, blocks[1]) if blocks else h), k, v


def rotate(
    layer: dict[str, Tensor], family: Family, signs: Tensor
) -> tuple[dict[str, Tensor], int, int, int]:
    hidden = largest_block(family.hidden)
    heads = largest_block(family.heads * family.head_dim)
    intermediate = largest_block(family.intermediate)
    rotated = prepare.rotate_layer(
        layer,
        num_heads=family.heads,
        head_dim=family.head_dim,
        signs=signs,
        hidden_block=hidden,
        heads_block=heads,
        intermediate_block=intermediate,
    )
    return rotated, hidden, heads, intermediate


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rotated_layer_is_the_original_in_another_basis(name: str) -> None:
    family = FAMILIES[name]
    layer, signs = random_layer(family), prepare.signs(family.hidden).double()
    rotated, hidden, heads, intermediate = rotate(layer, family, signs)
    x = torch.randn(7, family.hidden).double()
    out, keys, values = decoder_layer(x, layer, family)
    turned, turned_keys, turned_values = decoder_layer(
        transform(x * signs, hidden), rotated, family, (heads, intermediate)
    )
    torch.testing.assert_close(turned, transform(out * signs, hidden), rtol=0, atol=1e-10)
    torch.testing.assert_close(turned_keys, keys, rtol=0, atol=1e-10)
    torch.testing.assert_close(turned_values, values, rtol=0, atol=1e-10)
    assert (rotated["input_layernorm"] == 1).all()
    assert (rotated["post_attention_layernorm"] == 1).all()


@pytest.mark.parametrize("name", ["llama", "all-biases"])
@pytest.mark.parametrize("skipped", ["o_proj", "down_proj", "q_proj", "post_attention_layernorm", "o_bias"])
def test_a_tensor_left_unrotated_is_seen(name: str, skipped: str) -> None:
    family = FAMILIES[name]
    layer, signs = random_layer(family), prepare.signs(family.hidden).double()
    if skipped not in layer:
        skipped = "v_proj"
    rotated, hidden, heads, intermediate = rotate(layer, family, signs)
    x = torch.randn(7, family.hidden).double()
    out, _, _ = decoder_layer(x, layer, family)
    mutant = {**rotated, skipped: layer[skipped]}
    turned, _, _ = decoder_layer(transform(x * signs, hidden), mutant, family, (heads, intermediate))
    assert (turned - transform(out * signs, hidden)).abs().max() > 1e-3


def test_parts_of_a_layer_rotate_alone() -> None:
    family = FAMILIES["all-biases"]
    layer, signs = random_layer(family), prepare.signs(family.hidden)
    whole, *_ = rotate(layer, family, signs)
    for part in (("o_proj", "o_bias"), ("down_proj",), ("gate_proj", "up_bias", "post_attention_layernorm")):
        rotated, *_ = rotate({name: layer[name] for name in part}, family, signs)
        assert set(rotated) == set(part)
        assert all(torch.equal(rotated[name], whole[name]) for name in part)


def test_the_caller_gets_the_dtype_given_back() -> None:
    family = FAMILIES["llama"]
    layer = {name: tensor.to(torch.bfloat16) for name, tensor in random_layer(family).items()}
    rotated, *_ = rotate(layer, family, prepare.signs(family.hidden))
    assert {tensor.dtype for tensor in rotated.values()} == {torch.bfloat16}
    assert all(tensor.is_contiguous() for tensor in rotated.values())


def test_biases_of_queries_and_the_norms_of_heads_stay() -> None:
    family = Family(biases=("q", "k", "v", "gate", "up"), qk_norm=True)
    layer = random_layer(family)
    rotated, *_ = rotate(layer, family, prepare.signs(family.hidden))
    for name in ("q_bias", "k_bias", "v_bias", "gate_bias", "up_bias", "q_norm", "k_norm"):
        assert torch.equal(rotated[name], layer[name])


def test_rotation_spreads_an_outlier() -> None:
    """The point of it: one huge input feature no longer sets the scale of its group."""
    family = FAMILIES["llama"]
    layer = random_layer(family)
    layer["down_proj"][:, 5] *= 100
    rotated, *_ = rotate(layer, family, prepare.signs(family.hidden))

    def peak(weight: Tensor) -> float:
        return float((weight.abs().amax(1) / weight.square().mean(1).sqrt()).mean())

    assert peak(rotated["down_proj"]) < 0.6 * peak(layer["down_proj"])


def test_signs_are_signs_and_repeat() -> None:
    assert set(prepare.signs(512).tolist()) == {-1.0, 1.0}
    assert torch.equal(prepare.signs(512), prepare.signs(512))
    assert not torch.equal(prepare.signs(512), prepare.signs(512, seed=1))
    # pinned: packed rotated weights that someone stored must stay readable
    assert prepare.signs(8).tolist() == [-1, 1, 1, -1, 1, 1, 1, 1]


def test_widths_that_contradict_are_named() -> None:
    family = FAMILIES["llama"]
    layer = random_layer(family)
    widths = {"hidden_block": 64, "heads_block": 64, "intermediate_block": 96}
    with pytest.raises(UsageError, match="64 wide, expected the number of signs = 32"):
        prepare.rotate_layer(layer, num_heads=4, head_dim=16, signs=prepare.signs(32), **widths)
    with pytest.raises(UsageError, match=r"o_proj is 64 wide, expected num_heads \* head_dim = 48"):
        prepare.rotate_layer(layer, num_heads=3, head_dim=16, signs=prepare.signs(64), **widths)


@pytest.mark.parametrize(
    ("weights", "group_size"), [("int4", 128), ("int4", 32), ("int4", -1), ("mxfp4", 32)]
)
def test_quantise_packs_canonically_and_row_by_row(weights: str, group_size: int) -> None:
    weight = torch.randn(10, 200)
    packed = prepare.quantise(weight, weights, group_size)
    assert packed.format == weights
    assert packed.shape == (10, 200)
    assert packed.group_size == (200 if group_size == -1 else group_size)
    error = (formats.dequantize(packed) - weight).square().mean().sqrt()
    assert error < 0.2
    parts = [prepare.quantise(part, weights, group_size) for part in weight.split(3)]
    assert torch.equal(torch.cat([part.data for part in parts]), packed.data)
    assert torch.equal(torch.cat([part.scales for part in parts]), packed.scales)


def test_quantise_searches_clips_only_when_asked() -> None:
    weight = torch.randn(10, 256)
    int4 = formats.get("int4")
    plain = prepare.quantise(weight, "int4", 64, clip_search=False)
    codes, scales = int4.quantize(weight, 64)
    assert torch.equal(int4.unpack(plain)[0], codes)
    assert torch.equal(plain.scales, scales)
    searched = prepare.quantise(weight, "int4", 64)
    errors = [(formats.dequantize(packed) - weight).square().sum() for packed in (searched, plain)]
    assert errors[0] < errors[1]


def test_quantise_names_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="'int3'"):
        prepare.quantise(torch.ones(2, 32), "int3")
