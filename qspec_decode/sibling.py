"""What another model needs in order to draft for a target: the same tokens, and logits of the same width."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from qspec_decode.config import ModelConfig
from qspec_decode.protocol import Model, Relay
from qspec_kernels import UsageError


def check_same_tokens(target: Model | ModelConfig, draft: Model | ModelConfig, name: str) -> None:
    """Refuse a draft, called `name`, whose ids stand for other tokens than the target's.

    Tokenizers decide where both are known. Tables may then differ in length: they are padded, and
    releases of a family add tokens of their own. A model without a tokenizer is known by that length alone.

    Raises
    ------
    UsageError
        When the tokenizers differ, or if either is not known, when the lengths do.
    """
    # an optional member of the protocol
    known = getattr(target, "vocabulary", None), getattr(draft, "vocabulary", None)
    if None not in known:
        if known[0] != known[1]:
            raise UsageError(
                f"the draft {name!r} has another tokenizer than the target; expected ids that stand for the "
                "same tokens",
                "Draft with a smaller model of the same family, or with a precision of the target itself.",
            )
    elif draft.vocab_size != target.vocab_size:
        raise UsageError(
            f"the draft {name!r} has {draft.vocab_size} tokens, the target {target.vocab_size}; expected the "
            "same number where a model comes without its tokenizer",
            "A draft model needs the target's tokenizer. If it has it, put tokenizer.json beside the weights "
            "of both: tables that are padded to different lengths are then no obstacle.",
        )


def aligned(model: Model, vocab_size: int) -> Model:
    """`model` with logits of that width: itself if it has it already."""
    return model if model.vocab_size == vocab_size else Aligned(model, vocab_size)


class Aligned(Relay):
    """A draft model whose logits are cut, or extended by -inf, to the width of the target's.

    Parameters
    ----------
    model
        The draft model.
    vocab_size
        The target's.
    """

    def __init__(self, model: Model, vocab_size: int):
        super().__init__(model)
        self.vocab_size = vocab_size

    def forward(self, ids: Tensor, *inputs: Any, **options: Any) -> Tensor:
        """As `protocol.Model.forward`."""
        # An id beyond this model's table is padding or a token that only the target has. The last id stands
        # in for it: what is drafted behind it is verified like every draft, so only acceptance can suffer.
        known = ids.clamp(max=self._model.vocab_size - 1)
        logits = super().forward(known, *inputs, **options)
        return pad(logits, (0, self.vocab_size - logits.shape[-1]), value=-torch.inf)
