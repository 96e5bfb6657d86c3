"""From what the caller names as target and drafts to a chain of levels over shared caches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qspec_decode import request
from qspec_decode.cache import roomy
from qspec_decode.fixed import FixedLevel, FixedNgramLevel
from qspec_decode.levels import ModelLevel, SharedCache
from qspec_decode.ngram import NgramLevel
from qspec_decode.outlook import Outlook, threshold
from qspec_decode.proposal import Level, Run
from qspec_decode.protocol import Model, device_of
from qspec_decode.sibling import aligned, check_same_tokens
from qspec_decode.speculative_config import Drafting, SpeculativeConfig, drafting
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

# of the verifier's cost: drafts of dearer levels are always made
_DEAREST = 0.5


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
        As `rungs`, as `speculative_config.drafting`, or there is no memory for a cache.
    """
    checked = rungs(model, target, drafts)
    batch_size, capacity, device = len(run.buffer.texts), run.capacity, device_of(model)
    amount = drafting(config, target, drafts, greedy=run.sampling.greedy, fixed=fixed, batch_size=batch_size)
    counts = amount.num_speculative_tokens
    caches: dict[int, SharedCache] = {}

    def cache_of(owner: Model, precision: str) -> SharedCache:
        if id(owner) not in caches:
            room = roomy(min(capacity, owner.max_positions) + run.spare)
            cache = owner.new_cache(batch_size, room, precision)
            beside = torch.zeros(batch_size if fixed else 0, dtype=torch.int64, device=device)
            caches[id(owner)] = SharedCache(cache, [0] * batch_size, beside)
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
            outlook=_outlook(amount, rung, checked[index - 1], is_target=index == 1) if index else None,
        )
    assert isinstance(level, ModelLevel)
    return level


def _outlook(amount: Drafting, rung: Rung, above: Rung | None, *, is_target: bool) -> Outlook | None:
    """What ends a level's drafting for the one above early, if anything does."""
    if not amount.ends_early or above is None:
        return None
    if amount.draft_confidence_threshold is not None:
        return Outlook(amount.draft_confidence_threshold)
    draft, verifier = _bytes_per_pass(rung, True), _bytes_per_pass(above, not is_target)
    # of models that do not say what they read, a quarter of the verifier's cost is supposed
    cost = draft / verifier if draft and verifier else 0.25
    # what a dear draft can gain at best is less than what a wrong guess about it loses
    return Outlook(threshold(cost)) if cost <= _DEAREST else None


def _bytes_per_pass(rung: Rung, draft_head: bool) -> int | None:
    read = getattr(rung.model, "bytes_per_pass", None)
    return None if read is None else read(rung.precision, draft_head=draft_head)
