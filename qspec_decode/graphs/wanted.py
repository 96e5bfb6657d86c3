"""Which calls decode in captured rounds, and which of them the same rounds serve."""

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

from qspec_decode.ladder import Draft, DraftModel
from qspec_decode.model import Transformer
from qspec_decode.protocol import Model, device_of
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculative_config import Drafting, SpeculativeConfig, drafting
from qspec_kernels import explain

# ops whose plain torch path looks at values on the host
_WAITING = ("attention", "rescore", "draw_residual")
# modules that stand between a caller and a warning
_BETWEEN = ("qspec_decode", "contextlib")


@dataclass(frozen=True)
class Wanted:
    """What a call decodes: all that its rounds depend on.

    Parameters
    ----------
    model, target, drafts, config
        The ladder, as `ladder.build` takes it.
    sampling
        How tokens are chosen.
    eos
        Ids that end a row.
    """

    model: Model
    target: str
    drafts: list[Draft]
    config: SpeculativeConfig
    sampling: SamplingParams
    eos: frozenset[int]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that the same captured rounds serve, numbers of rows and tokens aside."""
        drafts = [
            (id(draft.model), draft.precision, draft.name) if isinstance(draft, DraftModel) else
            draft if isinstance(draft, str) else id(draft)
            for draft in self.drafts
        ]  # fmt: skip
        params, config = self.sampling, self.config
        counts = self.drafting(fixed=True).num_speculative_tokens
        lookup = config.prompt_lookup_min, config.prompt_lookup_max
        chosen = None if params.greedy else (params.temperature, params.top_k, params.top_p)
        return self.target, tuple(drafts), tuple(counts), lookup, chosen, self.eos

    def drafting(self, *, fixed: bool, batch_size: int = 1) -> Drafting:
        """As `speculative_config.drafting`."""
        greedy = self.sampling.greedy
        return drafting(
            self.config, self.target, self.drafts, greedy=greedy, fixed=fixed, batch_size=batch_size
        )


def captures(wanted: Wanted) -> bool:
    """Whether a call decodes in captured rounds; says once why one on a GPU does not."""
    if wanted.config.enforce_eager is not None:
        return not wanted.config.enforce_eager
    reason = eager_because(wanted)
    if reason and device_of(wanted.model).type == "cuda":
        warn_of_eager(reason)
    return not reason


def warn_of_eager(reason: str) -> None:
    """Say why a call decodes op by op, as a warning of the line that called this package."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    message = f"rounds are not captured as CUDA graphs, which is slower: {reason}"
    warnings.warn(message, stacklevel=level + 1)


def eager_because(wanted: Wanted) -> str:
    """Why a call that leaves it to the device decodes op by op; empty if in captured rounds."""
    device = device_of(wanted.model)
    if device.type != "cuda":
        return f"the model is on {device}"
    models = [wanted.model]
    for draft in wanted.drafts:
        if not isinstance(draft, str):
            models.append(draft.model if isinstance(draft, DraftModel) else draft)
    for model in models:
        if not isinstance(model, Transformer):
            return f"{type(model).__name__} may wait for the device in its forward pass"
        for op in _WAITING:
            served = explain(op, device, model.dtype)
            if f"{op} on {device}: torch" in served:
                return served
    return ""
