"""`Transformer`: Llama, Mistral and Qwen layers over the kernels, in any precision that was loaded."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qspec_decode import precision as names
from qspec_decode import rope as rotary
from qspec_decode.cache import KVCache, Spares
from qspec_decode.config import ModelConfig
from qspec_decode.replay import MAX_TOKENS
from qspec_decode.weights import LayerWeights, Weight, WeightSet, weight_bytes
from qspec_kernels import (
    PRECISIONS,
    HeadNorm,
    PackedWeight,
    QuantizedActivation,
    RotaryEmbedding,
    UsageError,
    attention,
    embedding,
    hadamard,
    hadamard_quantize_act,
    isa,
    linear,
    rescore,
    rmsnorm,
    rmsnorm_quantize_act,
    rope_cache_write,
    silu_mul,
    silu_mul_hadamard_quantize_act,
    silu_mul_quantize_act,
    top2,
)

RESCORED = 32
"""Logits of a draft that are computed again in 16 bits. Of the bundled model's greedy drafts 0.879 stand with
none, 0.916 with 2, 0.924 with 8; sampled ones keep gaining, 0.905 with none, 0.925 with 8, 0.930 with 32."""

# ids, rows, positions and where logits are wanted, as the kernels take them
_INPUTS = (torch.int64, torch.int32, torch.int32, torch.int64)


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
        self.takes_numbers = self.device.type == "cpu"
        inv_freq, scaling = rotary.frequencies(config.rope, config.head_dim)
        self._rotary = RotaryEmbedding(inv_freq.to(self.device), scaling)
        self._scale = config.head_dim**-0.5
        self._ones = torch.ones_like(final_norm)
        # little beside the weights; for a model of 1b it holds a batch of 16 short texts
        self._spares = Spares(max(64 << 20, sum(weights.num_bytes for weights in sets.values()) // 8))
        self.graphs: Any = None
        """Captured rounds over this model (`graphs.pool.Runners`), once there are any."""
        self._mask = None
        if config.num_real_tokens is not None:
            # added to the logits: ids that stand for nothing are never chosen
            self._mask = torch.zeros(config.vocab_size, dtype=dtype, device=self.device)
            self._mask[config.num_real_tokens :] = -torch.inf

    def bytes_per_pass(self, precision: str, *, draft_head: bool = False) -> int:
        """Bytes of weights that one pass reads; with `draft_head` those of a 4-bit output matrix, if any."""
        weights = self.sets[names.set_name(precision)]
        if draft_head and weights.draft_head is not None:
            return weights.num_bytes - weight_bytes(weights.head) + weight_bytes(weights.draft_head)
        return weights.num_bytes

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
            spares=self._spares,
            replayed=self.device.type == "cpu" and self.dtype == torch.float32 and isa() != "torch",
        )

    def forward(
        self,
        ids: Int[Tensor, " tokens"] | Sequence[int],
        rows: Int[Tensor, " tokens"] | Sequence[int],
        positions: Int[Tensor, " tokens"] | Sequence[int],
        cache: KVCache,
        precision: str,
        *,
        logits_at: Int[Tensor, " wanted"] | Sequence[int] | None = None,
        draft_head: bool = False,
        phase: str = "decode",
    ) -> Float[Tensor, "wanted vocab"]:
        """Logits of the next token after each token of a flat batch; see `protocol.Model.forward`.

        Keys and values of every token are in `cache` afterwards. float32, float64 in a float64 model. Numbers
        may come as lists, which cost a pass that is replayed less than tensors do.
        Logits of few tokens are good until the next pass over the same cache.

        Raises
        ------
        UsageError
            When no weight set that was loaded serves `precision`.
        """
        weights, act = self._plan(precision)
        given = (ids, rows, positions) if logits_at is None else (ids, rows, positions, logits_at)

        def compute(ids: Tensor, rows: Tensor, positions: Tensor, logits_at: Tensor | None = None) -> Tensor:
            x = self._embed(ids, weights, precision)
            for index, layer in enumerate(weights.layers):
                x = self._layer(index, layer, x, (rows, positions), cache, weights, act, phase)
            if logits_at is not None:
                x = embedding(x, logits_at, dtype=self.dtype)
            return self._logits(x, weights, act, draft_head)

        inputs = zip(given, _INPUTS[: len(given)], strict=True)
        if cache.replay is None or len(ids) > MAX_TOKENS:
            return compute(
                *(torch.as_tensor(each, dtype=dtype, device=self.device) for each, dtype in inputs)
            )
        # numbers, because a program's memory takes them faster than a tensor of them is made
        numbers = [(each.tolist() if isinstance(each, Tensor) else each, dtype) for each, dtype in inputs]
        return cache.replay.run((precision, draft_head), compute, numbers)

    def top2(
        self, logits: Float[Tensor, "wanted vocab"], cache: KVCache
    ) -> tuple[Int[Tensor, " wanted"], Float[Tensor, "wanted 2"]]:
        """`qspec_kernels.top2` of logits, soonest of those that the last pass over `cache` returned.

        Good until the next pass or choice over the same cache.
        """
        return top2(logits) if cache.replay is None else cache.replay.follow(top2, logits)

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
        # rounded, so that a precision computes the same whichever others share the table with it
        x = embedding(self.embedding, ids, rounded=precision != "fp32", dtype=self.dtype)
        if weights.signs is not None:
            x = hadamard(x, block=self.config.hidden_block, diagonal=weights.signs)
        return x

    def _layer(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        slots: tuple[Tensor, Tensor],
        cache: KVCache,
        weights: WeightSet,
        act: str,
        phase: str,
    ) -> Tensor:
        config = self.config
        qkv = self._normed_linear(x, layer.input_norm, layer.qkv, layer.qkv_bias, act, phase)
        norm = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norm = HeadNorm(layer.q_norm, layer.k_norm, config.rms_norm_eps)
        keys, values = cache.k[index], cache.v[index]
        q = rope_cache_write(qkv, keys, values, *slots, self._rotary, norm)
        h = attention(q, keys, values, *slots, scale=self._scale, window=config.windows[index])
        h = h.view(len(x), config.q_size)
        if weights.signs is not None:
            h = _rotated(h, config.heads_block, layer.o, act)
        x = linear(h, layer.o, layer.o_bias, act=_act(h, layer.o, act), residual=x, phase=phase)

        h = self._normed_linear(x, layer.post_norm, layer.gate_up, layer.gate_up_bias, act, phase)
        block = None if weights.signs is None else config.intermediate_block
        h = _gated(h, block, layer.down, act)
        return linear(h, layer.down, layer.down_bias, act=_act(h, layer.down, act), residual=x, phase=phase)

    def _normed_linear(
        self, x: Tensor, gain: Tensor, weight: Weight, bias: Tensor | None, act: str, phase: str
    ) -> Tensor:
        eps, quantization = self.config.rms_norm_eps, _quantization(weight, act)
        if quantization is None:
            return linear(rmsnorm(x, gain, eps), weight, bias, phase=phase)
        return linear(rmsnorm_quantize_act(x, gain, eps, **quantization), weight, bias, phase=phase)

    def _logits(self, x: Tensor, weights: WeightSet, act: str, draft_head: bool) -> Tensor:
        gain, eps = self.final_norm, self.config.rms_norm_eps
        if weights.signs is not None:
            # the gain belongs to the checkpoint's basis, so the rotation is undone before it
            x = rmsnorm(x, self._ones, eps)
            x = hadamard(x, block=self.config.hidden_block, transpose=True, diagonal=weights.signs * gain)
        else:
            x = rmsnorm(x, gain, eps)
        head, few_bits = weights.head, weights.draft_head if draft_head else None
        if few_bits is None or isinstance(head, PackedWeight):
            # one matrix of many: 8 bits of its input cost little, and 4 would change what is said
            return linear(x, head, self._mask, act=_act(x, head, "a8" if act == "a4" else act))
        # all logits from 4 bits, then those that may matter from the matrix that verification uses
        logits = linear(x, few_bits, self._mask, act=act)
        rescore(logits, x, head, self._mask, count=RESCORED)
        return logits


def _quantization(weight: Weight, act: str) -> dict[str, Any] | None:
    """What `quantize_act` is asked for the input of a linear; None where it is not quantised.

    Weights that a set keeps dense take their input unquantised.
    """
    if act == "a16" or not isinstance(weight, PackedWeight):
        return None
    return {"bits": int(act[1:]), "group_size": weight.group_size if act == "a4" else None}


def _act(x: Tensor | QuantizedActivation, weight: Weight, act: str) -> str:
    """`linear`'s argument, which speaks of inputs that it quantises itself."""
    return act if isinstance(x, Tensor) and isinstance(weight, PackedWeight) else "a16"


def _gated(gate_up: Tensor, block: int | None, weight: Weight, act: str) -> Tensor | QuantizedActivation:
    """The input of down_proj; `block` is the width of its rotation, None in a set that is not rotated."""
    quantization = _quantization(weight, act)
    if quantization is None:
        return silu_mul(gate_up) if block is None else hadamard(silu_mul(gate_up), block=block)
    if block is None:
        return silu_mul_quantize_act(gate_up, **quantization)
    return silu_mul_hadamard_quantize_act(gate_up, block=block, **quantization)


def _rotated(h: Tensor, block: int, weight: Weight, act: str) -> Tensor | QuantizedActivation:
    """The input of o_proj in a rotated set."""
    quantization = _quantization(weight, act)
    if quantization is None:
        return hadamard(h, block=block)
    return hadamard_quantize_act(h, block=block, **quantization)
