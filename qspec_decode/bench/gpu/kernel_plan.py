"""Which kernels `qspec bench gpu` times, in which order: what a budget leaves out stands last."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qspec_decode.bench import shapes
from qspec_decode.bench.gpu import linear_case, op_case
from qspec_decode.bench.gpu.device import Device
from qspec_decode.bench.gpu.linear_case import LinearCase, memory_needed
from qspec_decode.bench.gpu.request import Request
from qspec_decode.bench.gpu.timing import Contender
from qspec_decode.bench.shapes import LinearShape

# more rows than that come last
_FEW_ROWS = 128


@dataclass(frozen=True)
class Task:
    """Contenders that are timed against each other, not yet made.

    Parameters
    ----------
    what
        For people, and for the list of what the budget dropped.
    make
        Makes them; (contenders, skipped peers).
    num_bytes
        Of memory, at most.
    """

    what: str
    make: Callable[[], tuple[list[Contender], list[dict[str, str]]]]
    num_bytes: int


def tasks(request: Request, device: Device) -> Iterator[Task]:
    """What is timed: few rows of every shape, the smallest first; other ops; then many rows."""
    chosen = shapes.choose(request.shapes)
    ops = [op for op in linear_case.OPS if op in request.names]
    ordered = sorted(chosen.linears, key=lambda shape: shape.n * shape.k) if ops else []
    few, many = ([m for m in sorted(request.rows) if (m > _FEW_ROWS) == more] for more in (False, True))
    for shape in ordered:
        yield from _linears(device, shape, ops, few)
    for model in sorted(chosen.models, key=lambda model: model.hidden):
        if "attention" in request.names:
            size = 4 * request.batch * model.kv_heads * request.keys * model.head_dim
            yield Task(
                f"attention of {model.name}",
                lambda model=model: (op_case.attentions(device, model, request.keys, request.batch), []),
                4 * size,
            )
        if "hadamard_quantize_act" in request.names:
            for m in sorted(request.rows):
                for width in dict.fromkeys((model.hidden, model.intermediate)):
                    yield Task(
                        f"hadamard_quantize_act of {model.name} {width}, M = {m}",
                        lambda model=model, width=width, m=m: (op_case.rotation(device, model, width, m), []),
                        16 * m * width + 64 * device.l2_bytes,
                    )
    for shape in ordered:
        yield from _linears(device, shape, ops, many)


def _linears(device: Device, shape: LinearShape, ops: Sequence[str], rows: Sequence[int]) -> Iterator[Task]:
    """One task for each number of rows; they share the weights, which the first that is run makes."""
    made: list[LinearCase] = []

    def make(m: int) -> tuple[list[Contender], list[dict[str, str]]]:
        if not made:
            made.append(LinearCase(device, shape, ops))
        return list(made[0].contenders(m)), made[0].skipped

    for m in rows:
        activations = 64 * m * (shape.n + shape.k)
        needed = activations + (0 if made else memory_needed(device, shape))
        yield Task(f"linears of {shape.name}, M = {m}", lambda m=m: make(m), needed)
