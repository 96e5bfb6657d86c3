"""One entrant's run as plain values: its rates, its text held against plain decoding's, whether it counts."""

import statistics
from collections.abc import Sequence
from typing import Any

from qspec_decode.bench import record
from qspec_decode.bench.document import run_document
from qspec_decode.bench.entrants import Entrant, Ours, forks, gap_at
from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput

# of a fork's two tokens; each takes a pass over the text before it
MAX_GAPS = 8
# whose plain decoding a peer is compared with
_COUNTERPARTS = {"bf16": "bf16", "q4_0": "w4a16"}


def counterpart(one: Entrant) -> str:
    """The precision whose plain decoding an entrant is compared with."""
    return _COUNTERPARTS.get(one.weights, one.weights)


def entrant_document(
    one: Entrant,
    outputs: Sequence[DecodingOutput],
    baseline: Sequence[DecodingOutput],
    model: Transformer,
    *,
    num_prompts: int,
    scale: str,
    load_seconds: float,
) -> dict[str, Any]:
    """The document of an entrant, call by call beside the plain decoding of its counterpart.

    Parameters
    ----------
    model
        Says by how much its own token is the more probable one where another one stands.
    num_prompts
        Rows beyond so many repeat the first ones, and count once.
    """
    against = counterpart(one)
    drafts = one.contender.drafts if isinstance(one, Ours) else ()
    document = run_document(
        outputs, baseline, drafts=drafts, temperature=0.0, decode=None, load_seconds=load_seconds
    )
    rates = record.spread([out.tokens_per_second for out in outputs])
    comparable = against == one.weights
    found = list(forks(baseline, outputs)) if comparable else []
    counted = document | {"token_ids": document["token_ids"][:num_prompts]}
    if not isinstance(one, Ours):
        # how fast another program is does not hang on whether its text is ours
        counted["lossless_equal"] = True
        for level in document["levels"]:
            # none says how often it refused a draft
            level["per_token_acceptance"] = None
    reason = record.why_not_of_record(counted, scale)
    return document | {
        "name": one.name,
        "title": one.contender.title if isinstance(one, Ours) else one.name,
        "weights": one.weights,
        "peer": not isinstance(one, Ours),
        "baseline": against,
        "lossless_equal": document["lossless_equal"] if comparable else None,
        "tokens_per_second_quartiles": [rates.low, rates.high],
        "step_seconds": statistics.median(
            out.decode_seconds / max(1, out.num_target_steps) for out in outputs
        ),
        "forks": [
            {"call": call, "row": row, "position": position}
            | ({"gap": _gap(model, against, baseline, outputs, fork)} if n < MAX_GAPS else {})
            for n, fork in enumerate(found)
            for call, row, position in [fork]
        ],
        "of_record": not reason,
        "not_of_record_because": reason,
    }


def _gap(
    model: Transformer,
    precision: str,
    baseline: Sequence[DecodingOutput],
    outputs: Sequence[DecodingOutput],
    fork: tuple[int, int, int],
) -> float | None:
    """By how much the model prefers its own token where another one stands; None behind the shorter text."""
    call, row, position = fork
    expected, found = baseline[call].token_ids[row], outputs[call].token_ids[row]
    if position >= min(len(expected), len(found)):
        return None
    text = baseline[call].sequences[row].tolist()
    before = text[: len(text) - len(expected) + position]
    return gap_at(model, precision, before, (expected[position], found[position]))
