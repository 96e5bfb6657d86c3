"""What `qspec generate` was asked for, checked before anything large is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from qspec_decode import config as configs
from qspec_decode import ladder, load, load_options, sibling
from qspec_decode.commands.prompts import PromptReader, parse_ids, read_text
from qspec_decode.ladder import Draft, DraftModel
from qspec_decode.model import Transformer
from qspec_decode.noise import RowSeed
from qspec_decode.precision import ALIASES, canonical, set_name
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculative_config import SpeculativeConfig
from qspec_decode.tokenizer import Tokenizer
from qspec_kernels import PRECISIONS, CheckpointError, UsageError


@dataclass(frozen=True)
class Options:
    """The options other than the prompt's, as they were typed; None or empty where they were not."""

    model: str
    target: str
    drafts: list[str]
    num_speculative_tokens: list[int]
    draft_confidence_threshold: float | None
    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None
    group_size: int | None
    rotate: bool
    quant_lm_head: bool
    device: str
    chat: bool


@dataclass(frozen=True)
class Plan:
    """What will be loaded and decoded.

    Parameters
    ----------
    tokenizer
        None if the checkpoint has none, which is well as long as all prompts are ids.
    precisions
        Of the model: the target's and those of drafts that share its weights, nothing else.
    drafts
        By level; paths stand for models that are not loaded yet.
    """

    options: Options
    tokenizer: Tokenizer | None
    input_ids: list[list[int]]
    precisions: tuple[str, ...]
    drafts: list[str | Path]
    sampling: SamplingParams
    config: SpeculativeConfig
    draft_names: list[str] = field(default_factory=list)

    def load(self) -> tuple[Transformer, list[Draft]]:
        """The model, and every draft as `speculate` takes it."""
        options = self.options
        group_size = load_options.DEFAULT_GROUP_SIZE if options.group_size is None else options.group_size
        model = load(
            options.model,
            self.precisions,
            group_size=group_size,
            rotate=options.rotate,
            quant_lm_head=[options.target] if options.quant_lm_head else [],
            device=options.device,
        )
        drafts: list[Draft] = [
            draft
            if isinstance(draft, str)
            else DraftModel(load(draft, ("bf16",), device=options.device), name=name)
            for draft, name in zip(self.drafts, self.draft_names, strict=True)
        ]
        return model, drafts

    def with_seeds(self, seeds: Sequence[RowSeed]) -> SamplingParams:
        """The sampling options with the seeds that a run drew."""
        return replace(self.sampling, seed=list(seeds))


def plan(
    options: Options, prompt: str | None, prompt_file: Path | None, prompt_ids: str | None, batch: Path | None
) -> Plan:
    """Check everything that can be checked without the weights.

    Raises
    ------
    UsageError
        Options that contradict each other or are out of range, drafts with another tokenizer, prompts
        that cannot be decoded.
    CheckpointError
        A directory that is no checkpoint.
    """
    sources = {"--prompt": prompt, "--prompt-file": prompt_file, "--prompt-ids": prompt_ids, "--batch": batch}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise UsageError(
            f"{' and '.join(given)} were given together" if given else "no prompt was given",
            f"Give exactly one of {', '.join(sources)}.",
        )
    load_options.parse_device(options.device)
    sampling, config = _sampling(options), _speculation(options)
    drafts, names = _drafts(options)
    own = [draft for draft in drafts if isinstance(draft, str) and draft != "ngram"]
    precisions = tuple(dict.fromkeys(canonical(name) for name in (options.target, *own)))
    _check_weights(options, precisions)
    shape = configs.from_dir(configs.resolve(options.model))
    for draft, name in zip(drafts, names, strict=True):
        if isinstance(draft, Path):
            sibling.check_same_tokens(shape, configs.from_dir(configs.resolve(draft)), name)
    reader = PromptReader(options.model, shape, options.chat)
    if batch is not None:
        input_ids = reader.batch(batch)
    elif prompt_ids is not None:
        input_ids = [reader.ids(parse_ids(prompt_ids), "--prompt-ids")]
    else:
        text = prompt if prompt is not None else read_text(cast(Path, prompt_file))
        input_ids = [reader.text(text, given[0])]
    return Plan(options, _tokenizer_if_any(reader), input_ids, precisions, drafts, sampling, config, names)


def _tokenizer_if_any(reader: PromptReader) -> Tokenizer | None:
    try:
        return reader.tokenizer
    except CheckpointError:
        return None


def _sampling(options: Options) -> SamplingParams:
    unused = {"--top-k": options.top_k, "--top-p": options.top_p, "--seed": options.seed}
    if options.temperature == 0:
        for name, value in unused.items():
            if value is not None:
                raise UsageError(
                    f"{name} {value} was given without --temperature; greedy decoding draws nothing",
                    f"Add --temperature 1, or leave {name} out.",
                )
    return SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
    )


def _speculation(options: Options) -> SpeculativeConfig:
    k, levels = options.num_speculative_tokens, max(1, len(options.drafts))
    if len(k) > 1 and len(k) != levels:
        raise UsageError(
            f"--num-speculative-tokens was given {len(k)} times for {levels} draft levels",
            "Give it once for all levels, or once per --draft in the same order.",
        )
    config = SpeculativeConfig(
        None if not k else k[0] if len(k) == 1 else k,
        draft_confidence_threshold=options.draft_confidence_threshold,
    )
    if options.temperature and config.draft_confidence_threshold:
        raise UsageError(
            f"--draft-confidence-threshold {config.draft_confidence_threshold} was given with --temperature "
            f"{options.temperature}; only greedy drafting ends early",
            "Leave one of them out.",
        )
    return config


def _drafts(options: Options) -> tuple[list[str | Path], list[str]]:
    """(what each level is, what it is called)."""
    target = canonical(options.target)
    names = options.drafts or [str(draft) for draft in ladder.as_list("auto", target)]
    drafts: list[str | Path] = []
    for depth, name in enumerate(names):
        if name == "ngram" and depth < len(names) - 1:
            raise UsageError(
                f"ngram is --draft {depth + 1} of {len(names)}; expected it as the last",
                "It drafts from the tokens alone, so nothing can draft for it.",
            )
        if name == "small" and options.model != "demo":
            raise UsageError(
                "small is the sibling of the demo model",
                f"For {options.model} name the directory of a smaller model with its tokenizer.",
            )
        if name == "ngram" or name in PRECISIONS or name in ALIASES:
            drafts.append(name)
        elif name == "small":
            drafts.append(Path("demo-small"))
        elif Path(name).is_dir():
            drafts.append(Path(name))
        else:
            known = ", ".join([*ALIASES, *PRECISIONS, "ngram", "small"])
            raise UsageError(
                f"unknown draft {name!r}", f"A draft is one of {known}, or a checkpoint directory."
            )
    return drafts, [
        Path(name).name if isinstance(d, Path) else name for d, name in zip(drafts, names, strict=True)
    ]


def _check_weights(options: Options, precisions: tuple[str, ...]) -> None:
    sets = {set_name(name) for name in precisions}
    named = ", ".join(precisions)
    if options.group_size is not None and "int4" not in sets:
        raise UsageError(
            f"--group-size {options.group_size} is about INT4 weights, and {named} has none",
            "Leave it out, or choose a target or draft such as w4a16 or w4a8.",
        )
    if options.rotate and not sets.intersection(load_options.QUANTISED):
        raise UsageError(
            f"--rotate is about 4-bit weights, and {named} has none",
            "Leave it out, or choose a 4-bit target or draft.",
        )
    if options.quant_lm_head and set_name(options.target) not in load_options.QUANTISED:
        raise UsageError(
            f"--quant-lm-head is about a 4-bit target, and --target is {options.target}",
            "Leave it out, or choose a target such as w4a16. Drafts in mxfp4 have it anyway.",
        )
