"""What a ladder can gain: expected tokens of a round over its cost (design section 3, "when it pays")."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qspec_decode.model import Transformer
from qspec_decode.output import DecodingOutput
from qspec_decode.precision import set_name
from qspec_decode.stats import SpecDecodingStats
from qspec_decode.weights import weight_bytes


@dataclass(frozen=True)
class Prediction:
    """The cost model, fed with what was measured.

    Parameters
    ----------
    alpha
        Chance that a draft stands, given that those before it did.
    c, v
        A drafted token, and the rest of a round, in steps of plain decoding.
    num_drafted_per_round
        K, or less where rounds near the end or the n-gram table drafted fewer.
    speedup
        E(alpha, K) / (K c + v) with E(alpha, K) = 1 + alpha + ... + alpha**K: what these numbers allow.
    byte_bound
        What the passes that were taken allow if each took only the time of reading its weights.
    """

    alpha: float
    c: float
    v: float
    num_drafted_per_round: float
    speedup: float
    byte_bound: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers for JSON."""
        return asdict(self)


def predict(
    outputs: Sequence[DecodingOutput],
    baseline: Sequence[DecodingOutput],
    levels: Sequence[SpecDecodingStats],
    bytes_read: Sequence[int],
) -> Prediction:
    """From speculative runs, plain ones of the same prompts, and the merged statistics of the former.

    `bytes_read` is as in `byte_bound`.
    """
    steps = sum(out.num_target_steps for out in baseline)
    rounds = sum(out.num_target_steps for out in outputs)
    first = levels[0]
    alpha, drafted = first.per_token_acceptance, first.num_draft_tokens
    if not steps or not rounds:
        return Prediction(alpha, 0.0, 0.0, 0.0, 0.0, 0.0)
    step = sum(out.decode_seconds for out in baseline) / steps
    seconds = sum(out.decode_seconds for out in outputs)
    c = first.draft_time / drafted / step if drafted else 0.0
    # all that is not drafting, so that the loop's own time is in it
    v = (seconds - (first.draft_time if drafted else 0.0)) / rounds / step
    # E(alpha, K) averaged over the number of drafts that each round really had
    tokens = 1 + sum(alpha ** (i + 1) * n / rounds for i, n in enumerate(first.num_draft_tokens_per_pos))
    k = drafted / rounds
    return Prediction(alpha, c, v, k, tokens / (k * c + v), byte_bound(rounds, steps, levels, bytes_read))


def byte_bound(
    num_target_steps: int,
    num_plain_steps: int,
    levels: Sequence[SpecDecodingStats],
    bytes_read: Sequence[int],
) -> float:
    """The speed-up over plain decoding if time were bytes, from the passes that each level really took.

    `bytes_read` has the bytes of one pass of the target and of every draft level, in order; an n-gram
    table reads none. A verification reads what a step reads.
    """
    total = num_target_steps * bytes_read[0]
    for depth, size in enumerate(bytes_read[1:]):
        passes = levels[depth].num_draft_tokens
        # a level that is drafted for emits its drafts that stood and one more token per pass
        if depth + 1 < len(levels):
            passes -= levels[depth + 1].num_accepted_tokens
        total += passes * size
    return num_plain_steps * bytes_read[0] / total if total else 0.0


def bytes_per_pass(model: Transformer, precision: str, *, draft: bool) -> int:
    """Bytes of weights that one pass reads; a draft uses the 4-bit output matrix if there is one."""
    weights = model.sets[set_name(precision)]
    if draft and weights.draft_head is not None:
        return weights.num_bytes - weight_bytes(weights.head) + weight_bytes(weights.draft_head)
    return weights.num_bytes
