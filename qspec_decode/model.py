"""`Transformer`: Llama, Mistral and Qwen layers over the kernels, in any precision that was loaded."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qspec_decode import precision as names
from qspec_decode import rope as rotary
from qspec_decode.cache import KVCache
from qspec_decode.config import ModelConfig
from qspec_decode.weights import LayerWeights, Weight, WeightSet
from qspec_kernels import (
    PRECISIONS,
    PackedWeight,
    UsageError,
    attention,
    cache_write,
    hadamard,
    hadamard_quantize_act,
    linear,
    rmsnorm,
    rope,
    silu_mul,
)


class Transformer:
    """A decoder-only transformer whose weights are held in one or more formats at once.

    The residual stream and all activations are float32 in every precision; linears round their
    input as their precision says. Every row of the output depends on its own tokens only, bit for
    bit, however many others are in the call. A model made with `dtype=torch.float64` computes
    everything in float64, for tests.

    Parameters
    ----------
    config
        Shape and arithmetic. The Hadamard widths must be resolved (not 0) if a set is rotated.
    embedding
        [vocab, hidden]; precisions other than "fp32" read its entries rounded to bf16.
    final_norm
        Gain [hidden] of the last norm.
    sets
        Weight sets by name: "fp32", "bf16", "int4" (serves w4a16, w4a8, w4a4), "mxfp4" (mxfp4a16, mxfp4a8).
    dtype
        torch.float32, or torch.float64.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        final_norm: Tensor,
        sets: dict[str, WeightSet],
        *,
        dtype: torch.dtype = torch.float32,
    ):
        self.config = config
        self.embedding = embedding
        self.final_norm = final_norm
        self.sets = sets
        self.dtype = dtype
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_positions
        self.vocabulary = config.vocabulary
        self.eos_token_ids = config.eos_token_ids
        self.precisions = names.served_by(sets)
        self.device = embedding.device
        inv_freq, self._rope_scaling = rotary.frequencies(config.rope, config.head_dim)
        self._inv_freq = inv_freq.to(self.device)
        self._scale = config.head_dim**-0.5
        self._ones = torch.ones_like(final_norm)

    def new_cache(self, batch_size: int, capacity: int, precision: str) -> KVCache:
        """A cache for `batch_size` sequences of up to `capacity` positions.

        bf16, except float32 for precision "fp32" and float64 in a float64 model. Any precision can read
        and write it afterwards; a verifier's choice decides.
        """
        weights = names.set_name(precision)
        dtype = torch.float32 if weights == "fp32" else torch.bfloat16
        config = self.config
        return KVCache(
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            capacity,
            config.head_dim,
            torch.float64 if self.dtype == torch.float64 else dtype,
            self.device,
        )

    def forward(
        self,
        ids: Int[Tensor, " tokens"],
        rows: Int[Tensor, " tokens"],
        positions: Int[Tensor, " tokens"],
        cache: KVCache,
        precision: str,
        *,
        logits_at: Int[Tensor, " wanted"] | None = None,
        draft_head: bool = False,
    ) -> Float[Tensor, "wanted vocab"]:
        """Logits of the next token after each token of a flat batch; see `protocol.Model.forward`.

        Keys and values of every token are in `cache` afterwards. float32, float64 in a float64 model.

        Raises
        ------
        UsageError
            When no weight set that was loaded serves `precision`.
        """
        weights, act = self._plan(precision)
        rows, positions = rows.to(torch.int32), positions.to(torch.int32)
        x = self._embed(ids, weights, precision)
        for index, layer in enumerate(weights.layers):
            attended = self._attend(index, layer, x, rows, positions, cache, act)
            x = x + self._project_out(attended, layer.o, layer.o_bias, act, self.config.heads_block, weights)
            h = rmsnorm(x, layer.post_norm, self.config.rms_norm_eps)
            h = silu_mul(_linear(h, layer.gate_up, layer.gate_up_bias, act))
            x = x + self._project_out(
                h, layer.down, layer.down_bias, act, self.config.intermediate_block, weights
            )
        if logits_at is not None:
            x = x[logits_at]
        return self._logits(x, weights, act, draft_head)

    def _plan(self, precision: str) -> tuple[WeightSet, str]:
        if precision not in self.precisions:
            names.canonical(precision)
            raise UsageError(
                f"the model was loaded without precision {precision!r}, it has {', '.join(self.precisions)}",
                f"Pass precisions=(..., {precision!r}) to load.",
            )
        served = PRECISIONS[precision]
        return self.sets[served.weights], served.act or "a16"

    def _embed(self, ids: Tensor, weights: WeightSet, precision: str) -> Tensor:
        x = self.embedding[ids]
        # so that a precision computes the same whichever others share the table with it
        if precision != "fp32":
            x = x.to(torch.bfloat16)
        x = x.to(self.dtype)
        if weights.signs is not None:
            x = hadamard(x * weights.signs, block=self.config.hidden_block)
        return x

    def _attend(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        rows: Tensor,
        positions: Tensor,
        cache: KVCache,
        act: str,
    ) -> Tensor:
        """Attention of one layer before its output projection: [tokens, q heads * head_dim]."""
        config = self.config
        h = rmsnorm(x, layer.input_norm, config.rms_norm_eps)
        qkv = _linear(h, layer.qkv, layer.qkv_bias, act)
        num_q, num_k = config.num_attention_heads, config.num_key_value_heads
        heads = qkv.view(len(x), num_q + 2 * num_k, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = rmsnorm(heads[:, :num_q], layer.q_norm, config.rms_norm_eps)
            k = rmsnorm(heads[:, num_q : num_q + num_k], layer.k_norm, config.rms_norm_eps)
            q = rope(q, positions, self._inv_freq, self._rope_scaling)
            k = rope(k, positions, self._inv_freq, self._rope_scaling)
        else:
            turned = rope(heads[:, : num_q + num_k], positions, self._inv_freq, self._rope_scaling)
            q, k = turned[:, :num_q], turned[:, num_q:]
        keys, values = cache.k[index], cache.v[index]
        cache_write(keys, values, k, heads[:, num_q + num_k :], rows, positions)
        out = attention(q, keys, values, rows, positions, scale=self._scale, window=config.windows[index])
        return out.reshape(len(x), config.q_size)

    def _project_out(
        self, x: Tensor, weight: Weight, bias: Tensor | None, act: str, block: int, weights: WeightSet
    ) -> Tensor:
        """o_proj and down_proj: in a rotated set their input is Hadamard-transformed first."""
        if weights.signs is None:
            return _linear(x, weight, bias, act)
        if act == "a16" or isinstance(weight, Tensor):
            return _linear(hadamard(x, block=block), weight, bias, act)
        bits = 4 if act == "a4" else 8
        group_size = weight.group_size if act == "a4" else None
        return linear(hadamard_quantize_act(x, block=block, bits=bits, group_size=group_size), weight, bias)

    def _logits(self, x: Tensor, weights: WeightSet, act: str, draft_head: bool) -> Tensor:
        eps = self.config.rms_norm_eps
        if weights.signs is None:
            x = rmsnorm(x, self.final_norm, eps)
        else:
            # the gain belongs to the checkpoint's basis, so the rotation is undone before it
            x = hadamard(rmsnorm(x, self._ones, eps), block=self.config.hidden_block, transpose=True)
            x = x * weights.signs * self.final_norm
        if draft_head and weights.draft_head is not None:
            logits = _linear(x, weights.draft_head, None, act)
        else:
            logits = linear(x, weights.head)
        if self.config.num_real_tokens is not None:
            logits[:, self.config.num_real_tokens :] = -torch.inf
        return logits


def _linear(x: Tensor, weight: Weight, bias: Tensor | None, act: str) -> Tensor:
    """A linear in a precision; weights that a set keeps dense take their input unquantised."""
    if isinstance(weight, PackedWeight):
        return linear(x, weight, bias, act=act)
    return linear(x, weight, bias)
