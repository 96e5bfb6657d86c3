"""Lossless speculative decoding by a ladder of levels (QSpec, arXiv 2410.11305; ML-SpecQD, 2503.13565)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from qspec_decode import ladder, loop, request
from qspec_decode.accept import greedy, standard
from qspec_decode.graphs import pool
from qspec_decode.graphs.wanted import Wanted, captures
from qspec_decode.ladder import Draft
from qspec_decode.noise import RowSeed, Seed, row_seeds
from qspec_decode.output import DecodingOutput, Streamer
from qspec_decode.proposal import Run
from qspec_decode.protocol import Model, device_of
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculative_config import SpeculativeConfig, configured
from qspec_decode.tokens import TokenBuffer
from qspec_kernels import exclusive_threads


@exclusive_threads()
def speculate(
    model: Model,
    input_ids: request.InputIds,
    attention_mask: Tensor | None = None,
    *,
    target: str = "bf16",
    draft: Draft | Sequence[Draft] = "auto",
    sampling: SamplingParams | None = None,
    config: SpeculativeConfig | None = None,
    streamer: Streamer | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = None,
    eos_token_id: int | Sequence[int] | None = None,
    num_speculative_tokens: int | Sequence[int] | None = None,
    enforce_eager: bool | None = None,
) -> DecodingOutput:
    """Decode with drafts: the target's own text, sooner.

    Greedy output equals `generate`'s token for token; sampled output has the target's distribution.

    Parameters
    ----------
    model
        A loaded model.
    input_ids, attention_mask
        Prompts [batch, length], padded on either side where the mask is 0; or a list of lists.
    target
        The precision whose output is wanted.
    draft
        One draft level or a list from the one next to the target downward: a precision of the same
        weights ("mxfp4", "mxfp4a16", "w4a8", "w4a4", ...), "ngram", or another loaded model with the
        same tokenizer. "auto" is the default for the target and stands alone.
        `target="w4a16", draft="w4a4"` is QSpec, `target="bf16", draft=["mxfp4", small]` ML-SpecQD.
    sampling, config
        How tokens are chosen, and how many are drafted; the keyword options set single fields of them.
    streamer
        Receives committed tokens round by round.

    Raises
    ------
    UsageError
        Prompts, levels or options that cannot be served; the message says which and why.
    """
    params = request.sampling_params(
        sampling,
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
            "eos_token_id": eos_token_id,
        },
    )
    config = configured(config, num_speculative_tokens, enforce_eager)
    precision = request.loaded_precision(model, target)
    drafts = ladder.as_list(draft, precision)
    prompts = request.prompts(model, input_ids, attention_mask)
    eos = request.eos_ids(model, params)
    pairs = row_seeds(params.seed, len(prompts))

    wanted = Wanted(model, precision, drafts, config, params, eos)
    amount = wanted.drafting(fixed=captures(wanted), batch_size=len(prompts))
    rows = loop.Rows(prompts, params.max_new_tokens, model.max_positions, eos)
    with rounds(wanted, prompts, pairs) as top:
        course = loop.run(top, rows, streamer)
        levels, graph_bytes = list(top.all_stats()), top.num_bytes
        top.give_back()
    return DecodingOutput(
        sequences=[torch.tensor(p + t) for p, t in zip(prompts, rows.token_ids, strict=True)],
        token_ids=rows.token_ids,
        finish_reasons=rows.finish_reasons,
        lossless=greedy.LOSSLESS if params.greedy else standard.LOSSLESS,
        reference=precision,
        seeds=pairs,
        levels=levels,
        num_speculative_tokens=amount.num_speculative_tokens,
        draft_confidence_threshold=amount.draft_confidence_threshold,
        num_target_steps=course.num_rounds,
        prefill_seconds=course.prefill_seconds,
        decode_seconds=course.decode_seconds,
        graph_bytes=graph_bytes,
    )


def rounds(
    wanted: Wanted, prompts: list[list[int]], seeds: list[RowSeed]
) -> AbstractContextManager[loop.Rounds]:
    """What decodes a call: rounds that have been captured, or levels that run op by op."""
    model = wanted.model
    capacity = min(max(map(len, prompts)) + wanted.sampling.max_new_tokens, model.max_positions)
    if captures(wanted):
        return pool.runner(wanted, prompts, seeds, capacity)
    device = device_of(model)
    run = Run(TokenBuffer(prompts, capacity, device), torch.tensor(seeds).to(device), wanted.sampling)
    return nullcontext(ladder.build(run, model, wanted.target, wanted.drafts, wanted.config))
