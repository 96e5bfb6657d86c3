"""What the caller asked for, checked once: prompts, limits, precision names, sampling."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qspec_decode.precision import canonical
from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
from qspec_kernels import UsageError

InputIds = Tensor | Sequence[Sequence[int]]


def prompts(model: Model, input_ids: InputIds, attention_mask: Tensor | None) -> list[list[int]]:
    """Rows of ids without their padding.

    `input_ids` is [batch, length] (one row may come as [length]), padded on either side where
    `attention_mask` is 0, or a list of lists.

    Raises
    ------
    UsageError
        No rows, an empty row, an id outside the vocabulary, a row that fills all positions of the
        model, ids that are no integers, or a mask of another shape.
    """
    if isinstance(input_ids, Tensor):
        ids = input_ids[None] if input_ids.ndim == 1 else input_ids
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if ids.ndim != 2 or mask.shape not in (input_ids.shape, ids.shape):
            masked = "" if attention_mask is None else f" and attention_mask {tuple(mask.shape)}"
            raise UsageError(
                f"input_ids has shape {tuple(input_ids.shape)}{masked}; expected [batch, length]",
                "A mask has the shape of the ids.",
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UsageError(f"input_ids has dtype {ids.dtype}; expected an integer dtype")
        rows = [
            _unpadded(row, keep.bool(), i)
            for i, (row, keep) in enumerate(zip(ids, mask.view(ids.shape), strict=True))
        ]
    else:
        if attention_mask is not None:
            raise UsageError("attention_mask was given with a list of prompts, which needs none")
        rows = [_listed(row, index) for index, row in enumerate(input_ids)]
    if not rows:
        raise UsageError("input_ids has no rows; expected at least one prompt")
    for index, row in enumerate(rows):
        check_prompt(row, f"prompt {index}", model.vocab_size, model.max_positions)
    return rows


def _listed(row: Any, index: int) -> list[int]:
    if not isinstance(row, Sequence) or isinstance(row, str):
        raise UsageError(
            f"prompt {index} is {row!r}; expected a list of token ids", "Wrap a single prompt: [[1, 2, 3]]."
        )
    strange = [token for token in row if type(token) is not int]
    if strange:
        raise UsageError(f"prompt {index} holds {strange[0]!r}; expected integer token ids")
    return list(row)


def _unpadded(row: Tensor, keep: Tensor, index: int) -> list[int]:
    places = keep.nonzero()[:, 0]
    if len(places) and int(places[-1] - places[0]) >= len(places):
        raise UsageError(
            f"attention_mask of row {index} leaves out tokens in the middle; expected padding on either side",
            "Every token before the last one is attended to; cut the others out of input_ids.",
        )
    return row[keep].tolist()


def check_prompt(ids: Sequence[int], where: str, vocab_size: int, max_positions: int) -> None:
    """Raise a `UsageError` that begins with `where` if a model of these limits cannot go on from `ids`."""
    if not ids:
        raise UsageError(
            f"{where} is empty; expected at least one token",
            "Start from the model's bos_token_id if there is no text.",
        )
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise UsageError(
            f"{where} holds id {outside[0]}; expected 0 .. {vocab_size - 1}",
            "Encode the text with the tokenizer of this checkpoint.",
        )
    if len(ids) >= max_positions:
        raise UsageError(
            f"{where} has {len(ids)} tokens; the model has {max_positions} positions, "
            "and one must be left to generate",
            f"Cut the prompt to at most {max_positions - 1} tokens.",
        )


def sampling_params(sampling: SamplingParams | None, given: dict[str, Any]) -> SamplingParams:
    """`sampling` with the keyword options that were given put in; the two may not contradict.

    Raises
    ------
    UsageError
        An option differs from what `sampling` says, or a value is outside its range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if sampling is None:
        return SamplingParams(**given)
    default = SamplingParams()
    for name, value in given.items():
        current = getattr(sampling, name)
        if current not in (value, getattr(default, name)):
            raise UsageError(
                f"{name} is {value!r} as a keyword and {current!r} in sampling=SamplingParams(...)",
                "Give it in one place.",
            )
    return replace(sampling, **given)


def eos_ids(model: Model, params: SamplingParams) -> frozenset[int]:
    """Ids that end a row: the caller's, else the model's own."""
    if params.eos_token_id is None:
        return frozenset(model.eos_token_ids)
    if isinstance(params.eos_token_id, int):
        return frozenset([params.eos_token_id])
    return frozenset(params.eos_token_id)


def loaded_precision(model: Model, name: str) -> str:
    """The full name of a precision that the model has been loaded for.

    Raises
    ------
    UsageError
        An unknown name, or one whose weights the model does not hold.
    """
    precision = canonical(name)
    if precision not in model.precisions:
        raise UsageError(
            f"the model was loaded for {', '.join(model.precisions)}, not for {precision}",
            f"Load it with precisions=({', '.join(repr(p) for p in (*model.precisions, precision))}).",
        )
    return precision
