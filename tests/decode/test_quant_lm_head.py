"""`load(..., quant_lm_head=...)`: an output matrix in 4 bits for targets as well."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec_decode.demo import widen
from qspec_decode.generate import generate
from qspec_decode.load import load
from qspec_decode.model import Transformer
from qspec_decode.sampling import SamplingParams
from qspec_decode.speculate import speculate
from qspec_kernels import PackedWeight, UsageError, formats, linear, quantize_act, rmsnorm

Family = Callable[[str], tuple[Path, Any]]
IDS = torch.tensor([3, 77, 150, 9, 9, 200, 41, 5, 120, 33, 17])
SETS = {"w4a16": "int4", "w4a8": "int4", "w4a4": "int4", "mxfp4a16": "mxfp4", "mxfp4a8": "mxfp4"}


def logits(model: Transformer, precision: str, **options: bool) -> Tensor:
    cache = model.new_cache(1, len(IDS), precision)
    return model.forward(IDS, torch.zeros_like(IDS), torch.arange(len(IDS)), cache, precision, **options)


def with_head(model: Transformer, name: str, head: Tensor) -> Transformer:
    """The same model with another output matrix in one of its sets."""
    sets = model.sets | {name: replace(model.sets[name], head=head)}
    return Transformer(model.config, model.embedding, model.final_norm, sets, dtype=model.dtype)


@pytest.mark.parametrize("rotate", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("precision", ["w4a16", "mxfp4a16"])
def test_sixteen_bit_inputs_meet_the_rounded_matrix(family: Family, precision: str, rotate: bool) -> None:
    directory, _ = family("llama")
    model = load(directory, precision, quant_lm_head=True, rotate=rotate, dtype=torch.float64)
    head = model.sets[SETS[precision]].head
    assert isinstance(head, PackedWeight)
    format = formats.get(head.format)
    codes, scales = format.unpack(head)
    rounded = format.dequantize(codes, scales, head.group_size).double()
    expected = logits(with_head(model, SETS[precision], rounded), precision)
    torch.testing.assert_close(logits(model, precision), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("precision", ["w4a8", "w4a4", "mxfp4a8"])
def test_inputs_of_fewer_bits_are_given_eight(family: Family, precision: str) -> None:
    directory, _ = family("llama-tied-one-kv-head")
    # in float64, in which passes are not recorded and may be looked into
    model = load(directory, precision, quant_lm_head=True, dtype=torch.float64)
    head = model.sets[SETS[precision]].head
    assert isinstance(head, PackedWeight)
    seen: list[Tensor] = []

    class Watched(Transformer):
        def _logits(self, x: Tensor, *_: Any) -> Tensor:
            seen.append(rmsnorm(x, self.final_norm, self.config.rms_norm_eps).clone())
            return x

    logits(Watched(model.config, model.embedding, model.final_norm, model.sets, dtype=model.dtype), precision)
    assert torch.equal(logits(model, precision), linear(quantize_act(seen[0], bits=8), head))


def test_only_the_sets_that_are_named(family: Family) -> None:
    directory, _ = family("llama")
    model = load(directory, ("bf16", "w4a16", "mxfp4"), quant_lm_head="w4a8")
    heads = {name: weights.head for name, weights in model.sets.items()}
    assert isinstance(heads["int4"], PackedWeight)
    assert heads["int4"].shape == (model.config.vocab_size, model.config.hidden_size)
    assert isinstance(heads["bf16"], Tensor)
    assert heads["mxfp4"] is heads["bf16"]
    assert model.sets["mxfp4"].draft_head is not None
    everywhere = load(directory, ("bf16", "w4a16", "mxfp4"), quant_lm_head=True)
    assert isinstance(everywhere.sets["mxfp4"].head, PackedWeight)
    # drafts read it as it is: there is nothing more exact to correct it with
    assert everywhere.sets["mxfp4"].draft_head is None
    assert torch.equal(logits(everywhere, "mxfp4a8", draft_head=True), logits(everywhere, "mxfp4a8"))
    for precision in ("bf16", "mxfp4a8"):
        assert torch.equal(logits(model, precision), logits(load(directory, precision), precision))
    assert torch.equal(logits(model, "w4a16"), logits(load(directory, "w4a16", quant_lm_head=True), "w4a16"))


def test_ladders_over_it_are_lossless(family: Family) -> None:
    directory, _ = family("qwen2")
    model = load(directory, "w4a16", quant_lm_head=True, group_size=32)
    sampling = SamplingParams(max_new_tokens=24, eos_token_id=())
    prompts = [[3, 77, 150], [9, 8, 7, 6, 5]]
    plain = generate(model, prompts, target="w4a16", sampling=sampling)
    for draft in ("w4a8", "w4a4"):
        fast = speculate(model, prompts, target="w4a16", draft=draft, sampling=sampling)
        assert fast.token_ids == plain.token_ids
        assert fast.levels[0].num_accepted_tokens > 0


def test_a_widened_one_says_the_same() -> None:
    small = load("demo", "w4a16", quant_lm_head=True, dtype=torch.float64)
    chosen = widen.WidenPlan(hidden_tile=2, intermediate_tile=1, heads_tile=2, num_layers=6, vocab_size=5000)
    wide = widen.widen(small, chosen)
    head = wide.sets["int4"].head
    assert isinstance(head, PackedWeight)
    assert head.shape == (5000, 512)
    for precision in ("w4a16", "w4a8"):
        found, expected = logits(wide, precision), logits(small, precision)
        assert (found[:, 4096:] == -torch.inf).all()
        torch.testing.assert_close(found[:, :4096], expected, rtol=1e-9, atol=1e-9)


def test_what_contradicts_is_refused(family: Family) -> None:
    directory, _ = family("llama")
    with pytest.raises(UsageError, match="quant_lm_head is True, which is about int4 and mxfp4"):
        load(directory, "bf16", quant_lm_head=True)
    with pytest.raises(UsageError, match="quant_lm_head names 'w4a8', whose weights are not among those"):
        load(directory, "mxfp4", quant_lm_head=["w4a8"])
    with pytest.raises(UsageError, match="keep names 'lm_head', and quant_lm_head"):
        load(directory, "mxfp4", quant_lm_head=True, keep="lm_head")
