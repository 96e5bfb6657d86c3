"""Ops as PyTorch knows them, on tensors of the device: schema, fake kernel, tracing with varying shapes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.gpu.case import Case
from qspec_decode.bench.gpu.correctness import Verdict
from qspec_decode.bench.gpu.device import Device
from qspec_kernels import PRECISIONS, PackedWeight, to_device_layout

# named as the backend, which the op finds by itself
BACKEND = "opcheck"
# all that opcheck does unless told
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
_ROWS = 5


def check(device: Device, cases: Sequence[Case]) -> Iterator[Verdict]:
    """`torch.library.opcheck` of an op on the first and the last of its cases."""
    for case in (*cases[:1], *cases[1:][-1:]):
        yield Verdict(case.op, BACKEND, case.shape, _ROWS, "; ".join(_failed(device, case)), None, None)


def _failed(device: Device, case: Case) -> Iterator[str]:
    """What is wrong."""
    try:
        name, args = registered(device, case)
        op = getattr(torch.ops.qspec, name).default
        results: dict[str, Any] = torch.library.opcheck(
            op, tuple(args), test_utils=UTILITIES, raise_exception=False
        )
    except Exception as error:  # whatever is raised belongs into the table
        results = {"opcheck": error}
    for test, error in results.items():
        if isinstance(error, Exception):
            message = next(filter(str.strip, str(error).splitlines()), "")
            yield f"{test}: {type(error).__name__}: {message}"


def registered(device: Device, case: Case) -> tuple[str, list[Any]]:
    """Name of the op in `torch.ops.qspec`, and its arguments for a few tokens on the device."""
    name = case.definition
    args = [_moved(one, device.device) for one in case.first(_ROWS)]
    if not name.startswith("linear_"):
        if "hadamard" in name:
            # ops look the matrix up
            del args[1]
        if name == "hadamard":
            args.insert(1, args[0].shape[-1])
        return name, args
    act = PRECISIONS[name.removeprefix("linear_")].act
    phase = "decode" if case.op == name else "prefill"
    if act is None:
        return "linear", [*args, phase]
    place = next(place for place, one in enumerate(args) if isinstance(one, PackedWeight))
    packed = args[place]
    args = [*args[:place], packed.data, packed.scales, *args[place + 1 : -3], packed.format, *args[-3:]]
    if act == "a16":
        return "linear_packed", [*args, phase]
    return "linear_integer", [*args, int(act[1:]), phase]


def _moved(one: Any, device: torch.device) -> Any:
    if isinstance(one, PackedWeight):
        return to_device_layout(one, device)
    # a copy: some ops write into their arguments
    return one.to(device=device, copy=True) if isinstance(one, Tensor) else one
