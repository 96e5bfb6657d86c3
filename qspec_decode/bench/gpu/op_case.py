"""Rotation with quantisation beside a copy of the same bytes, and attention of one and of several queries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qspec_decode.bench import gate
from qspec_decode.bench.gpu.backends import function, serving
from qspec_decode.bench.gpu.cases import hadamard_base
from qspec_decode.bench.gpu.device import Device
from qspec_decode.bench.gpu.timing import Contender, copies
from qspec_decode.bench.shapes import ModelShape
from qspec_kernels import largest_block

OPS = ("hadamard_quantize_act", "attention")
QUERIES = (1, 4)
"""Tokens of each sequence: a step, and the verification of three drafts."""
_CHECKED_ROWS = 16


def rotation(device: Device, model: ModelShape, width: int, rows: int) -> list[Contender]:
    """Rotating and quantising inputs of a width, beside a copy of as many bytes."""
    block = largest_block(width)
    base = hadamard_base(block).to(device.device)
    # 16 bits in, codes and a scale out
    size = rows * (3 * width + 4)
    generator = torch.Generator(device.device).manual_seed(0)
    inputs = [
        torch.randn(rows, width, generator=generator, device=device.device).bfloat16()
        for _ in range(copies(device, size))
    ]
    sources = [torch.zeros(size // 2, dtype=torch.uint8, device=device.device) for _ in inputs]
    targets = [torch.empty_like(one) for one in sources]
    name, count = f"{model.name} {width}", len(inputs)

    def own(backend: str) -> Contender:
        run = function(backend, "hadamard_quantize_act")

        def call(copy: int) -> tuple[Tensor, Tensor]:
            return run(inputs[copy], base, block, 8, width, 1.0)

        def check() -> None:
            _check_rotation(backend, inputs[0], base, block, call(0))

        return Contender("hadamard_quantize_act", backend, name, rows, call, count, size, 0, check)

    def copy_bytes(copy: int) -> None:
        targets[copy].copy_(sources[copy])

    peer = Contender(
        "copy_of_its_bytes", "torch", name, rows, copy_bytes, count, size, 0, lambda: None, peer=True
    )
    return [*map(own, serving(device, "hadamard_quantize_act")), peer]


def _check_rotation(backend: str, x: Tensor, base: Tensor, block: int, out: tuple[Tensor, Tensor]) -> None:
    codes, scales = (part[:_CHECKED_ROWS].double() for part in out)
    x, turn = x[:_CHECKED_ROWS], function("torch", "hadamard")
    exact, low = (turn(one.view(-1, block), base, False, None).view(x.shape) for one in (x.double(), x))
    # what is left of the distance when half a step, for rounding to a code, is taken off
    off = codes * scales - exact
    left = off.sign() * (off.abs() - scales / 2).clamp(min=0)
    gate.close(f"hadamard_quantize_act ({backend})", (exact + left).bfloat16(), exact, low, roundings=2)


def attentions(device: Device, model: ModelShape, keys: int, batch: int) -> list[Contender]:
    """Attention with each of `QUERIES` over one cache, which no cache of the device holds."""
    generator = torch.Generator(device.device).manual_seed(0)
    shape = batch, model.kv_heads, keys, model.head_dim
    caches = [
        torch.randn(shape, generator=generator, device=device.device, dtype=torch.bfloat16) for _ in range(2)
    ]
    return [
        _attention(device, backend, model, caches, each)
        for backend in serving(device, "attention")
        for each in QUERIES
    ]


def _attention(
    device: Device, backend: str, model: ModelShape, caches: Sequence[Tensor], each: int
) -> Contender:
    batch, _, keys, d = caches[0].shape
    tokens = batch * each
    q = torch.randn(tokens, model.heads, d, device=device.device).bfloat16()
    slots = torch.arange(tokens, dtype=torch.int32, device=device.device)
    rows, positions = slots // each, keys - each + slots % each
    run = function(backend, "attention")

    def call(_: int) -> Tensor:
        return run(q, *caches, rows, positions, d**-0.5, -1)

    def check() -> None:
        # the first sequence alone
        some = slice(0, each)
        args = [part[:1] for part in caches], rows[some], positions[some], d**-0.5, -1
        exact, low = (
            function("torch", "attention")(q[some].to(kind), *args[0], *args[1:])
            for kind in (torch.float64, torch.bfloat16)
        )
        gate.close(f"attention ({backend})", call(0)[some], exact, low, roundings=2)

    size = sum(one.nbytes for one in caches) + 2 * q.nbytes
    work = 4 * tokens * model.heads * d * keys
    name = f"{model.name} q={each} kv={keys}"
    return Contender("attention", backend, name, tokens, call, 1, size, work, check)
