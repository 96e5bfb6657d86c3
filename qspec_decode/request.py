"""What the caller asked for, checked once: prompts, limits, precision names, sampling."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
from qspec_kernels import PRECISIONS, UsageError

InputIds = Tensor | Sequence[Sequence[int]]

_SHORT_NAMES = {"mxfp4": "mxfp4a8"}


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
        mask = mask.view(ids.shape)
        rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    else:
        if attention_mask is not None:
            raise UsageError("attention_mask was given with a list of prompts, which needs none")
        rows = [list(row) for row in input_ids]
    if not rows:
        raise UsageError("input_ids has no rows; expected at least one prompt")
    for index, row in enumerate(rows):
        check_prompt(row, f"prompt {index}", model.vocab_size, model.max_positions)
    return rows


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


def resolve_precision(name: str) -> str:
    """The full name of a precision; "mxfp4" stands for mxfp4a8, which is as often accepted and faster.

    Raises
    ------
    UsageError
        An unknown name; the message lists the known ones.
    """
    name = _SHORT_NAMES.get(name, name)
    if name not in PRECISIONS:
        known = ", ".join([*PRECISIONS, *_SHORT_NAMES])
        raise UsageError(f"unknown precision {name!r}; expected one of {known}")
    return name


def loaded_precision(model: Model, name: str) -> str:
    """`resolve_precision`, and the model must have been loaded with it.

    Raises
    ------
    UsageError
        As above, or the model does not hold the weights.
    """
    precision = resolve_precision(name)
    if precision not in model.precisions:
        raise UsageError(
            f"the model was loaded for {', '.join(model.precisions)}, not for {precision}",
            f"Load it with precisions=({', '.join(repr(p) for p in (*model.precisions, precision))}).",
        )
    return precision
