"""The registered ops when Triton serves them: schemas, fake kernels and tracing hold there, too."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.optests.generate_tests import OpCheckError

import qspec_kernels as qk
from qspec_kernels import dispatch
from tests.gpu.interpreted.served import Mutate, served
from tests.kernels.cases import quantized
from tests.kernels.test_opcheck import NAMES, OPS, samples


@pytest.fixture(autouse=True)
def mutate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mutate]:
    yield from served(monkeypatch)


def arguments_of(name: str) -> list[tuple]:
    """The samples, but for float64, which GPU backends leave to PyTorch; weights as the kernels read them."""
    return [
        in_order(name, arguments)
        for arguments in samples(name)
        if arguments[0].dtype != torch.float64 and torch.float64 not in arguments[3:4]
    ]


def in_order(name: str, arguments: tuple) -> tuple:
    schema = getattr(OPS, name).default._schema
    named: dict[str, Any] = {one.name: given for one, given in zip(schema.arguments, arguments, strict=True)}
    if "format" in named:
        shape = (named["n"], named["k"])
        packed = qk.to_device_layout(
            qk.PackedWeight(named["data"], named["scales"], named["format"], shape, named["group_size"])
        )
        named |= {"data": packed.data, "scales": packed.scales, "format": packed.format}
    return tuple(named.values())


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    for arguments in arguments_of(name):
        torch.library.opcheck(getattr(OPS, name).default, arguments)


N, K = 37, 100


@pytest.mark.parametrize("phase", dispatch.PHASES)
@pytest.mark.parametrize("precision", qk.PRECISIONS)
def test_opcheck_of_every_linear(rng: torch.Generator, mutate: Mutate, precision: str, phase: str) -> None:
    file, seen = f"linear_{precision}", []
    if phase == "prefill" and dispatch._has("triton", f"{file}_prefill"):
        file += "_prefill"
    mutate(file, lambda right, *rest: seen.append(file) or right(*rest))
    for name, arguments in linears(rng, precision):
        torch.library.opcheck(getattr(OPS, name).default, (*arguments, phase))
    assert seen


def linears(rng: torch.Generator, precision: str) -> Iterator[tuple[str, tuple]]:
    """Ops and arguments of a precision, all but the phase; x is float32, and bfloat16 where it may be."""
    x, weight, bias = (torch.randn(*s, generator=rng) for s in ((3, K), (N, K), (N,)))
    act = qk.PRECISIONS[precision].act
    if act is None:
        weight = weight.bfloat16() if precision == "bf16" else weight
        yield from (("linear", (one, weight, bias, one[:, :N])) for one in (x, x.bfloat16()))
        return
    packed = quantized(qk.PRECISIONS[precision].weights, weight, 32).packed
    rest = (packed.data, packed.scales, bias, x[:, :N], packed.format, *packed.shape, packed.group_size)
    if act == "a16":
        yield "linear_packed", (x, *rest)
        yield "linear_packed", (x.bfloat16(), *rest[:3], None, *rest[4:])
        return
    bits = int(act[1:])
    codes = qk.quantize_act(x, bits=bits, group_size=32 if bits == 4 else None)
    yield "linear_integer", (codes.codes, codes.scales, *rest, bits)


def test_a_kernel_that_gives_its_input_back_is_noticed(mutate: Mutate) -> None:
    mutate("rmsnorm", lambda right, x, *rest: x)
    with pytest.raises(OpCheckError, match="test_schema"):
        torch.library.opcheck(OPS.rmsnorm.default, arguments_of("rmsnorm")[0])
