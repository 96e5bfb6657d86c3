"""What `qspec bench gpu` holds kernels to is what `reference/` says, case by case, without a GPU.

There is no `reference/` where a wheel was installed: kernels are held to the torch backend in float64.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import qspec_kernels
from qspec_decode.bench.gpu import cases, cases_cache, correctness
from qspec_decode.bench.gpu.case import Case
from qspec_decode.bench.gpu.cases_cache import VERIFIED
from qspec_decode.bench.gpu.correctness import Expected
from qspec_kernels import PackedWeight, formats
from reference import (
    attention,
    cache_write,
    embedding,
    hadamard,
    int4,
    linear,
    mxfp4,
    quantize_act,
    rescore,
    rmsnorm,
    rope,
    rope_cache_write,
    sampling,
    silu_mul,
)
from tests.bench.standin import small

__all__ = ["small"]

pytestmark = pytest.mark.usefixtures("small")

# rows of a vocabulary that a reference written one number at a time looks at
SOME = slice(0, None, 9)


def weights(packed: PackedWeight) -> tuple[Tensor, Tensor]:
    """Codes and scales, as they were quantised."""
    return formats.get(packed.format).unpack(packed)


def rotated(x: Tensor, block: int, diagonal: Tensor | None = None) -> Tensor:
    turned = x.double() if diagonal is None else x.double() * diagonal
    return hadamard.hadamard(turned, qspec_kernels.hadamard_matrix(block))


def linears(case: Case) -> list[Tensor]:
    """Dense, with packed weights, and of integers, whose groups are added in float32."""
    args = case.args
    packed = next((one for one in args if isinstance(one, PackedWeight)), None)
    if packed is None:
        x, weight, bias, residual = args
        return [linear.linear(x, weight, bias) + residual.double()]
    codes, scales = weights(packed)
    is_int4 = packed.format.startswith("int4")
    if case.kind == "close":
        x, _, bias, residual, *_ = args
        dense = (
            int4.dequantize(codes, scales, packed.group_size) if is_int4 else mxfp4.dequantize(codes, scales)
        )
        return [linear.linear(x, dense, bias) + residual.double()]
    x, act_scales, _, bias, residual, *_ = args
    if not is_int4:
        # twice an E2M1 number is an integer
        codes = (2 * mxfp4.dequantize(codes, torch.full_like(scales, 127))).to(torch.int8)
        scales = 2.0 ** (scales.double() - 128)
    out = linear.integer_linear(x, act_scales, codes, scales, packed.group_size, bias, torch.float32)
    return [residual + out]


def attended(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor, scale: float, window: int
) -> Any:
    return [attention.attention(q, k, v, rows, positions, scale, None if window < 0 else window)]


def prepared(
    x: Tensor, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float,
    q_gain: Tensor | None, k_gain: Tensor | None, eps: float,
) -> list[Tensor]:  # fmt: skip
    gains = None if q_gain is None or k_gain is None else (q_gain, k_gain)
    q, k, v = rope_cache_write.rope_cache_write(x, k, v, rows, positions, inv_freq, scaling, gains, eps)
    return [k, v, q]


def softmax(x: Tensor, temperature: float) -> list[Tensor]:
    return [torch.stack([sampling.probabilities(row, temperature) for row in x[SOME]])]


def argmax(x: Tensor) -> list[Tensor]:
    return [torch.tensor([sampling.argmax(row) for row in x[SOME]])]


def top2(x: Tensor) -> list[Tensor]:
    (ids,) = argmax(x)
    highest = torch.tensor([sorted(row, reverse=True)[:2] for row in x[SOME].tolist()])
    return [ids, highest.masked_fill(ids[:, None] < 0, torch.nan)]


def draw(p: Tensor, uniforms: Tensor, rows: Tensor | None, without: Tensor | None) -> list[Tensor]:
    def one(index: int) -> int:
        left = p[index if rows is None else int(rows[index])].clone()
        if without is not None and without[index] >= 0:
            left[without[index]] = 0
        return sampling.draw(left, float(uniforms[index]))

    return [torch.tensor([one(index) for index in range(len(uniforms))[SOME]])]


def draw_residual(
    p: Tensor, q: Tensor, uniforms: Tensor, p_rows: Tensor | None, q_rows: Tensor | None
) -> list[Tensor]:
    def one(index: int) -> int:
        whole = p[index if p_rows is None else int(p_rows[index])]
        other = index if q_rows is None else int(q_rows[index])
        left = whole if other < 0 else (whole - q[other]).clamp(min=0)
        return sampling.draw(left if left.any() else whole, float(uniforms[index]))

    return [torch.tensor([one(index) for index in range(len(uniforms))[SOME]])]


REFERENCES: dict[str, Callable[..., list[Tensor]]] = {
    "rmsnorm": lambda x, gain, eps: [rmsnorm.rmsnorm(x, gain, eps)],
    "rmsnorm_quantize_act": lambda x, gain, eps, *_: [rmsnorm.rmsnorm(x, gain, eps)],
    "quantize_act": lambda x, bits, group, clip: list(
        quantize_act.quantize_act(x.float(), bits, group, clip)
    ),
    "silu_mul": lambda x: [silu_mul.silu_mul(x)],
    "silu_mul_quantize_act": lambda x, *_: [silu_mul.silu_mul(x)],
    "hadamard": lambda x, base, transpose, diagonal: [
        hadamard.hadamard(x, qspec_kernels.hadamard_matrix(x.shape[1]), True) * diagonal
        if transpose
        else rotated(x, x.shape[1], diagonal)
    ],
    "hadamard_quantize_act": lambda x, base, block, *_: [rotated(x, block)],
    "silu_mul_hadamard_quantize_act": lambda x, base, diagonal, block, *_: [
        rotated(silu_mul.silu_mul(x), block, diagonal)
    ],
    "rope": lambda *args: [rope.rope(*args)],
    "cache_write": lambda *args: list(cache_write.cache_write(*args)),
    "rope_cache_write": prepared,
    "attention": attended,
    "embedding": lambda table, ids, rounded, dtype: [embedding.embedding(table, ids, rounded).to(dtype)],
    "rescore": lambda *args: [rescore.rescore(*(one[SOME] for one in args[:2]), *args[2:])],
    "argmax": argmax,
    "top2": top2,
    "softmax": softmax,
    "draw": draw,
    "draw_residual": draw_residual,
}
IN_PART = ("rescore", "argmax", "top2", "softmax", "draw", "draw_residual")


def right(case: Case) -> list[Tensor]:
    """Results by `reference/`; of codes what becomes codes, and the scales."""
    if case.op.startswith("linear_"):
        return linears(case)
    found = REFERENCES[case.op](*case.args)
    if case.kind == "codes":
        bits, group, clip = case.args[-3:]
        found.append(quantize_act.quantize_act(found[0], bits, group, clip)[1])
    return found


def differences(case: Case, expected: Sequence[Expected]) -> Iterator[str]:
    """What `correctness` expects of a case and `reference/` does not."""
    for index, (one, wanted) in enumerate(zip(expected, right(case), strict=True)):
        exact = one.exact[SOME] if case.op in IN_PART else one.exact
        if case.kind == "same":
            if exact.dtype != wanted.dtype or not torch.equal(exact, wanted):
                yield f"{case.shape}: {index} is not the same"
            continue
        assert exact.dtype == torch.float64
        assert one.bound > 0
        # infinities, of tokens that cannot be chosen, and where they stand
        error = (exact - wanted).masked_fill(exact == wanted, 0).abs().max()
        if not error <= 1e-12 * wanted.masked_fill(wanted.isinf(), 0).abs().max():
            yield f"{case.shape}: {index} is off by {error:.1e}"


@pytest.mark.parametrize("op", cases.OPS)
def test_what_is_expected_is_what_the_reference_says(op: str) -> None:
    made = cases.cases(op)
    assert made
    assert [text for case in made for text in differences(case, correctness._expected(case))] == []


@pytest.mark.parametrize("op", ["linear_w4a16", "linear_w4a8", "rmsnorm_quantize_act", "attention"])
def test_another_expectation_is_noticed(op: str) -> None:
    """As little off as float32 rounds, or by the last bit."""
    case = cases.cases(op)[0]
    expected = correctness._expected(case)
    exact = expected[-1].exact
    exact.view(-1)[-1] *= 1 + torch.finfo(torch.float32).eps
    assert list(differences(case, expected))


def test_caches_come_as_models_have_them() -> None:
    """In float32 too, and of wide heads; and attention of as many tokens as large batches verify."""
    for op in ("attention", "cache_write", "rope_cache_write"):
        args = [one for case in cases.cases(op) for one in case.args if isinstance(one, Tensor)]
        caches = [one for one in args if one.ndim == 4]
        assert {one.dtype for one in caches} == {torch.float32, torch.bfloat16}
        assert {64, 256} <= {one.shape[3] for one in caches}
    assert {case.repeated for case in cases.cases("attention")} == {cases_cache.VERIFIED}
    assert {128, 320} <= {*VERIFIED}
