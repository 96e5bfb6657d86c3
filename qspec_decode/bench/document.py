"""One run as a JSON document: the same fields for `qspec generate` and for every run of `qspec demo`."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from qspec_decode.bench.record import merge, repeated_8gram_share, spread
from qspec_decode.output import DecodingOutput

Decode = Callable[[list[int]], str]


def run_document(
    outputs: Sequence[DecodingOutput],
    baseline: Sequence[DecodingOutput] | None,
    *,
    drafts: Sequence[str],
    temperature: float,
    decode: Decode | None,
    load_seconds: float,
) -> dict[str, Any]:
    """Fields of one contender, over one call per prompt or one call of a batch.

    Rates and times are medians over the calls; the speed-up is the median of the calls' own. Without a
    baseline its fields are null, without a way to decode ids `text` is. `lossless_equal` is null for
    sampled runs, which agree in distribution only.
    """
    token_ids = [row for out in outputs for row in out.token_ids]
    levels = merge([out.levels for out in outputs])
    steps = sum(out.num_target_steps for out in outputs)
    document: dict[str, Any] = {
        "target": outputs[0].reference,
        "draft": list(drafts),
        "num_speculative_tokens": outputs[0].num_speculative_tokens,
        "draft_confidence_threshold": outputs[0].draft_confidence_threshold,
        "temperature": temperature,
        "num_tokens": sum(map(len, token_ids)),
        "token_ids": token_ids,
        "text": [decode(row) for row in token_ids] if decode else None,
        "tokens_per_second": statistics.median(out.tokens_per_second for out in outputs),
        "baseline_tokens_per_second": None,
        "speedup": None,
        "speedup_quartiles": None,
        "lossless_equal": None,
        "lossless": all(out.lossless for out in outputs),
        "reference": outputs[0].reference,
        "acceptance_rate": levels[0].acceptance_rate if levels else None,
        "mean_acceptance_length": levels[0].mean_acceptance_length if levels else None,
        "repeated_8gram_share": repeated_8gram_share(token_ids),
        "finish_reasons": [reason for out in outputs for reason in out.finish_reasons],
        "seeds": [list(seed) for out in outputs for seed in out.seeds],
        "levels": [level.to_dict() for level in levels],
        "num_target_steps": steps,
        "tokens_per_round": (sum(map(len, token_ids)) - len(token_ids)) / steps if steps else 0.0,
        "prefill_seconds": statistics.median(out.prefill_seconds for out in outputs),
        "load_seconds": load_seconds,
    }
    if baseline is not None:
        document |= _comparison(outputs, baseline, temperature)
    return document


def _comparison(
    outputs: Sequence[DecodingOutput], baseline: Sequence[DecodingOutput], temperature: float
) -> dict[str, Any]:
    ratios = [
        fast.tokens_per_second / plain.tokens_per_second
        for fast, plain in zip(outputs, baseline, strict=True)
        if plain.tokens_per_second and fast.tokens_per_second
    ]
    equal = [f.token_ids == p.token_ids for f, p in zip(outputs, baseline, strict=True)]
    speedup = spread(ratios) if ratios else None
    return {
        "baseline_tokens_per_second": statistics.median(out.tokens_per_second for out in baseline),
        "speedup": speedup and speedup.median,
        "speedup_quartiles": speedup and [speedup.low, speedup.high],
        "lossless_equal": all(equal) if temperature == 0 else None,
    }
