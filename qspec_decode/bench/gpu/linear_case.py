"""Linears of every backend on one weight, and what people would use instead."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qspec_decode.bench import gate
from qspec_decode.bench.gpu import cases_linear, peers
from qspec_decode.bench.gpu.backends import function, order, serving
from qspec_decode.bench.gpu.case import PREFILL
from qspec_decode.bench.gpu.device import Device
from qspec_decode.bench.gpu.timing import Contender, copies
from qspec_decode.bench.shapes import LinearShape
from qspec_kernels import PRECISIONS, PackedWeight, Precision, formats

OPS = tuple(op for op in cases_linear.OPS if op != "linear_fp32")
GROUP_SIZE = 128
# rows that a prompt has at least, and a verification at most: between them both phases are timed
_LEAST_PROMPT, _MOST_VERIFIED = 128, 512
# rows of x and of the weight that are looked at before anything is timed
_CHECKED_ROWS, _CHECKED_OUTPUTS = 16, 64
# matrix units add several products at a time and cut off what does not fit
_ROUNDED_TOGETHER = 32
# of making a weight in all formats, per element
_BYTES_IN_THE_MAKING = 32


def memory_needed(device: Device, shape: LinearShape) -> int:
    """Bytes that a case takes at most, copies of all formats and their making included."""
    return _BYTES_IN_THE_MAKING * shape.n * shape.k + 8 * 2 * device.l2_bytes


class LinearCase:
    """One weight in every format that some ops read, copied so often that no cache keeps it.

    Parameters
    ----------
    ops
        Of `OPS`; the peers come with them, and `skipped` says why some do not.
    """

    def __init__(self, device: Device, shape: LinearShape, ops: Sequence[str]):
        self._device, self.shape = device, shape
        self._ops = [op for op in OPS if op in ops]
        self._generator = torch.Generator(device.device).manual_seed(0)
        n, k = shape.n, shape.k
        weight = self._random(n, k) / math.sqrt(k)
        self._picked = torch.linspace(0, n - 1, min(n, _CHECKED_OUTPUTS)).round().long().to(device.device)
        # by byte order; what their picked rows stand for, by format
        self._copies: dict[str, list[Any]] = {}
        self._values: dict[str, Tensor] = {}
        self._peers: list[peers.Peer] = []
        self.skipped: list[dict[str, str]] = []
        dense = weight.bfloat16()
        self._values["bf16"] = dense[self._picked].double()
        self._copies["bf16"] = [dense.clone() for _ in range(copies(device, dense.nbytes))]
        kinds = {_precision(op).weights for op in self._ops}
        if "mxfp4" in kinds:
            codes, scales = formats.get("mxfp4").quantize(weight)
            self._add("mxfp4", codes, scales, 32)
        if "int4" in kinds:
            codes, scales = formats.get("int4").quantize(weight, GROUP_SIZE)
            self._add("int4", codes, scales, GROUP_SIZE)
            del weight
            self._peers, self.skipped = peers.prepare(device, codes, scales, GROUP_SIZE, self._picked)

    def contenders(self, rows: int) -> Iterator[Contender]:
        """Every op on every backend that serves it, and every peer, on `rows` rows.

        Of two phases of an op only those are timed that so many rows come in.
        """
        x = self._random(rows, self.shape.k).bfloat16()
        for op in self._ops:
            other = op.removesuffix(PREFILL) if op.endswith(PREFILL) else op + PREFILL
            rare = rows < _LEAST_PROMPT if op.endswith(PREFILL) else rows > _MOST_VERIFIED
            if rare and other in self._ops and serving(self._device, other):
                continue
            for backend in serving(self._device, op):
                yield self._own(op, backend, x)
        dense = self._copies["bf16"]
        yield self._contender(
            ("cublas_bf16", "torch"),
            x,
            lambda copy: F.linear(x, dense[copy]),
            dense,
            (x, self._values["bf16"]),
        )
        for peer in self._peers:
            taken = x.to(peer.dtype)
            call = partial(peer.call, taken)
            right = taken, peer.values
            yield self._contender((peer.name, peer.name), x, call, peer.copies, right)

    def _own(self, op: str, backend: str, x: Tensor) -> Contender:
        served, run = _precision(op), function(backend, op)
        if served.act is None:
            dense = self._copies["bf16"]
            right = x, self._values["bf16"]
            return self._contender(
                (op, backend), x, lambda copy: run(x, dense[copy], None, None), dense, right
            )
        values, packed = self._values[served.weights], self._packed(served.weights, order(backend, op))
        taken: tuple[Tensor, ...] = (x,)
        rounded = x
        group = packed[0].group_size
        if served.act != "a16":
            bits, of = int(served.act[1:]), group if served.act == "a4" else self.shape.k
            taken = function("torch", "quantize_act")(x.float(), bits, of, 1.0)
            rounded = taken[0].double() * taken[1].double().repeat_interleave(of, 1)[:, : self.shape.k]

        def call(copy: int) -> Tensor:
            one = packed[copy]
            return run(*taken, one.data, one.scales, None, None, *one.shape, group)

        return self._contender((op, backend), x, call, packed, (rounded, values))

    def _contender(
        self,
        names: tuple[str, str],
        x: Tensor,
        call: Callable[[int], Tensor],
        weights: Sequence[Any],
        right: tuple[Tensor, Tensor],
    ) -> Contender:
        (rows, k), n = x.shape, self.shape.n
        one = weights[0]
        weight = one.num_bytes if isinstance(one, PackedWeight) else peers.num_bytes(one)
        integer = names[0].startswith("linear_") and _precision(names[0]).act in ("a8", "a4")
        # codes in and float32 out, or 16 bits each
        size = weight + (rows * (k + 4 * n) if integer else 2 * rows * (k + n))

        def check() -> None:
            out = call(len(weights) - 1)[:_CHECKED_ROWS, self._picked]
            rounded, values = (part.double() for part in (right[0][:_CHECKED_ROWS], right[1]))
            exact = rounded @ values.T
            low = F.linear(rounded.float(), values.float()).to(out.dtype)
            gate.close(f"{names[0]} ({names[1]})", out, exact, low, -(-k // _ROUNDED_TOGETHER))

        own = names[0].startswith("linear_")
        return Contender(
            *names, self.shape.name, rows, call, len(weights), size, 2 * rows * n * k, check,
            peer=not own, weight_bytes=weight,
        )  # fmt: skip

    def _add(self, kind: str, codes: Tensor, scales: Tensor, group: int) -> None:
        module = formats.get(kind)
        self._copies[kind] = [module.pack(codes, scales, group)]
        picked = module.pack(codes[self._picked], scales[self._picked], group)
        self._values[kind] = formats.dequantize(picked).double()

    def _packed(self, kind: str, wanted: str) -> list[PackedWeight]:
        """Copies in a byte order, made when they are first asked for."""
        if len(self._copies.get(wanted, ())) < 2:
            one = formats.convert(self._copies[kind][0], wanted)
            self._copies[wanted] = [
                one,
                *(_clone(one) for _ in range(copies(self._device, one.num_bytes) - 1)),
            ]
        return self._copies[wanted]

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device.device)


def _precision(op: str) -> Precision:
    """What an op computes, in either phase."""
    return PRECISIONS[op.removeprefix("linear_").removesuffix(PREFILL)]


def _clone(one: PackedWeight) -> PackedWeight:
    return PackedWeight(one.data.clone(), one.scales.clone(), one.format, one.shape, one.group_size)
