"""Linears of every precision on one weight, and what people would use instead."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qspec_decode.bench import gate
from qspec_decode.bench.contender import Contender, Rotation
from qspec_decode.bench.shapes import LinearShape
from qspec_decode.bench.timing import Timed
from qspec_kernels import (
    PRECISIONS,
    PackedWeight,
    QuantizedActivation,
    Workspace,
    formats,
    linear,
    quantize_act,
    to_device_layout,
)

OPS = tuple(f"linear_{name}" for name in PRECISIONS)
PEERS = ("torch_linear_bf16", "torch_int4pack")
GROUP_SIZE = 128
# rows that are looked at before anything is timed; a row's result does not depend on the others
_CHECKED = 64
# rows that are quantised, which takes longer than all the rest; the others repeat them
_DISTINCT = 1024
_COMPUTE = {"fp32": "fp32", "bf16": "bf16", "a16": "bf16", "a8": "int8", "a4": "int8"}


class LinearCase:
    """One weight in every format that some ops read, each as often as it takes to be read from memory.

    Parameters
    ----------
    ops
        Of `OPS`; the peers come with them.
    rotation_bytes
        What the copies of a format take together, at least; few rows read all of them.
    many_rows_bytes
        The same for many rows, where one call takes long and memory bounds it less.
    """

    def __init__(self, shape: LinearShape, ops: Sequence[str], rotation_bytes: int, many_rows_bytes: int):
        self.shape = shape
        self._ops = [op for op in OPS if op in ops]
        self._sizes = rotation_bytes, many_rows_bytes
        self._workspace = Workspace()
        self._generator = torch.Generator().manual_seed(0)
        weight = torch.randn(min(shape.n, _DISTINCT), shape.k, generator=self._generator) / math.sqrt(shape.k)
        self._picked = torch.linspace(0, shape.n - 1, min(_CHECKED, shape.n)).round().long()
        # tensors, or packed weights
        self._copies: dict[str, list[Any]] = {}
        self._checked: dict[str, Any] = {}
        kinds = {PRECISIONS[op.removeprefix("linear_")].weights for op in self._ops}
        for kind in ("fp32", "bf16"):
            if kind in kinds or (kind == "bf16" and kinds):
                self._add_dense(kind, self._tall(weight.bfloat16() if kind == "bf16" else weight))
        if "mxfp4" in kinds:
            codes, scales = formats.get("mxfp4").quantize(weight)
            self._add_packed("mxfp4", self._tall(codes), self._tall(scales), 32)
        if "int4" in kinds:
            codes, scales = map(self._tall, formats.get("int4").quantize(weight, GROUP_SIZE))
            self._add_packed("int4", codes, scales, GROUP_SIZE)
            self._add_int4pack(codes, scales)

    def contenders(self, rows: int) -> list[Contender]:
        """Every op and every peer on `rows` rows, recorded and ready."""
        x = torch.randn(rows, self.shape.k, generator=self._generator)
        rotations = {kind: self._rotation(kind, rows) for kind in self._copies}
        found = [self._native(op, x, rotations) for op in self._ops]
        if "bf16" in rotations:
            found.append(self._torch_bf16(x, rotations["bf16"]))
        if "int4pack" in rotations:
            found.append(self._torch_int4pack(x, rotations["int4pack"]))
        return found

    def _tall(self, part: Tensor) -> Tensor:
        """As many rows as the shape has, from some of them."""
        return part.repeat(-(-self.shape.n // len(part)), 1)[: self.shape.n].contiguous()

    def _add_dense(self, kind: str, weight: Tensor) -> None:
        self._copies[kind] = [weight.clone() for _ in range(self._count(weight.nbytes))]
        self._checked[kind] = weight[self._picked]

    def _add_packed(self, kind: str, codes: Tensor, scales: Tensor, group_size: int) -> None:
        packed = formats.get(kind).pack(codes, scales, group_size)
        native = to_device_layout(packed)
        self._copies[kind] = [
            PackedWeight(
                native.data.clone(), native.scales.clone(), native.format, native.shape, native.group_size
            )
            for _ in range(self._count(native.num_bytes))
        ]
        # in the canonical order, which plain PyTorch serves
        shape = len(self._picked), self.shape.k
        self._checked[kind] = PackedWeight(
            packed.data[self._picked], packed.scales[self._picked], kind, shape, packed.group_size
        )

    def _add_int4pack(self, codes: Tensor, scales: Tensor) -> None:
        if self.shape.n % 64 or self.shape.k % GROUP_SIZE:
            return
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        data = pack(codes.int() + 8, 2)
        spread = torch.stack((scales, torch.zeros_like(scales)), 2).transpose(0, 1).contiguous()
        self._int4pack_scales = spread.bfloat16()
        self._copies["int4pack"] = [data.clone() for _ in range(self._count(data.nbytes))]
        rounded = scales[self._picked].bfloat16().double().repeat_interleave(GROUP_SIZE, 1)
        self._checked["int4pack"] = codes[self._picked].double() * rounded

    def _count(self, num_bytes: int) -> int:
        return max(2, -(-self._sizes[0] // num_bytes))

    def _rotation(self, kind: str, rows: int) -> Rotation:
        copies = self._copies[kind]
        size = _num_bytes(copies[0])
        wanted = self._sizes[rows > 16]
        return Rotation(size, min(len(copies), max(2, -(-wanted // size))))

    def _native(self, op: str, x: Tensor, rotations: dict[str, Rotation]) -> Contender:
        served = PRECISIONS[op.removeprefix("linear_")]
        copies, act = self._copies[served.weights], served.act or "a16"

        def call(copy: int) -> Tensor:
            return linear(x, copies[copy], act=act)

        def check() -> None:
            out, weight = call(len(copies) - 1)[:, self._picked], self._checked[served.weights]
            if isinstance(weight, PackedWeight) and act != "a16":
                group_size = weight.group_size if act == "a4" else None
                codes = quantize_act(x, bits=int(act[1:]), group_size=group_size)
                gate.same(op, out, _by_torch(codes, weight))
                return
            values = formats.dequantize(weight) if isinstance(weight, PackedWeight) else weight
            rounded = x if served.weights == "fp32" else x.bfloat16().float()
            exact, low = rounded.double() @ values.double().T, F.linear(rounded, values.float())
            gate.close(op, out, exact, low)

        timed = rotations[served.weights].recorded(self._workspace, call)
        return self._contender(op, x, timed, copies[0], (_COMPUTE[served.act or served.weights], check))

    def _torch_bf16(self, x: Tensor, rotation: Rotation) -> Contender:
        x = x.bfloat16()
        copies = self._copies["bf16"]
        return self._peer(PEERS[0], x, rotation, copies, lambda copy: F.linear(x, copies[copy]))

    def _torch_int4pack(self, x: Tensor, rotation: Rotation) -> Contender:
        x, scales = x.bfloat16(), self._int4pack_scales
        copies = self._copies["int4pack"]
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return self._peer(
            PEERS[1], x, rotation, copies, lambda copy: multiply(x, copies[copy], GROUP_SIZE, scales)
        )

    def _peer(
        self,
        name: str,
        x: Tensor,
        rotation: Rotation,
        copies: Sequence[Tensor],
        call: Callable[[int], Tensor],
    ) -> Contender:
        def check() -> None:
            values = self._checked[name.removeprefix("torch_").removeprefix("linear_")]
            exact = x.double() @ values.double().T
            low = F.linear(x.float(), values.float()).bfloat16()
            gate.close(name, call(len(copies) - 1)[:, self._picked], exact, low)

        return self._contender(name, x, rotation.called(call), copies[0], ("bf16", check))

    def _contender(
        self,
        op: str,
        x: Tensor,
        timed: Timed,
        weight: Tensor | PackedWeight,
        compute_and_check: tuple[str, Callable[[], None]],
    ) -> Contender:
        rows, (n, k) = len(x), (self.shape.n, self.shape.k)
        size = _num_bytes(weight) + rows * (n + k) * x.itemsize
        size += self._int4pack_scales.nbytes if op == PEERS[1] else 0
        compute, check = compute_and_check
        return Contender(
            op,
            self.shape.name,
            rows,
            timed,
            size,
            2 * rows * n * k,
            compute,
            check,
            is_peer=op in PEERS,
        )


def _num_bytes(weight: Tensor | PackedWeight) -> int:
    return weight.num_bytes if isinstance(weight, PackedWeight) else weight.nbytes


def _by_torch(x: QuantizedActivation, weight: PackedWeight) -> Tensor:
    """The product by the plain torch path, which is there for weights in the canonical order."""
    with warnings.catch_warnings():
        # that says that this is slow
        warnings.simplefilter("ignore")
        return linear(x, weight)
