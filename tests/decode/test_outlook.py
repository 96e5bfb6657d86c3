"""What is thought of drafts by their margins, and drafting that ends where they are unlikely to stand."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode import ladder
from qspec_decode.generate import generate
from qspec_decode.ladder import DraftModel
from qspec_decode.load import load
from qspec_decode.outlook import Outlook, threshold
from qspec_decode.speculate import speculate
from qspec_decode.speculative_config import SpeculativeConfig, drafting
from qspec_kernels import UsageError, isa
from tests.decode.recorders import Recorder
from tests.decode.tabular import TabularModel, random_tables


def normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


@pytest.mark.parametrize(
    ("slope", "offset", "spread"), [(1.0, 0.0, 0.2), (0.6, -0.5, 0.8), (0.0, -1.0, 0.3), (1.0, 0.5, 3.0)]
)
def test_chances_are_learned_from_pairs_of_margins(slope: float, offset: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.rand(4000, generator=generator) * 4
    verified = slope * own + offset + spread * torch.randn(4000, generator=generator)
    outlook = Outlook(0.5)
    for some in range(0, 4000, 50):
        outlook.learn(own[some : some + 50].tolist(), verified[some : some + 50].tolist())
    at = [0.0, 0.3, 1.0, 3.0]
    expected = [normal_cdf((slope * x + offset) / spread) for x in at]
    assert outlook.chances(at) == pytest.approx(expected, abs=0.04)


def test_at_first_a_margin_is_believed_give_or_take_a_half() -> None:
    chances = Outlook(0.5).chances([0.0, 0.5, 1.0, 5.0])
    assert chances == pytest.approx([0.5, normal_cdf(1), normal_cdf(2), 1.0])


def test_infinite_margins_spoil_nothing() -> None:
    outlook = Outlook(0.5)
    outlook.learn([math.inf, 0.1], [-math.inf, math.inf])
    chance, most = outlook.chances([0.0, math.inf])
    assert math.isfinite(chance)
    assert most == outlook.chances([100.0])[0]


def chain(leads: dict[str, list[float]], refused: tuple[int, ...] = ()) -> TabularModel:
    """Says last + 1 everywhere, ahead of last + 2 by what each precision's list has for the last token.

    After the tokens in `refused` bf16 says last + 2, by as much.
    """
    vocab = len(leads["bf16"])
    tables = {}
    for name, lead in leads.items():
        table = torch.full((vocab, vocab), -50.0)
        for last in range(vocab):
            signs = (-1, 1) if name == "bf16" and last in refused else (1, -1)
            for step, sign in zip((1, 2), signs, strict=True):
                table[last, (last + step) % vocab] = sign * lead[last] / 2
        tables[name] = table.expand(vocab, -1, -1).contiguous()
    return TabularModel(tables)


def drafted(model: TabularModel, prompts: list[list[int]], chance: float, **options: Any) -> list[Any]:
    """Per round, how many tokens were drafted for each row."""
    watch = Recorder()
    config = SpeculativeConfig(8, chance)
    options = {"max_new_tokens": 20, "eos_token_id": ()} | options
    out = speculate(model, prompts, draft="mxfp4", config=config, streamer=watch, **options)
    assert out.token_ids == generate(model, prompts, **options).token_ids
    return [tokens for *_, tokens, _ in watch.puts if any(tokens)]


def test_drafting_ends_behind_a_near_tie() -> None:
    sure, near = 9.0, 0.0
    leads = [sure] * 24
    leads[3] = leads[10] = near
    model = chain({"bf16": [sure] * 24, "mxfp4a8": leads})
    # what follows token 3 is nearly tied, so drafting ends with token 4
    assert drafted(model, [[0]], 0.51)[0] == [3]
    assert drafted(model, [[0]], 0.0)[0] == [8]
    # a pass serves all rows of a batch: their chances are 1/2, 1, 1 behind 3 drafts, and 1/2, 1/2, 1 behind 4
    for chance, expected in ((0.9, 3), (0.75, 4), (0.51, 8)):
        assert drafted(model, [[0], [6], [12]], chance)[0] == [expected] * 3


def test_rows_that_are_full_are_not_served() -> None:
    model = chain({"bf16": [9.0] * 24, "mxfp4a8": [9.0] * 24})
    model.max_positions = 15
    # the first row has room for three drafts; after them a pass serves one of two
    for chance, expected in ((0.6, [3, 3]), (0.45, [3, 8])):
        assert drafted(model, [list(range(10)), [12]], chance)[0] == expected


def test_rows_that_are_full_do_not_count() -> None:
    leads = [9.0] * 24
    leads[9] = 0.0
    model = chain({"bf16": [9.0] * 24, "mxfp4a8": leads})
    model.max_positions = 15
    # the first row's only chance is 1/2, but when its three drafts are made it asks for nothing more
    assert drafted(model, [list(range(10)), [12]], 0.45)[0] == [3, 8]


def test_rows_that_are_full_are_not_served_by_a_drafter_with_a_drafter() -> None:
    sure = [9.0] * 24
    model = chain({"bf16": sure, "mxfp4a8": sure, "w4a8": sure})
    model.max_positions = 15
    # the first round of the drafter makes three for both; the next one would serve one row of two
    for chance, expected in ((0.6, [3, 3]), (0.45, [3, 8])):
        watch = Recorder()
        options: dict[str, Any] = {"draft": ["mxfp4", "w4a8"], "streamer": watch, "eos_token_id": ()}
        config = SpeculativeConfig([8, 3], chance)
        speculate(model, [list(range(10)), [12]], config=config, max_new_tokens=20, **options)
        assert next(tokens for *_, tokens, _ in watch.puts if any(tokens)) == expected


def test_what_a_drafter_refuses_itself_does_not_end_its_drafting() -> None:
    sure = [9.0] * 24
    wrong = chain({"bf16": sure, "w4a8": sure}, refused=tuple(range(24)))
    # the lowest level says last + 2 everywhere, which the one above it refuses every time
    model = chain({"bf16": sure, "mxfp4a8": sure})
    model = TabularModel({**model.tables, "w4a8": wrong.tables["bf16"]})
    watch = Recorder()
    config = SpeculativeConfig([8, 3], 0.5)
    options: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": ()}
    out = speculate(model, [[0]], draft=["mxfp4", "w4a8"], config=config, streamer=watch, **options)
    assert out.levels[1].num_accepted_tokens == 0
    assert next(tokens for *_, tokens, _ in watch.puts if any(tokens)) == [8]


def test_chances_multiply() -> None:
    # each stands with 0.84 at first: two drafts together with 0.71, three with 0.60
    model = chain({"bf16": [0.5] * 24, "mxfp4a8": [0.5] * 24})
    for chance, expected in ((0.9, 1), (0.8, 2), (0.65, 3), (0.55, 4)):
        assert drafted(model, [[0]], chance)[0] == [expected]


def test_a_drafter_that_is_surely_wrong_is_soon_believed_no_more() -> None:
    vocab = 24
    model = chain({"bf16": [4.0] * vocab, "mxfp4a8": [4.0] * vocab}, refused=tuple(range(vocab)))
    rounds = drafted(model, [[0]], 0.5)
    assert rounds[0] == [8]
    assert max(tokens[0] for tokens in rounds[-8:]) == 1


def test_only_drafts_that_were_decided_on_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[float], list[float]]] = []
    learn = Outlook.learn

    def watching(self: Outlook, own: Sequence[float], verified: Sequence[float]) -> None:
        seen.append((list(own), list(verified)))
        learn(self, own, verified)

    monkeypatch.setattr(Outlook, "learn", watching)
    own = [3.0 + 0.1 * i for i in range(24)]
    verifiers = [2.0 + 0.1 * i for i in range(24)]
    model = chain({"bf16": verifiers, "mxfp4a8": own}, refused=(2,))
    drafted(model, [[0]], 0.3, max_new_tokens=10)
    # an outlook begins with the first; the prompt's token 0 is followed by 1; then 3 is refused behind 2, and
    # nobody looks at the six behind it
    assert seen[1][0] == pytest.approx(own[1:3])
    assert seen[1][1] == pytest.approx([verifiers[1], -verifiers[2]])


def test_fewer_drafts_are_wasted() -> None:
    model = TabularModel(random_tables(60, 3, {"mxfp4a8": 0.2}))
    # many short texts: greedy chains soon run in circles
    prompts = [[row, 59 - row] for row in range(60)]

    def wasted(chance: float) -> tuple[int, int]:
        config = SpeculativeConfig(8, chance)
        runs = [
            speculate(model, [prompt], draft="mxfp4", config=config, max_new_tokens=16).levels[0]
            for prompt in prompts
        ]
        accepted = sum(run.num_accepted_tokens for run in runs)
        return sum(run.num_draft_tokens for run in runs) - accepted, accepted

    always, early = wasted(0.0), wasted(0.5)
    assert early[0] < 0.6 * always[0]
    assert early[1] > 0.85 * always[1]


def test_what_a_call_drafts_where_nothing_is_said() -> None:
    most, rows = {"amx": (12, 32), "avx512bf16": (7, 16)}.get(isa(), (4, 10**6))
    others, below = (4, 2) if isa() in ("amx", "avx512bf16") else (3, 3)
    cases: list[tuple[str, list[Any], list[int], list[int], bool]] = [
        ("bf16", ["mxfp4a8"], [most], [4], True),
        ("bf16", ["mxfp4", "ngram"], [most, 3], [4, 3], True),
        ("bf16", ["mxfp4", object()], [most, below], [4, 3], True),
        ("bf16", [object()], [others], [3], True),
        ("w4a16", [object()], [others], [3], True),
        ("w4a16", ["w4a8"], [3], [3], False),
        ("mxfp4a16", ["mxfp4"], [3], [3], False),
        ("bf16", ["ngram"], [3], [3], True),
    ]
    for target, drafts, early, always, cheap in cases:
        config = SpeculativeConfig()
        for greedy, fixed in ((True, False), (True, True), (False, False)):
            found = drafting(config, target, drafts, greedy=greedy, fixed=fixed)
            ends = greedy and not fixed and cheap
            assert found.num_speculative_tokens == (early if ends else always)
            assert found.draft_confidence_threshold == (None if ends else 0)
            assert found.ends_early == ends
    said = drafting(SpeculativeConfig(4), "bf16", ["mxfp4a8"], greedy=True, fixed=False)
    assert (said.num_speculative_tokens, said.draft_confidence_threshold) == ([4], 0)
    for batch_size in (1, 2, 3, 4, 8, 16, 32, 64):
        options: dict[str, Any] = {"greedy": True, "fixed": False, "batch_size": batch_size}
        (k,) = drafting(SpeculativeConfig(), "bf16", ["mxfp4"], **options).num_speculative_tokens
        assert k == most or k == 1 or batch_size * (k + 1) <= rows < batch_size * (k + 2)
        (k,) = drafting(SpeculativeConfig(5), "bf16", ["mxfp4"], **options).num_speculative_tokens
        assert k == 5


def test_a_threshold_is_what_a_draft_costs() -> None:
    assert threshold(0.27) == pytest.approx(0.58 / 1.27)
    assert threshold(0.0) == pytest.approx(0.04)
    # the dearest draft that may end early
    assert threshold(0.5) == pytest.approx(1.04 / 1.5)


def test_every_level_has_the_threshold_of_its_own_cost(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, small = load(bundle / "target", ("bf16", "mxfp4")), load(bundle / "small", ("bf16",))
    seen: list[float] = []

    class Watched(Outlook):
        def __init__(self, threshold: float):
            seen.append(threshold)
            super().__init__(threshold)

    monkeypatch.setattr(ladder, "Outlook", Watched)
    options: dict[str, Any] = {"max_new_tokens": 4}
    speculate(model, [[1, 2]], draft=["mxfp4", small], **options)
    sizes = [
        small.bytes_per_pass("bf16", draft_head=True),
        model.bytes_per_pass("mxfp4a8", draft_head=True),
        model.bytes_per_pass("bf16"),
    ]
    # the small one reads half as much as the cast, which is too dear to end early
    assert sizes[1] / 2 < sizes[0] < sizes[1] < sizes[2] / 2
    assert seen == [threshold(sizes[1] / sizes[2])]
    seen.clear()
    # only drafts read the 4-bit output matrix
    speculate(model, [[1, 2]], target="mxfp4a16", draft=small, **options)
    assert seen == [threshold(sizes[0] / model.bytes_per_pass("mxfp4a16"))]
    assert sizes[1] < model.bytes_per_pass("mxfp4a16")
    seen.clear()
    # a draft as dear as its verifier has none, the one below it has its own
    speculate(model, [[1, 2]], draft=[DraftModel(model, "bf16"), small], **options)
    assert seen == [threshold(sizes[0] / sizes[2])]
    seen.clear()
    speculate(model, [[1, 2]], draft=["mxfp4", small], config=SpeculativeConfig(4, 0.3), **options)
    assert seen == [0.3, 0.3]
    seen.clear()
    speculate(model, [[1, 2]], draft=["mxfp4", small], num_speculative_tokens=4, **options)
    speculate(model, [[1, 2]], draft="ngram", **options)
    assert not seen
    # a model that does not say what it reads
    speculate(TabularModel(random_tables(4, 0, {"mxfp4a8": 0.1})), [[1]], draft="mxfp4", **options)
    assert seen == [threshold(0.25)]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("given", [-0.1, 1, 1.5, float("nan"), "0.5", True])
def test_a_threshold_that_is_no_chance(given: Any) -> None:
    with pytest.raises(UsageError, match=r"draft_confidence_threshold is .*0 <= threshold < 1"):
        SpeculativeConfig(draft_confidence_threshold=given)


def test_a_threshold_where_drafting_never_ends_early() -> None:
    model = TabularModel(random_tables(4, 0, {"mxfp4a8": 0.1}))
    config = SpeculativeConfig(draft_confidence_threshold=0.5)
    with pytest.raises(UsageError, match="expected 0 or None where tokens are sampled"):
        speculate(model, [[1]], draft="mxfp4", config=config, temperature=1.0)
    with pytest.raises(UsageError, match="expected 0 or None in rounds of fixed shapes") as error:
        speculate(model, [[1]], draft="mxfp4", config=config, enforce_eager=False)
    assert "enforce_eager=True" in error.value.hint
    config = SpeculativeConfig(draft_confidence_threshold=0.0)
    assert speculate(model, [[1]], draft="mxfp4", config=config, temperature=1.0).levels
