"""What the tests of the emulated kernels share: emulators, operands, the checks that mutants must fail."""

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import qspec_kernels as qk
from qspec_kernels.backends.cuda import _launch
from qspec_kernels.backends.cuda._compile import Kernel
from qspec_kernels.formats import PackedWeight, convert
from qspec_kernels.hadamard_matrix import factor, hadamard_matrix
from reference.hadamard import hadamard
from reference.linear import integer_linear
from reference.linear import linear as exact_linear
from tests.gpu.emulation.run import Emulator
from tests.kernels.cases import Quantized, assert_within_budget, quantized, same_bits

# when copies land, and which warp of a block goes first
SCHEDULES = [{"late": True, "backwards": False}, {"late": False, "backwards": True}]


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="qspec-emulation-")


@contextmanager
def emulated(**options: Any) -> Iterator[Emulator]:
    """Inside, the launchers of backends/cuda run their kernels on the CPU; options are `Emulator`'s."""
    emulator = Emulator(Path(_directory().name), **options)
    real = _launch.launch, _launch.arch
    _launch.launch, _launch.arch = emulator.launch, emulator.arch  # type: ignore[assignment]
    try:
        yield emulator
    finally:
        _launch.launch, _launch.arch = real


@dataclass(frozen=True)
class Probe(Kernel):
    """A kernel of a test: its source, over the instructions of ptx.cuh, is given."""

    text: str

    def source(self) -> str:
        """The text that is given."""
        return self.text


LAUNCHERS = {
    path.stem: importlib.import_module(f"qspec_kernels.backends.cuda.{path.stem}")
    for path in sorted(Path(_launch.__file__).parent.glob("*.py"))
    if path.with_suffix(".cu").exists()
}


def op(name: str) -> Callable[..., Any]:
    """The launcher of an op."""
    return getattr(LAUNCHERS[name], name)


def ordered(weight: PackedWeight, name: str) -> PackedWeight:
    """A weight in the order that an op reads."""
    return convert(weight, LAUNCHERS[name].READS)


def kind_of(name: str) -> str:
    """The canonical format that an op's weights have."""
    return "mxfp4" if "mxfp4" in name else "int4"


def linear(
    name: str, x: Tensor, packed: PackedWeight, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Run a linear on x, quantised here if the op wants it so."""
    weight = ordered(packed, name)
    rest = (weight.data, weight.scales, bias, residual, *weight.shape, weight.group_size)
    if name.endswith("a16"):
        return op(name)(x, *rest)
    activation = quantized_activation(name, x, packed)
    return op(name)(activation.codes, activation.scales, *rest)


def quantized_activation(name: str, x: Tensor, packed: PackedWeight) -> qk.QuantizedActivation:
    """x as an integer linear takes it."""
    bits = int(name[-1])
    return qk.quantize_act(x, bits=bits, group_size=packed.group_size if bits == 4 else None)


def check(
    name: str,
    shape: tuple[int, int, int],
    group: int,
    rng: torch.Generator,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> None:
    """An op against the reference: equal bits for integers, a budget for floats.

    With and without bias and residual; `dtypes` are those of x where it is not quantised.
    """
    m, k, n = shape
    weight = quantized(kind_of(name), torch.randn(n, k, generator=rng), group, on_device=False)
    x, bias = torch.randn(m, k, generator=rng), torch.randn(n, generator=rng)
    residual = torch.randn(m, n, generator=rng)
    if name.endswith("a16"):
        for dtype in dtypes:
            _check_float(name, x.to(dtype), weight, bias, residual.to(dtype))
        return
    activation = quantized_activation(name, x, weight.packed)
    operands = (activation.codes, activation.scales, weight.integers, weight.scales, weight.packed.group_size)
    assert same_bits(linear(name, x, weight.packed), integer_linear(*operands, None, dtype=torch.float32)), (
        "other bits than the definition's"
    )
    expected = residual + integer_linear(*operands, bias, dtype=torch.float32)
    out = linear(name, x, weight.packed, bias, residual)
    assert same_bits(out, expected), "bias or residual"
    on_cpu = qk.to_device_layout(weight.packed)
    assert same_bits(out, qk.linear(activation, on_cpu, bias, act=f"a{name[-1]}", residual=residual)), "cpp"


def _check_float(name: str, x: Tensor, weight: Quantized, bias: Tensor, residual: Tensor) -> None:
    rounded, values = x.bfloat16(), weight.values
    for some_bias in (None, bias):
        out = linear(name, x, weight.packed, some_bias)
        assert out.dtype == x.dtype
        low = F.linear(rounded.float(), values.float(), some_bias).to(x.dtype)
        assert_within_budget(out, exact_linear(rounded, values, some_bias), low)
    plus = linear(name, x, weight.packed, bias, residual)
    assert same_bits(plus, residual + out), "residual"


def check_rotation(
    width: int, block: int, group: int | None, dtype: torch.dtype, rng: torch.Generator
) -> None:
    """hadamard_quantize_act: the CPU's codes and scales bit for bit, the exact rotation within a rounding."""
    x = torch.randn(3, width, generator=rng).to(dtype)
    x[1] = 0
    base = hadamard_matrix(factor(block)[0])
    bits = 8 if group is None else 4
    size = width if group is None else group
    codes, scales = op("hadamard_quantize_act")(x, base, block, bits, size, 0.9)
    expected = qk.hadamard_quantize_act(x, block=block, bits=bits, group_size=group, clip=0.9)
    assert torch.equal(codes, expected.codes)
    assert same_bits(scales, expected.scales)
    exact = hadamard(x, hadamard_matrix(block))
    # a step of the code's grid where x is clipped, half of one elsewhere, and the roundings of x itself
    spread = scales.repeat_interleave(size, 1)[:, :width].double()
    limit = (2 ** (bits - 1) - 1) * spread
    error = codes.double() * spread - exact.clamp(-limit, limit)
    assert (error.abs() <= spread * 0.5 + exact.abs() * 2**-7 + 1e-6).all()
