"""Four-bit linears that others wrote, on the same codes: PyTorch's tinygemm, and gemlite where installed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.gpu.device import Device
from qspec_decode.bench.gpu.timing import copies

_INNER_TILES = 8


@dataclass(frozen=True)
class Peer:
    """A linear of somebody else.

    Parameters
    ----------
    call
        (x [M, K], which copy) -> [M, N].
    dtype
        What x has to be.
    copies
        Its weight, again and again.
    values
        float64: what the picked rows of its weight stand for, as its scales are rounded.
    """

    name: str
    call: Callable[[Tensor, int], Tensor]
    dtype: torch.dtype
    copies: list[Any]
    values: Tensor


def prepare(
    device: Device, codes: Tensor, scales: Tensor, group_size: int, picked: Tensor
) -> tuple[list[Peer], list[dict[str, str]]]:
    """(peers that serve a weight, {"peer", "reason"} of the others).

    Parameters
    ----------
    codes, scales
        int8 [N, K] of -8..7, and float16 [N, groups].
    picked
        Outputs that are looked at, int64.
    """
    ready, skipped = [], []
    for name, make in (("tinygemm", _tinygemm), ("gemlite", _gemlite)):
        try:
            ready.append(make(device, codes, scales, group_size, picked))
        # a peer that is missing, or another version than is known here, is no reason not to measure
        except Exception as error:
            skipped.append({"peer": name, "reason": f"{type(error).__name__}: {error}".splitlines()[0]})
    return ready, skipped


def num_bytes(one: Any) -> int:
    """Bytes of a weight: a tensor, or several."""
    return sum(map(num_bytes, one)) if isinstance(one, tuple) else one.nbytes


def _tinygemm(device: Device, codes: Tensor, scales: Tensor, group_size: int, picked: Tensor) -> Peer:
    n, k = codes.shape
    if (
        device.device.type != "cuda"
        or n % 8
        or k % (16 * _INNER_TILES)
        or group_size not in (32, 64, 128, 256)
    ):
        raise ValueError(f"does not serve {k}x{n} on {device.device.type}")
    nibbles = (codes + 8).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(nibbles[:, ::2] << 4 | nibbles[:, 1::2], _INNER_TILES)
    rounded = scales.bfloat16().t().contiguous()
    # it computes (nibble - 8) * scale + zero
    pairs = torch.stack((rounded, torch.zeros_like(rounded)), 2).contiguous()
    weights = [(packed.clone(), pairs) for _ in range(copies(device, packed.nbytes))]

    def call(x: Tensor, copy: int) -> Tensor:
        data, scales_and_zeros = weights[copy]
        return torch.ops.aten._weight_int4pack_mm(x, data, group_size, scales_and_zeros)

    return Peer(
        "tinygemm",
        call,
        torch.bfloat16,
        weights,
        _values(codes[picked], scales.bfloat16()[picked], group_size),
    )


def _gemlite(device: Device, codes: Tensor, scales: Tensor, group_size: int, picked: Tensor) -> Peer:
    if find_spec("gemlite") is None:
        raise ImportError("gemlite is not installed")
    from gemlite.core import DType, GemLiteLinear  # pyright: ignore[reportMissingImports]

    n, k = codes.shape
    nibbles = (codes + 8).to(torch.uint8)
    layers: list[Any] = []
    for _ in range(copies(device, n * k // 2)):
        layer = GemLiteLinear(
            4, group_size=group_size, in_features=k, out_features=n,
            input_dtype=DType.FP16, output_dtype=DType.FP16,
        )  # fmt: skip
        # it computes (nibble - zero) * scale
        layer.pack(nibbles, scales.clone(), torch.full_like(scales, 8), None)
        layers.append(layer)
    weights = [(layer.W_q, layer.scales) for layer in layers]
    values = _values(codes[picked], scales[picked], group_size)
    return Peer("gemlite", lambda x, copy: layers[copy](x), torch.float16, weights, values)


def _values(codes: Tensor, scales: Tensor, group_size: int) -> Tensor:
    return codes.double() * scales.double().repeat_interleave(group_size, 1)[:, : codes.shape[1]]
