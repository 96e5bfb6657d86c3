"""What each precision costs the bundled model, and how often its drafts stand: bounds on a table.

Run with `-s` to see the table. The text is the held-out prompts', teacher-forced.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from qspec_decode import Transformer, generate, load, load_tokenizer, speculate
from qspec_decode.demo import prompts


@dataclass(frozen=True)
class Quality:
    """Of one precision, over all positions of the held-out text.

    Parameters
    ----------
    bits_per_byte
        Cross-entropy of the text.
    kl
        Mean KL divergence from bf16 to this precision, nats per token.
    top1
        Share of positions with bf16's most probable token.
    """

    bits_per_byte: float
    kl: float
    top1: float


@cache
def model(rotate: bool) -> Transformer:
    return load("demo", ("fp32", "bf16", "w4a16", "mxfp4a16"), rotate=rotate)


@cache
def held_out() -> tuple[list[torch.Tensor], int]:
    """Ids of every prompt, and the bytes of text that are predicted."""
    tokenizer = load_tokenizer("demo")
    texts = [prompt.text for prompt in prompts.read()]
    ids = [torch.tensor(tokenizer.encode(text)) for text in texts]
    first = sum(len(tokenizer.decode([int(row[0])]).encode()) for row in ids)
    return ids, sum(len(text.encode()) for text in texts) - first


@cache
def log_probs(precision: str, rotate: bool) -> list[torch.Tensor]:
    """Of every next token, per prompt [length - 1, vocab]."""
    ours, found = model(rotate), []
    for ids in held_out()[0]:
        kv = ours.new_cache(1, len(ids), precision)
        logits = ours.forward(ids, torch.zeros_like(ids), torch.arange(len(ids)), kv, precision)
        found.append(logits[:-1].double().log_softmax(-1))
    return found


def quality(precision: str, rotate: bool = False) -> Quality:
    ids, num_bytes = held_out()
    nats = kl = same = 0.0
    for row, q, p in zip(ids, log_probs(precision, rotate), log_probs("bf16", False), strict=True):
        nats += F.nll_loss(q, row[1:], reduction="sum").item()
        kl += F.kl_div(q, p, log_target=True, reduction="sum").item()
        same += (q.argmax(-1) == p.argmax(-1)).sum().item()
    count = sum(len(row) - 1 for row in ids)
    return Quality(nats / math.log(2) / num_bytes, kl / count, same / count)


# precision, rotated: at most so many bits per byte above bf16, KL, at least so much agreement
BOUNDS = [
    ("fp32", False, 0.001, 0.0001, 0.99),
    ("mxfp4a16", False, 0.010, 0.017, 0.905),
    ("mxfp4a8", False, 0.010, 0.017, 0.900),
    ("w4a16", False, 0.011, 0.014, 0.915),
    ("w4a8", False, 0.012, 0.014, 0.905),
    ("w4a4", False, 0.055, 0.110, 0.770),
    ("w4a16", True, 0.010, 0.014, 0.915),
    ("w4a8", True, 0.010, 0.014, 0.915),
    ("w4a4", True, 0.030, 0.060, 0.830),
]


@pytest.mark.parametrize(("precision", "rotate", "bits", "kl", "top1"), BOUNDS)
def test_a_precision_costs_no_more_than(
    precision: str, rotate: bool, bits: float, kl: float, top1: float
) -> None:
    base, found = quality("bf16"), quality(precision, rotate)
    name = f"{precision}{' rotated' if rotate else ''}"
    print(
        f"\n{name:18} {found.bits_per_byte:.4f} bits per byte (bf16 {base.bits_per_byte:.4f}), "
        f"KL {found.kl:.4f}, top-1 {found.top1:.3f}"
    )
    assert found.bits_per_byte < base.bits_per_byte + bits
    assert found.kl < kl
    assert found.top1 > top1


def test_rotation_helps_four_bit_activations() -> None:
    assert quality("w4a4", True).kl < quality("w4a4", False).kl


def test_the_bundled_model_predicts_held_out_text() -> None:
    assert quality("bf16").bits_per_byte < 1.35


def first_prompts(count: int) -> list[list[int]]:
    return [row.tolist() for row in held_out()[0][:count]]


def test_a_rotated_draft_and_an_unrotated_target_share_the_cache() -> None:
    out = speculate(model(True), first_prompts(8), draft="w4a8", num_speculative_tokens=3, max_new_tokens=48)
    assert out.levels[0].per_token_acceptance > 0.8
    assert out.token_ids == generate(model(True), first_prompts(8), max_new_tokens=48).token_ids


def test_a_cache_in_another_basis_spoils_acceptance_but_not_the_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mistake that only an acceptance test sees: keys and values of the draft in a basis of their own."""
    ours = model(True)
    plain = generate(ours, first_prompts(4), max_new_tokens=32)
    forward = Transformer.forward

    def flipped(self, ids, rows, positions, kv, precision, **options):  # type: ignore[no-untyped-def]
        if precision == "w4a8":
            for v in kv.v:
                v.neg_()
        out = forward(self, ids, rows, positions, kv, precision, **options)
        if precision == "w4a8":
            for v in kv.v:
                v.neg_()
        return out

    monkeypatch.setattr(Transformer, "forward", flipped)
    out = speculate(ours, first_prompts(4), target="bf16", draft="w4a8", max_new_tokens=32)
    assert out.token_ids == plain.token_ids
    assert out.levels[0].per_token_acceptance < 0.5
