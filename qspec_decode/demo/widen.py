"""Widen a small model to a real model's shape without changing what it computes.

The bundled model is too small to time: all of it fits in a cache. So every width is tiled. The wide
residual stream is the small one, repeated; a matrix is repeated along both sides and divided by the
number of copies along its input, a power of two, so that every copy of its output is the small model's.
Heads are repeated together with the keys and values they read. Norms average over copies and are as before.
The output matrix stays the embedding table, so the last norm's gain is divided instead. Layers that
are added write zeros to the residual stream but have all their other weights. The wide model has the
memory traffic and arithmetic of the real one, and says what the small one says.

Quantised weights are tiled as codes, after quantisation and rotation, and their scales divided: so a
wide quantised model, too, says what the small quantised one says.
"""

from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from qspec_decode import memory
from qspec_decode.demo.widen_checkpoint import write_checkpoint
from qspec_decode.demo.widen_plan import SCALES, WidenPlan, num_bytes, plan
from qspec_decode.demo.widen_tensors import repeated_rows, tile_packed, widen_dense, widen_packed
from qspec_decode.model import Transformer
from qspec_decode.progress import track
from qspec_decode.weights import LayerWeights, Weight, WeightSet, weight_bytes
from qspec_kernels import PackedWeight, UsageError, formats

__all__ = ["SCALES", "WidenPlan", "plan", "widen", "widen_dense", "widen_packed", "write_checkpoint"]


def widen(model: Transformer, scale: str | WidenPlan) -> Transformer:
    """A wide copy of a loaded model, with all its weight sets, on its device.

    Weights of its own throughout: layers that say the same do not share memory, because shared
    bytes would be read from the cache.

    Parameters
    ----------
    scale
        A name from `SCALES`, or explicit factors.

    Raises
    ------
    UsageError
        For an unknown scale, for a wide model that does not fit in the host's memory where it is to be there,
        and for int4 scales so small that dividing them is not exact.
    """
    chosen = plan(scale, model.config) if isinstance(scale, str) else scale
    _check_fits(model, chosen)
    return _Widener(model, chosen).widen()


_Weight = TypeVar("_Weight", bound=Weight)


class _Widener:
    """What the steps of one `widen` share. Tensors that were one object stay one object."""

    def __init__(self, model: Transformer, chosen: WidenPlan):
        self.model, self.plan, self.small = model, chosen, model.config
        self._tables: dict[int, Weight] = {}

    def widen(self) -> Transformer:
        model, tile = self.model, self.plan.hidden_tile
        sets = {name: self._set(name, weights) for name, weights in model.sets.items()}
        return Transformer(
            self.plan.config(self.small),
            self._table(model.embedding),
            model.final_norm.repeat(tile) / tile,
            sets,
            dtype=model.dtype,
        )

    def _set(self, name: str, weights: WeightSet) -> WeightSet:
        tile, draft_head = self.plan.hidden_tile, weights.draft_head
        layers: list[LayerWeights] = []
        silent: dict[str, Weight] = {}
        for index in track(range(self.plan.num_layers), self.plan.num_layers, f"widening {name}"):
            source = self.plan.source(index, self.small)
            if index < self.small.num_hidden_layers:
                layers.append(self._layer(weights.layers[source]))
            else:
                silent = silent or self._silent(weights.layers[0])
                layers.append(_silenced(layers[source], silent))
        return WeightSet(
            tuple(layers),
            self._table(weights.head),
            None if draft_head is None else self._table(draft_head),
            None if weights.signs is None else weights.signs.repeat(tile),
        )

    def _table(self, table: _Weight) -> _Weight:
        """Not divided: the last norm's gain is. Ids that are added repeat real ones and are masked."""
        if id(table) not in self._tables:
            ids = torch.arange(self.plan.vocab_size, device=table.device) % self.small.vocab_size
            self._tables[id(table)] = _tiled(table, ids, self.plan.hidden_tile)
        return cast(_Weight, self._tables[id(table)])

    def _matrix(self, weight: Weight, field: str) -> Weight:
        """A matrix of LayerWeights, by the name of its field."""
        hidden, heads, intermediate = self.plan.hidden_tile, self.plan.heads_tile, self.plan.intermediate_tile
        tiles = {
            "qkv": (heads, hidden),
            "o": (hidden, heads),
            "gate_up": (intermediate, hidden),
            "down": (hidden, intermediate),
        }
        parts = self._parts(field)
        if isinstance(weight, PackedWeight):
            return widen_packed(weight, *tiles[field], parts=parts)
        return widen_dense(weight, *tiles[field], parts=parts)

    def _parts(self, field: str) -> tuple[int, ...]:
        small = self.small
        fused = {
            "qkv": (small.q_size, small.kv_size, small.kv_size),
            "gate_up": (small.intermediate_size,) * 2,
        }
        return fused.get(field, ())

    def _layer(self, layer: LayerWeights) -> LayerWeights:
        hidden = self.plan.hidden_tile
        tiles = {
            "qkv": self.plan.heads_tile,
            "gate_up": self.plan.intermediate_tile,
            "o": hidden,
            "down": hidden,
        }
        biases = {}
        for field, tile in tiles.items():
            bias = getattr(layer, f"{field}_bias")
            if bias is not None:
                bias = bias[repeated_rows(len(bias), tile, self._parts(field), bias.device)]
            biases[f"{field}_bias"] = bias
        return replace(
            layer,
            input_norm=layer.input_norm.repeat(hidden),
            post_norm=layer.post_norm.repeat(hidden),
            **{field: self._matrix(getattr(layer, field), field) for field in tiles},
            **biases,
        )

    def _silent(self, layer: LayerWeights) -> dict[str, Weight]:
        """Wide output projections of zeros, for the layers that are added."""
        return {field: self._matrix(_zeros(getattr(layer, field)), field) for field in ("o", "down")}


def _tiled(table: Weight, ids: Tensor, tile: int) -> Weight:
    if isinstance(table, PackedWeight):
        return tile_packed(table, ids, tile, divisor=1)
    wide = table.new_empty(len(ids), table.shape[1] * tile)
    return torch.index_select(table.repeat(1, tile), 0, ids, out=wide)


def _zeros(weight: Weight) -> Weight:
    if isinstance(weight, Tensor):
        return torch.zeros_like(weight)
    format = formats.get(weight.format)
    codes, scales = format.unpack(weight)
    # under the scales of a real matrix, and so with its cost: kernels have a slower path for those of zeros
    return format.pack(torch.zeros_like(codes), scales, weight.group_size)


def _silenced(layer: LayerWeights, silent: dict[str, Weight]) -> LayerWeights:
    """A layer of the same weights in memory of its own, which adds nothing to the residual stream."""
    biases = {
        name: None if getattr(layer, name) is None else torch.zeros_like(getattr(layer, name))
        for name in ("o_bias", "down_bias")
    }
    own = {"qkv": layer.qkv, "gate_up": layer.gate_up, **silent}
    return replace(layer, **{field: _clone(weight) for field, weight in own.items()}, **biases)


def _clone(weight: Weight) -> Weight:
    if isinstance(weight, Tensor):
        return weight.clone()
    return replace(weight, data=weight.data.clone(), scales=weight.scales.clone())


def _check_fits(model: Transformer, chosen: WidenPlan) -> None:
    """Raise before anything is allocated if the wide model would not fit in the memory of the host."""
    available = memory.available_bytes() if model.device.type == "cpu" else None
    config = chosen.config(model.config)
    growth = num_bytes(replace(config, vocab_size=0)) / num_bytes(replace(model.config, vocab_size=0))
    tables = {id(table): table for table in (model.embedding, *(s.head for s in model.sets.values()))}
    heads = [s.draft_head for s in model.sets.values() if s.draft_head is not None]
    rows = config.vocab_size / model.config.vocab_size * chosen.hidden_tile
    needed = sum(weight_bytes(table) for table in (*tables.values(), *heads)) * rows
    for weights in model.sets.values():
        needed += (weights.num_bytes - weight_bytes(weights.head)) * growth
    if available is not None and needed > available:
        smaller = [name for name, scale in SCALES.items() if scale.num_bytes < num_bytes(config)]
        raise UsageError(
            f"the widened model needs {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are available",
            f"Widen to {' or '.join(smaller)}, or load fewer precisions."
            if smaller
            else "Load fewer precisions.",
        )
