"""What stands between decoding and a model passes on all that decoding asks of it."""

from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.clock import Clocked, Made
from qspec_decode.protocol import FlatTokens, Model, Relay, device_of, forward, top2
from qspec_decode.sibling import Aligned
from qspec_kernels import top2 as top2_of
from tests.decode.tabular import TabularModel, random_tables

MEMBERS = ("vocab_size", "max_positions", "eos_token_ids", "precisions", "vocabulary", "device")


class Asked(TabularModel):
    """Remembers what its last pass was asked."""

    device = torch.device("cpu", 0)
    vocabulary = "a digest"

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        self.asked = inputs, options
        return super().forward(*inputs, **options)


def test_a_relay_is_asked_as_its_model_is() -> None:
    model = Asked(random_tables(7, 1, {"w4a8": 0.3}), max_positions=9, eos_token_ids=(2,))
    made: list[Made] = []
    relays = Relay(model), Clocked(model, "target", made), Aligned(model, 9)
    for relay in relays:
        assert isinstance(relay, Model)
        changed = {"vocab_size"} if isinstance(relay, Aligned) else set()
        assert {name for name in MEMBERS if getattr(relay, name) != getattr(model, name)} == changed
        cache = relay.new_cache(2, 5, "bf16")
        assert (cache.batch, cache.capacity) == (2, 5)
        inputs = (torch.tensor([3, 4]), torch.tensor([1, 1]), torch.arange(2), cache, "w4a8")
        options = {"logits_at": torch.tensor([1]), "draft_head": True, "phase": "prefill"}
        logits = relay.forward(*inputs, **options)
        assert logits.shape == (1, relay.vocab_size)
        assert torch.equal(logits[:, :7], model.tables["w4a8"][3, 4][None])
        passed, also = model.asked
        assert torch.equal(passed[0], inputs[0])
        assert all(one is other for one, other in zip(passed[1:], inputs[1:], strict=True))
        assert also == options
    (noted,) = made
    assert noted == Made("target", "w4a8", True, 2, "prefill", noted.seconds)


def test_members_that_a_model_may_lack_are_lacking_behind_a_relay() -> None:
    relay = Relay(TabularModel(random_tables(7, 1, {})))
    assert relay.vocabulary is None
    assert device_of(relay) == torch.device("cpu")


class Choosing(TabularModel):
    """Has a way of its own to choose, and says when it was asked."""

    def top2(self, logits: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        self.asked = logits, cache
        return top2_of(logits)


def test_a_models_own_choice_is_asked_for() -> None:
    tables = random_tables(7, 1, {})
    plain, own = TabularModel(tables), Choosing(tables)
    logits, cache = torch.randn(3, 7), own.new_cache(1, 4, "bf16")
    assert all(map(torch.equal, top2(plain, logits, cache), top2_of(logits)))
    for model in (own, Relay(own)):
        own.asked = None
        assert all(map(torch.equal, top2(model, logits, cache), top2_of(logits)))
        assert [a is b for a, b in zip(own.asked, (logits, cache), strict=True)] == [True, True]


class Counting(Asked):
    """Wants its tokens as numbers."""

    takes_numbers = True

    def forward(
        self, ids: Any, rows: Any, positions: Any, cache: Any, precision: str, **options: Any
    ) -> Tensor:
        tensors = map(torch.as_tensor, (ids, rows, positions))
        logits = TabularModel.forward(self, *tensors, cache, precision, **options)
        self.asked = (ids, rows, positions), options
        return logits


def test_a_model_gets_numbers_where_it_takes_them_and_tensors_elsewhere() -> None:
    tables = random_tables(7, 1, {"w4a8": 0.3})
    tokens = FlatTokens([3, 4], [1, 1], [0, 1], [1])
    plain, counting = Asked(tables), Counting(tables)
    for model in (plain, counting, Clocked(counting, "target", []), Relay(counting)):
        # a relay may look at the tokens, and what it knows are tensors, unless it says otherwise
        lists = isinstance(model, Counting | Clocked)
        logits = forward(model, tokens, model.new_cache(2, 5, "bf16"), "w4a8", draft_head=True)
        assert torch.equal(logits, tables["w4a8"][3, 4][None])
        inputs, options = (plain if model is plain else counting).asked
        inputs = (*inputs[:3], options["logits_at"])
        assert [type(each) for each in inputs] == [list if lists else Tensor] * 4
        assert [list(each) for each in inputs] == [[3, 4], [1, 1], [0, 1], [1]]
        assert (options["draft_head"], options["phase"]) == (True, "decode")
