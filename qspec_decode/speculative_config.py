"""How much is drafted in a round: what the caller says, and what is taken where nothing is said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qspec_decode import checks
from qspec_decode.precision import ALIASES
from qspec_kernels import PRECISIONS, UsageError, isa

# By instruction set: how many drafts of a cast are worth a try, and how many rows a verification may have in
# all before further ones cost much. A tile of AMX has 16 rows, and two share what is read.
_ROOM = {"amx": (12, 32), "avx512bf16": (7, 16)}
# another model is seldom right so often in a row
_MOST_OF_ANOTHER = 4
# and the verifier of a draft's own drafts is cheap: what a third one would save is less than what it takes
_MOST_OF_A_DRAFTS_DRAFT = 2


@dataclass(frozen=True)
class SpeculativeConfig:
    """How much is drafted, and how. Names follow vLLM's `speculative_config`.

    Parameters
    ----------
    num_speculative_tokens
        K: tokens drafted per round at most, one number for every level or one per level from the target
        downward. None drafts as long as the drafts are likely to stand, see `draft_confidence_threshold`;
        where that cannot be, it takes 4 for a 4-bit draft of a 16-bit target, 3 elsewhere.
    draft_confidence_threshold
        Greedy drafting by a model ends early when the chance that all drafts of the round stand, averaged
        over the rows, falls below this, 0 <= threshold < 1 (see `outlook.Outlook`). 0 always drafts K. None
        is 0 if `num_speculative_tokens` is given; else each level's follows from what it costs, see
        `outlook.threshold`. Tokens that are sampled, and rounds of fixed shapes, always draft K.
    prompt_lookup_max, prompt_lookup_min
        Longest and shortest suffix that the "ngram" level looks up.
    enforce_eager
        True runs every op by itself, False decodes in rounds of fixed shapes, which on a GPU are captured as
        CUDA graphs. None, the default, is False on a GPU that has kernels for it, True elsewhere.

    Raises
    ------
    UsageError
        A value of another type or outside its range.
    """

    num_speculative_tokens: int | Sequence[int] | None = None
    draft_confidence_threshold: float | None = None
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 1
    enforce_eager: bool | None = None

    def __post_init__(self) -> None:
        shortest, longest = map(checks.as_integer, (self.prompt_lookup_min, self.prompt_lookup_max))
        if shortest is None or longest is None or not 1 <= shortest <= longest:
            raise UsageError(
                f"prompt_lookup_min is {self.prompt_lookup_min!r} and prompt_lookup_max is "
                f"{self.prompt_lookup_max!r}; expected integers, 1 <= min <= max",
                "Leave them out for 1 and 4.",
            )
        if self.enforce_eager not in (None, True, False):
            raise UsageError(
                f"enforce_eager is {self.enforce_eager!r}; expected True, False or None",
                "None leaves it to the device.",
            )
        threshold = checks.as_number(self.draft_confidence_threshold)
        if self.draft_confidence_threshold is not None and (threshold is None or not 0 <= threshold < 1):
            raise UsageError(
                f"draft_confidence_threshold is {self.draft_confidence_threshold!r}; expected a number, "
                "0 <= threshold < 1",
                "0 always drafts num_speculative_tokens, None leaves it to the call.",
            )
        values = {
            "draft_confidence_threshold": threshold,
            "num_speculative_tokens": _parse_k(self.num_speculative_tokens),
            "prompt_lookup_max": longest,
            "prompt_lookup_min": shortest,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _parse_k(given: Any) -> int | tuple[int, ...] | None:
    """K as an int, or as a tuple where there is one per level."""
    entries = checks.plain(given)
    several = isinstance(entries, Sequence) and not isinstance(entries, str)
    found = tuple(
        checks.integer(
            "num_speculative_tokens",
            entry,
            1,
            "Give one number, or one per level from the target downward; without drafts call generate().",
        )
        for entry in (entries if several else [] if given is None else [given])
    )
    return found if several else found[0] if found else None


def configured(
    config: SpeculativeConfig | None,
    num_speculative_tokens: int | Sequence[int] | None,
    enforce_eager: bool | None = None,
) -> SpeculativeConfig:
    """`config` with what the keyword options say, if they were given.

    Raises
    ------
    UsageError
        Both say something, and not the same.
    """
    config = SpeculativeConfig() if config is None else config
    if not isinstance(config, SpeculativeConfig):
        raise UsageError(
            f"config is {config!r}; expected a SpeculativeConfig",
            "For instance config=SpeculativeConfig(num_speculative_tokens=4).",
        )
    given = {"num_speculative_tokens": _parse_k(num_speculative_tokens), "enforce_eager": enforce_eager}
    for name, value in given.items():
        if value is not None and getattr(config, name) not in (None, value):
            raise UsageError(
                f"{name} is {value} as a keyword and {getattr(config, name)} in "
                "config=SpeculativeConfig(...)",
                "Give it in one place.",
            )
    return replace(config, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Drafting:
    """How much a call drafts.

    Parameters
    ----------
    num_speculative_tokens
        K per draft level.
    draft_confidence_threshold
        0 where drafting never ends early; None where each level's follows from what it costs.
    """

    num_speculative_tokens: list[int]
    draft_confidence_threshold: float | None = 0.0

    @property
    def ends_early(self) -> bool:
        """Whether a round may draft less than K."""
        return self.draft_confidence_threshold != 0


def drafting(
    config: SpeculativeConfig,
    target: str,
    drafts: Sequence[object],
    *,
    greedy: bool,
    fixed: bool,
    batch_size: int = 1,
) -> Drafting:
    """What a configuration comes to in a call.

    Parameters
    ----------
    target
        Its precision.
    drafts
        By name where they have one, else anything else.
    fixed
        Whether rounds have fixed shapes.
    batch_size
        Rows; the more there are, the fewer drafts of each are verified in one pass.

    Raises
    ------
    UsageError
        A list of K whose length is not the number of drafts, or a threshold that cannot be kept.
    """
    threshold = _threshold(config, greedy, fixed)
    if threshold is None and _reads_as_much(target, drafts):
        threshold = 0.0
    k = config.num_speculative_tokens
    if isinstance(k, int):
        k = [k] * len(drafts)
    if k is None:
        k = _default_k(target, drafts, batch_size, ends_early=threshold != 0)
    if len(k) != len(drafts):
        raise UsageError(
            f"num_speculative_tokens has {len(k)} entries for {len(drafts)} draft levels",
            "Give one number, or one per level from the target downward.",
        )
    return Drafting(list(k), threshold)


def _threshold(config: SpeculativeConfig, greedy: bool, fixed: bool) -> float | None:
    given = config.draft_confidence_threshold
    if greedy and not fixed:
        return 0.0 if given is None and config.num_speculative_tokens is not None else given
    if given and not greedy:
        raise UsageError(
            f"draft_confidence_threshold is {given}; expected 0 or None where tokens are sampled",
            "Only greedy drafting ends early.",
        )
    if given:
        raise UsageError(
            f"draft_confidence_threshold is {given}; expected 0 or None in rounds of fixed shapes",
            "They always draft K. enforce_eager=True decodes op by op.",
        )
    return 0.0


def _reads_as_much(target: str, drafts: Sequence[object]) -> bool:
    """Whether the draft next to the target is another precision of its very bytes."""
    own = _precision(drafts[0]) if drafts else None
    return own is not None and PRECISIONS[own].weights == PRECISIONS[target].weights


def _precision(draft: object) -> str | None:
    name = ALIASES.get(draft, draft) if isinstance(draft, str) else None
    return name if name in PRECISIONS else None


def _default_k(target: str, drafts: Sequence[object], batch_size: int, *, ends_early: bool) -> list[int]:
    if not drafts:
        return []
    below, first, by_bytes = (
        3,
        3,
        PRECISIONS[target].weights in ("fp32", "bf16") and isinstance(drafts[0], str),
    )
    if by_bytes and drafts[0] != "ngram":
        first = 4
    if ends_early and drafts[0] != "ngram" and isa() in _ROOM:
        most, rows = _ROOM[isa()]
        most = most if _precision(drafts[0]) else _MOST_OF_ANOTHER
        first = max(1, min(most, rows // batch_size - 1))
        below = _MOST_OF_A_DRAFTS_DRAFT
    return [first] + [3 if draft == "ngram" else below for draft in drafts[1:]]
