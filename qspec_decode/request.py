"""What the caller asked for, checked once: prompts, limits, precision names, sampling."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qspec_decode import checks
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
        if not isinstance(mask, Tensor):
            raise UsageError(
                f"attention_mask is a {type(mask).__name__}; expected a tensor like input_ids",
                "torch.tensor(...) makes one.",
            )
        if ids.ndim != 2 or mask.shape not in (input_ids.shape, ids.shape):
            masked = "" if attention_mask is None else f" and attention_mask {tuple(mask.shape)}"
            raise UsageError(
                f"input_ids has shape {tuple(input_ids.shape)}{masked}; expected [batch, length]",
                "A mask has the shape of the ids.",
            )
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UsageError(
                f"input_ids has dtype {ids.dtype}; expected an integer dtype", "Convert it: input_ids.long()."
            )
        rows = [
            _unpadded(row, keep.bool(), i)
            for i, (row, keep) in enumerate(zip(ids, mask.view(ids.shape), strict=True))
        ]
    else:
        if attention_mask is not None:
            raise UsageError(
                "attention_mask was given with a list of prompts, which needs none",
                "Leave it out, or pass input_ids as a tensor.",
            )
        listed = checks.plain(input_ids)
        if not isinstance(listed, Sequence):
            raise UsageError(
                f"input_ids is {input_ids!r}; expected a tensor [batch, length] or a list of lists of ids",
                "A tokenizer's result is a dictionary; pass its input_ids.",
            )
        rows = [_listed(row, index) for index, row in enumerate(listed)]
    if not rows:
        raise UsageError("input_ids has no rows; expected at least one prompt", "For instance [[1, 2, 3]].")
    for index, row in enumerate(rows):
        check_prompt(row, f"prompt {index}", model.vocab_size, model.max_positions)
    return rows


def _listed(row: Any, index: int) -> list[int]:
    row = checks.plain(row)
    if not isinstance(row, Sequence) or isinstance(row, str):
        raise UsageError(
            f"prompt {index} is {row!r}; expected a list of token ids", "Wrap a single prompt: [[1, 2, 3]]."
        )
    ids = []
    for token in row:
        found = checks.as_integer(token)
        if found is None:
            raise UsageError(
                f"prompt {index} holds {token!r}; expected integer token ids",
                "load_tokenizer(...).encode(text) makes them.",
            )
        ids.append(found)
    return ids


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
        An option differs from what `sampling` says, or a value is of another type or outside its range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    asked = SamplingParams(**given)
    if sampling is None:
        return asked
    if not isinstance(sampling, SamplingParams):
        raise UsageError(
            f"sampling is {sampling!r}; expected SamplingParams",
            "For instance sampling=SamplingParams(temperature=0.8).",
        )
    default = SamplingParams()
    for name in given:
        value, current = getattr(asked, name), getattr(sampling, name)
        if current not in (value, getattr(default, name)):
            raise UsageError(
                f"{name} is {value!r} as a keyword and {current!r} in sampling=SamplingParams(...)",
                "Give it in one place.",
            )
    return replace(sampling, **given)


def eos_ids(model: Model, params: SamplingParams) -> frozenset[int]:
    """Ids that end a row: the caller's, else the model's own.

    Raises
    ------
    UsageError
        An id of the caller's that the model cannot emit.
    """
    if params.eos_token_id is None:
        return frozenset(model.eos_token_ids)
    ids = params.eos_token_id if isinstance(params.eos_token_id, Sequence) else [params.eos_token_id]
    for token in ids:
        if not 0 <= token < model.vocab_size:
            raise UsageError(
                f"eos_token_id holds {token}; expected ids in 0 .. {model.vocab_size - 1}",
                "None stands for the model's own, () for none at all.",
            )
    return frozenset(ids)


def loaded_precision(model: Model, name: str) -> str:
    """The full name of a precision that the model has been loaded for.

    Raises
    ------
    UsageError
        An unknown name, one whose weights the model does not hold, or a model that is none.
    """
    if not isinstance(model, Model):
        raise UsageError(
            f"model is {model!r}; expected a loaded model", 'Load it first, as in qspec_decode.load("demo").'
        )
    if not isinstance(name, str):
        raise UsageError(
            f"a precision is {name!r}; expected a name", f"The model has {', '.join(model.precisions)}."
        )
    precision = canonical(name)
    if precision not in model.precisions:
        raise UsageError(
            f"the model was loaded for {', '.join(model.precisions)}, not for {precision}",
            f"Load it with precisions=({', '.join(repr(p) for p in (*model.precisions, precision))}).",
        )
    return precision
