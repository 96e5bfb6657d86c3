"""transformers' `generate` with its static cache, which it compiles on a GPU: what others decode with."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from qspec_decode import config as configs
from qspec_decode import tensors
from qspec_decode.bench.entrants import peer_output
from qspec_decode.load_options import FUSED
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_decode.weights import Weight

_WIDTHS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


class Compiled:
    """transformers over the bf16 weights of a model of the demo, in the same memory.

    Raises
    ------
    ImportError
        Without transformers.
    RuntimeError
        From `decode`, where a GPU should have something compiled and has not.
    """

    def __init__(self, model: Transformer):
        import transformers

        if model.device.type == "cuda":
            # the model before it was compiled too, and after a few of them nothing is compiled any more
            torch.compiler.reset()
        config: Any = transformers.AutoConfig.from_pretrained(configs.resolve("demo"))
        for name in (*_WIDTHS, "num_key_value_heads", "head_dim"):
            setattr(config, name, getattr(model.config, name))
        with torch.device("meta"):
            self._model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self._model.load_state_dict(_state(model), assign=True)
        rotary = self._model.model.rotary_emb
        self._model.model.rotary_emb = type(rotary)(config).to(model.device)
        # nothing of the checkpoint's own settings: no end of text, no sampling
        self._model.generation_config = transformers.GenerationConfig(
            do_sample=False, pad_token_id=0, cache_implementation="static"
        )
        self._model.eval()
        self._device = model.device

    def decode(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> DecodingOutput:
        """Prompts are padded on the left, as its documentation asks."""
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)])
        mask = (torch.arange(width) >= torch.tensor(padding)[:, None]).long()
        times: list[float] = []
        began = time.perf_counter()
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=max_new_tokens,
                streamer=_Noted(times),
            )
        if _compiles(self._device) and not hasattr(self._model, "_compiled_call"):
            raise RuntimeError(
                f"generate of transformers {version('transformers')} compiled nothing, so it was not timed"
            )
        # the prompt is put first, then every new token of all rows at once
        first, last = times[1], times[-1]
        return peer_output(found[:, width:].tolist(), "bf16", first - began, last - first)


def _compiles(device: torch.device) -> bool:
    """Whether `generate` compiles on a device, given a static cache."""
    return device.type == "cuda"


class _Noted:
    """A streamer that keeps the times."""

    def __init__(self, times: list[float]):
        self._times = times

    def put(self, value: Tensor) -> None:
        self._times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _state(model: Transformer) -> dict[str, Tensor]:
    """The bf16 weights under their names in a checkpoint: views of the model's own."""
    weights, config = model.sets["bf16"], model.config
    state = {
        tensors.EMBEDDING: model.embedding,
        tensors.HEAD: weights.head,
        tensors.FINAL_NORM: model.final_norm.bfloat16(),
    }
    rows = {
        "qkv": (config.q_size, config.kv_size, config.kv_size),
        "gate_up": (config.intermediate_size,) * 2,
    }
    for index, layer in enumerate(weights.layers):
        named = {
            "input_layernorm": layer.input_norm.bfloat16(),
            "post_attention_layernorm": layer.post_norm.bfloat16(),
        }
        for field, parts in FUSED.items():
            matrix: Weight = getattr(layer, field)
            assert isinstance(matrix, Tensor)
            pieces = matrix.split(rows[field]) if field in rows else (matrix,)
            named |= {f"{part}_proj": piece for part, piece in zip(parts, pieces, strict=True)}
        state |= {tensors.layer_tensor(index, key): tensor for key, tensor in named.items()}
    return state
