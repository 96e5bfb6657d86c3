"""What a ladder can gain at most where time is bytes: tokens per byte of weights, from measured acceptance.

No clock is in it, so that it stands beside a measured speed-up as something else than the same number.
"""

from collections.abc import Sequence

from qspec_decode.stats import SpecDecodingStats


def byte_bound(
    num_target_steps: int,
    num_plain_steps: int,
    levels: Sequence[SpecDecodingStats],
    bytes_read: Sequence[int],
) -> float:
    """The speed-up over plain decoding if a pass took the time of reading its weights, and nothing else did.

    Plain decoding reads the target's bytes once per token; what the ladder reads for the same tokens follows
    from the drafts that were made and those that stood. A verification reads what a step reads.

    Parameters
    ----------
    num_target_steps, num_plain_steps
        Passes of the target after the prefill, with the ladder and without, one sequence at a time.
    levels
        What every draft level did, the one next to the target first.
    bytes_read
        Of one pass of the target and of every draft level, in order; an n-gram table reads none.
    """
    total = num_target_steps * bytes_read[0]
    for depth, size in enumerate(bytes_read[1:]):
        passes = levels[depth].num_draft_tokens
        # a level that is drafted for emits its drafts that stood and one more token per pass
        if depth + 1 < len(levels):
            passes -= levels[depth + 1].num_accepted_tokens
        total += passes * size
    return num_plain_steps * bytes_read[0] / total if total else 0.0
