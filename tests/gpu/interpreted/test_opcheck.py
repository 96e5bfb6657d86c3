"""The registered ops when Triton serves them: schemas, fake kernels and tracing hold there, too."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.optests.generate_tests import OpCheckError

import qspec_kernels as qk
from tests.gpu.interpreted.served import Mutate, served
from tests.kernels.test_opcheck import NAMES, OPS, samples


@pytest.fixture(autouse=True)
def mutate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mutate]:
    yield from served(monkeypatch)


def arguments_of(name: str) -> tuple:
    """The first sample: float32, and weights in the order that the kernels read."""
    return in_order(name, samples(name)[0])


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
    torch.library.opcheck(getattr(OPS, name).default, arguments_of(name))


def test_a_kernel_that_gives_its_input_back_is_noticed(mutate: Mutate) -> None:
    mutate("rmsnorm", lambda right, x, *rest: x)
    with pytest.raises(OpCheckError, match="test_schema"):
        torch.library.opcheck(OPS.rmsnorm.default, arguments_of("rmsnorm"))
