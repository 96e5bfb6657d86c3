"""Ops as PyTorch knows them, on tensors of the device: schema, fake kernel, tracing with varying shapes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qspec_decode.bench.gpu.backends import forced, order, serving
from qspec_decode.bench.gpu.case import Case, first_and_last
from qspec_decode.bench.gpu.correctness import Verdict, same, tensors
from qspec_decode.bench.gpu.device import Device
from qspec_kernels import PRECISIONS, PackedWeight, formats

KINDS = OPCHECK, COMPILED = ("opcheck", "compiled")
# all that opcheck does unless told
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
_ROWS = 5
# rows that what was compiled once is called with, if the shapes vary; a single one is traced for itself
COUNTS = (5, 2, 17, 1)


def check(device: Device, cases: Sequence[Case]) -> Iterator[Verdict]:
    """An op on every backend that serves it, in turn: `torch.library.opcheck`, then `torch.compile`.

    Linears are looked at in all their cases, formats and group sizes among them; of others the first and the
    last will do, and of what is compiled.
    """
    few = first_and_last(cases)
    for backend in serving(device, cases[0].op) if cases else ():
        for case in cases if cases[0].definition.startswith("linear_") else few:
            yield _verdict(_opchecked, OPCHECK, device, case, backend)
        for case in few if COUNTS else ():
            yield _verdict(_compiled, COMPILED, device, case, backend)


def _verdict(
    look: Callable[[Device, Case, str], Iterator[str]], kind: str, device: Device, case: Case, backend: str
) -> Verdict:
    failed: list[str] = []
    try:
        with forced(backend, case.op):
            failed += look(device, case, backend)
    except Exception as error:  # whatever is raised belongs into the table
        failed.append(_told(kind, error))
    return Verdict(case.op, backend, case.shape, _ROWS, "; ".join(failed), None, None, (kind,))


def _opchecked(device: Device, case: Case, backend: str) -> Iterator[str]:
    """What is wrong."""
    op, args = registered(device, case, backend)
    results: dict[str, Any] = torch.library.opcheck(
        op, tuple(args), test_utils=UTILITIES, raise_exception=False
    )
    for test, error in results.items():
        if isinstance(error, Exception):
            yield _told(test, error)


def _compiled(device: Device, case: Case, backend: str) -> Iterator[str]:
    """Numbers of rows with which a trace gives, or writes, something else than the op."""
    op, given = registered(device, case, backend)
    places = [place for place, one in enumerate(given) if isinstance(one, Tensor)]

    def call(*own: Tensor) -> Any:
        args = list(given)
        for place, one in zip(places, own, strict=True):
            args[place] = one
        return op(*args)

    # traces of other ops through this code count, and after a few of them nothing is traced any more
    torch.compiler.reset()
    traced = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in COUNTS:
        # what is written into is told by the arguments afterwards
        right, found = (
            [one for one in registered(device, case, backend, rows)[1] if isinstance(one, Tensor)]
            for _ in range(2)
        )
        if not same([*tensors(call(*right)), *right], [*tensors(traced(*found)), *found]):
            yield f"M = {rows}: not what the op gives"


def _told(what: str, error: Exception) -> str:
    message = next(filter(str.strip, str(error).splitlines()), "")
    return f"{what}: {type(error).__name__}: {message}"


def registered(device: Device, case: Case, backend: str, rows: int = _ROWS) -> tuple[Any, list[Any]]:
    """The op of `torch.ops.qspec`, and its arguments for tokens as a backend reads them, on the device."""
    name, args = _arguments(case, backend, rows)
    moved = [
        # a copy: some ops write into their arguments
        one.to(device=device.device, copy=True) if isinstance(one, Tensor) else one
        for one in args
    ]
    return getattr(torch.ops.qspec, name).default, moved


def _arguments(case: Case, backend: str, rows: int) -> tuple[str, list[Any]]:
    name, args = case.definition, list(case.first(rows))
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
    packed = formats.convert(args[place], order(backend, case.op))
    args = [*args[:place], packed.data, packed.scales, *args[place + 1 : -3], packed.format, *args[-3:]]
    if act == "a16":
        return "linear_packed", [*args, phase]
    return "linear_integer", [*args, int(act[1:]), phase]
