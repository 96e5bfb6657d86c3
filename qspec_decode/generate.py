"""Plain decoding, one token per row and step: the baseline, and what speculation must reproduce.

Step by step it shares no loop code with `speculate`, so that the two can be held against each other. Captured
as CUDA graphs it is the round of `speculate` without a draft.
"""

import time
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from qspec_decode import loop, request
from qspec_decode.cache import roomy
from qspec_decode.graphs import pool
from qspec_decode.graphs.wanted import Wanted, captures
from qspec_decode.noise import Purpose, RowSeed, Seed, row_seeds, uniform
from qspec_decode.output import DecodingOutput, Streamer
from qspec_decode.protocol import FlatTokens, Model, device_of, forward, give_back, top2
from qspec_decode.sampling import SamplingParams, checked, draw, probabilities
from qspec_decode.speculative_config import SpeculativeConfig
from qspec_kernels import exclusive_threads


@exclusive_threads()
def generate(
    model: Model,
    input_ids: request.InputIds,
    attention_mask: Tensor | None = None,
    *,
    target: str = "bf16",
    sampling: SamplingParams | None = None,
    streamer: Streamer | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = None,
    eos_token_id: int | Sequence[int] | None = None,
    enforce_eager: bool | None = None,
) -> DecodingOutput:
    """Decode with one precision of the model, without speculation.

    Parameters
    ----------
    model
        A loaded model.
    input_ids, attention_mask
        Prompts [batch, length], padded on either side where the mask is 0; or a list of lists.
    target
        The precision that decodes.
    sampling
        How tokens are chosen; the keyword options after it set single fields of it.
    streamer
        Receives tokens as they are made.
    enforce_eager
        As in `SpeculativeConfig`.

    Raises
    ------
    UsageError
        Prompts, precision or options that cannot be served; the message says which and why.
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
    precision = request.loaded_precision(model, target)
    prompts = request.prompts(model, input_ids, attention_mask)
    eos = request.eos_ids(model, params)
    pairs = row_seeds(params.seed, len(prompts))
    capacity = min(max(map(len, prompts)) + params.max_new_tokens, model.max_positions)
    wanted = Wanted(model, precision, [], SpeculativeConfig(enforce_eager=enforce_eager), params, eos)
    if captures(wanted):
        return _captured(wanted, prompts, pairs, capacity, streamer)

    began = time.perf_counter()
    device = device_of(model)
    seeds = torch.tensor(pairs).to(device)
    cache = model.new_cache(len(prompts), roomy(capacity), precision)
    lengths = [len(prompt) for prompt in prompts]
    active = list(range(len(prompts)))
    flat = FlatTokens(
        [token for prompt in prompts for token in prompt],
        [row for row in active for _ in prompts[row]],
        [position for length in lengths for position in range(length)],
        [end - 1 for end in accumulate(lengths)],
    )
    logits = forward(model, flat, cache, precision, phase="prefill")
    token_ids: list[list[int]] = [[] for _ in prompts]
    finish_reasons = [""] * len(prompts)
    prefill_seconds = 0.0
    num_steps = 0
    while True:
        # between two passes there are numbers where that can be: a tensor's Python takes much longer
        if params.greedy:
            tokens = checked(top2(model, logits, cache)[0].tolist())
        else:
            at = torch.tensor([(row, lengths[row]) for row in active]).to(device)
            numbers = uniform(seeds[at[:, 0]], 0, Purpose.DRAW, at[:, 1:])
            tokens = draw(probabilities(logits, params), numbers[:, 0]).tolist()
        for row, token in zip(active, tokens, strict=True):
            token_ids[row].append(token)
            lengths[row] += 1
            if token in eos:
                finish_reasons[row] = "stop"
            elif len(token_ids[row]) == params.max_new_tokens or lengths[row] == model.max_positions:
                finish_reasons[row] = "length"
        if streamer:
            none = [0] * len(active)
            streamer.put(active, [[token] for token in tokens], none, none)
        if not prefill_seconds:
            prefill_seconds = time.perf_counter() - began
        active = [row for row in active if not finish_reasons[row]]
        if not active:
            break
        last = [token_ids[row][-1] for row in active]
        flat = FlatTokens(last, active, [lengths[row] - 1 for row in active])
        logits = forward(model, flat, cache, precision)
        num_steps += 1
    give_back(cache)
    if streamer:
        streamer.end()
    return DecodingOutput(
        sequences=[torch.tensor(p + t) for p, t in zip(prompts, token_ids, strict=True)],
        token_ids=token_ids,
        finish_reasons=finish_reasons,
        lossless=True,
        reference=precision,
        seeds=pairs,
        num_target_steps=num_steps,
        prefill_seconds=prefill_seconds,
        decode_seconds=time.perf_counter() - began - prefill_seconds,
    )


def _captured(
    wanted: Wanted,
    prompts: list[list[int]],
    seeds: list[RowSeed],
    capacity: int,
    streamer: Streamer | None,
) -> DecodingOutput:
    """The same by captured rounds without a draft."""
    rows = loop.Rows(prompts, wanted.sampling.max_new_tokens, wanted.model.max_positions, wanted.eos)
    with pool.runner(wanted, prompts, seeds, capacity) as top:
        course = loop.run(top, rows, streamer)
    return DecodingOutput(
        sequences=[torch.tensor(p + t) for p, t in zip(prompts, rows.token_ids, strict=True)],
        token_ids=rows.token_ids,
        finish_reasons=rows.finish_reasons,
        lossless=True,
        reference=wanted.target,
        seeds=seeds,
        num_target_steps=course.num_rounds,
        prefill_seconds=course.prefill_seconds,
        decode_seconds=course.decode_seconds,
        graph_bytes=top.num_bytes,
    )
