"""How often drafts stand when a model decodes: over its own text, not over what people wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qspec_decode.bench.document import run_document
from qspec_decode.bench.record import MAX_GREEDY_TOKENS, MIN_PROMPTS
from qspec_decode.generate import generate
from qspec_decode.ladder import Draft
from qspec_decode.progress import track
from qspec_decode.protocol import Model
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate

# tokens of each piece of text that are given
PROMPT_LENGTH = 64
_KEPT = ("acceptance_rate", "mean_acceptance_length", "repeated_8gram_share", "lossless_equal")


@dataclass(frozen=True)
class Pair:
    """A target and what drafts for it, under the name it has in ladders."""

    target: str
    name: str
    draft: Draft


def acceptance(model: Model, pairs: Sequence[Pair], texts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Every pair, greedily, behind the beginnings of as many texts as a figure of record takes; for JSON.

    `per_token_acceptance` is the chance that a draft stands, `mean_acceptance_length` what a row commits in a
    round, and `lossless_equal` says whether the text is plain decoding's, as it has to be.
    """
    prompts = [list(text[:PROMPT_LENGTH]) for text in texts[:MIN_PROMPTS]]
    # ops one by one: captured rounds would take longer to capture than to decode
    options: dict[str, Any] = {
        "sampling": SamplingParams(max_new_tokens=MAX_GREEDY_TOKENS, eos_token_id=()),
        "enforce_eager": True,
    }
    plain = {
        target: generate(model, prompts, target=target, **options)
        for target in dict.fromkeys(pair.target for pair in pairs)
    }
    found = []
    for pair in track(pairs, len(pairs), "decoding with drafts"):
        out = speculate(model, prompts, target=pair.target, draft=pair.draft, **options)
        made = run_document(
            [out], [plain[pair.target]], drafts=[pair.name], temperature=0.0, decode=None, load_seconds=0.0
        )
        (level,) = out.levels
        found.append(
            {
                "target": pair.target,
                "draft": pair.name,
                "num_prompts": len(prompts),
                "max_new_tokens": MAX_GREEDY_TOKENS,
                "per_token_acceptance": level.per_token_acceptance,
                **{name: made[name] for name in _KEPT},
            }
        )
    return found
