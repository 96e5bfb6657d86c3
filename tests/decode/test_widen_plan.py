"""The shapes that the demo's models are widened to."""

import pytest

from qspec_decode.config import ModelConfig
from qspec_decode.demo import widen
from qspec_decode.demo.train import SHAPES, VOCAB_SIZE
from qspec_decode.demo.widen_plan import SCALES, WidenPlan, num_bytes
from qspec_kernels import UsageError


def demo_config(name: str) -> ModelConfig:
    shape = SHAPES[name]
    return ModelConfig(
        "llama",
        VOCAB_SIZE,
        shape["hidden_size"],
        shape["intermediate_size"],
        shape["num_hidden_layers"],
        shape["num_attention_heads"],
        shape["num_key_value_heads"],
        shape["head_dim"],
        rms_norm_eps=1e-5,
        rope={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize(
    ("scale", "hidden", "intermediate", "layers", "heads", "kv_heads"),
    [
        ("0.5b", 1024, 4096, 32, 16, 4),
        ("1b", 2048, 8192, 16, 32, 8),
        ("2b", 2048, 8192, 36, 32, 8),
        ("8b", 4096, 16384, 32, 64, 16),
    ],
)
def test_the_demo_model_gets_the_shapes_of_real_ones(
    scale: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int
) -> None:
    small = demo_config("target")
    wide = widen.plan(scale, small).config(small)
    assert (wide.hidden_size, wide.intermediate_size, wide.num_hidden_layers) == (
        hidden,
        intermediate,
        layers,
    )
    assert (wide.num_attention_heads, wide.num_key_value_heads, wide.head_dim) == (heads, kv_heads, 64)
    assert (wide.vocab_size, wide.num_real_tokens) == (128256, 4096)
    assert (wide.hidden_block, wide.heads_block, wide.intermediate_block) == (256, 256, 1024)
    assert num_bytes(wide) == SCALES[scale].num_bytes
    sibling = demo_config("small")
    drafter = widen.plan(scale, sibling).config(sibling)
    assert drafter.vocab_size == wide.vocab_size
    assert 1 / 50 <= num_bytes(drafter) / num_bytes(wide) < 1 / 20


def test_scales_relate_as_their_names_say() -> None:
    sizes = {name: scale.num_bytes for name, scale in SCALES.items()}
    assert 0.45 < sizes["0.5b"] / sizes["1b"] < 0.55
    assert 1.9 < sizes["2b"] / sizes["1b"] < 2.1
    assert 2.4e9 < sizes["1b"] < 2.5e9


def test_plans_that_make_no_sense_are_refused() -> None:
    small = demo_config("target")
    with pytest.raises(UsageError, match=r"'3b', expected one of 0.5b, 1b, 2b, 8b"):
        widen.plan("3b", small)
    with pytest.raises(UsageError, match="heads_tile is 3"):
        WidenPlan(4, 4, 3, 6, 4096)
    with pytest.raises(UsageError, match="6 layers and 4096 ids"):
        WidenPlan(4, 4, 4, 5, 4096).config(small)
