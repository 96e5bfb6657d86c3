"""Calls that decode in rounds of fixed shapes, and the same calls op by op."""

import random
from typing import Any

from qspec_decode import generate, speculate
from qspec_decode.graphs.runner import Runner
from qspec_decode.ladder import DraftModel
from qspec_decode.output import DecodingOutput
from tests.decode.recorders import Recorder
from tests.decode.tabular import TabularModel, random_tables

VOCAB = 9
ONE_DRAFT = [[], ["mxfp4"], ["small"], ["ngram"]]
DEEP = [
    ["mxfp4", "w4a8"],
    ["mxfp4", "small"],
    ["small", "w4a4"],
    ["mxfp4", "ngram"],
    ["small", "ngram"],
    ["mxfp4", "w4a8", "w4a4"],
    ["mxfp4", "small", "w4a4"],
    ["mxfp4", "small", "ngram"],
]


class Case:
    """A random call: ragged prompts, K of 1 to 8, ends by length, by context and by end-of-text.

    `small` ends before the target does, so it stops drafting for long rows.
    """

    def __init__(self, rng: random.Random, names: list[str], temperature: float):
        self.model = TabularModel(
            random_tables(VOCAB, 3, {"mxfp4a8": 0.7, "w4a8": 1.0, "w4a4": 1.4}), max_positions=40
        )
        small = TabularModel({"bf16": random_tables(VOCAB, 3, {"s": 1.0})["s"]}, max_positions=30)
        self.names = names
        self.draft = [DraftModel(small) if name == "small" else name for name in names]
        self.k = [rng.randint(1, 8) for _ in names]
        batch = rng.randint(1, 8)
        self.prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 20))] for _ in range(batch)]
        self.options: dict[str, Any] = {
            "max_new_tokens": rng.choice([1, 2, 9, 17, 25]),
            "eos_token_id": rng.choice([(), (), 3, (1, 7)]),
            "temperature": temperature,
            "seed": rng.randrange(1000),
            "top_k": rng.choice([0, 4]) if temperature else 0,
        }

    def __str__(self) -> str:
        return f"{self.names} K {self.k}, {len(self.prompts)} rows, {self.options}"

    def plain(self) -> DecodingOutput:
        """Plain decoding, op by op."""
        return generate(self.model, self.prompts, enforce_eager=True, **self.options)

    def run(self, *, enforce_eager: bool) -> tuple[DecodingOutput, Recorder]:
        """The call, and what a streamer saw of it."""
        seen = Recorder()
        options = self.options | {"enforce_eager": enforce_eager, "streamer": seen}
        if not self.names:
            return generate(self.model, self.prompts, **options), seen
        ladder = {"draft": self.draft, "num_speculative_tokens": self.k}
        return speculate(self.model, self.prompts, **ladder, **options), seen


def same(one: DecodingOutput, other: DecodingOutput) -> bool:
    """Whether two calls made the same tokens in the same rounds, and counted the same."""

    def facts(out: DecodingOutput) -> list[Any]:
        counts = [stats.to_dict() | {"draft_time": 0, "verify_time": 0} for stats in out.levels]
        return [out.token_ids, out.finish_reasons, out.num_target_steps, counts]

    return facts(one) == facts(other)


def tokens_of_rounds_too_many() -> int:
    """What rounds commit after all rows have ended, by an end-of-text id and long before a limit."""
    model: Any = Case(random.Random(1), [], 0.0).model
    prompts = [[1, 2], [3], [4, 5]]
    options: dict[str, Any] = {"max_new_tokens": 35}
    ids = generate(model, prompts, **options).token_ids
    options |= {"eos_token_id": (ids[0][3], ids[1][4], ids[2][3])}
    out = speculate(model, prompts, draft=["mxfp4", "w4a8"], enforce_eager=False, **options)
    assert out.finish_reasons == ["stop"] * 3
    runner: Runner = model.graphs._idle[0][1]
    # those that were launched ahead have been run already
    before = runner._round.lengths.clone()
    for _ in range(3):
        runner._round()
    return int((runner._round.lengths - before).sum())
