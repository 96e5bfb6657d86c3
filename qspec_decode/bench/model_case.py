"""What cases of ops on a model's widths share."""

from collections.abc import Callable

import torch
from torch import Tensor

from qspec_decode.bench.contender import Contender, Rotation
from qspec_decode.bench.shapes import ModelShape
from qspec_kernels import Workspace

# calls of what has no copies: enough for one program
_MANY = 64


class ModelCase:
    """Random numbers that are the same in every run, and ops whose operands need no copies.

    Parameters
    ----------
    rotation_bytes, many_rows_bytes
        As in `LinearCase`; of caches and logits.
    """

    def __init__(self, model: ModelShape, rotation_bytes: int, many_rows_bytes: int):
        self._model = model
        self._sizes = rotation_bytes, many_rows_bytes
        self._workspace = Workspace()
        self._generator = torch.Generator().manual_seed(0)

    def _in_caches(
        self,
        op: str,
        x: Tensor,
        out_bytes: float,
        operations: int,
        call: Callable[[], object],
        check: Callable[[], None],
    ) -> Contender:
        """An op whose operands the kernels before it wrote; `out_bytes`, `operations` per element of x."""
        size = x.nbytes + round(out_bytes * x.numel())
        timed = Rotation(size, _MANY).recorded(self._workspace, lambda _: call())
        work = operations * x.numel()
        return Contender(op, self._model.name, len(x), timed, size, work, "fp32", check, from_memory=False)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)
