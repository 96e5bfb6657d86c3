"""From what the caller names as target and drafts to a chain of levels over shared caches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qspec_decode import checks, request
from qspec_decode.cache import roomy
from qspec_decode.fixed import FixedLevel, FixedNgramLevel
from qspec_decode.levels import ModelLevel, SharedCache
from qspec_decode.ngram import NgramLevel
from qspec_decode.proposal import Level, Run
from qspec_decode.protocol import Model, device_of
from qspec_decode.sibling import aligned, check_same_tokens
from qspec_kernels import PRECISIONS, UsageError


@dataclass(frozen=True)
class DraftModel:
    """Another model as a draft level, with a cache of its own.

    Parameters
    ----------
    model
        A loaded model with the target's tokenizer. Its table may be padded to another length.
    precision
        What it decodes with; None takes the first of the model's `precisions`, which is the one that
        `load` was asked for first.
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
    enforce_eager
        True runs every op by itself, False decodes in rounds of fixed shapes, which on a GPU are captured as
        CUDA graphs. None, the default, is False on a GPU that has kernels for it, True elsewhere.

    Raises
    ------
    UsageError
        A value of another type or outside its range.
    """

    num_speculative_tokens: int | Sequence[int] | None = None
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
        values = {
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


def as_list(draft: Draft | Sequence[Draft], target: str) -> list[Draft]:
    """The drafts from the one next to the target downward, "auto" resolved.

    "auto" is w4a8 under a target with INT4 weights and mxfp4 under a 16- or 32-bit one.

    Raises
    ------
    UsageError
        No draft, one that can be none, "auto" beside others, or no default for this target.
    """
    drafts = list(draft) if isinstance(draft, Sequence) and not isinstance(draft, str) else [draft]
    if not drafts:
        raise UsageError("draft is empty; expected at least one level", "For plain decoding call generate().")
    for level in drafts:
        named = level.model if isinstance(level, DraftModel) else level
        if not isinstance(level, str) and not isinstance(named, Model):
            raise UsageError(
                f'draft names {level!r}; expected precisions, "ngram" or loaded models',
                "A checkpoint is loaded with load(...) first; for plain decoding call generate().",
            )
    names = [level for level in drafts if isinstance(level, str)]
    if "auto" in names and len(drafts) > 1:
        raise UsageError(
            f'draft names "auto" among {len(drafts)} levels; expected it alone',
            'Name the level, as in draft=["mxfp4", "ngram"].',
        )
    if names == ["auto"]:
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
    if not drafts:
        return []
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


@dataclass(frozen=True)
class Rung:
    """What a level decodes with: a precision of the target's model or of another one, under a name."""

    model: Model
    precision: str
    name: str


def rungs(model: Model, target: str, drafts: list[Draft]) -> list[Rung | None]:
    """The target and its drafts from there downward, checked; None is "ngram".

    Raises
    ------
    UsageError
        "ngram" anywhere but at the bottom, a precision that was not loaded, another tokenizer or device.
    """
    found: list[Rung | None] = [Rung(model, target, target)]
    for depth, draft in enumerate(drafts):
        if draft == "ngram":
            if depth != len(drafts) - 1:
                raise UsageError(
                    f'"ngram" is draft {depth + 1} of {len(drafts)}; expected it as the last draft',
                    "It drafts from the tokens alone, so nothing can draft for it.",
                )
            found.append(None)
            continue
        if isinstance(draft, str):
            precision = request.loaded_precision(model, draft)
            found.append(Rung(model, precision, precision))
            continue
        other = draft if isinstance(draft, DraftModel) else DraftModel(draft)
        check_same_tokens(model, other.model, other.name)
        if device_of(other.model) != device_of(model):
            raise UsageError(
                f"the draft {other.name!r} is on {device_of(other.model)}, the target on {device_of(model)}",
                f"Load both on one device: load(..., device={str(device_of(model))!r}).",
            )
        first = other.model.precisions[0] if other.precision is None else other.precision
        found.append(Rung(other.model, request.loaded_precision(other.model, first), other.name))
    return found


def build(
    run: Run,
    model: Model,
    target: str,
    drafts: list[Draft],
    config: SpeculativeConfig,
    *,
    fixed: bool = False,
) -> ModelLevel:
    """The target's level, with every draft level below it; `fixed` makes levels that have fixed shapes.

    Levels of one model share one cache, of the dtype that the uppermost of them needs.

    Raises
    ------
    UsageError
        As `rungs`, or there is no memory for a cache.
    """
    checked = rungs(model, target, drafts)
    counts = num_speculative_tokens(config, target, drafts)
    batch_size, capacity, device = len(run.buffer.ids), run.capacity, device_of(model)
    caches: dict[int, SharedCache] = {}

    def cache_of(owner: Model, precision: str) -> SharedCache:
        if id(owner) not in caches:
            room = roomy(min(capacity, owner.max_positions) + run.spare)
            cache = owner.new_cache(batch_size, room, precision)
            valid = torch.zeros(batch_size, dtype=torch.int64, device=device)
            caches[id(owner)] = SharedCache(cache, valid)
        return caches[id(owner)]

    # caches are made from the target downward, levels from the bottom up
    plans = [rung and (rung, cache_of(rung.model, rung.precision)) for rung in checked]
    level: Level | None = None
    for index in range(len(plans) - 1, -1, -1):
        plan = plans[index]
        if plan is None:
            kind = FixedNgramLevel if fixed else NgramLevel
            level = kind(run, config.prompt_lookup_max, config.prompt_lookup_min)
            continue
        rung, cache = plan
        inner = (level, min(counts[index], capacity)) if level else None
        level = (FixedLevel if fixed else ModelLevel)(
            run,
            aligned(rung.model, model.vocab_size),
            rung.precision,
            cache,
            index=index,
            # a draft of the target's own precision is the target, head included
            draft_head=index > 0 and (rung.model is not model or rung.precision != target),
            name=rung.name,
            inner=inner,
        )
    assert isinstance(level, ModelLevel)
    return level
