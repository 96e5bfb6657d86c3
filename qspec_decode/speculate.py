"""Lossless speculative decoding by a ladder of levels (QSpec, arXiv 2410.11305; ML-SpecQD, 2503.13565)."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from qspec_decode import ladder, request
from qspec_decode.accept import greedy, standard
from qspec_decode.ladder import Draft, SpeculativeConfig
from qspec_decode.levels import Emission
from qspec_decode.noise import Seed, row_seeds
from qspec_decode.output import DecodingOutput, Streamer
from qspec_decode.proposal import Run
from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
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
    config = ladder.configured(config, num_speculative_tokens)
    precision = request.loaded_precision(model, target)
    drafts = ladder.as_list(draft, precision)
    prompts = request.prompts(model, input_ids, attention_mask)
    eos = request.eos_ids(model, params)
    pairs = row_seeds(params.seed, len(prompts))

    capacity = min(max(map(len, prompts)) + params.max_new_tokens, model.max_positions)
    run = Run(TokenBuffer(prompts, capacity), torch.tensor(pairs), params)
    top = ladder.build(run, model, precision, drafts, config)
    rows = _Rows(prompts, params.max_new_tokens, model.max_positions, eos)

    began = time.perf_counter()
    # one token without a draft: its forward pass is the prefill
    everyone = torch.arange(len(prompts))
    rows.commit(everyone, top.round(everyone, rows.lengths, torch.ones_like(everyone)), streamer)
    if rows.active.numel():
        top.prefill(rows.active, rows.lengths[rows.active])
    prefill_seconds = time.perf_counter() - began
    num_rounds = 0
    while rows.active.numel():
        active = rows.active
        rows.commit(active, top.round(active, rows.lengths[active], rows.limits[active]), streamer)
        num_rounds += 1
    if streamer:
        streamer.end()
    return DecodingOutput(
        sequences=[torch.tensor(p + t) for p, t in zip(prompts, rows.token_ids, strict=True)],
        token_ids=rows.token_ids,
        finish_reasons=rows.finish_reasons,
        lossless=greedy.LOSSLESS if params.greedy else standard.LOSSLESS,
        reference=precision,
        seeds=pairs,
        levels=list(top.all_stats()),
        num_target_steps=num_rounds,
        prefill_seconds=prefill_seconds,
        decode_seconds=time.perf_counter() - began - prefill_seconds,
    )


class _Rows:
    """Where every row stands: its committed length, its new tokens, and whether it goes on.

    Parameters
    ----------
    prompts
        Ids of each row's prompt.
    max_new_tokens, max_positions
        A row ends at whichever comes first: so many new tokens, or so many in all.
    eos
        Ids that end a row.
    """

    def __init__(
        self, prompts: list[list[int]], max_new_tokens: int, max_positions: int, eos: frozenset[int]
    ):
        self._eos = eos
        self._ends = torch.tensor([min(len(p) + max_new_tokens, max_positions) for p in prompts])
        self.lengths = torch.tensor([len(p) for p in prompts])
        self.active = torch.arange(len(prompts))
        self.token_ids: list[list[int]] = [[] for _ in prompts]
        self.finish_reasons = [""] * len(prompts)

    @property
    def limits(self) -> Tensor:
        """How many more tokens each row may get."""
        return self._ends - self.lengths

    def commit(self, rows: Tensor, emission: Emission, streamer: Streamer | None) -> None:
        """Take over a round's tokens, cut behind an end-of-text id, and retire finished rows."""
        self.lengths[rows] += emission.num_tokens
        counts, accepted = emission.num_tokens.tolist(), emission.num_accepted_tokens.tolist()
        new_tokens = []
        for row, ids, count in zip(rows.tolist(), emission.ids.tolist(), counts, strict=True):
            ids = ids[:count]
            stop = next((i for i, token in enumerate(ids) if token in self._eos), None)
            if stop is not None:
                ids = ids[: stop + 1]
                self.finish_reasons[row] = "stop"
            elif self.lengths[row] == self._ends[row]:
                self.finish_reasons[row] = "length"
            self.token_ids[row] += ids
            new_tokens.append(ids)
        if streamer:
            streamer.put(rows.tolist(), new_tokens, emission.num_draft_tokens.tolist(), accepted)
        self.active = torch.tensor(
            [row for row in self.active.tolist() if not self.finish_reasons[row]], dtype=torch.int64
        )
