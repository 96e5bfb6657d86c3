"""The kernels behind the output matrix: from logits to a token."""

import torch
from torch import Tensor

from qspec_decode.bench import gate
from qspec_decode.bench.contender import Contender
from qspec_decode.bench.model_case import ModelCase
from qspec_kernels import argmax, draw, draw_residual, softmax

OPS = ("argmax", "softmax", "draw", "draw_residual")
TEMPERATURE = 0.8
_CHECKED = 8


class SamplingCase(ModelCase):
    """Ops on rows of logits, as many columns as the model has tokens."""

    def _argmax(self, rows: int) -> Contender:
        x = self._random(rows, self._model.vocab)

        def check() -> None:
            gate.same("argmax", argmax(x), x.argmax(1))

        return self._in_caches("argmax", x, 0.0, 1, lambda: argmax(x), check)

    def _softmax(self, rows: int) -> Contender:
        x = self._random(rows, self._model.vocab)

        def check() -> None:
            picked = _picked(rows)
            exact = (x[picked].double() / TEMPERATURE).softmax(1)
            low = (x[picked] / TEMPERATURE).softmax(1)
            gate.close("softmax", softmax(x, TEMPERATURE)[picked], exact, low)

        return self._in_caches("softmax", x, 4.0, 4, lambda: softmax(x, TEMPERATURE), check)

    def _draw(self, rows: int) -> Contender:
        p, uniforms = self._distributions(rows), self._uniforms(rows)

        def check() -> None:
            picked = _picked(rows)
            gate.same("draw", draw(p, uniforms)[picked], _drawn(p[picked], uniforms[picked]))

        return self._in_caches("draw", p, 0.0, 1, lambda: draw(p, uniforms), check)

    def _draw_residual(self, rows: int) -> Contender:
        p, q, uniforms = self._distributions(rows), self._distributions(rows), self._uniforms(rows)

        def check() -> None:
            picked = _picked(rows)
            left = (p[picked] - q[picked]).clamp(min=0)
            found = draw_residual(p, q, uniforms)[picked]
            gate.same("draw_residual", found, _drawn(left, uniforms[picked]))

        return self._in_caches("draw_residual", p, 4.0, 3, lambda: draw_residual(p, q, uniforms), check)

    def _distributions(self, rows: int) -> Tensor:
        return self._random(rows, self._model.vocab).softmax(1)

    def _uniforms(self, rows: int) -> Tensor:
        return torch.rand(rows, dtype=torch.float64, generator=self._generator)


def _picked(rows: int) -> Tensor:
    """Some rows, the first and the last among them: checking takes memory and time."""
    return torch.linspace(0, rows - 1, min(rows, _CHECKED)).round().long()


def _drawn(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first index of each row whose running sum exceeds the row's share of its sum."""
    sums = weights.double().cumsum(1)
    return torch.searchsorted(sums, sums[:, -1:] * uniforms[:, None], right=True)[:, 0]
