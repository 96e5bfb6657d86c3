"""`load`: from a Hugging Face checkpoint directory to a `Transformer`, one matrix at a time."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from qspec_decode import config as configs
from qspec_decode import load_options, machine, memory, prepare, tensors
from qspec_decode.checkpoint import Checkpoint
from qspec_decode.config import ModelConfig, resolve
from qspec_decode.load_options import FUSED, LoadOptions
from qspec_decode.model import Transformer
from qspec_decode.progress import track
from qspec_decode.tokenizer import Tokenizer
from qspec_decode.weights import LayerWeights, Weight, WeightSet, moved
from qspec_kernels import PackedWeight, formats, largest_block, to_device_layout

# elements of a matrix that are quantised at once: they stay in a core's cache and take little memory
_QUANTISED_AT_ONCE = 1 << 15
# (matrix, bias, norm before it)
_Fused = tuple[Weight, Tensor | None, Tensor | None]
_NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}


def load(
    path: str | Path = "demo",
    precisions: str | Iterable[str] = ("bf16",),
    *,
    group_size: int = 128,
    rotate: bool | Iterable[str] = False,
    keep: Iterable[str] = (),
    quant_lm_head: bool | Iterable[str] = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Load a checkpoint in one or more precisions over one embedding and one KV cache layout.

    Weights are read, rotated, quantised and packed matrix by matrix, so that the most memory ever taken
    is little above the finished model's.

    Parameters
    ----------
    path
        A directory with `config.json` and safetensors, or "demo" or "demo-small" for the bundled ones.
    precisions
        Names from `qspec_kernels.PRECISIONS`; "mxfp4" stands for "mxfp4a8". Precisions that read
        the same weights (w4a16, w4a8, w4a4) come together.
    group_size
        Input features per scale of int4 weights: 32, 64, 128, or -1 for one scale per output row.
    rotate
        True rotates the quantised weights; names of precisions rotate theirs.
    keep
        Parts that quantised sets hold in bf16: "lm_head", "layers.0", "down_proj", "layers.0.down_proj".
        Linears that are fused are kept together.
    quant_lm_head
        True puts the output matrix into the format of every quantised set, names of precisions into that of
        theirs, and targets read it too: fewer bytes, and another text. Otherwise it is in 16 bits.
    dtype
        torch.float64 makes a model that computes everything in float64, "fp32" weights included.
    device
        Where the model goes, layer by layer: "cpu", "cuda" or a certain GPU.

    Raises
    ------
    CheckpointError
        The directory is incomplete or damaged, or its architecture is not supported.
    UsageError
        An option is unknown, contradicts another or is about weights that are not loaded, or the model
        does not fit in memory.
    """
    directory = resolve(path)
    config = configs.from_dir(directory)
    options = load_options.parse(
        precisions, group_size, rotate, keep, quant_lm_head, dtype, config.num_hidden_layers
    )
    checkpoint = Checkpoint(directory)
    checkpoint.check(tensors.all_shapes(config))
    where = load_options.parse_device(device)
    memory.check_fits(config, options, where)
    if options.rotated:
        config = _with_blocks(config)
    with machine.allocating(lambda: memory.refused(config, options, where)):
        return _Loader(config, checkpoint, options, where).load()


def load_tokenizer(path: str | Path = "demo") -> Tokenizer:
    """The tokenizer, and chat template if there is one, of a checkpoint directory.

    Raises
    ------
    CheckpointError
        When it has no readable `tokenizer.json`.
    """
    return Tokenizer.from_dir(resolve(path))


def _with_blocks(config: ModelConfig) -> ModelConfig:
    """The configuration with every Hadamard width chosen: the full one, or the widest known block."""
    return replace(
        config,
        hidden_block=config.hidden_block or largest_block(config.hidden_size),
        heads_block=config.heads_block or largest_block(config.q_size),
        intermediate_block=config.intermediate_block or largest_block(config.intermediate_size),
    )


class _Loader:
    """What the steps of one `load` share."""

    def __init__(
        self, config: ModelConfig, checkpoint: Checkpoint, options: LoadOptions, device: torch.device
    ):
        self.config, self.checkpoint, self.options, self.device = config, checkpoint, options, device
        self.shapes = tensors.layer_shapes(config)
        self.signs = prepare.signs(config.hidden_size).to(options.dtype)

    def load(self) -> Transformer:
        """Tables first: quantising the output matrix takes more memory than any layer."""
        embedding, heads, draft_head = self._tables()
        # a table that several share stays one
        tables = {id(table): table for table in (embedding, *heads.values()) if isinstance(table, Tensor)}
        there = {key: table.to(self.device) for key, table in tables.items()}
        final_norm = self.checkpoint.read(tensors.FINAL_NORM).to(self.device, self.options.dtype)
        layers: dict[str, list[LayerWeights]] = {name: [] for name in self.options.sets}
        count = self.config.num_hidden_layers
        for index in track(range(count), count, f"loading {self.checkpoint.directory.name}"):
            for name, layer in self._layer(index).items():
                layers[name].append(layer.to(self.device))
        sets = {
            name: WeightSet(
                tuple(layers[name]),
                there[id(head)]
                if isinstance(head := heads[name], Tensor)
                else moved(head, self.device, self.options.dtype),
                draft_head and moved(draft_head, self.device, self.options.dtype)
                if name == "mxfp4"
                else None,
                self.signs.to(self.device) if name in self.options.rotated else None,
            )
            for name in self.options.sets
        }
        model = Transformer(self.config, there[id(embedding)], final_norm, sets, dtype=self.options.dtype)
        # in the order asked for: what comes first is what such a model drafts in
        model.precisions = self.options.precisions
        return model

    def _tables(self) -> tuple[Tensor, dict[str, Weight], PackedWeight | None]:
        """(embedding, output matrix per set, 4-bit output matrix of drafts)."""
        options, tied = self.options, self.config.tie_word_embeddings
        wide = "fp32" in options.sets
        embedding = self.checkpoint.read(tensors.EMBEDDING).to(options.dtype if wide else torch.bfloat16)
        head = embedding if tied else self.checkpoint.read(tensors.HEAD)
        packed = {name: self._packed_head(head, name) for name in options.quantised_heads}
        draft_head = None
        if "mxfp4" in options.sets and "mxfp4" not in packed and not options.keep_head:
            draft_head = self._packed_head(head, "mxfp4")
        heads: dict[str, Weight] = {**packed}
        dense = [name for name in options.sets if name not in packed]
        half = head.to(torch.bfloat16) if set(dense) - {"fp32"} else head
        for name in dense:
            heads[name] = head.to(options.dtype) if name == "fp32" else half
        return embedding, heads, draft_head

    def _packed_head(self, head: Tensor, name: str) -> PackedWeight:
        return formats.join(self._quantise(head, name, f"quantising the output matrix to {name}"))

    def _layer(self, index: int) -> dict[str, LayerWeights]:
        """One layer in every set."""
        fields: dict[str, dict[str, Weight | None]] = {name: {} for name in self.options.sets}
        for field, parts in FUSED.items():
            for name, (weight, bias, norm) in self._fused(index, field, parts).items():
                fields[name] |= {field: weight, f"{field}_bias": bias}
                if norm is not None:
                    fields[name]["input_norm" if field == "qkv" else "post_norm"] = norm
            memory.give_back()
        if self.config.qk_norm:
            for key in ("q_norm", "k_norm"):
                norm = self._read(index, key).to(self.options.dtype)
                for values in fields.values():
                    values[key] = norm
        return {name: LayerWeights(**values) for name, values in fields.items()}  # type: ignore[arg-type]

    def _fused(self, index: int, field: str, parts: tuple[str, ...]) -> dict[str, _Fused]:
        """One matrix of a layer in every set, made of linears that are read one after the other."""
        pieces: dict[str, list[Weight]] = {name: [] for name in self.options.sets}
        biases: dict[str, list[Tensor]] = {name: [] for name in self.options.sets}
        norms: dict[str, Tensor | None] = dict.fromkeys(self.options.sets)
        shared = {_NORMS[field]: self._read(index, _NORMS[field])} if field in _NORMS else {}
        for part in parts:
            keys = [key for key in (f"{part}_proj", f"{part}_bias") if key in self.shapes]
            plain = shared | {key: self._read(index, key) for key in keys}
            turned = self._rotate(plain) if self.options.rotated else plain
            if self.options.rotated.issuperset(self.options.sets):
                plain = turned
            for name in self.options.sets:
                chosen = turned if name in self.options.rotated else plain
                kept = name != "fp32" and self.options.keeps(index, field)
                pieces[name] += self._pieces(chosen[f"{part}_proj"], "bf16" if kept else name)
                biases[name] += [chosen[key].to(self.options.dtype) for key in keys[1:]]
                norms[name] = chosen[_NORMS[field]].to(self.options.dtype) if shared else None
        return {
            name: (self._join(pieces[name]), torch.cat(biases[name]) if biases[name] else None, norms[name])
            for name in self.options.sets
        }

    def _read(self, index: int, key: str) -> Tensor:
        return self.checkpoint.read(tensors.layer_tensor(index, key))

    def _rotate(self, plain: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self.config
        return prepare.rotate_layer(
            plain,
            num_heads=config.num_attention_heads,
            head_dim=config.head_dim,
            signs=self.signs,
            hidden_block=config.hidden_block,
            heads_block=config.heads_block,
            intermediate_block=config.intermediate_block,
            dtype=self.options.dtype,
        )

    def _pieces(self, matrix: Tensor, name: str) -> Sequence[Weight]:
        """A matrix in the format of a set, in pieces to be joined; quantised some rows at a time."""
        if name in ("fp32", "bf16"):
            return [matrix.to(self.options.dtype if name == "fp32" else torch.bfloat16)]
        return self._quantise(matrix, name)

    def _quantise(self, matrix: Tensor, name: str, what: str = "") -> list[PackedWeight]:
        """Some rows at a time, with a bar if it is told `what` to call it."""
        tile = formats.ROWS_TOGETHER
        rows = max(1, _QUANTISED_AT_ONCE // matrix.shape[1] // tile) * tile
        group_size = self.options.group_size if name == "int4" else 32
        parts = matrix.split(rows)
        steps = track(parts, len(parts), what) if what else parts
        quantised = (prepare.quantise(part.float(), name, group_size) for part in steps)
        # float64 is computed by plain torch everywhere, which reads the canonical order
        return [q if self.options.dtype == torch.float64 else to_device_layout(q) for q in quantised]

    def _join(self, pieces: list[Weight]) -> Weight:
        """Pieces, all dense or all packed, one below the other."""
        dense = [piece for piece in pieces if isinstance(piece, Tensor)]
        if dense:
            return dense[0] if len(dense) == 1 else torch.cat(dense)
        return formats.join([piece for piece in pieces if isinstance(piece, PackedWeight)])
