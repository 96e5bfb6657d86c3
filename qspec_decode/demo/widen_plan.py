"""`WidenPlan`: how often each width of a small model is repeated to get a real model's shape."""

from dataclasses import dataclass, replace

from qspec_decode.config import ModelConfig
from qspec_kernels import UsageError, largest_block

VOCAB_SIZE = 128256
# a sibling is made to weigh at least this share of its target, as small drafters of real models do
SIBLING_SHARE = 1 / 50


@dataclass(frozen=True)
class Scale:
    """A real model's shape; heads have 64 features and share keys and values by four, the head is tied."""

    hidden_size: int
    intermediate_size: int
    num_layers: int

    @property
    def num_bytes(self) -> int:
        """Bytes of its bf16 matrices."""
        h, f = self.hidden_size, self.intermediate_size
        layer = h * h + 2 * (h // 4) * h + h * h + 3 * f * h
        return 2 * (VOCAB_SIZE * h + self.num_layers * layer)


SCALES = {
    "0.5b": Scale(1024, 4096, 32),
    "1b": Scale(2048, 8192, 16),  # Llama 3.2 1B
    "2b": Scale(2048, 8192, 36),
    "8b": Scale(4096, 16384, 32),
}


@dataclass(frozen=True)
class WidenPlan:
    """Tile factors, powers of two, and what is added.

    Parameters
    ----------
    hidden_tile, intermediate_tile, heads_tile
        Copies of the residual stream's features, of the intermediate ones, and of all heads (queries,
        keys and values together).
    num_layers
        Layers in the end; those beyond the small model's add zero to the residual stream.
    vocab_size
        Rows of the tables in the end; ids beyond the small model's are masked.
    """

    hidden_tile: int
    intermediate_tile: int
    heads_tile: int
    num_layers: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("hidden_tile", "intermediate_tile", "heads_tile"):
            tile = getattr(self, name)
            if tile < 1 or tile & (tile - 1):
                raise UsageError(f"{name} is {tile}, expected a power of two")

    def config(self, small: ModelConfig) -> ModelConfig:
        """The wide model's configuration. Online Hadamards keep the small model's widths: one per copy.

        Raises
        ------
        UsageError
            If the small model has more layers or ids than the plan.
        """
        if self.num_layers < small.num_hidden_layers or self.vocab_size < small.vocab_size:
            raise UsageError(
                f"a model of {small.num_hidden_layers} layers and {small.vocab_size} ids cannot be widened "
                f"to {self.num_layers} layers and {self.vocab_size} ids"
            )
        real = small.num_real_tokens or small.vocab_size
        windows = small.windows or (None,) * small.num_hidden_layers
        return replace(
            small,
            vocab_size=self.vocab_size,
            num_real_tokens=real if real < self.vocab_size else None,
            hidden_size=small.hidden_size * self.hidden_tile,
            intermediate_size=small.intermediate_size * self.intermediate_tile,
            num_attention_heads=small.num_attention_heads * self.heads_tile,
            num_key_value_heads=small.num_key_value_heads * self.heads_tile,
            num_hidden_layers=self.num_layers,
            windows=tuple(windows[self.source(layer, small)] for layer in range(self.num_layers)),
            hidden_block=small.hidden_block or largest_block(small.hidden_size),
            heads_block=small.heads_block or largest_block(small.q_size),
            intermediate_block=small.intermediate_block or largest_block(small.intermediate_size),
        )

    def source(self, layer: int, small: ModelConfig) -> int:
        """The small model's layer whose weights a wide layer repeats."""
        return layer % small.num_hidden_layers


def plan(scale: str, config: ModelConfig) -> WidenPlan:
    """How a model is widened to a scale: the demo's target to its shape, any other model to a share of it.

    A model whose hidden, intermediate and query widths are the scale's divided by one power of two
    gets the scale's shape. Any other one is taken for a sibling that drafts for such a model: it keeps
    its layers and gets the smallest factor that makes it weigh `SIBLING_SHARE` of the scale.

    Raises
    ------
    UsageError
        For a name that is not in `SCALES`.
    """
    if scale not in SCALES:
        raise UsageError(f"no scale {scale!r}, expected one of {', '.join(SCALES)}")
    wanted = SCALES[scale]
    tile = wanted.hidden_size // config.hidden_size
    widths = (config.hidden_size * tile, config.intermediate_size * tile, config.q_size * tile)
    is_power = tile > 0 and tile & (tile - 1) == 0
    if is_power and widths == (wanted.hidden_size, wanted.intermediate_size, wanted.hidden_size):
        return WidenPlan(tile, tile, tile, wanted.num_layers, VOCAB_SIZE)
    tile = 1
    while True:
        found = WidenPlan(tile, tile, tile, config.num_hidden_layers, VOCAB_SIZE)
        if num_bytes(found.config(config)) >= SIBLING_SHARE * wanted.num_bytes:
            return found
        tile *= 2


def num_bytes(config: ModelConfig) -> int:
    """Bytes of the bf16 matrices of a configuration."""
    h, tables = config.hidden_size, 1 if config.tie_word_embeddings else 2
    layer = h * (2 * config.q_size + 2 * config.kv_size + 3 * config.intermediate_size)
    return 2 * (tables * config.vocab_size * h + config.num_hidden_layers * layer)
