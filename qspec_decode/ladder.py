"""From what the caller names as target and drafts to a chain of levels over shared caches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qspec_decode import request
from qspec_decode.levels import ModelLevel, SharedCache
from qspec_decode.ngram import NgramLevel
from qspec_decode.proposal import Level, Run
from qspec_decode.protocol import Model
from qspec_kernels import PRECISIONS, UsageError


@dataclass(frozen=True)
class DraftModel:
    """Another model as a draft level, with a cache of its own.

    Parameters
    ----------
    model
        A loaded model with the target's vocabulary.
    precision
        What it decodes with; None takes the first of the model's `precisions`.
    name
        How statistics call it.
    """

    model: Model
    precision: str | None = None
    name: str = "small"


Draft = str | Model | DraftModel


@dataclass(frozen=True)
class SpeculativeConfig:
    """How much is drafted, and how. Names follow vLLM's `speculative_config`.

    Parameters
    ----------
    num_speculative_tokens
        K: tokens drafted per round, one number for every level or one per level from the target
        downward. None takes 4 for a 4-bit draft of a 16-bit target, 3 elsewhere.
    prompt_lookup_max, prompt_lookup_min
        Longest and shortest suffix that the "ngram" level looks up.

    Raises
    ------
    UsageError
        A value outside its range.
    """

    num_speculative_tokens: int | Sequence[int] | None = None
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 1

    def __post_init__(self) -> None:
        k = self.num_speculative_tokens
        for value in [] if k is None else [k] if isinstance(k, int) else k:
            if value < 1:
                raise UsageError(
                    f"num_speculative_tokens is {value}; expected at least 1",
                    "For decoding without drafts call generate().",
                )
        if not 1 <= self.prompt_lookup_min <= self.prompt_lookup_max:
            raise UsageError(
                f"prompt_lookup_min is {self.prompt_lookup_min} and prompt_lookup_max is "
                f"{self.prompt_lookup_max}; expected 1 <= min <= max"
            )


def configured(
    config: SpeculativeConfig | None, num_speculative_tokens: int | Sequence[int] | None
) -> SpeculativeConfig:
    """`config` with K from the keyword option, if that was given.

    Raises
    ------
    UsageError
        Both say a K, and not the same.
    """
    config = config or SpeculativeConfig()
    if num_speculative_tokens is None:
        return config
    if config.num_speculative_tokens not in (None, num_speculative_tokens):
        raise UsageError(
            f"num_speculative_tokens is {num_speculative_tokens} as a keyword and "
            f"{config.num_speculative_tokens} in config=SpeculativeConfig(...)",
            "Give it in one place.",
        )
    return replace(config, num_speculative_tokens=num_speculative_tokens)


def as_list(draft: Draft | Sequence[Draft], target: str) -> list[Draft]:
    """The drafts from the one next to the target downward, "auto" resolved.

    "auto" is w4a8 under a target with INT4 weights and mxfp4 under a 16- or 32-bit one.

    Raises
    ------
    UsageError
        No draft, or no default for this target.
    """
    drafts = list(draft) if isinstance(draft, Sequence) and not isinstance(draft, str) else [draft]
    if not drafts:
        raise UsageError("draft is empty; expected at least one level", "For plain decoding call generate().")
    if drafts == ["auto"]:
        weights = PRECISIONS[target].weights
        if weights == "mxfp4":
            raise UsageError(
                f"there is no default draft for target {target}", 'Name one, for instance draft="ngram".'
            )
        return ["w4a8" if weights == "int4" else "mxfp4a8"]
    return drafts


def num_speculative_tokens(config: SpeculativeConfig, target: str, drafts: list[Draft]) -> list[int]:
    """K per level.

    Raises
    ------
    UsageError
        A list of K whose length is not the number of drafts.
    """
    k = config.num_speculative_tokens
    if isinstance(k, int):
        return [k] * len(drafts)
    if k is not None:
        if len(k) != len(drafts):
            raise UsageError(
                f"num_speculative_tokens has {len(k)} entries for {len(drafts)} draft levels",
                "Give one number, or one per level from the target downward.",
            )
        return list(k)
    by_bytes = PRECISIONS[target].weights in ("fp32", "bf16") and isinstance(drafts[0], str)
    return [4 if by_bytes and drafts[0] != "ngram" else 3] + [3] * (len(drafts) - 1)


def build(run: Run, model: Model, target: str, drafts: list[Draft], config: SpeculativeConfig) -> ModelLevel:
    """The target's level, with every draft level below it.

    Levels of one model share one cache, of the dtype that the uppermost of them needs.

    Raises
    ------
    UsageError
        "ngram" anywhere but at the bottom, a precision that was not loaded, another vocabulary.
    """
    batch_size, capacity = run.buffer.ids.shape
    caches: dict[int, SharedCache] = {}

    def cache_of(owner: Model, precision: str) -> SharedCache:
        if id(owner) not in caches:
            cache = owner.new_cache(batch_size, min(capacity, owner.max_positions), precision)
            caches[id(owner)] = SharedCache(cache, torch.zeros(batch_size, dtype=torch.int64))
        return caches[id(owner)]

    # caches are made from the target downward, levels from the bottom up
    plans: list[tuple[Model, str, str, SharedCache] | None] = [
        (model, target, target, cache_of(model, target))
    ]
    for depth, draft in enumerate(drafts):
        if draft == "ngram":
            if depth != len(drafts) - 1:
                raise UsageError('"ngram" drafts from the tokens alone; expected it as the last draft')
            plans.append(None)
            continue
        if isinstance(draft, str):
            precision = request.loaded_precision(model, draft)
            plans.append((model, precision, precision, cache_of(model, precision)))
            continue
        other = draft if isinstance(draft, DraftModel) else DraftModel(draft)
        _check_vocabulary(model, other)
        precision = request.loaded_precision(other.model, other.precision or other.model.precisions[0])
        plans.append((other.model, precision, other.name, cache_of(other.model, precision)))

    counts = num_speculative_tokens(config, target, drafts)
    level: Level | None = None
    for index in range(len(plans) - 1, -1, -1):
        plan = plans[index]
        if plan is None:
            level = NgramLevel(run, config.prompt_lookup_max, config.prompt_lookup_min)
            continue
        owner, precision, name, cache = plan
        inner = (level, counts[index]) if level else None
        level = ModelLevel(
            run,
            owner,
            precision,
            cache,
            index=index,
            # a draft of the target's own precision is the target, head included
            draft_head=index > 0 and (owner is not model or precision != target),
            name=name,
            inner=inner,
        )
    assert isinstance(level, ModelLevel)
    return level


def _check_vocabulary(model: Model, draft: DraftModel) -> None:
    if draft.model.vocab_size != model.vocab_size:
        raise UsageError(
            f"the draft {draft.name!r} has {draft.model.vocab_size} tokens, the target {model.vocab_size}",
            "A draft model needs the target's tokenizer.",
        )
