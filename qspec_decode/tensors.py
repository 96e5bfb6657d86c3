"""Which tensors a checkpoint of a configuration holds, under which names and in which shapes."""

from qspec_decode.config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

_MODULES = {
    "input_layernorm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o_proj": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of one layer, by short key: "q_proj" for a weight, "q_bias" for its bias."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "q_proj": (config.q_size, hidden),
        "k_proj": (config.kv_size, hidden),
        "v_proj": (config.kv_size, hidden),
        "o_proj": (hidden, config.q_size),
        "post_attention_layernorm": (hidden,),
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    biased = ["q", "k", "v"] if config.qkv_bias else []
    biased += ["o"] if config.o_bias else []
    biased += ["gate", "up", "down"] if config.mlp_bias else []
    for name in biased:
        shapes[f"{name}_bias"] = shapes[f"{name}_proj"][:1]
    if config.qk_norm:
        shapes["q_norm"] = shapes["k_norm"] = (config.head_dim,)
    return shapes


def layer_tensor(layer: int, key: str) -> str:
    """Name in the checkpoint of a layer's tensor, from its short key."""
    module, kind = (f"{key[:-5]}_proj", "bias") if key.endswith("_bias") else (key, "weight")
    return f"model.layers.{layer}.{_MODULES[module]}.{kind}"


def all_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that loading reads, by its name in the checkpoint."""
    table = (config.vocab_size, config.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: table, FINAL_NORM: (config.hidden_size,)}
    if not config.tie_word_embeddings:
        shapes[HEAD] = table
    for layer in range(config.num_hidden_layers):
        for key, shape in layer_shapes(config).items():
            shapes[layer_tensor(layer, key)] = shape
    return shapes
